"""What runs a network: eager PyTorch, torch.compile, ONNX Runtime, OpenVINO, each with its threads pinned."""

import importlib.util
import io
import warnings
from functools import cached_property
from typing import Callable, Dict, Sequence, Tuple

import torch
from torch import Tensor, nn

__all__ = ["BACKENDS", "Form", "pin_threads", "prepare", "require"]

BACKENDS: Dict[str, Tuple[str, ...]] = {
    "eager": (),
    "compile": (),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
}


class Form:
    """One form of a network, and the image it is timed with.

    Args:
        module: the network, in evaluation mode.
        x: the image ``(1, C, H, W)``.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module = module.eval()
        self.x = x

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX model for images of this very shape, exported once for all runtimes."""
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns of every shape it takes for a constant, which it is
            torch.onnx.export(self.module, (self.x,), buffer, dynamo=False, opset_version=17, input_names=["image"])
        return buffer.getvalue()


def require(backends: Sequence[str]) -> None:
    """Check that all backends are there.

    Raises:
        ValueError: a backend of another name.
        ImportError: a backend whose packages are not installed.
    """
    for backend in backends:
        if backend not in BACKENDS:
            raise ValueError(f"there is no backend '{backend}'; choose from {', '.join(BACKENDS)}")
        missing = [package for package in BACKENDS[backend] if importlib.util.find_spec(package) is None]
        if missing:
            raise ImportError(
                f'the backend {backend} needs {" and ".join(missing)}: pip install "rdpnet-timm[bench]", or leave it '
                "out of --backend"
            )


def pin_threads(threads: int) -> None:
    """Set PyTorch's threads for the whole process, and forget code compiled for another number of them."""
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def prepare(backend: str, form: Form, threads: int) -> Callable[[], object]:
    """A function without arguments that runs ``form`` once on ``backend``.

    The runtimes get ``threads`` threads; eager and compiled networks have those of :func:`pin_threads`.
    """
    return {"eager": _eager, "compile": _compile, "onnxruntime": _onnxruntime, "openvino": _openvino}[backend](
        form, threads
    )


def _eager(form: Form, _: int) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return form.module(form.x)

    return run


def _compile(form: Form, _: int) -> Callable[[], object]:
    torch._dynamo.config.cache_size_limit = 256  # networks of one class share it
    # frozen weights are what lets the compiler fold norms and lay out kernels, as the runtimes do
    compiled = torch.compile(form.module, options={"freezing": True})

    def run() -> object:
        with torch.no_grad():
            return compiled(form.x)

    run()
    return run


def _onnxruntime(form: Form, threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # idle threads of one session must not spin while the next contestant has its turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(form.onnx, options, providers=["CPUExecutionProvider"])
    image = {"image": form.x.numpy()}
    return lambda: session.run(None, image)


def _openvino(form: Form, threads: int) -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(form.onnx), "CPU", config).create_infer_request()
    image = {0: form.x.numpy()}
    return lambda: request.infer(image, share_inputs=True, share_outputs=True)
