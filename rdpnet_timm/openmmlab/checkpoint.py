"""Pretrained weights for a backbone, from timm's checkpoints and from mmengine's."""

from typing import Any, Dict, Optional

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from timm.models import clean_state_dict, load_state_dict
from torch import nn

__all__ = ["load_pretrained"]


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: Optional[str] = None) -> None:
    """Load a checkpoint, averaged weights where it has them, into a backbone; a classifier in it is left out.

    Args:
        backbone: the network.
        checkpoint: a file (``.safetensors`` too) or an address that mmengine knows; read without executing pickles.
        prefix: takes a part, ``backbone.`` for that of a detector.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: weights are missing or of other shapes.
    """
    if "://" in checkpoint:
        state_dict = _weights(CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu"))
    else:
        try:
            state_dict = load_state_dict(checkpoint)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"init_cfg names the checkpoint '{checkpoint}', and there is no such file"
            ) from None
    if prefix:
        prefix = prefix.rstrip(".") + "."
        state_dict = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    # modules that this backbone does not have, behind its last map, are as unneeded as the classifier
    children = {name for name, module in backbone.named_children() if module.state_dict()}
    own = backbone.state_dict()
    given = {name: value for name, value in state_dict.items() if name.split(".")[0] in children}
    missing, ignored = backbone.load_state_dict(given, strict=False)
    if missing:
        raise RuntimeError(
            f"'{checkpoint}' has no weights for {len(missing)} of the {len(own)} entries of {type(backbone).__name__}, "
            f"such as '{missing[0]}'; it begins with {list(state_dict)[:3]}. Those of a detector or segmentor need "
            "prefix='backbone.'"
        )
    left_out = sorted({name.split(".")[0] for name in state_dict if name not in given} | set(ignored))
    print_log(
        f"{type(backbone).__name__}: weights of {checkpoint}, without {left_out or 'exception'}", logger="current"
    )


def _weights(checkpoint: Dict[str, Any]) -> Dict[str, Any]:
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(checkpoint.get(key), dict):
            return clean_state_dict(checkpoint[key])
    return clean_state_dict(checkpoint)
