"""What OpenMMLab's packages need on today's torch, none of it changed where it already works.

Since torch 2.6 checkpoints are read with ``weights_only=True``, which mmengine's own do not pass; mmcv-lite lacks
compiled operators; and mmengine's distributed training takes a GPU for granted.
"""

import importlib
import importlib.util
import logging
import os
import sys
from functools import wraps
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, List

import torch

from ..weights.reading import checkpoint_types

__all__ = [
    "allow_checkpoint_types",
    "allow_distributed_cpu",
    "leave_out_language_models",
    "provide_mmcv_ext",
    "respect_runner_type",
]


def provide_mmcv_ext() -> None:
    """Let torchvision's operators stand in for ``mmcv._ext`` where mmcv has no compiled one.

    The start-up hook does the same earlier; this is for ``RDPNET_AUTOLOAD=0`` and for copies that were not installed.
    """
    if "mmcv._ext" in sys.modules or os.environ.get("RDPNET_MMCV_EXT") == "0":
        return
    try:
        if importlib.util.find_spec("mmcv._ext") is not None:
            return
    except ModuleNotFoundError:  # no mmcv at all
        return
    loader = SourceFileLoader("mmcv._ext", str(Path(__file__).with_name("mmcv_ext.py")))
    module = importlib.util.module_from_spec(ModuleSpec("mmcv._ext", loader, origin=loader.path))
    module.__file__ = loader.path
    loader.exec_module(module)
    sys.modules["mmcv._ext"] = module
    setattr(sys.modules["mmcv"], "_ext", module)  # noqa: B010, mypy does not know the name


def leave_out_language_models() -> None:
    """Let mmpretrain be imported beside a transformers too new for it; mmdet imports it where it is installed.

    mmpretrain's language models subclass and call what transformers 5 no longer has, and one that cannot be defined
    takes the whole import with it. mmpretrain has placeholders for them, for the case that transformers is not there:
    they are used here too. Where transformers has what they need, nothing is changed.
    """
    if "mmpretrain.models" in sys.modules or importlib.util.find_spec("mmpretrain") is None:
        return
    missing = _missing_in_transformers()
    if not missing:
        return
    try:
        dependency = importlib.import_module("mmpretrain.utils.dependency")
    except Exception:  # whatever it is: whoever needs mmpretrain gets it anew
        return
    if getattr(dependency, "WITH_MULTIMODAL", False):
        setattr(dependency, "WITH_MULTIMODAL", False)  # noqa: B010, mypy does not know the name
        logging.getLogger("rdpnet_timm").warning(
            "mmpretrain's multimodal models are left out, because this transformers has no %s any more: "
            "pip install 'transformers<5' brings them back",
            ", ".join(missing),
        )


def _missing_in_transformers() -> List[str]:
    """What mmpretrain's language models import from ``transformers.modeling_utils`` and its source does not name.

    The source is read rather than run, which takes seconds.
    """
    try:
        spec = importlib.util.find_spec("transformers")
        folders = list(spec.submodule_search_locations or ()) if spec else []
        source = Path(folders[0], "modeling_utils.py").read_text(encoding="utf-8") if folders else None
    except (ImportError, OSError, ValueError):
        return []
    needed = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")
    return [] if source is None else [name for name in needed if name not in source]


def allow_checkpoint_types() -> None:
    """Let torch's safe loader read the training state that mmengine and timm store beside the weights."""
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    # a dictionary, in a dataset's metainfo: setting its items, which is all that loading does, builds nothing
    torch.serialization.add_safe_globals([*checkpoint_types(HistoryBuffer), ConfigDict])


def allow_distributed_cpu() -> None:
    """Let mmengine's ``launcher='pytorch'`` run on CPUs: gloo, no device ids, no SyncBN (torch has none there)."""
    import mmengine.dist.utils as dist
    from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm

    if torch.cuda.is_available() or hasattr(dist._init_dist_pytorch, "__wrapped__"):
        return
    init_dist, init_model = dist._init_dist_pytorch, MMDistributedDataParallel.__init__

    @wraps(init_dist)
    def init_dist_on_cpu(backend: str, init_backend: str = "torch", **kwargs: Any) -> None:
        accelerator = getattr(torch, "accelerator", None)  # since torch 2.6
        if init_backend != "torch" or (accelerator is not None and accelerator.is_available()):
            return init_dist(backend, init_backend=init_backend, **kwargs)
        torch.distributed.init_process_group(backend="gloo" if backend == "nccl" else backend, **kwargs)

    @wraps(init_model)
    def init_model_on_cpu(self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            kwargs["device_ids"] = None
            module = revert_sync_batchnorm(module)
        init_model(self, module, *args, **kwargs)

    dist._init_dist_pytorch = init_dist_on_cpu
    MMDistributedDataParallel.__init__ = init_model_on_cpu


def respect_runner_type() -> None:
    """Let ``Runner.from_cfg`` build the runner that the config names: mmsegmentation's test.py does not look."""
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    plain = Runner.from_cfg.__func__
    if hasattr(plain, "__wrapped__"):
        return

    @wraps(plain)
    def from_cfg(cls: Any, cfg: Any) -> Any:
        named = RUNNERS.get(cfg["runner_type"]) if cls is Runner and cfg.get("runner_type") else None
        return plain(cls, cfg) if named in (None, Runner) else named.from_cfg(cfg)

    Runner.from_cfg = classmethod(from_cfg)
