"""RDPNet for timm and OpenMMLab. Importing this package registers the models ``rdpnet_*`` with timm."""

# timm first: where the start-up hook is on, importing timm completes with the models registered, and no other thread
# can meet timm without them while this package is on its way.
import timm  # noqa: F401

from .blocks import set_fused
from .checkpoint import load_checkpoint, load_model
from .convert import reparameterize
from .measure.difference import Verification, verify
from .rdpnet import RDPNet

__all__ = ["RDPNet", "Verification", "load_checkpoint", "load_model", "reparameterize", "set_fused", "verify"]
__version__ = "0.1.0"
