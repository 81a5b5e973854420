"""The packages that deployment needs and the core does not."""

from importlib import import_module
from types import ModuleType

__all__ = ["require"]


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
        raise ImportError(f'{purpose} needs {error.name}: pip install "rdpnet-timm[deploy]"') from None
