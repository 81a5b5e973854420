"""The packages that parts of this one need and its core does not."""

from importlib import import_module
from types import ModuleType

__all__ = ["require"]

# the extra of pyproject.toml that brings a package; what is not here is in "deploy"
_EXTRAS = {
    "matplotlib": "bench",
    "mmdet": "openmmlab",
    "mmengine": "openmmlab",
    "mmseg": "openmmlab",
    "numba": "fused",
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
