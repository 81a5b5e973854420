"""What INT8 costs in accuracy, by runtime, and what equalisation and bias correction win back.

``rdpnet bench int8-accuracy CHECKPOINT --data FOLDER -o OUTPUT`` writes ``accuracy.md`` and
``accuracy.json``.
"""

import json
import tempfile
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional

import numpy as np
import torch
from torch import nn

from ..checkpoint import load_model
from ..convert import reparameterize
from ..deploy.bias import correct_bias
from ..deploy.calibration import Preprocessing
from ..deploy.equalization import equalize, equalize_activations
from ..deploy.formats import FORMATS, OPENVINO_BFLOAT16, Options, openvino_has_bfloat16, to_onnx
from ..deploy.quantize import QUANTIZERS, quantize_onnx, quantize_openvino, weight_steps
from ..extras import is_installed, require_all
from ..files import atomic_path, require_writable
from ..measure.machine import has_vnni
from ..train.data import Images, read_data, require_classes
from .report import UNFINISHED, conditions, record, require_unfinished

__all__ = ["Row", "evaluate", "measure_accuracy"]


class Row(NamedTuple):
    """One variant: where it ran, what was done to it, its accuracy in percent, and its agreement with float."""

    runtime: str
    weights: str
    equalized: str
    bias_correction: str
    accuracy: float
    agreement: float


def _spread(images: Images, count: Optional[int]) -> Images:
    """At most ``count`` of them, spread evenly: a folder's are sorted by class."""
    indices = torch.linspace(0, len(images) - 1, min(count or len(images), len(images))).round().long()
    return Images(images.pixels[indices], images.labels[indices], images.classes)


def _normalized(images: Images, preprocessing: Preprocessing) -> np.ndarray:
    return preprocessing.normalize(images.pixels.permute(0, 3, 1, 2).float() / 255).contiguous().numpy()


