"""RDPNet for OpenMMLab: ``custom_imports = dict(imports=['rdpnet_timm.openmmlab'])`` in a config brings it all.

Importing this registers the backbones ``RDPNet`` and ``TimmBackbone``, the hook ``ReparameterizeHook`` and the runner
``DataCheckingRunner`` in mmengine's root registries, and lets OpenMMLab's packages run on today's torch.
"""

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'rdpnet_timm.openmmlab needs OpenMMLab\'s packages ({error}): pip install "rdpnet-timm[openmmlab]"'
    ) from error

from . import patches

patches.provide_mmcv_ext()
patches.leave_out_language_models()
patches.allow_checkpoint_types()
patches.allow_distributed_cpu()
patches.respect_runner_type()

from .backbone import RDPNet  # noqa: E402
from .hook import ReparameterizeHook  # noqa: E402
from .runner import DataCheckingRunner  # noqa: E402
from .seeding import SeedByProgressHook  # noqa: E402
from .timm_backbone import TimmBackbone  # noqa: E402

__all__ = ["DataCheckingRunner", "RDPNet", "ReparameterizeHook", "SeedByProgressHook", "TimmBackbone"]
