import hashlib
import json
import re
import subprocess
import sys
import textwrap
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import ExifTags, Image
from timm.data import create_transform, resolve_data_config
from timm.utils import ModelEmaV3

from rdpnet_timm import RDPNet
from rdpnet_timm.checkpoint import load_model
from rdpnet_timm.cli import main
from rdpnet_timm.deploy import Calibration, NotStraight, export
from rdpnet_timm.deploy.calibration import Preprocessing, decode
from rdpnet_timm.deploy.equalization import FEWEST_IMAGES
from rdpnet_timm.deploy.formats import known_format, openvino_core
from rdpnet_timm.deploy.quantize import quantize_openvino
from rdpnet_timm.measure.difference import randomize_norms

SIZE = (3, 16, 16)
ALL = ("onnx", "openvino", "torch-export", "torchscript")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = randomize_norms(RDPNet(0.25, strides=(1, 1, 2, 2, 2), num_classes=5), decades=0.3).eval()
    network.pretrained_cfg = {**timm.create_model("rdpnet_025_cifar").pretrained_cfg, "architecture": "small"}
    return network


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(6, *SIZE, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def exported(model, pixels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "new" / "folder"
    artifacts = export(
        model, folder, ALL, int8=True, calibration=Calibration(pixels), input_size=SIZE, dynamic_batch=True,
        pixel_range=255, class_names=list("abcde"), rounds=1,
    )  # fmt: skip
    return folder, artifacts


def expected(model, pixels):
    with torch.no_grad():
        return model(Preprocessing.of(model, SIZE).normalize(pixels)).numpy()


def relative(actual, reference):
    return np.abs(actual - reference).max() / np.abs(reference).max()


def run_onnx(path, images):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


def test_no_option_that_is_tried_takes_the_processs_small_numbers_for_zero(tmp_path):
    """OpenVINO's; ONNX Runtime has its way but once in a process, which may be over."""
    kind, image, path = known_format("openvino"), torch.rand(1, 3, 8, 8), tmp_path / "conv.xml"
    kind.write(torch.nn.Conv2d(3, 2, 3).eval(), image, path, False)

    def kept():  # in a thread of its own, or a fault here would be that of all tests that follow
        torch.set_flush_denormal(False)  # what torch 2.5 has compiled in this process, the thread may have inherited
        for options in kind.options:
            kind.load(path, 1, options)(image.numpy())
        return np.full(1, 1e-40, np.float32)[0] * np.float32(2) > 0

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(kept).result()


@pytest.mark.slow
def test_every_artefact_gives_what_the_train_form_gives_read_by_its_own_runtime(exported, model, pixels):

    folder, _ = exported
    images, reference = (pixels[:3] * 255).numpy(), expected(model, pixels[:3])
    options = json.loads((folder / "small.xml.json").read_text())["runtime"]["options"]
    assert options["INFERENCE_PRECISION_HINT"] == "f32"  # or a CPU that knows bfloat16 computes in it
    compiled = openvino_core().compile_model(folder / "small.xml", "CPU", options)
    with torch.no_grad():
        outputs = {
            "onnx": run_onnx(folder / "small.onnx", images),
            "openvino": compiled(images)[0],
            "torch-export": torch.export.load(folder / "small.pt2").module()(torch.from_numpy(images)).numpy(),
            "torchscript": torch.jit.load(folder / "small.torchscript.pt")(torch.from_numpy(images)).numpy(),
        }
    for name, output in outputs.items():
        assert relative(output, reference) < 1e-5, name


@pytest.mark.slow
def test_int8_artefacts_stay_near_float(exported, model, pixels):

    folder, _ = exported
    images, reference = (pixels * 255).numpy(), expected(model, pixels)
    assert relative(run_onnx(folder / "small-int8.onnx", images), reference) < 0.2
    assert relative(openvino_core().compile_model(folder / "small-int8.xml", "CPU")(images)[0], reference) < 0.3


@pytest.mark.slow
def test_int8_of_onnx_has_signed_weights_by_channel_and_no_zero_points_behind_relu(exported):
    graph = onnx.load(exported[0] / "small-int8.onnx").graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: value for name, value in values.items() if name.endswith("weight_quantized")}
    assert len(weights) == 42
    for name, value in weights.items():
        assert value.dtype == np.int8, name
        assert values[name.replace("quantized", "scale")].shape == (len(value),), name
    zero_points = [
        values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear" and "Relu" in node.input[0]
    ]
    assert len(zero_points) >= 40 and all(zero == 0 and zero.dtype == np.uint8 for zero in zero_points)


@pytest.mark.slow
def test_int8_of_openvino_rounds_depthwise_kernels_by_channel(exported):
    """With one scale a kernel column, which NNCF takes of an unfolded Reshape, OpenVINO has no INT8 kernel."""

    model = openvino_core().read_model(exported[0] / "small-int8.xml")
    depthwise = [node for node in model.get_ops() if node.get_type_name() == "GroupConvolution"]
    assert len(depthwise) == 20
    for node in depthwise:
        weight = node.input_value(1).get_node()
        scales = max((i.get_node().get_output_shape(0) for i in weight.input_values()[1:]), key=np.prod)
        assert np.prod(scales) == node.input_value(1).get_shape()[0], list(scales)


@pytest.mark.slow
def test_the_json_beside_an_artefact_is_true(exported, model):
    folder, artifacts = exported
    assert len(artifacts) == 6 and sorted(p.name for a in artifacts for p in a.files) == sorted(
        p.name for p in folder.iterdir()
    )
    for artifact in artifacts:
        facts = json.loads(Path(f"{artifact.path}.json").read_text())
        for name, checksum in facts["sha256"].items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
        assert facts["model"] == "small" and facts["classes"] == list("abcde")
        assert facts["input"]["shape"] == ["batch", 3, 16, 16] and facts["input"]["pixel_range"] == 255
        assert facts["preprocessing"]["mean"] == list(model.pretrained_cfg["mean"])
        assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or facts["versions"]["torch"]
        assert facts["runtime"]["threads"] >= 1 and facts["runtime"]["latency_ms"] == min(
            facts["runtime"]["tried_ms"].values()
        )
        assert (facts["quantization"] is not None) == (facts["precision"] == "int8")


@pytest.mark.parametrize(("name", "size"), [("rdpnet_075", (3, 64, 64)), ("rdpnet_025_cifar", (3, 32, 32))])
def test_the_onnx_graph_is_one_path_of_five_kinds_of_operator(name, size, tmp_path):
    network = randomize_norms(timm.create_model(name))
    export(network, tmp_path, input_size=size, rounds=1)
    nodes = onnx.load(tmp_path / f"{name}.onnx").graph.node
    assert Counter(node.op_type for node in nodes) == {
        "Conv": 41, "Relu": 41, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    for before, after in pairwise(nodes):
        assert after.input[0] == before.output[0]


def test_a_fresh_networks_equal_weights_stay_weights_of_their_own(tmp_path):
    network = timm.create_model("rdpnet_025_cifar")  # all its biases are zero
    export(network, tmp_path, input_size=SIZE, rounds=1)
    graph = onnx.load(tmp_path / "rdpnet_025_cifar.onnx").graph
    assert {node.op_type for node in graph.node} == {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}
    assert len(graph.initializer) == len({tensor.name for tensor in graph.initializer}) == 84


@pytest.mark.parametrize("formats", [("onnx", "torchscript"), ("torchscript", "onnx")])
def test_artefacts_come_in_the_order_asked_for(formats, model, pixels, tmp_path, monkeypatch):
    def as_it_is(name):
        write = known_format(name).write
        return lambda network, example, path, images, dynamic_batch, reduce_range: write(
            network, example, path, dynamic_batch
        )

    copied = {name: as_it_is(name) for name in ("torchscript", "onnx")}
    monkeypatch.setattr("rdpnet_timm.deploy.artifacts.QUANTIZERS", copied)
    artifacts = export(
        model, tmp_path, formats, int8=True, calibration=Calibration(pixels), input_size=SIZE, rounds=1,
        bias_correction=False,
    )  # fmt: skip
    assert [(a.format, a.precision) for a in artifacts] == [(f, p) for p in ("float32", "int8") for f in formats]


def test_another_model_of_timm_is_exported_too(tmp_path):
    network = randomize_norms(timm.create_model("mobileone_s0", num_classes=3), decades=0.2).eval()
    export(network, tmp_path, input_size=(3, 64, 64), pixel_range=1, rounds=1)
    image = torch.rand(1, 3, 64, 64)
    reference = network(Preprocessing.of(network, (3, 64, 64)).normalize(image)).detach().numpy()
    assert relative(run_onnx(tmp_path / "mobileone_s0.onnx", image.numpy()), reference) < 1e-4


def test_an_artefact_that_differs_is_not_left_behind(model, tmp_path):
    folder = tmp_path / "a" / "b"
    with pytest.raises(RuntimeError, match=r"differs from the model by .* nothing was written"):
        export(model, folder, ["onnx"], input_size=SIZE, tolerance=0.0, rounds=1)
    assert not (tmp_path / "a").exists()
    folder.mkdir(parents=True)
    (folder / "small.onnx").write_text("mine")
    with pytest.raises(RuntimeError):
        export(model, folder, ["onnx"], input_size=SIZE, tolerance=0.0, rounds=1, overwrite=True)
    assert [(p.name, p.read_text()) for p in folder.iterdir()] == [("small.onnx", "mine")]


def test_wrong_arguments_are_named_before_anything_is_written(model, tmp_path):
    folder = tmp_path / "out"
    for arguments, error, named in [
        (dict(formats=["tflite"]), ValueError, "no format 'tflite'; choose from onnx"),
        (dict(formats="tflite"), ValueError, "no format 'tflite'; choose from onnx"),
        (dict(formats=["torchscript"], int8=True), ValueError, "INT8 is for"),
        (dict(pixel_range=100), ValueError, "0 to 255"),
        (dict(class_names=["a"]), ValueError, "5 classes, got 1"),
        (dict(name="../b"), ValueError, r"no folder in it, got '\.\./b'"),
        (dict(name=".."), ValueError, r"no folder in it, got '\.\.'"),
        (dict(input_size=(3, 0, 0)), ValueError, r"numbers from 1, got \(3, 0, 0\)"),
        (dict(calibration=Calibration(torch.rand(2, 3, 8, 8))), ValueError, "calibration images are"),
        (dict(calibration=Calibration(torch.rand(0, *SIZE))), ValueError, r"calibration images are \(0, 3, 16, 16\)"),
        (dict(calibration=Calibration(torch.rand(2, *SIZE) * 255)), ValueError, "divide pixels of 0 to 255 by 255"),
        (dict(calibration=Calibration(torch.ones(2, *SIZE).byte())), ValueError, r"got torch\.uint8 of 1 to 1"),
        (dict(calibration=Calibration(torch.rand(2, *SIZE) * 2 - 1)), ValueError, "not normalised"),
    ]:
        with pytest.raises(error, match=named):
            export(model, folder, **{"input_size": SIZE, **arguments})
    of_one_size = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5))
    size_and_reason = r"cannot take images of the size \(C, H, W\) = \(3, 8, 8\): (addmm: )?mat1 and"
    with pytest.raises(ValueError, match=size_and_reason):
        export(of_one_size, folder, input_size=(3, 8, 8))
    assert not folder.exists()


