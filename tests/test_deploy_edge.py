"""The edge runtimes: read back by their own interfaces, not by ours. Without their extras these tests are skipped.

They are not in ``dev``. ExecuTorch and ncnn install beside it (``pip install -c constraints.txt -e
".[dev,executorch,ncnn]"``); LiteRT's converter needs an environment of its own (``pip install -e ".[deploy,litert]"
hypothesis pytest pytest-timeout pytest-xdist``).
"""

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import timm
import torch

from rdpnet_timm import RDPNet
from rdpnet_timm.deploy import Calibration, export
from rdpnet_timm.deploy.calibration import Preprocessing
from rdpnet_timm.deploy.edge import quantize_executorch
from rdpnet_timm.measure.difference import randomize_norms

SIZE = (3, 15, 17)  # ncnn lays maps out by 16 bytes, and these are not a multiple of that
NEEDS = {
    "executorch": ("executorch",),
    "litert": ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
    "ncnn": ("ncnn", "pnnx"),
}
SUFFIXES = {"executorch": ".pte", "litert": ".tflite", "ncnn": ".ncnn.param"}


def installed(*names):
    return [
        pytest.param(name, marks=[
            pytest.mark.skipif(not all(map(find_spec, NEEDS[name])), reason=f'needs "rdpnet-timm[{name}]"'),
            pytest.mark.slow,
        ])
        for name in names
    ]  # fmt: skip


def run_executorch(path, image):
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return method.execute([torch.from_numpy(image)])[0].numpy()


def run_litert(path, image):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    ((name, _),) = runner.get_input_details().items()
    return next(iter(runner(**{name: image}).values()))


def run_ncnn(path, image, half=False):
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_storage = half
    assert net.load_param(str(path)) == 0 and net.load_model(str(path).replace(".param", ".bin")) == 0
    extractor = net.create_extractor()
    extractor.input("in0", ncnn.Mat(image[0]).clone())
    return np.array(extractor.extract("out0")[1])[None]


RUN = {"executorch": run_executorch, "litert": run_litert, "ncnn": run_ncnn}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = randomize_norms(RDPNet(0.25, strides=(1, 1, 2, 2, 2), num_classes=5), decades=0.3).eval()
    network.pretrained_cfg = {**timm.create_model("rdpnet_025_cifar").pretrained_cfg, "architecture": "small"}
    return network


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(6, *SIZE, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def folder(request, model, pixels, tmp_path_factory, _exported={}):  # noqa: B006
    """What ``rdpnet export`` makes of the model in the test's format, once for all tests."""
    name = request.getfixturevalue("name")
    if name not in _exported:
        _exported[name] = tmp_path_factory.mktemp(name)
        export(
            model, _exported[name], [name], int8=name != "ncnn", calibration=Calibration(pixels), input_size=SIZE,
            pixel_range=255, rounds=1,
        )  # fmt: skip
    return _exported[name]


def reference(model, pixels):
    with torch.no_grad():
        return model(Preprocessing.of(model, SIZE).normalize(pixels)).numpy()


def largest(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", installed("executorch", "litert", "ncnn"))
def test_an_artefact_gives_what_the_train_form_gives_read_by_its_own_runtime(name, folder, model, pixels):
    path = folder / f"small{SUFFIXES[name]}"
    for index in range(3):
        output = RUN[name](path, (pixels[index : index + 1] * 255).numpy())
        assert largest(output, reference(model, pixels[index : index + 1])) < 2e-5


@pytest.mark.parametrize("name", installed("executorch", "litert"))
def test_int8_stays_near_float_in_a_smaller_file(name, folder, model, pixels):
    path = folder / f"small-int8{SUFFIXES[name]}"
    outputs = np.concatenate([RUN[name](path, image) for image in (pixels * 255).numpy()[:, None]])
    assert 1e-4 < largest(outputs, reference(model, pixels)) < 0.3
    assert path.stat().st_size < 0.7 * (folder / f"small{SUFFIXES[name]}").stat().st_size


@pytest.mark.parametrize("name", installed("executorch", "litert", "ncnn"))
def test_the_json_names_the_runtimes_version_and_the_latency(name, folder):
    facts = json.loads((folder / f"small{SUFFIXES[name]}.json").read_text())
    assert facts["format"] == name and facts["input"]["shape"] == [1, *SIZE]
    assert all(facts["versions"].values())
    assert facts["runtime"]["latency_ms"] == min(facts["runtime"]["tried_ms"].values()) > 0


@pytest.mark.parametrize("name", installed("ncnn"))
def test_ncnn_loses_its_digits_to_half_precision_alone(name, folder, model, pixels):
    image, expected = (pixels[:1] * 255).numpy(), reference(model, pixels[:1])
    single, half = (largest(run_ncnn(folder / "small.ncnn.param", image, half), expected) for half in (False, True))
    assert single < 2e-5 < 1e-4 < half
    facts = json.loads((folder / "small.ncnn.param.json").read_text())
    assert facts["runtime"]["options"]["use_fp16_storage"] is False


@pytest.mark.parametrize("name", installed("ncnn"))
def test_what_ncnn_cannot_convert_is_an_error_and_leaves_nothing(name, tmp_path):
    class Sorted(torch.nn.Module):
        num_classes = 3

        def forward(self, x):
            return torch.linalg.svdvals(x.mean(1))[:, :3]

    with pytest.raises(RuntimeError, match="ncnn"):
        export(Sorted(), tmp_path / "out", ["ncnn"], name="sorted", input_size=SIZE, rounds=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["executorch", "litert", "ncnn"])
def test_a_dynamic_batch_is_refused_before_anything_is_written(name, model, tmp_path):
    with pytest.raises(ValueError, match=f"{name} take one image at a time"):
        export(model, tmp_path / "out", ["onnx", name], input_size=SIZE, dynamic_batch=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["executorch", "litert", "ncnn"])
def test_a_missing_runtime_is_named_with_its_extra_before_anything_is_written(name, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, NEEDS[name][0], None)
    with pytest.raises(ImportError, match=rf'{NEEDS[name][0]}.*: pip install "rdpnet-timm\[{name}\]"'):
        export(model, tmp_path / "out", ["onnx", name], input_size=SIZE)
    assert not (tmp_path / "out").exists()


def test_int8_of_ncnn_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="INT8 is for the formats onnx, openvino, executorch, litert, got ncnn"):
        export(model, tmp_path / "out", ["ncnn"], input_size=SIZE, int8=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", installed("executorch"))
def test_small_weights_for_plain_pixels_keep_their_steps(name, tmp_path):
    torch.manual_seed(0)
    conv, images = torch.nn.Conv2d(3, 8, 3).eval().requires_grad_(False), torch.rand(8, *SIZE) * 255
    conv.weight /= 64
    quantize_executorch(conv, images[:1], tmp_path / "conv.pte", images.numpy())
    found = np.concatenate([run_executorch(tmp_path / "conv.pte", image[None]) for image in images.numpy()])
    assert np.abs(found - conv(images).numpy()).max() < 0.01 * conv(images).abs().max()
