"""Checkpoints read safely: no code in a file is ever run."""

import argparse
import json
import pickle
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import safetensors
import timm
import torch
from timm.models import clean_state_dict
from torch import Tensor

from ..files import sha256

__all__ = ["Checkpoint", "read_checkpoint", "read_state_dict", "state_dict_of"]


class Checkpoint(NamedTuple):
    """A state dict, and what its file, or the card beside it, says of the model.

    Attributes:
        state_dict: the weights.
        arch: the model's timm name.
        model_args: the arguments it was created with.
        classes: the names of its classes.
    """

    state_dict: Dict[str, Tensor]
    arch: Optional[str]
    model_args: Dict[str, Any]
    classes: Optional[List[str]] = None


def read_checkpoint(path: Union[str, Path], use_ema: bool = True) -> Checkpoint:
    """Read timm's ``.pth.tar``, a plain state dict or a safetensors file; no code in a file is ever run.

    Of a detector's or segmentor's checkpoint the entries of the backbone are taken.

    Args:
        path: the file.
        use_ema: take the averaged weights where the file has them.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_state_dict`.
    """
    state_dict, meta = read_state_dict(path, use_ema)
    backbone = {name.removeprefix("backbone."): v for name, v in state_dict.items() if name.startswith("backbone.")}
    card = _card(Path(path))
    arch = _arch(meta) or _arch({"arch": card.get("model")})
    return Checkpoint(backbone or state_dict, arch, _model_args(meta), _classes(meta) or _classes(card))


def read_state_dict(path: Union[str, Path], use_ema: bool = True) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    """The weights in a file, under their names in it, and what else the file says.

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
    try:
        state_dict = state_dict_of(content, use_ema)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    broken = [name for name, value in state_dict.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{len(broken)} tensors in '{path}' hold NaN or infinity, the first is '{broken[0]}': the training that "
            "wrote it diverged; take an earlier checkpoint"
        )
    return state_dict, meta


def state_dict_of(content: Any, use_ema: bool = True) -> Dict[str, Tensor]:
    """The weights in a checkpoint that was read, without the prefixes of wrappers (``module.``, ``_orig_mod.``).

    Raises:
        ValueError: there are none.
    """
    if isinstance(content, dict):
        keys = ("state_dict_ema", "model_ema") * use_ema + ("state_dict", "model")
        content = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("expected a state dict, a mapping of names to tensors; there is none")
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    for _ in ("module.", "_orig_mod."):  # of several prefixes timm 1.0.27 removes one a call
        weights = clean_state_dict(weights)
    return weights


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
    except OSError:
        raise
    except Exception as error:  # what an unpickler raises on any other file depends on its bytes
        known = isinstance(error, (RuntimeError, EOFError, ValueError)) and str(error)
        reason = known.splitlines()[0] if known else "its bytes are those of something else"
        raise ValueError(f"'{path}' is not a whole checkpoint ({reason}): copy or download it again") from None


def _arch(meta: Dict[str, Any]) -> Optional[str]:
    arch = meta.get("arch")
    return arch if isinstance(arch, str) and timm.is_model(arch) else None


def _card(path: Path) -> Dict[str, Any]:
    """The card beside a weight file, if it is this file's; else an empty one."""
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        return card if card.get("sha256") in (None, sha256(path)) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _classes(meta: Dict[str, Any]) -> Optional[List[str]]:
    names = meta.get("classes")
    try:
        names = json.loads(names) if isinstance(names, str) else names
    except ValueError:
        return None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None
    return list(names) or None


def _model_args(meta: Dict[str, Any]) -> Dict[str, Any]:
    args = meta.get("model_args", {})
    args = dict(json.loads(args) if isinstance(args, str) else args)
    script = meta.get("args")  # of timm's train.py
    counts = {name: getattr(script, name, None) for name in ("num_classes", "in_chans")}
    counts = {name: count for name, count in counts.items() if isinstance(count, int)}
    return {**counts, **(getattr(script, "model_kwargs", None) or {}), **args}