def test_nothing_is_replaced_unasked_and_nothing_of_another_model_is_left(model, tmp_path):
    def written(network, *formats, **options):
        export(network, tmp_path, formats, "net", input_size=SIZE, rounds=1, **options)
        return {path.name for path in tmp_path.iterdir()}

    (tmp_path / "net.bin").write_text("mine, and OpenVINO's second file is called so")
    with pytest.raises(FileExistsError, match=r"net\.bin in '.*--overwrite"):
        written(model, "openvino")
    (tmp_path / "net.bin").unlink()
    script, exported = "net.torchscript.pt", "net.pt2"
    written(model, "torchscript")
    assert written(model, "torch-export") == {f"{file}{end}" for file in (script, exported) for end in ("", ".json")}
    with pytest.raises(FileExistsError, match=r"net\.pt2 in '.*--overwrite"):
        written(model, "torch-export")
    old = (tmp_path / script).read_bytes()
    written(model, "torch-export", overwrite=True)
    assert (tmp_path / script).read_bytes() == old, "an artefact of the same weights may stay"
    other = randomize_norms(RDPNet(0.25, num_classes=5), seed=9, decades=0.3)
    with pytest.raises(FileExistsError, match=r"net\.pt2 and net\.torchscript\.pt in"):
        written(other, "torch-export")
    (tmp_path / "net-int8.onnx").write_text("not ours, it has no JSON")
    assert written(other, "torch-export", overwrite=True) == {exported, f"{exported}.json", "net-int8.onnx"}


