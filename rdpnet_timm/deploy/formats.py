"""The formats: how a model is written in each, and how its runtime runs the file."""

import contextlib
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any, Callable, Container, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from ..extras import require, require_all
from ..measure.machine import cores, has_bfloat16
from . import edge
from .edge import Options, Runner

__all__ = [
    "FORMATS",
    "Format",
    "Network",
    "Options",
    "Runner",
    "fold_constants",
    "known_format",
    "onnx_session",
    "onnx_to_openvino",
    "openvino_core",
    "openvino_has_bfloat16",
    "openvino_model",
    "require_formats",
    "to_onnx",
    "to_openvino",
    "trace_to_onnx",
]

Network = Callable[[np.ndarray], List[np.ndarray]]

# Where the CPU knows bfloat16, OpenVINO computes a float32 model in it unless told otherwise.
OPENVINO_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}
OPENVINO_BFLOAT16 = {"INFERENCE_PRECISION_HINT": "bf16"}


class Format(NamedTuple):
    """One format.

    Attributes:
        suffixes: of its files, the main one first.
        packages: what its runtime is, for the versions.
        write: ``(model, example, path, dynamic_batch)``.
        load: ``(path, threads, options)`` to a function from images to logits.
        options: sets of runtime options worth trying, the one that artefacts are checked with first. None that takes
            denormals for zero: it does so for all that the calling thread computes from then on.
        needs: import names of what writing and running takes.
        extra: the extra of this package that installs these.
        batches: whether it takes more than one image at a time.
        one_pool: whether all of a process's models share one number of threads.
        int8_needs: import names of what quantising takes besides.
        int8_extra: the extra that brings these as well; by default the same.
        load_all: as ``load``, to a function from one input to all outputs; None where there is none.
    """

    suffixes: Tuple[str, ...]
    packages: Tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Path, bool], None]
    load: Callable[[Path, int, Options], Runner]
    options: Tuple[Dict[str, Any], ...]
    needs: Tuple[str, ...] = ()
    extra: str = ""
    batches: bool = True
    one_pool: bool = False
    int8_needs: Tuple[str, ...] = ()
    int8_extra: str = ""
    load_all: Optional[Callable[[Path, int, Options], Network]] = None


def known_format(name: str) -> Format:
    """The format of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in FORMATS:
        raise ValueError(f"there is no format '{name}'; choose from {', '.join(FORMATS)}")
    return FORMATS[name]


def require_formats(names: Iterable[str], int8: Container[str] = ()) -> None:
    """Check that what formats need is installed, for those in ``int8`` what quantising needs as well.

    Raises:
        ImportError: something is not; the message names all of it and the lines that install it.
    """
    missing = []
    for name in dict.fromkeys(names):
        kind = FORMATS[name]
        needs, extra = kind.needs, kind.extra
        if name in int8:
            needs, extra = (*needs, *kind.int8_needs), kind.int8_extra or extra
        try:
            require_all(needs, f"the format {name}", extra)
        except ImportError as error:
            missing.append(str(error))
    if missing:
        raise ImportError("; ".join(missing))


def to_onnx(
    model: nn.Module, example: Tensor, path: Path, dynamic_batch: bool = False, outputs: Sequence[str] = ("logits",)
) -> None:
    """Write an ONNX file with the input ``image`` and the given outputs.

    The tracing exporter keeps pooling and flattening one node each, where the newer one spells them out; a model that
    it cannot trace goes to the newer one.
    """
    try:
        batch = {name: {0: "batch"} for name in ("image", *outputs)} if dynamic_batch else {}
        trace_to_onnx(model, example, path, outputs, batch)
        return
    except (RuntimeError, TypeError, torch.onnx.errors.OnnxExporterError):
        require("onnxscript", "export of this model to ONNX")
    names: Dict[str, Any] = dict(input_names=["image"], output_names=list(outputs))
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamic_batch else {}
    if dynamic_batch:
        example = example.repeat(2, 1, 1, 1)  # torch.export takes a batch of one for a constant
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (example,), path, dynamo=True, external_data=False, verbose=False, **names, **shapes)
    _give_each_node_its_own(path)


def _give_each_node_its_own(path: Path) -> None:
    """Undo what the exporter does to weights that are equal, as zero biases are: one tensor, and Identity nodes."""
    onnx = require("onnx", "export to ONNX")
    model = onnx.load(path)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    copies = [node for node in graph.node if node.op_type == "Identity" and node.input[0] in weights]
    for node in copies:
        copy = graph.initializer.add()
        copy.CopyFrom(weights[node.input[0]])
        copy.name = node.output[0]
        graph.node.remove(node)
    if copies:
        onnx.save(model, path)


def trace_to_onnx(
    model: nn.Module, example: Tensor, path: Path, outputs: Sequence[str], axes: Mapping[str, Mapping[int, str]]
) -> None:
    """Write an ONNX file by tracing, and by nothing else.

    Args:
        model: a function of one tensor, whose Python code takes the same way for every input.
        example: an input.
        path: the file.
        outputs: their names.
        axes: names of the dimensions that are not fixed, of ``image`` and of the outputs.
    """
    require("onnx", "export to ONNX")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of being the older exporter, and of every shape that is a constant here
        torch.onnx.export(
            model, (example,), path, dynamo=False, opset_version=17, input_names=["image"], output_names=list(outputs),
            dynamic_axes={name: dict(named) for name, named in axes.items()},
        )  # fmt: skip
    _give_each_node_its_own(path)


@cache
def openvino_core() -> Any:
    """OpenVINO's core: one for the process, never given back.

    With AVX-512 a core's CPU plugin gives the calling thread a stack for signal handlers, and takes it back with the
    last of its models. Of several cores one may so leave a stack that is gone; the next signal with a handler, say a
    SIGTERM on which a training saves, ends the process as a segmentation fault (OpenVINO 2026.4).
    """
    return require("openvino", "reading and running OpenVINO models").Core()


def onnx_to_openvino(source: Path, path: Path) -> None:
    """Write OpenVINO's ``.xml`` and ``.bin`` of an ONNX file."""
    openvino = require("openvino", "export to OpenVINO")
    openvino.save_model(fold_constants(openvino_core().read_model(source)), path, compress_to_fp16=False)