def _predict(
    path: Path, format_name: str, images: np.ndarray, threads: int, options: Optional[Options] = None
) -> np.ndarray:
    kind = FORMATS[format_name]
    run, batches = kind.load(path, threads, options or {}), max(1, len(images) // 100) if kind.batches else len(images)
    return np.concatenate([run(batch).argmax(1) for batch in np.array_split(images, batches)])


def evaluate(
    model: nn.Module,
    train: Images,
    test: Images,
    calibration_images: int = 300,
    threads: int = 1,
    report: Callable[[List[Row]], object] = lambda rows: None,
) -> List[Row]:
    """Accuracy of a model's float and INT8 variants on ``test``, calibrated on images of ``train``.

    ExecuTorch and LiteRT, whose weights have 8 bits everywhere, are among the runtimes where they are installed. The
    others' have 7 where this CPU has no VNNI; by channel ONNX Runtime's are tried with 7 and 8 on any.

    Args:
        model: a trained RDPNet, or another model whose deploy form is a straight path.
        train: where calibration images are from, spread evenly.
        test: the test images.
        calibration_images: how many.
        threads: for the runtimes.
        report: called with the rows so far after each.
    """
    deployed = reparameterize(model).eval().requires_grad_(False)
    preprocessing = Preprocessing.of(model)
    calibration = _normalized(_spread(train, calibration_images), preprocessing)
    images = _normalized(test, preprocessing)
    labels = test.labels.numpy()
    with torch.no_grad():
        reference = torch.cat([deployed(batch).argmax(1) for batch in torch.from_numpy(images).split(100)]).numpy()
    rows: List[Row] = []

    def add(runtime: str, weights: str, equalized: str, bias_correction: str, predicted: np.ndarray) -> None:
        accuracy, agreement = (100 * float((predicted == truth).mean()) for truth in (labels, reference))
        rows.append(Row(runtime, weights, equalized, bias_correction, accuracy, agreement))
        report(rows)

    add("PyTorch", "float32", "no", "", reference)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images_of_calibration = torch.from_numpy(calibration)
        weights_equalized = equalize(deployed).model
        models = {
            "no": deployed,
            "weights": weights_equalized,
            "weights, activations": equalize_activations(weights_equalized, images_of_calibration),
        }
        source, target, xml = (folder / name for name in ("float.onnx", "int8.onnx", "int8.xml"))
        for equalized, plain in models.items():

            def write(steps: Optional[float] = None, per_channel: bool = True, plain: nn.Module = plain) -> nn.Module:
                """The model, its biases corrected for weights rounded so where ``steps`` are given, also as ONNX."""
                variant = correct_bias(plain, images_of_calibration, False, steps, per_channel) if steps else plain
                to_onnx(variant, torch.from_numpy(images[:1]), source, dynamic_batch=True)
                return variant

            write()
            for runtime, format_name in (("ONNX Runtime", "onnx"), ("OpenVINO", "openvino")):
                add(runtime, "float32", equalized, "", _predict(source, format_name, images, threads))
            if plain is deployed and openvino_has_bfloat16():
                predicted = _predict(source, "openvino", images, threads, OPENVINO_BFLOAT16)
                add("OpenVINO", "bfloat16", equalized, "", predicted)
            own = not has_vnni()  # the bits that are right on this CPU, 7 or 8; by channel both are tried
            for correction in ("", "ours"):
                for per_channel, reduced in ((True, False), (True, True), (False, own)):
                    scales = _weights(per_channel, reduced)
                    write(weight_steps("onnx", reduced) if correction else None, per_channel)
                    quantize_onnx(source, target, calibration, per_channel, reduced)
                    add("ONNX Runtime", scales, equalized, correction, _predict(target, "onnx", images, threads))
                    if per_channel:
                        predicted = _predict(target, "openvino", images, threads)
                        add("OpenVINO, the same file", scales, equalized, correction, predicted)
                write(weight_steps("openvino", own) if correction else None)
                for by in (correction,) if correction else ("", "NNCF's"):
                    quantize_openvino(source, xml, calibration, by == "NNCF's", own)
                    predicted = _predict(xml, "openvino", images, threads)
                    add("OpenVINO (NNCF)", _weights(True, own), equalized, by, predicted)
                for runtime, format_name in (("ExecuTorch", "executorch"), ("LiteRT", "litert")):
                    if not all(map(is_installed, FORMATS[format_name].needs)):
                        continue
                    file = folder / f"int8{FORMATS[format_name].suffixes[0]}"
                    variant = write(weight_steps(format_name, False) if correction else None)
                    QUANTIZERS[format_name](variant, torch.from_numpy(images[:1]), file, calibration, False, False)
                    predicted = _predict(file, format_name, images, threads)
                    add(runtime, _weights(True, False), equalized, correction, predicted)
    return rows


def _weights(per_channel: bool, reduced: bool) -> str:
    """What a table says of INT8 weights."""
    return f"INT8 by {'channel' if per_channel else 'layer'}, {7 if reduced else 8} bits"


def _line(row: Row) -> str:
    return (
        f"| {row.runtime} | {row.weights} | {row.equalized} | {row.bias_correction or 'no'} | {row.accuracy:.2f} | "
        f"{row.agreement:.2f} |"
    )


def measure_accuracy(
    source: str,
    data: str,
    output: Path,
    model: Optional[str] = None,
    calibration_images: int = 300,
    threads: int = 1,
    test_images: Optional[int] = None,
    command: str = "",
) -> List[Row]:
    """Evaluate a checkpoint (or a timm name with weights) and write ``accuracy.md`` and ``accuracy.json``.

    ``data`` is what the trainer takes; pictures are prepared as the model says, as by ``rdpnet evaluate``. Of the test
    images ``test_images`` are taken, spread evenly, or all. ``command`` is what the user typed, for the record.

    Raises:
        ImportError: a runtime or a quantiser is not installed.
        OSError: nothing can be written to ``output``, or a complete result is there.
        FileNotFoundError, ValueError: as :func:`.train.data.read_data`, or the images are not of the weights' classes.
    """
    require_all(("onnx", "onnxruntime", "openvino", "nncf"), "rdpnet bench int8-accuracy", "int8")
    require_unfinished(output / "accuracy.json")
    network = load_model(source, model)
    train, test = read_data(data, preprocessing=Preprocessing.of(network))
    require_classes(test, network.pretrained_cfg.get("label_names"), source)
    test = _spread(test, test_images)
    require_writable(output)
    head = (
        "| runtime | precision | equalised | bias correction | accuracy, % | agrees with float, % |\n"
        "|---|---|---|---|---|---|\n"
    )
    facts = record(command)
    facts.update(model=source, data=data, test_images=len(test), calibration_images=calibration_images)

    def save(rows: List[Row], complete: bool) -> None:
        warning = "" if complete else f"{UNFINISHED}\n\n"
        text = f"{conditions(facts)}\n\n{warning}{head}" + "".join(_line(row) + "\n" for row in rows)
        with atomic_path(output / "accuracy.md") as path:
            path.write_text(text, encoding="utf-8")
        whole = {**facts, "complete": complete, "rows": [row._asdict() for row in rows]}
        with atomic_path(output / "accuracy.json") as path:
            path.write_text(json.dumps(whole, indent=1) + "\n")

    def report(rows: List[Row]) -> None:
        print(_line(rows[-1]), flush=True)
        save(rows, complete=False)

    rows = evaluate(network, train, test, calibration_images, threads, report)
    save(rows, complete=True)
    return rows