def test_an_averaged_model_is_exported_as_the_one_in_it_and_no_weight_is_rounded_again(tmp_path, pixels):
    model = load_model("rdpnet_025_cifar.digits").bfloat16()
    (artifact,) = export(ModelEmaV3(model), tmp_path, "torchscript", rounds=1)
    facts = json.loads(Path(f"{artifact.path}.json").read_text())
    assert facts["model"] == "rdpnet_025_cifar" and facts["input"]["shape"] == [1, 3, 32, 32]
    assert facts["classes"] == list("0123456789")
    images = Preprocessing.of(model).normalize(pixels[:1]).numpy()
    found = known_format("torchscript").load(artifact.path, 1, {})(images)
    assert relative(found, expected(model.float().eval(), pixels[:1])) < 1e-5


def test_equalisation_of_a_network_with_shortcuts_is_refused(tmp_path):
    with pytest.raises(NotStraight, match="BatchNorm2d"):
        export(
            timm.create_model("resnet10t"), tmp_path / "out", int8=True, equalization=True, input_size=(3, 32, 32),
            calibration=Calibration(torch.rand(1, 3, 32, 32)), rounds=1,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to '.*file.*choose another folder"):
        export(model, tmp_path / "file" / "out", input_size=SIZE)


@pytest.mark.parametrize(("package", "arguments"), [("onnx", {}), ("openvino", dict(formats=["openvino"]))])
def test_a_missing_package_is_named_with_its_pip_line(model, tmp_path, monkeypatch, package, arguments):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}: pip install "rdpnet-timm\[{package}\]"'):
        export(model, tmp_path / "out", input_size=SIZE, **arguments)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_a_table_and_names_what_is_wrong(tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["export", "rdpnet_025_cifar", "-o", str(output)]
    assert main([*arguments, "--format", "onnx", "--input-size", "3", "16", "16", "--normalize", "255"]) == 0
    assert re.search(r"rdpnet_025_cifar\.onnx.*float32", capsys.readouterr().out.replace("\n", ""))
    assert sorted(p.name for p in output.iterdir()) == ["rdpnet_025_cifar.onnx", "rdpnet_025_cifar.onnx.json"]
    for more, message in [
        (["--format", "caffe"], "no format 'caffe'"),
        (["--calibration", str(tmp_path / "none")], "no calibration images at"),
        (["--int8", "--calibration", str(output)], "no images in the folder"),
        (["--name", "../b"], "no folder in it"),
        ([], "--overwrite"),
    ]:
        assert main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err
    for wrong in (
        ["export", "none", "-o", "o", "--normalize", "2"],
        ["bench", "int8-speed", "-o", "o", "--widths", "33"],
    ):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "invalid choice" in capsys.readouterr().err


@pytest.mark.slow
def test_the_torch_free_example_of_the_docs_classifies_and_draws(exported, model, tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
    code = re.search(r"```python\n(import json.*?)```", text, re.DOTALL).group(1)
    code += "assert not {'torch', 'timm', 'rdpnet_timm'} & set(sys.modules)\n"
    (tmp_path / "classify.py").write_text(code)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    artifact = exported[0] / "small-int8.onnx"
    command = [
        sys.executable,
        "-S",
        "-c",
        f"import sys; sys.path += {sys.path!r}; sys.argv = sys.argv[1:]; exec(open(sys.argv[0]).read())",
    ]
    done = subprocess.run(
        [*command, "classify.py", artifact, "image.png", "out.png"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    logits = run_onnx(artifact, image.transpose(2, 0, 1)[None].astype(np.float32))[0]
    assert done.stdout.startswith("abcde"[int(logits.argmax())])
    assert Image.open(tmp_path / "out.png").size[0] >= 200


@pytest.mark.parametrize(("size", "crop_pct"), [((53, 37), 0.875), ((20, 61), 0.9), ((40, 40), 1.0)])
@pytest.mark.parametrize("white", [None, 255])
def test_the_torch_free_example_prepares_a_picture_as_timm_does(white, size, crop_pct, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
    code = re.search(r"```python\n(import json.*?)```", text, re.DOTALL).group(1)
    network = timm.create_model(
        "rdpnet_025_cifar.digits", pretrained=True, pretrained_cfg_overlay=dict(crop_pct=crop_pct)
    )
    export(network, tmp_path, name="digits", pixel_range=white, rounds=1)
    noise = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    monkeypatch.setattr(sys, "argv", ["x", *(str(tmp_path / name) for name in ("digits.onnx", "image.png", "out.png"))])
    found = {}
    exec(code, found)
    transform = create_transform(**resolve_data_config(model=network), is_training=False)
    expected = transform(Image.open(tmp_path / "image.png")).permute(1, 2, 0).numpy()
    if white:
        config = network.pretrained_cfg
        expected = (expected * np.float32(config["std"]) + np.float32(config["mean"])) * white
    assert found["pixels"].shape == expected.shape and found["pixels"].dtype == np.float32
    np.testing.assert_allclose(found["pixels"], expected, atol=1e-5 * (white or 1))
    with torch.no_grad():
        logits = network.eval()(transform(Image.open(tmp_path / "image.png"))[None])[0]
    assert found["answer"] == f"{logits.argmax()}: {logits.softmax(0).max():.0%}", (
        "the digits are named after themselves"
    )


@pytest.mark.skipif(
    "bicubic" not in str(create_transform((3, 24, 40), interpolation="bicubic")),
    reason="timm 1.0.27 resizes bilinearly to what is not square, whatever it is told",
)
def test_the_torch_free_example_reads_pictures_as_we_do(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
    code = re.search(r"```python\n(import json.*?)```", text, re.DOTALL).group(1)
    network, size = timm.create_model("rdpnet_025_cifar"), (3, 24, 40)
    export(network, tmp_path, name="wide", input_size=size, rounds=1)
    random = np.random.default_rng(1)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    pictures = {}
    for name, shape in {"wide.png": (37, 71, 3), "high.png": (81, 80, 3), "camera.jpg": (30, 50, 3)}.items():
        pictures[name] = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
    pictures["deep.png"] = Image.fromarray(random.integers(0, 2**16, (30, 50), dtype=np.uint16))
    preprocessing = Preprocessing.of(network, size)
    for name, picture in pictures.items():
        path = tmp_path / name
        picture.save(path, **({"exif": turned} if name == "camera.jpg" else {}))
        monkeypatch.setattr(sys, "argv", ["x", *(str(tmp_path / each) for each in ("wide.onnx", name, "out.png"))])
        found = {}
        exec(code, found)
        expected = preprocessing.normalize(preprocessing.pixels(decode(path.read_bytes(), name))[None])[0]
        np.testing.assert_allclose(found["pixels"].transpose(2, 0, 1), expected.numpy(), atol=1e-5, err_msg=name)


def test_what_returns_several_maps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a classifier, got a FeatureListNet, which returns a list"):
        export(timm.create_model("rdpnet_025_cifar", features_only=True), tmp_path / "o", input_size=SIZE)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("reduce_range", "limit"), [(True, 64), (False, 127)])
def test_weights_have_7_bits_where_8_overflow(reduce_range, limit, model, pixels, tmp_path):
    _, int8 = export(
        model, tmp_path, ["onnx"], int8=True, calibration=Calibration(pixels), input_size=SIZE,
        reduce_range=reduce_range, int8_tolerance=10, rounds=1,
    )  # fmt: skip
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(int8.path).graph.initializer}
    weights = [value for name, value in values.items() if name.endswith("weight_quantized")]
    assert len(weights) == 42 and max(np.abs(value.astype(int)).max() for value in weights) == limit
    assert json.loads(Path(f"{int8.path}.json").read_text())["quantization"]["reduced_range"] is reduce_range


@pytest.mark.parametrize("name", ["rdpnet_025_cifar", "rdpnet_025_cifar.c100"])
def test_shipped_weights_are_exported_in_int8_without_images(name, tmp_path):
    model = load_model(name)
    with pytest.warns(UserWarning, match="random images"):
        _, int8 = export(model, tmp_path, ["onnx"], int8=True, rounds=1)
    assert int8.on_random.rms < 0.1
    facts = json.loads(Path(f"{int8.path}.json").read_text())
    assert facts["classes"] == list(model.pretrained_cfg["label_names"])
    assert facts["quantization"]["calibration"] == "random"
    assert facts["quantization"]["activations_equalized"] is False


@pytest.mark.parametrize("count", [FEWEST_IMAGES - 1, FEWEST_IMAGES])
def test_activations_are_equalised_by_enough_images_only(count, model, tmp_path, monkeypatch):
    write = known_format("torchscript").write
    monkeypatch.setattr("rdpnet_timm.deploy.artifacts.QUANTIZERS", {"torchscript": lambda *all: write(*all[:3], False)})
    _, int8 = export(
        model, tmp_path, ["torchscript"], int8=True, calibration=Calibration(torch.rand(count, *SIZE)), input_size=SIZE,
        rounds=1,
    )  # fmt: skip
    quantization = json.loads(Path(f"{int8.path}.json").read_text())["quantization"]
    assert quantization["activations_equalized"] is (count == FEWEST_IMAGES)
    assert quantization["calibration"] is None and quantization["images"] == count


def test_quantising_makes_no_openvino_core_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for the process, or a signal may end it; see :func:`rdpnet_timm.deploy.formats.openvino_core`."""
    kind, image, path = known_format("openvino"), torch.rand(1, 3, 8, 8), tmp_path / "conv.xml"
    kind.write(torch.nn.Conv2d(3, 2, 3).eval(), image, path, False)
    cores: list[None] = []
    core = openvino_core()
    monkeypatch.setattr("openvino.Core", lambda: cores.append(None) or core)
    quantize_openvino(path, tmp_path / "int8.xml", image.numpy())
    assert "FakeQuantize" in (tmp_path / "int8.xml").read_text()
    assert not cores


def test_a_signal_with_a_handler_is_survived_after_several_openvino_models(tmp_path: Path) -> None:
    code = """
        import signal, sys
        from pathlib import Path
        import torch
        from rdpnet_timm.deploy.formats import openvino_model, to_openvino

        path = Path(sys.argv[1])
        to_openvino(torch.nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8), path)
        first, second = openvino_model(path, 1, {}), openvino_model(path, 1, {})
        del first
        del second
        signal.signal(signal.SIGTERM, lambda *_: print("received"))
        signal.raise_signal(signal.SIGTERM)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "small.xml")]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (0, "received\n"), finished.stderr[-2000:]
