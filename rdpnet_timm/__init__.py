"""RDPNet for timm and OpenMMLab. Importing this package registers the models ``rdpnet_*`` with timm.

It imports neither timm nor torch itself: the models are registered as timm is imported, or at once where it is already,
and the public names import what they need when they are first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, List

try:
    from .autoload import install as _install
except ImportError:  # a wheel has this file beside the package
    from rdpnet_timm_autoload import install as _install  # type: ignore[no-redef]

if TYPE_CHECKING:
    from .blocks import set_fused
    from .checkpoint import load_checkpoint, load_model
    from .convert import reparameterize
    from .measure.difference import Verification, verify
    from .rdpnet import RDPNet

__all__ = ["RDPNet", "Verification", "load_checkpoint", "load_model", "reparameterize", "set_fused", "verify"]
__version__ = "0.1.0"

_HOMES = {
    "RDPNet": "rdpnet",
    "Verification": "measure.difference",
    "load_checkpoint": "checkpoint",
    "load_model": "checkpoint",
    "reparameterize": "convert",
    "set_fused": "blocks",
    "verify": "measure.difference",
}
_MODULES = ("blocks", "checkpoint", "convert", "measure", "rdpnet", "reparam", "weights")

_install(mmcv=os.environ.get("RDPNET_AUTOLOAD") != "0")


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    # timm first: its import completes with the models registered, and no other thread can meet it without them
    import_module("timm")
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__, *_MODULES})
