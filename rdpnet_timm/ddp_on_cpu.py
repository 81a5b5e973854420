"""Data-parallel training on CPUs with timm's train.py: ``--device cpu --device-modules rdpnet_timm.ddp_on_cpu``.

train.py (as of timm 1.0.31) passes ``device_ids=[device("cpu")]`` to DistributedDataParallel, which torch refuses for
modules on a CPU, whatever the model. Importing this module, as ``--device-modules`` does, leaves these ids out.
"""

from typing import Any, Optional, Sequence

import torch
from torch.nn.parallel import DistributedDataParallel

__all__: Sequence[str] = []

_init = DistributedDataParallel.__init__


def _init_without_cpu_ids(
    self: DistributedDataParallel, module: torch.nn.Module, device_ids: Optional[Sequence[Any]] = None, **kwargs: Any
) -> None:
    if device_ids == [torch.device("cpu")]:
        device_ids = None
    _init(self, module, device_ids=device_ids, **kwargs)


DistributedDataParallel.__init__ = _init_without_cpu_ids
