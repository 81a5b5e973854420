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

# the extra of pyproject.toml that brings a package; what is not here is in "deploy"
_EXTRAS = {
    "ai_edge_litert": "litert",
    "ai_edge_quantizer": "litert",
    "executorch": "executorch",
    "litert_torch": "litert",
    "matplotlib": "bench",
    "mim": "openmmlab",
    "mmcv": "openmmlab",
    "mmdet": "openmmlab",
    "mmengine": "openmmlab",
    "mmseg": "openmmlab",
    "ncnn": "ncnn",
    "numba": "fused",
    "pnnx": "ncnn",
    "psutil": "bench",
    "rich": "train",
    "sklearn": "train",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: its import name.
        purpose: what needs it, for the error message.

    Raises:
        ImportError: it is not installed; the message names it and the line that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(module.partition(".")[0], "deploy")
        raise ImportError(f'{purpose} needs {error.name}: pip install "rdpnet-timm[{extra}]"') from None


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
        extras = extra or ",".join(sorted({_EXTRAS.get(module.partition(".")[0], "deploy") for module in missing}))
        raise ImportError(f'{purpose} needs {" and ".join(missing)}: pip install "rdpnet-timm[{extras}]"')


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
