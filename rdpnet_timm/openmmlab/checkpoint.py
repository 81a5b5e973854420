"""The first weights of a backbone: as ``init_cfg`` says, pretrained ones from timm's checkpoints and mmengine's."""

from typing import Optional

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader
from torch import nn

from ..weights.reading import read_state_dict, state_dict_of

__all__ = ["init_weights", "load_pretrained"]


def init_weights(module: BaseModule, network: nn.Module) -> None:
    """Initialise a backbone as its ``init_cfg`` says; what that does not name stays as the constructor left it.

    It is mmengine's own initialisation but for ``Pretrained``, which :func:`load_pretrained` reads. As there,
    pretrained weights come last, and a second call changes nothing.

    Args:
        module: the backbone.
        network: the part of it that pretrained weights are for.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        RuntimeError: weights are missing or of other shapes.
        ValueError: a pretrained ``init_cfg`` names no checkpoint.
    """
    init_cfg = module.init_cfg
    configs = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
    pretrained = [config for config in configs if config.get("type") in ("Pretrained", PretrainedInit)]
    for config in pretrained:
        if not config.get("checkpoint"):
            raise ValueError(
                f"init_cfg={config} of {type(module).__name__} names no checkpoint: add checkpoint='FILE', such as the "
                "model_best.pth.tar of timm's train.py, or leave init_cfg out"
            )
    was_initialised = module.is_init
    try:
        module.init_cfg = [config for config in configs if config not in pretrained]
        BaseModule.init_weights(module)
        if not was_initialised:
            module.is_init = False  # until the last weight is in
            for config in pretrained:
                load_pretrained(network, config["checkpoint"], config.get("prefix"))
            module.is_init = True
    finally:
        module.init_cfg = init_cfg


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: Optional[str] = None) -> None:
    """Load a checkpoint, averaged weights where it has them, into a backbone; a classifier in it is left out.

    Args:
        backbone: the network.
        checkpoint: a file (``.safetensors`` too) or an address that mmengine knows; read without executing pickles.
        prefix: takes a part, ``backbone.`` for that of a detector.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: weights are missing or of other shapes.
        ValueError: the file holds no weights, or more than weights.
    """
    if "://" in checkpoint:
        state_dict = state_dict_of(CheckpointLoader.load_checkpoint(checkpoint, map_location="cpu"))
    else:
        try:
            state_dict, _ = read_state_dict(checkpoint)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"init_cfg names the checkpoint '{checkpoint}', and there is no such file"
            ) from None
    if prefix:
        prefix = prefix.rstrip(".") + "."
        state_dict = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    # those of a TimmBackbone, whose timm model is a part of it
    state_dict = {name.removeprefix("timm_model."): value for name, value in state_dict.items()}
    # modules that this backbone does not have, behind its last map, are as unneeded as the classifier
    children = {name for name, module in backbone.named_children() if module.state_dict()}
    own = backbone.state_dict()
    given = {name: value for name, value in state_dict.items() if name.split(".")[0] in children}
    missing, ignored = backbone.load_state_dict(given, strict=False)
    if missing:
        if not prefix and any(name.startswith("backbone.") for name in state_dict):
            advice = "Those of a detector or segmentor need prefix='backbone.'"
        elif given:
            advice = "It is another network, or one that ends earlier"
        else:
            advice = "It is another network" + (f", or has no weights under the prefix '{prefix}'" if prefix else "")
        raise RuntimeError(
            f"'{checkpoint}' has no weights for {len(missing)} of the {len(own)} entries of {type(backbone).__name__}, "
            f"such as '{missing[0]}'; it begins with {list(state_dict)[:3]}. {advice}"
        )
    left_out = sorted({name.split(".")[0] for name in state_dict if name not in given} | set(ignored))
    print_log(
        f"{type(backbone).__name__}: weights of {checkpoint}, without {left_out or 'exception'}", logger="current"
    )
