"""Models and their weights on disk: load whole or not at all, write whole or not at all."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any, Dict, Optional, Union

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from .convert import reparameterize
from .files import atomic_path
from .measure.difference import Verification, verify
from .rdpnet import convert_state_dict
from .weights.reading import read_checkpoint

__all__ = ["convert_checkpoint", "deploy_form_of", "load_checkpoint", "load_model", "save_model"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def load_checkpoint(model: nn.Module, path: Union[str, Path], use_ema: bool = True) -> None:
    """Load a checkpoint into a model, whole or not at all; an RDPNet in its deploy form takes train-form weights.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`.
        RuntimeError: the weights are not those of this model; the message names the first difference.
    """
    _load_whole(model, read_checkpoint(path, use_ema).state_dict, str(path))


def _load_whole(model: nn.Module, state_dict: Dict[str, Tensor], source: str) -> None:
    try:
        state_dict = convert_state_dict(state_dict, model)
    except RuntimeError as error:
        raise RuntimeError(f"cannot load '{source}': {error}") from None
    own = model.state_dict()
    for problem, names in (
        ("lacks", [name for name in own if name not in state_dict]),
        ("has, unknown to the model,", [name for name in state_dict if name not in own]),
    ):
        if names:
            raise RuntimeError(f"cannot load '{source}': it {problem} {len(names)} tensors, the first is '{names[0]}'")
    for name, tensor in own.items():
        if tensor.shape != state_dict[name].shape:
            raise RuntimeError(
                f"cannot load '{source}': its '{name}' has the shape {tuple(state_dict[name].shape)}, the model's is "
                f"{tuple(tensor.shape)}; create the model with the width, in_chans and num_classes of the weights"
            )
    model.load_state_dict(state_dict)


def load_model(source: Union[str, Path], model: Optional[str] = None, use_ema: bool = True, **kwargs: Any) -> nn.Module:
    """Create a model from a timm name, or from a checkpoint together with its weights.

    Args:
        source: a name known to timm, with a tag (``resnet18.a1_in1k``) to have its pretrained weights; or the path of
            a checkpoint.
        model: the timm name of the checkpoint's model; by default the one that the file names.
        use_ema: take the averaged weights where the file has them.
        kwargs: arguments for the model. Of an RDPNet's checkpoint the form, ``num_classes`` and ``in_chans`` are read
            off the weights.

    Raises:
        FileNotFoundError: ``source`` is neither a name that timm knows nor a file.
        RuntimeError, ValueError: the file cannot be read, does not fit, or does not tell what model it is of.
    """
    if not Path(source).is_file():
        if timm.is_model(str(source)) or str(source).startswith(("hf-hub:", "local-dir:")):
            return timm.create_model(str(source), pretrained="." in str(source), **kwargs)
        raise FileNotFoundError(
            f"'{source}' is neither a file nor a model that timm knows; for the names see timm.list_models('rdpnet*')"
        )
    checkpoint = read_checkpoint(source, use_ema)
    name = model or checkpoint.arch
    if name is None:
        raise ValueError(
            f"'{source}' does not say what model it is of; name it (--model){_candidates(checkpoint.state_dict)}"
        )
    args = {**checkpoint.model_args, **_args_of(checkpoint.state_dict), **kwargs}
    created = timm.create_model(name, pretrained=False, **args)
    _load_whole(created, checkpoint.state_dict, str(source))
    return created


def _args_of(state_dict: Dict[str, Tensor]) -> Dict[str, Any]:
    """The arguments of an RDPNet that its weights show; empty for other networks."""
    merged = state_dict.get("stem.reparam_conv.weight")
    stem = state_dict.get("stem.branches.conv3x3.conv.weight", merged)
    if stem is None:
        return {}
    head = state_dict.get("head.weight")
    identity = any(re.search(r"\.point\.branches\.identity\.", name) for name in state_dict)
    return {
        "in_chans": stem.shape[1],
        "num_classes": 0 if head is None else head.shape[0],
        **({"inference_mode": True} if merged is not None else {}),
        **({"pointwise_identity": True} if identity else {}),
    }


def _candidates(state_dict: Dict[str, Tensor]) -> str:
    """What an RDPNet's weights say of its name: the width, but not whether it is the ImageNet or the CIFAR form."""
    for name in ("stages.0.0.point.reparam_conv.weight", "stages.0.0.point.branches.conv1x1_a.conv.weight"):
        if name in state_dict:
            variant = f"rdpnet_{round(state_dict[name].shape[0] / 64 * 100):03d}"
            return f": its width is that of {variant} and {variant}_cifar"
    return ""


def save_model(model: nn.Module, path: Union[str, Path], arch: str, model_args: Dict[str, Any]) -> None:
    """Write a model's weights with its timm name and arguments, whole or not at all.

    Args:
        model: the model.
        path: where to, ``.safetensors``, or ``.pth`` (``.pt``, ``.pth.tar``) for a file like those of timm's train.py.
        arch: the timm name of the model.
        model_args: what ``timm.create_model`` needs beside the name.

    Raises:
        ValueError: another suffix.
        OSError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"the suffix must be one of {', '.join(SUFFIXES)}, got '{path.name}'")
    state_dict = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            metadata = {"format": "pt", "arch": arch, "model_args": json.dumps(model_args)}
            safetensors.torch.save_file(state_dict, temporary, metadata)
        else:
            torch.save({"arch": arch, "model_args": model_args, "state_dict": state_dict}, temporary)


def deploy_form_of(model: nn.Module) -> nn.Module:
    """The deploy form of a model, merged in float64 and cast back: some of timm's blocks merge in theirs."""
    return reparameterize(deepcopy(model).double(), inplace=True).to(next(model.parameters()).dtype)


def convert_checkpoint(
    source: Union[str, Path],
    output: Union[str, Path],
    model: Optional[str] = None,
    use_ema: bool = True,
    overwrite: bool = False,
    tolerance: float = 1e-5,
) -> Verification:
    """Write the deploy form of a train-form checkpoint, after comparing the two.

    Args:
        source: the train-form checkpoint.
        output: where to; see :func:`save_model`.
        model: the timm name of the model, where the checkpoint does not say it.
        use_ema: take the averaged weights where the file has them.
        overwrite: replace ``output`` where it exists.
        tolerance: largest relative difference accepted.

    Returns:
        How far the outputs of the two forms differ.

    Raises:
        FileExistsError: ``output`` exists, or is ``source`` itself, whose branches could not be had back.
        RuntimeError: the two forms differ by more than ``tolerance``; nothing is written.
        ValueError: the checkpoint cannot be read, or is in the deploy form already.
    """
    source, output = Path(source), Path(output)
    if output.exists() and (not overwrite or output.samefile(source)):
        raise FileExistsError(f"'{output}' exists: choose another name" + (", or --overwrite" if not overwrite else ""))
    checkpoint = read_checkpoint(source, use_ema)
    if any("reparam_conv." in name for name in checkpoint.state_dict):
        raise ValueError(f"'{source}' is in the deploy form already")
    trained = load_model(source, model, use_ema)
    deployed = deploy_form_of(trained)
    verification = verify(trained, deployed)
    verification.require(tolerance)
    arch = model or str(checkpoint.arch)
    args = {**checkpoint.model_args, **_args_of(checkpoint.state_dict)}
    save_model(deployed, output, arch, {**args, "inference_mode": True} if _args_of(checkpoint.state_dict) else args)
    return verification
