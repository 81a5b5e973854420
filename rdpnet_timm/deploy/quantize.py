"""INT8 by format: each runtime's own quantiser, NNCF for OpenVINO; weights by channel in all."""

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple, Union

import numpy as np
from torch import Tensor, nn

from ..extras import quiet, require
from ..measure.machine import has_vnni
from .edge import quantize_executorch, quantize_litert
from .formats import fold_constants, openvino_core, to_onnx, to_openvino

__all__ = ["QUANTIZERS", "quantize_onnx", "quantize_openvino", "weight_steps"]

Quantizer = Callable[[nn.Module, Tensor, Path, np.ndarray, bool, bool], None]


def quantize_onnx(
    source: Path,
    target: Path,
    images: Union[np.ndarray, Sequence[np.ndarray]],
    per_channel: bool = True,
    reduce_range: Optional[bool] = None,
    parts: Sequence[str] = (),
) -> None:
    """Quantise a float ONNX file to INT8 in the QDQ form, which OpenVINO reads as well.

    Activations are unsigned and weights signed (the pair that VNNI multiplies), and weights symmetric. Behind a ReLU an
    activation's smallest value is zero, and so is its zero point.

    Args:
        source: the float model.
        target: where to.
        images: calibration images ``(N, C, H, W)`` as the model takes them; or a list of what it takes at a time.
        per_channel: one scale an output channel rather than one a layer.
        reduce_range: weights of 7 bits; by default where this CPU has no VNNI: there two products of an unsigned
            activation and a weight are summed in 16 bits, and with weights of 8 bits the sum overflows.
        parts: names of the submodules whose nodes are quantised; without any, everything is.
    """
    quantization = require("onnxruntime.quantization", "INT8 in ONNX Runtime", "int8")
    onnx = require("onnx", "INT8 in ONNX Runtime", "int8")
    name = onnx.load(source, load_external_data=False).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(_one_by_one(images))

        def get_next(self) -> Optional[Dict[str, np.ndarray]]:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        quantization.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node if parts else ()
        quantization.quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=per_channel,
            reduce_range=not has_vnni() if reduce_range is None else reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[node.name for node in nodes if not node.name.startswith(_scopes(parts))],
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )


def weight_steps(format_name: str, reduce_range: Optional[bool] = None) -> float:
    """Into how many steps the quantiser of a format divides a channel's largest weight.

    Args:
        format_name: of :data:`QUANTIZERS`.
        reduce_range: as :func:`quantize_onnx` takes it. With 7 bits it is 64 in ONNX Runtime, and in NNCF half of 127.
    """
    reduced = not has_vnni() if reduce_range is None else reduce_range
    return {"onnx": 64.0, "openvino": 63.5}.get(format_name, 127.0) if reduced else 127.0


@contextmanager
def _one_core(openvino: Any) -> Iterator[None]:
    """Give NNCF, which makes OpenVINO cores of its own, the one that this process has; why: :func:`openvino_core`."""
    core = openvino_core()  # made by the class that is replaced below
    own, openvino.Core = openvino.Core, lambda: core
    try:
        yield
    finally:
        openvino.Core = own


def quantize_openvino(
    source: Path,
    target: Path,
    images: Union[np.ndarray, Sequence[np.ndarray]],
    fast_bias_correction: bool = False,
    reduce_range: Optional[bool] = None,
    parts: Sequence[str] = (),
) -> None:
    """Quantise a float OpenVINO (or ONNX) file to INT8 by NNCF.

    Args:
        source: the float model.
        target: the ``.xml`` to write, and a ``.bin`` beside it.
        images: calibration images ``(N, C, H, W)`` as the model takes them; or a list of what it takes at a time.
        fast_bias_correction: NNCF's own bias correction by the mean of each layer's output; :func:`.bias.correct_bias`
            makes one before quantising, for all runtimes alike.
        reduce_range: as :func:`quantize_onnx` takes it.
        parts: names of the submodules whose nodes are quantised; without any, everything is.
    """
    openvino = require("openvino", "INT8 in OpenVINO", "int8")
    nncf = require("nncf", "INT8 in OpenVINO")
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet
    reduced = not has_vnni() if reduce_range is None else reduce_range
    with quiet(), _one_core(openvino):
        model = fold_constants(openvino_core().read_model(source))
        quantized = nncf.quantize(
            model,
            nncf.Dataset(list(_one_by_one(images))),
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric: zero points cost time, and ReLU needs none
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(
                names=[node.get_friendly_name() for node in model.get_ops() if parts and not _inside(node, parts)],
                validate=False,
            ),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=not fast_bias_correction,
                # NNCF's own choice, the mean of each image's largest value, cuts off what most images have
                activations_range_estimator_params=ranges.MINMAX,
                overflow_fix=nncf.OverflowFix.ENABLE if reduced else nncf.OverflowFix.DISABLE,
                smooth_quant_alphas=_no_smooth_quant(nncf),
            ),
        )
        openvino.save_model(quantized, target, compress_to_fp16=False)


def _one_by_one(images: Union[np.ndarray, Sequence[np.ndarray]]) -> Sequence[np.ndarray]:
    return list(images[:, None]) if isinstance(images, np.ndarray) else images


def _scopes(parts: Sequence[str]) -> Tuple[str, ...]:
    return tuple(f"/{part}/" for part in parts)


def _inside(node: Any, parts: Sequence[str]) -> bool:
    """Whether an OpenVINO node is of one of the submodules that its ONNX file names."""
    return node.get_friendly_name().startswith(_scopes(parts))


def _no_smooth_quant(nncf: Any) -> Any:
    return nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)


def _from_file(write: Callable[..., None], quantize: Callable[..., None]) -> Quantizer:
    """A quantiser of models out of one of files."""

    def quantizer(
        model: nn.Module, example: Tensor, path: Path, images: np.ndarray, dynamic_batch: bool, reduce_range: bool
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / f"float{path.suffix}"
            write(model, example, source, dynamic_batch)
            quantize(source, path, images, reduce_range=reduce_range)

    return quantizer


def _one_image(quantize: Callable[..., None]) -> Quantizer:
    """Of a runtime that takes one image at a time, and sums in 32 bits on every CPU."""
    return lambda model, example, path, images, dynamic_batch, reduce_range: quantize(model, example, path, images)


# By format: writes the INT8 file of a model, given an example, calibration images as the model takes them, whether it
# shall take batches, and whether weights shall have 7 bits.
QUANTIZERS: Dict[str, Quantizer] = {
    "onnx": _from_file(to_onnx, quantize_onnx),
    "openvino": _from_file(to_openvino, quantize_openvino),
    "executorch": _one_image(quantize_executorch),
    "litert": _one_image(quantize_litert),
}