def _load_onnx(path: Path, threads: int, options: Options) -> Runner:
    run = _load_all_onnx(path, threads, options)
    return lambda images: run(images)[0]


def onnx_session(model: Union[Path, bytes], threads: int, options: Options, profile: str = "") -> Any:
    """ONNX Runtime's session for a file or its content, on the CPU.

    Args:
        model: the ONNX model.
        threads: of one operator; operators run one after another.
        options: entries of its configuration.
        profile: where given, operators are timed, and this is the prefix of the file with their times.
    """
    runtime = require("onnxruntime", "running ONNX models")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.log_severity_level = 3
    for name, value in options.items():
        settings.add_session_config_entry(name, str(value))
    if profile:
        settings.enable_profiling, settings.profile_file_prefix = True, profile
    source = model if isinstance(model, bytes) else str(model)
    return runtime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def _load_all_onnx(path: Path, threads: int, options: Options) -> Network:
    session = onnx_session(path, threads, options)
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def to_openvino(model: nn.Module, example: Tensor, path: Path, dynamic_batch: bool = False) -> None:
    """Write OpenVINO's ``.xml`` and ``.bin``, by way of ONNX."""
    require("openvino", "export to OpenVINO")
    onnx_path = path.with_suffix(".intermediate.onnx")
    try:
        to_onnx(model, example, onnx_path, dynamic_batch)
        onnx_to_openvino(onnx_path, path)
    finally:
        onnx_path.unlink(missing_ok=True)


def fold_constants(model: Any) -> Any:
    """An OpenVINO model with its constant expressions computed.

    Without it a depthwise weight is ``Reshape(Constant)``: NNCF then takes its scales by kernel column, not by
    channel, and OpenVINO, which can make no INT8 kernel of that, runs every depthwise convolution in float.
    """
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    return model


def _load_openvino(path: Path, threads: int, options: Options) -> Runner:
    run = _load_all_openvino(path, threads, options)
    return lambda images: run(images)[0]


def openvino_model(
    model: Union[Path, bytes], threads: int, options: Options, input_shape: Optional[Sequence[int]] = None
) -> Any:
    """OpenVINO's compiled model of a file or of an ONNX file's content, on the CPU.

    Args:
        model: an ``.xml`` or ONNX file, or the content of the latter.
        threads: in all.
        options: settings; where they do not say otherwise, it is made for the latency of one image, in float32.
        input_shape: ``(N, C, H, W)`` in place of the model's own.
    """
    core = openvino_core()
    network = core.read_model(model if isinstance(model, bytes) else str(model))
    if input_shape is not None:
        network.reshape(list(input_shape))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **OPENVINO_FLOAT32, **options}
    return core.compile_model(network, "CPU", settings)


