"""The measurements of the deployment page: what they derive from times, and that they run."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("nncf")

from rdpnet_timm.bench import int8_accuracy as accuracy
from rdpnet_timm.bench import int8_speed as speed
from rdpnet_timm.cli import main
from rdpnet_timm.deploy.calibration import Preprocessing
from rdpnet_timm.measure.timing import Measurement
from rdpnet_timm.train.data import Images, read_data, read_test

GEMM_MACS = 768**3


def result(**times):
    samples = {name.replace("_gemm", " gemm"): [time, time] for name, time in times.items()}
    return speed.Result("rdpnet_100", 1, 281_000_000, Measurement(samples, 2, 0, 0))


def row(text, label):
    return next(line for line in text.splitlines() if label in line).split("|")[2].strip()


def test_bounds_and_shares_follow_from_the_times():
    # a product of 768^3 MACs in 10 ms is 45.3 GMAC/s, at which 281 M MACs take 6.203 ms
    measured = result(onnx=8.0, openvino=7.0, onnx_int8=4.0, openvino_int8=2.0, train=30.0, deploy=15.0,
                      sgemm=10.0, int8_gemm=2.5)  # fmt: skip
    text = speed._report([measured], [])
    assert row(text, "| sgemm, GMAC/s") == f"{GEMM_MACS / 10 / 1e6:.0f}" == "45"
    assert row(text, "bound by sgemm") == "6.20"
    assert row(text, "best float32, share") == f"{6.2033 / 7.0:.0%}".replace("%", " %")
    assert row(text, "best INT8, share") == f"{6.2033 / 4 / 2.0:.0%}".replace("%", " %")
    assert row(text, "best INT8 against best float32") == "3.50x"
    assert row(text, "deploy against train form") == "2.00x"


def test_rows_about_contestants_that_were_skipped_are_left_out():
    text = speed._report([result(onnx=8.0, sgemm=10.0, int8_gemm=2.5)], [])
    assert "share of its bound" in text and "ONNX Runtime float32" in text
    assert "INT8 against" not in text and "train form" not in text and "OpenVINO" not in text


def test_contestants_to_skip_are_those_there_are(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(speed, "run", lambda *args: calls.append(args))
    monkeypatch.setattr("sys.argv", ["/somewhere/rdpnet", "bench", "int8-speed"])
    assert main(["bench", "int8-speed", "-o", str(tmp_path), "--skip", *speed.CONTESTANTS]) == 0
    assert calls[0][4] == list(speed.CONTESTANTS) and calls[0][6] == "rdpnet bench int8-speed"
    for unknown in ("nosuch", "sgemm"):  # a matrix product says what the machine can do, and is always measured
        with pytest.raises(SystemExit):
            main(["bench", "int8-speed", "-o", str(tmp_path), "--skip", unknown])
        assert f"invalid choice: '{unknown}'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "int8-speed", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in speed.CONTESTANTS)


def test_a_compiled_contestant_is_timed_as_it_was_compiled_whatever_is_compiled_after_it():
    first = speed.compiled(nn.Linear(3, 4).eval(), torch.randn(1, 3))
    speed.compiled(nn.Linear(5, 6).eval(), torch.randn(1, 5))
    with torch._dynamo.config.patch(error_on_recompile=True):
        first()


@pytest.mark.slow
def test_pt2e_computes_nearly_what_pytorch_computes():
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(speed._pt2e(model, x)(), model(x), atol=0.05)


@pytest.mark.slow
def test_a_width_is_measured_and_written(tmp_path):
    skipped = ("train", "deploy", "channels_last", "compile", "pt2e")
    (measured,) = speed.run(tmp_path, ["025"], [1], rounds=2, skip=skipped, borders=False)
    assert {"onnx", "openvino", "onnx_int8", "openvino_int8", "openvino_qdq", "sgemm"} <= set(
        measured.measurement.samples
    )
    written = json.loads((tmp_path / "speed.json").read_text())
    (title, by_contestant), text = written["operators"][0], (tmp_path / "speed.md").read_text()
    assert title == "rdpnet_025, 1 thread" and "Conv depthwise" in by_contestant["onnx"]
    assert "best INT8 against best float32" in text
    assert written["complete"] and "Unfinished" not in text


def test_a_complete_result_is_not_replaced_and_an_unfinished_one_says_so(tmp_path, monkeypatch):
    pictures_of("ab", tmp_path / "data", (32, 32))
    model = timm.create_model("rdpnet_025_cifar", num_classes=2)
    model.pretrained_cfg.pop("label_names", None)
    monkeypatch.setattr(accuracy, "load_model", lambda *args: model)
    row = accuracy.Row("PyTorch", "float32", "no", "", 50.0, 100.0)

    def stops(*args):
        args[-1]([row])
        raise KeyboardInterrupt

    def ends(*args):
        args[-1]([row])
        return [row]

    out = tmp_path / "out"
    monkeypatch.setattr(accuracy, "evaluate", stops)
    with pytest.raises(KeyboardInterrupt):
        accuracy.measure_accuracy("mine.pth", str(tmp_path / "data"), out)
    assert "Unfinished" in (out / "accuracy.md").read_text()
    monkeypatch.setattr(accuracy, "evaluate", ends)
    accuracy.measure_accuracy("mine.pth", str(tmp_path / "data"), out)
    assert "Unfinished" not in (out / "accuracy.md").read_text()
    before = (out / "accuracy.json").read_bytes()
    (out / "speed.json").write_bytes(before)
    with pytest.raises(FileExistsError, match=r"accuracy\.json' is a complete result: choose another folder"):
        accuracy.measure_accuracy("mine.pth", str(tmp_path / "data"), out)
    with pytest.raises(FileExistsError, match=r"speed\.json' is a complete result: choose another folder"):
        speed.run(out, ["025"], [1])
    assert (out / "accuracy.json").read_bytes() == (out / "speed.json").read_bytes() == before


def pictures_of(classes, folder, size, count=1):
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                picture = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / part / name / f"{index}.png")


def test_pictures_are_prepared_as_an_evaluation_does_and_few_are_of_all_classes(tmp_path, monkeypatch):
    pictures_of("ab", tmp_path / "data", (100, 80), count=3)
    model = timm.create_model("rdpnet_025", num_classes=2)  # takes 224x224, and knows no names
    model.pretrained_cfg.pop("label_names", None)
    monkeypatch.setattr(accuracy, "load_model", lambda *args: model)
    seen = []
    monkeypatch.setattr(accuracy, "evaluate", lambda model, train, test, *rest: seen.extend([train, test]) or [])
    accuracy.measure_accuracy("trained.pth.tar", str(tmp_path / "data"), tmp_path / "out", test_images=2)
    train, test = seen
    evaluated = read_test(str(tmp_path / "data"), Preprocessing.of(model))
    assert len(train) == 6 and train.pixels.shape == evaluated.pixels.shape == (6, 224, 224, 3)
    assert test.labels.tolist() == [0, 1] and torch.equal(test.pixels, evaluated.pixels[[0, 5]])


def test_images_of_other_classes_than_the_weights_are_refused(tmp_path):
    pictures_of("ab", tmp_path / "data", (32, 32))
    with pytest.raises(ValueError, match=r"'rdpnet_025_cifar' .*classes"):
        accuracy.measure_accuracy("rdpnet_025_cifar", str(tmp_path / "data"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_accuracies_are_those_of_the_model(tmp_path):
    train, test = read_data("digits")
    few = Images(test.pixels[:60], test.labels[:60], test.classes)
    model = timm.create_model("rdpnet_025_cifar.digits", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        predicted = model((few.pixels.permute(0, 3, 1, 2) / 255 - mean) / std).argmax(1)
    truth = 100 * (predicted == few.labels).double().mean().item()

    rows = accuracy.evaluate(model, train, few, calibration_images=100)
    exact = [each for each in rows if each.weights == "float32"]
    assert len(exact) == 1 + 3 * 2  # PyTorch; two runtimes, plain and equalised in two ways
    assert all(each.accuracy == pytest.approx(truth) and each.agreement == 100 for each in exact)
    by_layer = {each.equalized: each.agreement for each in rows if each.weights.startswith("INT8 by layer")}
    assert by_layer["no"] < 50 < 90 < by_layer["weights"]  # what equalisation is for


@pytest.mark.parametrize("vnni", [True, False])
def test_the_bits_of_weights_are_those_that_their_label_names(vnni, monkeypatch):
    reduced, labels = [], []

    def corrected(plain, images, flag, steps, per_channel):
        assert steps == (64.0 if reduced_steps[-1] else 127.0)
        return plain

    def steps_of(format_name, reduce_range=None):
        reduced_steps.append(reduce_range)
        return 64.0 if reduce_range else 127.0

    reduced_steps = []
    monkeypatch.setattr(accuracy, "has_vnni", lambda: vnni)
    monkeypatch.setattr(accuracy, "to_onnx", lambda *args, **kwargs: None)
    monkeypatch.setattr(accuracy, "correct_bias", corrected)
    monkeypatch.setattr(accuracy, "weight_steps", steps_of)
    for name in ("quantize_onnx", "quantize_openvino"):
        monkeypatch.setattr(accuracy, name, lambda *args: reduced.append(args[4] if len(args) > 4 else None))
    monkeypatch.setattr(accuracy, "_predict", lambda path, format_name, images, *rest: np.zeros(len(images)))
    monkeypatch.setattr(accuracy, "is_installed", lambda module: False)

    def report(rows):
        if "INT8" in rows[-1].weights:
            labels.append((rows[-1].runtime, rows[-1].weights, reduced[-1]))

    train, test = read_data("digits")
    few = Images(test.pixels[:4], test.labels[:4], test.classes)
    accuracy.evaluate(timm.create_model("rdpnet_025_cifar.digits", pretrained=True), train, few, 4, 1, report)
    assert all(weights.endswith(f", {7 if bits else 8} bits") for _, weights, bits in labels)
    assert None not in reduced_steps
    own = 8 if vnni else 7
    assert {(runtime, weights) for runtime, weights, _ in labels} == {
        *((runtime, f"INT8 by channel, {bits} bits") for runtime in ("ONNX Runtime", "OpenVINO, the same file")
          for bits in (7, 8)),
        ("ONNX Runtime", f"INT8 by layer, {own} bits"),
        ("OpenVINO (NNCF)", f"INT8 by channel, {own} bits"),
    }  # fmt: skip


def test_what_was_measured_says_when_on_what_and_by_which_command(tmp_path, monkeypatch):
    write = Path.write_text  # as on a system whose own encoding is not UTF-8
    monkeypatch.setattr(Path, "write_text", lambda path, text, encoding="ascii": write(path, text, encoding))
    monkeypatch.setattr(speed, "compare", lambda *args: (result(onnx=8.0, sgemm=10.0, int8_gemm=2.5), {}))
    speed.run(tmp_path, ["100"], [1], 2, borders=False, command="rdpnet bench int8-speed -o Größe")
    row = accuracy.Row("PyTorch", "float32", "no", "", 50.0, 100.0)
    monkeypatch.setattr(accuracy, "evaluate", lambda *args: args[-1]([row]) or [row])
    accuracy.measure_accuracy(
        "rdpnet_025_cifar.digits", "digits", tmp_path, test_images=2, command="rdpnet bench int8-accuracy -o Größe"
    )
    for name in ("speed", "accuracy"):
        written = json.loads((tmp_path / f"{name}.json").read_text())
        text = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
        assert written["command"] == f"rdpnet bench int8-{name} -o Größe"
        assert written["machine"]["versions"]["nncf"][0].isdigit()
        line = text.splitlines()[0]
        assert (
            line.startswith(f"{written['date'][:10]}, {written['machine']['cpu']}, ")
            and f"`{written['command']}`" in line
        )
    assert "2 rounds" in (tmp_path / "speed.md").read_text(encoding="utf-8")


def without(package, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))


def test_what_is_not_installed_is_said_first_and_only_where_it_is_needed(tmp_path, monkeypatch):
    without("nncf", monkeypatch)
    monkeypatch.setattr(speed, "compare", lambda *args: (result(onnx=8.0, sgemm=10.0, int8_gemm=2.5), {}))
    monkeypatch.setattr(accuracy, "load_model", lambda *args: pytest.fail("began"))
    with pytest.raises(ImportError, match="int8-accuracy needs nncf"):
        accuracy.measure_accuracy("rdpnet_025_cifar.digits", "digits", tmp_path / "out")
    with pytest.raises(ImportError, match="int8-speed needs nncf"):
        speed.run(tmp_path / "out", ["100"], [1], borders=False)
    assert not (tmp_path / "out").exists()
    speed.run(tmp_path / "out", ["100"], [1], skip=["openvino_int8"], borders=False)


def test_only_the_files_of_contestants_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "openvino_has_bfloat16", lambda: True)
    for writer in ("to_onnx", "to_openvino", "quantize_onnx", "quantize_openvino"):
        monkeypatch.setattr(speed, writer, lambda *args, writer=writer: written.append(writer))
    expected = {
        "onnx": ["to_onnx"],
        "openvino": ["to_openvino"],
        "openvino_bf16": ["to_openvino"],
        "onnx_int8": ["to_onnx", "quantize_onnx"],
        "openvino_qdq": ["to_onnx", "quantize_onnx"],
        "openvino_int8": ["to_openvino", "quantize_openvino"],
        "train": [],
    }
    for contestant, writers in expected.items():
        written = []
        skip = [name for name in speed.CONTESTANTS if name != contestant]
        paths = speed._write(nn.Identity(), torch.zeros(1, 3, 8, 8), tmp_path, skip)
        assert list(paths) == [contestant] * bool(writers) and written == writers


@pytest.mark.parametrize("words", ["int8-speed", "int8-accuracy rdpnet_025_cifar.digits --data digits"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_measured(words, monkeypatch, capsys):
    for module, work in ((speed, "compare"), (accuracy, "evaluate")):
        monkeypatch.setattr(module, work, lambda *args: pytest.fail("measured"))
    assert main(["bench", *words.split(), "-o", "/proc/self"]) == 1
    assert "cannot write to '/proc/self' (" in capsys.readouterr().err
