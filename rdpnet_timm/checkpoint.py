"""Weights on disk: read safely, load whole or not at all, write whole or not at all."""

import argparse
import json
import os
import pickle
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional, Union

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import clean_state_dict
from torch import Tensor, nn

from .convert import reparameterize
from .rdpnet import convert_state_dict
from .verify import Verification, verify

__all__ = [
    "Checkpoint",
    "atomic_path",
    "convert_checkpoint",
    "load_checkpoint",
    "load_model",
    "read_checkpoint",
    "save_model",
]

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")


class Checkpoint(NamedTuple):
    """A state dict, and what its file says of the model: its timm name and the arguments it was created with."""

    state_dict: Dict[str, Tensor]
    arch: Optional[str]
    model_args: Dict[str, Any]


def read_checkpoint(path: Union[str, Path], use_ema: bool = True) -> Checkpoint:
    """Read timm's ``.pth.tar``, a plain state dict or a safetensors file; no code in a file is ever run.

    Prefixes of wrappers (``module.``, ``_orig_mod.``) are removed. Of a detector's or segmentor's checkpoint the
    entries of the backbone are taken.

    Args:
        path: the file.
        use_ema: take the averaged weights where the file has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, holds code or no weights, or some of its weights are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at '{path}'")
    if path.suffix == ".safetensors":
        content, meta = _read_safetensors(path)
    else:
        content = _read_pickle(path)
        meta = content if isinstance(content, dict) else {}
        keys = ("state_dict_ema", "model_ema") * use_ema + ("state_dict", "model")
        content = next((content[key] for key in keys if isinstance(meta.get(key), dict)), content)
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"expected a state dict in '{path}', a mapping of names to tensors; there is none")
    state_dict = clean_state_dict({name: value for name, value in content.items() if isinstance(value, Tensor)})
    backbone = {name.removeprefix("backbone."): v for name, v in state_dict.items() if name.startswith("backbone.")}
    state_dict = backbone or state_dict
    broken = [name for name, value in state_dict.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} tensors in '{path}' hold NaN or infinity, the first is '{broken[0]}': the training that "
            "wrote it diverged; take an earlier checkpoint"
        )
    return Checkpoint(state_dict, _arch(meta), _model_args(meta))


def _read_safetensors(path: Path) -> Any:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"'{path}' is not a whole safetensors file ({error}): copy or download it again") from None


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's train.py stores its arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        detail = re.search(r"(?:Unsupported|GLOBAL|WeightsUnpickler)[^\n]*", str(error))
        raise ValueError(
            f"'{path}' holds more than weights, or is damaged ({detail[0] if detail else 'no pickle'}); code in a file "
            "is never run: where you trust it, save it again as a state dict or as safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"'{path}' is not a whole checkpoint ({reason}): copy or download it again") from None


def _arch(meta: Dict[str, Any]) -> Optional[str]:
    arch = meta.get("arch")
    return arch if isinstance(arch, str) and timm.is_model(arch) else None


def _model_args(meta: Dict[str, Any]) -> Dict[str, Any]:
    args = meta.get("model_args", {})
    args = dict(json.loads(args) if isinstance(args, str) else args)
    return {**(getattr(meta.get("args"), "model_kwargs", None) or {}), **args}


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


@contextmanager
def atomic_path(path: Union[str, Path]) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it at the end, or removed where there was an error.

    Raises:
        OSError: the folder of ``path`` does not exist or cannot be written.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
    deployed = reparameterize(trained)
    verification = verify(trained, deployed)
    verification.require(tolerance)
    arch = model or str(checkpoint.arch)
    args = {**checkpoint.model_args, **_args_of(checkpoint.state_dict)}
    save_model(deployed, output, arch, {**args, "inference_mode": True} if _args_of(checkpoint.state_dict) else args)
    return verification
