"""What runs a network, in which precision: eager PyTorch, torch.compile, the runtimes, each with its threads pinned."""

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from ..deploy.formats import (
    FORMATS,
    OPENVINO_BFLOAT16,
    OPENVINO_FLOAT32,
    Options,
    onnx_session,
    openvino_has_bfloat16,
    openvino_model,
    trace_to_onnx,
)
from ..deploy.quantize import QUANTIZERS, quantize_onnx
from ..extras import require_all
from ..measure.machine import has_vnni

__all__ = [
    "BACKENDS", "NOISY_DB", "PRECISIONS", "RUNTIMES", "WRONG_DB", "Backend", "Form", "available", "compiled",
    "eager", "images_like", "onnx_of", "openvino_options", "pin_threads", "prepare", "require", "signal_to_noise",
]  # fmt: skip

PRECISIONS = ("float32", "bfloat16", "int8")
CALIBRATION_IMAGES, HELD_OUT_IMAGES = 8, 4
WRONG_DB, NOISY_DB = 0.0, 10.0  # the error is as large as the output; it is a third of its amplitude


class Backend(NamedTuple):
    """What runs a network: the packages it needs, the extra that brings them, and the precisions it knows."""

    needs: Tuple[str, ...] = ()
    extra: str = "bench"
    precisions: Tuple[str, ...] = ("float32",)


BACKENDS: Dict[str, Backend] = {
    "eager": Backend(),
    "compile": Backend(),
    "onnxruntime": Backend(("onnx", "onnxruntime"), "bench", ("float32", "int8")),
    "openvino": Backend(("onnx", "onnxruntime", "openvino"), "bench", PRECISIONS),
    **{
        name: Backend(FORMATS[name].needs, name, ("float32", *(["int8"] if name in QUANTIZERS else [])))
        for name in ("executorch", "litert", "ncnn")
    },
}
RUNTIMES = tuple(name for name in BACKENDS if name not in ("eager", "compile"))


