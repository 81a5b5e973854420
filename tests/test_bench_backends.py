"""The runtimes compute what PyTorch computes, and say where they do not."""

import json

import pytest
import torch
from small_results import outputs
from torch import nn

from rdpnet_timm.bench import backends, peers, report, run
from rdpnet_timm.deploy import formats
from rdpnet_timm.deploy.formats import to_onnx


@pytest.fixture
def form():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return backends.Form(model, torch.randn(1, 3, 12, 12))


def test_the_runtimes_compute_what_pytorch_computes(form):
    expected = outputs(form.module, form.x)
    assert torch.equal(backends.prepare("eager", form, 1)(), expected)
    onnxruntime, openvino = (backends.prepare(name, form, 1)() for name in ("onnxruntime", "openvino"))
    assert torch.allclose(torch.from_numpy(onnxruntime[0]), expected, atol=1e-5)
    assert torch.allclose(torch.from_numpy(openvino[0]), expected, atol=1e-5)


def test_int8_of_the_runtimes_resembles_float(form):
    for name in ("onnxruntime", "openvino"):
        int8 = backends.signal_to_noise(form, backends.runner(name, form, 1, "int8"))
        assert 20 < int8 < 60 < backends.signal_to_noise(form, backends.runner(name, form, 1))


def test_signal_to_noise_is_the_ratio_of_powers_in_db(form):
    images, expected = form.held_out
    position = {image.tobytes(): index for index, image in enumerate(images)}
    tenth = backends.signal_to_noise(form, lambda image: 1.1 * expected[position[image.tobytes()]])
    assert tenth == pytest.approx(20)  # a tenth of the amplitude, a hundredth of the power
    assert backends.signal_to_noise(form, lambda image: 0 * expected[:1]) == pytest.approx(0)
    expected[:] = 0
    assert backends.signal_to_noise(form, lambda image: expected[:1]) == 300  # no difference, and no power either


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_wrong_and_its_figure_is_json(value, form):
    expected = form.held_out[1]
    snr = backends.signal_to_noise(form, lambda image: 0 * expected[:1] + value)
    assert report.is_wrong({"snr_db": snr}) and json.loads(json.dumps(snr, allow_nan=False)) < 0
    assert report.best([{"snr_db": snr, "min_ms": 1.0}, {"snr_db": float("nan"), "min_ms": 1.0}]) is None


def test_ranges_are_not_taken_from_the_images_that_judge_them(form):
    calibration, (held_out, _) = form.calibration, form.held_out
    assert not any((one == other).all() for one in calibration for other in held_out)


def test_precisions_are_those_that_backend_and_cpu_have(monkeypatch):
    monkeypatch.setattr(backends, "openvino_has_bfloat16", lambda: False)
    names = ("eager", "onnxruntime", "openvino")
    without = [("eager", "float32"), ("onnxruntime", "float32"), ("onnxruntime", "int8"), ("openvino", "float32"),
               ("openvino", "int8")]  # fmt: skip
    assert backends.available(names, backends.PRECISIONS) == without
    with pytest.raises(ValueError, match="eager cannot compute in int8 on this CPU: add float32"):
        backends.available(["eager"], ["int8"])
    monkeypatch.setattr(backends, "openvino_has_bfloat16", lambda: True)
    assert set(backends.available(names, backends.PRECISIONS)) - set(without) == {("openvino", "bfloat16")}
    monkeypatch.setattr(backends, "openvino_has_bfloat16", lambda: pytest.fail("nobody wants to know"))
    assert backends.available(["onnxruntime"], backends.PRECISIONS) == without[1:3]


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("offered", [True, False])
def test_bfloat16_is_openvinos_where_the_cpu_multiplies_it_and_openvino_offers_it(cpu, offered, monkeypatch):
    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8", *["BF16"] * offered]

    monkeypatch.setattr(formats, "has_bfloat16", lambda: cpu)
    monkeypatch.setattr(formats, "openvino_core", Core)
    assert formats.openvino_has_bfloat16() is (cpu and offered)
    assert (("openvino", "bfloat16") in backends.available(["openvino"], backends.PRECISIONS)) is (cpu and offered)


def test_a_backend_of_one_pool_is_given_one_number_of_threads(monkeypatch):
    monkeypatch.setitem(backends.BACKENDS, "executorch", backends.Backend())
    backends.require(["onnxruntime", "executorch"], [2, 2])
    backends.require(["onnxruntime"], [1, 2])
    with pytest.raises(ValueError, match="executorch has one number of threads in a process, got --threads 1 2: run"):
        backends.require(["onnxruntime", "executorch"], [1, 2])


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_runtime_that_computes_something_else_is_wrong_in_any_precision(precision, form, monkeypatch):
    start = backends._onnxruntime

    def mirrored(*args):
        run = start(*args)
        return lambda images: run(images)[..., ::-1]

    def ratio():
        return run._prepare("onnxruntime", precision, 1, {"a": run._Contestant(form, {})})[1]["a"]["snr_db"]

    assert not report._noise({"snr_db": ratio()})
    monkeypatch.setattr(backends, "_onnxruntime", mirrored)
    assert "dB" in report._noise({"snr_db": ratio()})


def test_the_onnx_model_that_is_measured_is_the_one_that_is_exported(tmp_path):
    module, x = peers.rdpnet(0.25, inference_mode=True).eval(), torch.randn(1, 3, 32, 32)  # its biases are equal
    to_onnx(module, x, tmp_path / "exported.onnx")
    assert backends.Form(module, x).onnx == (tmp_path / "exported.onnx").read_bytes()


@pytest.mark.slow
def test_compiled_networks_compute_what_pytorch_computes(form):
    assert torch.allclose(backends.prepare("compile", form, 1)(), outputs(form.module, form.x), atol=1e-5)


@pytest.mark.slow
def test_compiled_networks_have_their_weights_frozen():
    module, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval(), torch.randn(1, 3, 8, 8)
    call, expected = backends.compiled(module, x), outputs(module, x)
    nn.init.zeros_(module[0].weight)
    assert torch.allclose(call(), expected, atol=1e-5)
