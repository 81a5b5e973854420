"""The packages that parts of this one need and its core does not."""

import contextlib
import importlib.util
import io
import logging
import warnings
from importlib import import_module
from types import ModuleType
from typing import Iterable, Iterator, Optional

__all__ = ["is_installed", "quiet", "require", "require_all"]

# the extra of pyproject.toml that brings a package
_EXTRAS = {
    "ai_edge_litert": "litert",
    "ai_edge_quantizer": "litert",
    "executorch": "executorch",
    "litert_torch": "litert",
    "matplotlib": "train",
    "mim": "openmmlab",
    "mmcv": "openmmlab",
    "mmdet": "openmmlab",
    "mmengine": "openmmlab",
    "mmseg": "openmmlab",
    "ncnn": "ncnn",
    "nncf": "int8",
    "numba": "fused",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "pnnx": "ncnn",
    "psutil": "train",
    "pyarrow": "train",
    "rich": "train",
    "sklearn": "train",
    "torchao": "bench",
}


def require(module: str, purpose: str, extra: Optional[str] = None) -> ModuleType:
    """Import an optional package.

    Args:
        module: its import name.
        purpose: what needs it, for the error message.
        extra: the extra that brings all that this purpose needs, where the package's own one brings too little.

    Raises:
        ImportError: it is not installed; the message names it and the line that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        wanted = extra or _EXTRAS.get(package)
        what = f'"rdpnet-timm[{wanted}]"' if wanted else package
        raise ImportError(f"{purpose} needs {error.name}: pip install {what}") from None


def require_all(modules: Iterable[str], purpose: str, extra: Optional[str] = None) -> None:
    """Check that packages are there, without importing them, before work starts that needs them at its end.

    Args:
        modules: their import names.
        purpose: what needs them, for the error message.
        extra: the extra of this package that brings them all; by default each package's own.

    Raises:
        ImportError: some are not installed; the message names them and the line that installs them.
    """
    missing = [module for module in dict.fromkeys(modules) if not is_installed(module)]
    if missing:
        wanted = extra or ",".join(sorted({_EXTRAS[module] for module in missing if module in _EXTRAS}))
        what = f'"rdpnet-timm[{wanted}]"' if wanted else " ".join(missing)
        raise ImportError(f"{purpose} needs {' and '.join(missing)}: pip install {what}")


def is_installed(module: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(module.partition(".")[0]) is not None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep converters' and quantisers' progress bars and advice off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