def images_like(size: Sequence[int], count: int, seed: int = 0) -> Tensor:
    """Random images ``(count, C, H, W)`` that differ from each other as pictures do: large blots, and fine noise."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = size
    coarse = torch.randn(count, channels, 8, 8, generator=generator)
    blots = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return blots + 0.3 * torch.randn(count, channels, height, width, generator=generator)


class Form:
    """One form of a network, and the image it is timed with.

    Args:
        module: the network, in evaluation mode.
        x: the images ``(N, C, H, W)``, one where latency is timed.
        dynamic: let the ONNX model take any number of images, not that of ``x`` alone.

    Attributes:
        has_snr: whether its output is one whose signal-to-noise ratio says something.
        parts: names of the submodules that INT8 is for; all of them where there are none.
    """

    has_snr = True
    parts: Tuple[str, ...] = ()

    def __init__(self, module: nn.Module, x: Tensor, dynamic: bool = False) -> None:
        self.module = module.eval()
        self.x = x
        self.dynamic = dynamic

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX model, exported once for all runtimes."""
        axes = {"image": {0: "batch"}, "logits": {0: "batch"}} if self.dynamic else {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            trace_to_onnx(self.module, self.x, path, ["logits"], axes)
            return path.read_bytes()

    @cached_property
    def calibration(self) -> Sequence[np.ndarray]:
        """The images that INT8 ranges are taken from, the same for all networks of a size; ``(N, C, H, W)``."""
        return images_like(self.x.shape[1:], CALIBRATION_IMAGES, seed=1).numpy()

    @cached_property
    def int8_onnx(self) -> bytes:
        """The network in INT8 by ONNX Runtime's quantiser, which OpenVINO reads as well; 7 bits without VNNI."""
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(self.onnx)
            quantize_onnx(source, target, self.calibration, parts=self.parts)
            return target.read_bytes()

    @cached_property
    def held_out(self) -> Tuple[np.ndarray, np.ndarray]:
        """Images that no range was taken from, and the float outputs of PyTorch."""
        images = images_like(self.x.shape[1:], HELD_OUT_IMAGES, seed=2)
        with torch.inference_mode():
            return images.numpy(), np.concatenate([self.module(image).numpy() for image in images.split(1)])


def require(backends: Sequence[str], threads: Sequence[int] = (1,)) -> None:
    """Check that all backends are there, and can run with each of these numbers of threads.

    Raises:
        ValueError: a backend of another name, or several numbers where a process can have but one.
        ImportError: a backend whose packages are not installed.
    """
    for name in backends:
        if name not in BACKENDS:
            raise ValueError(f"there is no backend '{name}'; choose from {', '.join(BACKENDS)}")
        try:
            require_all(BACKENDS[name].needs, f"the backend {name}", BACKENDS[name].extra)
        except ImportError as error:
            raise ImportError(f"{error}, or leave it out of --backend") from None
        if name in FORMATS and FORMATS[name].one_pool and len(set(threads)) > 1:
            raise ValueError(
                f"{name} has one number of threads in a process, got --threads {' '.join(map(str, threads))}: run the "
                "command once for each, into a folder of its own, or leave it out of --backend"
            )


def available(backends: Sequence[str], precisions: Sequence[str]) -> List[Tuple[str, str]]:
    """The pairs of backend and precision that there are: bfloat16, OpenVINO's alone, only where the CPU multiplies it.

    Raises:
        ValueError: a precision of another name, or no pair at all.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ValueError(f"there is no precision '{precision}'; choose from {', '.join(PRECISIONS)}")
    pairs = [
        (name, each)
        for name in backends
        for each in precisions
        if each in BACKENDS[name].precisions and (each != "bfloat16" or openvino_has_bfloat16())
    ]
    if not pairs:
        raise ValueError(
            f"{', '.join(backends)} cannot compute in {', '.join(precisions)} on this CPU: add float32 to --precision, "
            "or another backend"
        )
    return pairs


def pin_threads(threads: int) -> None:
    """Set PyTorch's threads for the whole process, and forget code compiled for another number of them."""
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def prepare(backend: str, form: Form, threads: int, precision: str = "float32") -> Callable[[], object]:
    """A function without arguments that runs ``form`` once on ``backend``.

    The runtimes get ``threads`` threads; eager and compiled networks have those of :func:`pin_threads`.
    """
    if backend in ("eager", "compile"):
        return {"eager": eager, "compile": compiled}[backend](form.module, form.x)
    run, image = runner(backend, form, threads, precision), form.x.numpy()
    return lambda: run(image)


def runner(backend: str, form: Form, threads: int, precision: str = "float32") -> Callable[[np.ndarray], np.ndarray]:
    """A function from images to outputs, on a runtime."""
    if backend == "onnxruntime":
        return _onnxruntime(form, threads, precision)
    if backend == "openvino":
        return _openvino(form, threads, precision)
    return _from_file(backend, form, threads, precision)


def signal_to_noise(form: Form, run: Callable[[np.ndarray], np.ndarray]) -> float:
    """Power of the float output over that of its difference to ``run``'s, in dB, on images no range was taken from.

    It is -300 to 300: the least where an output is not finite, the most where there is no difference.
    """
    images, expected = form.held_out
    actual = np.concatenate([np.array(run(image)) for image in images[:, None]]).reshape(expected.shape)
    noise = float(np.square(actual.astype(np.float64) - expected).mean())
    if noise == 0:
        return 300.0
    ratio = float(np.square(expected.astype(np.float64)).mean()) / max(noise, 1e-30)
    return float(10 * np.log10(min(ratio, 1e30) if ratio > 1e-30 else 1e-30))  # NaN is above nothing


def eager(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """A function that runs ``module`` on ``x`` as it is."""

    def run() -> object:
        with torch.inference_mode():
            return module(x)

    return run


def compiled(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """A function that runs ``module`` on ``x``, compiled here for :func:`pin_threads`' number of threads."""
    import torch._inductor.config as inductor

    torch._dynamo.config.cache_size_limit = 256  # networks of one class share it
    function = torch.compile(module)

    def run() -> object:
        with torch.no_grad():
            return function(x)

    # frozen weights are what lets the compiler fold norms and lay out kernels, as the runtimes do; as an option of
    # torch.compile the setting comes after tracing, too late for the kernels of PT2E
    with inductor.patch(freezing=True):
        run()
    return run


def onnx_of(form: Form, precision: str) -> bytes:
    """What both runtimes read: the quantised ONNX model for INT8, else the float one."""
    return form.int8_onnx if precision == "int8" else form.onnx


def openvino_options(precision: str) -> Options:
    """OpenVINO's settings for a precision; INT8 is in the model, what is left in float stays float32."""
    return OPENVINO_BFLOAT16 if precision == "bfloat16" else OPENVINO_FLOAT32


def _onnxruntime(form: Form, threads: int, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    # idle threads of one session must not spin while the next contestant has its turn
    session = onnx_session(onnx_of(form, precision), threads, {"session.force_spinning_stop": "1"})
    return lambda images: session.run(None, {"image": images})[0]


def _openvino(form: Form, threads: int, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    model = openvino_model(onnx_of(form, precision), threads, openvino_options(precision))
    request = model.create_infer_request()
    return lambda images: request.infer({0: images}, share_inputs=True, share_outputs=True)[0]


def _from_file(backend: str, form: Form, threads: int, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """The runtimes that read a file, by the formats of ``rdpnet export``."""
    kind = FORMATS[backend]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{kind.suffixes[0]}"
        if precision == "int8":
            QUANTIZERS[backend](form.module, form.x, path, np.asarray(form.calibration), False, not has_vnni())
        else:
            kind.write(form.module, form.x, path, False)
        return kind.load(path, threads, kind.options[0])