def _load_all_openvino(path: Path, threads: int, options: Options) -> Network:
    request = openvino_model(path, threads, options).create_infer_request()
    return lambda images: list(request.infer({0: images}, share_inputs=True).values())


def openvino_has_bfloat16() -> bool:
    """Whether OpenVINO multiplies bfloat16 on this CPU when it is asked to.

    It also offers it where the CPU, or a limit set by ``ONEDNN_MAX_CPU_ISA``, has none: then it is slow, or fails.
    """
    return has_bfloat16() and "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _to_torch_export(model: nn.Module, example: Tensor, path: Path, dynamic_batch: bool = False) -> None:
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamic_batch else {}
    if dynamic_batch:
        example = example.repeat(2, 1, 1, 1)  # a batch of one would be taken for a constant
    buffer = io.BytesIO()  # torch's own writer, on a full disk, ends the process
    torch.export.save(torch.export.export(model, (example,), **shapes), buffer)
    path.write_bytes(buffer.getbuffer())


def _load_torch_export(path: Path, threads: int, options: Options) -> Runner:
    return _torch_runner(torch.export.load(path).module(), threads)


def _to_torchscript(model: nn.Module, example: Tensor, path: Path, dynamic_batch: bool = False) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # shapes are constants here, and TorchScript is called outdated
        buffer = io.BytesIO()  # torch's own writer, on a full disk, ends the process
        torch.jit.save(torch.jit.freeze(torch.jit.trace(model, example)), buffer)
    path.write_bytes(buffer.getbuffer())


def _load_torchscript(path: Path, threads: int, options: Options) -> Runner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _torch_runner(torch.jit.load(path, map_location="cpu"), threads)


def _torch_runner(module: Callable[[Tensor], Tensor], threads: int) -> Runner:
    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad(), _torch_threads(threads):
            return module(torch.from_numpy(images)).numpy()

    return run


@contextlib.contextmanager
def _torch_threads(threads: int) -> Any:
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


def available_threads() -> List[int]:
    """Numbers of threads worth trying: one, and one a core."""
    return sorted({1, cores()})


FORMATS: Dict[str, Format] = {
    "onnx": Format(
        (".onnx",),
        ("onnx", "onnxruntime"),
        to_onnx,
        _load_onnx,
        ({}, {"session.intra_op.allow_spinning": "0"}),
        ("onnx", "onnxruntime"),
        "onnx",
        int8_extra="int8",
        load_all=_load_all_onnx,
    ),
    "openvino": Format(
        (".xml", ".bin"),
        ("openvino",),
        to_openvino,
        _load_openvino,
        (OPENVINO_FLOAT32, {**OPENVINO_FLOAT32, "ENABLE_CPU_PINNING": False}),
        ("onnx", "openvino"),
        "openvino",
        int8_needs=("nncf",),
        int8_extra="int8",
        load_all=_load_all_openvino,
    ),
    "torch-export": Format((".pt2",), ("torch",), _to_torch_export, _load_torch_export, ({},)),
    "torchscript": Format((".torchscript.pt",), ("torch",), _to_torchscript, _load_torchscript, ({},)),
    "executorch": Format(
        (".pte",),
        ("executorch", "torchao"),
        edge.to_executorch,
        edge.load_executorch,
        ({},),
        ("executorch", "torchao"),
        "executorch",
        batches=False,
        one_pool=True,
    ),
    "litert": Format(
        (".tflite",),
        ("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
        edge.to_litert,
        edge.load_litert,
        ({},),
        ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
        "litert",
        batches=False,
    ),
    "ncnn": Format(
        (".ncnn.param", ".ncnn.bin"),
        ("pnnx", "ncnn"),
        edge.to_ncnn,
        edge.load_ncnn,
        (edge.NCNN_FLOAT32, {**edge.NCNN_FLOAT32, "use_sgemm_convolution": False}),
        ("pnnx", "ncnn"),
        "ncnn",
        batches=False,
    ),
}
