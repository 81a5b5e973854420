"""RDPNet for timm and OpenMMLab. Importing this package registers the models ``rdpnet_*`` with timm."""

from .convert import reparameterize
from .rdpnet import RDPNet
from .verify import Verification, verify

__all__ = ["RDPNet", "Verification", "reparameterize", "verify"]
__version__ = "0.1.0"
