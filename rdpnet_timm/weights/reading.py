"""Checkpoints read safely: no code in a file is ever run."""

import argparse
import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np
import safetensors
import timm
import torch
from timm.models import clean_state_dict
from torch import Tensor

from ..files import sha256

__all__ = ["Checkpoint", "checkpoint_types", "read_checkpoint", "read_state_dict", "state_dict_of"]


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
    """Read timm's ``.pth.tar``, mmengine's, a plain state dict or a safetensors file; no code in a file is ever run.

    Of a detector's or segmentor's checkpoint the entries of the backbone are taken.

    Args:
        path: the file.
        use_ema: take the averaged weights where the file has them.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_state_dict`.
        ValueError: its ``model_args`` are no arguments.
    """
    state_dict, meta = read_state_dict(path, use_ema)
    backbone = {re.sub(r"^backbone\.(timm_model\.)?", "", name): value for name, value in state_dict.items()}
    backbone = {name: value for name, value in backbone.items() if name not in state_dict}
    card, description = _card(Path(path)), meta.get("description")
    if isinstance(description, dict):  # in the checkpoint of a run of `rdpnet train`
        meta = {"arch": description.get("model"), "model_args": description.get("model_args", {}), **meta}
    arch = _arch(meta) or _arch({"arch": card.get("model")})
    try:
        args = _model_args(meta)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    return Checkpoint(backbone or state_dict, arch, args, _classes(meta) or _classes(card))


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
    floating = {name: value for name, value in state_dict.items() if value.is_floating_point()}
    # a count of more than 65504 steps, halved with all the rest, is infinite: it is no weight
    broken = [n for n, value in floating.items() if not (value.isfinite().all() or n.endswith("num_batches_tracked"))]
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
        # mmengine's hook stores the averaged weights as the model's, and the model's under the averaged ones' name
        meta = content.get("meta")
        is_swapped = isinstance(meta, dict) and "mmengine_version" in meta
        averaged = ("state_dict_ema", "model_ema", "ema", *(() if is_swapped else ("ema_state_dict",)))
        first = averaged if use_ema else ("ema_state_dict",) if is_swapped else ()
        keys = (*first, "state_dict", "model")
        content = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("expected a state dict, a mapping of names to tensors; there is none")
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if all(name.startswith("module.") for name in weights if name != "n_averaged"):
        weights.pop("n_averaged", None)  # in which torch's AveragedModel counts
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
    mmengine = sys.modules.get("mmengine.logging.history_buffer")
    types = checkpoint_types(mmengine.HistoryBuffer if mmengine else _HistoryBuffer)
    known = torch.serialization.get_safe_globals()  # the context would take these away at its end
    types = [each for each in types if each not in known]
    try:
        with torch.serialization.safe_globals(types):
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


class _HistoryBuffer:
    """Stands for mmengine's class of that name, the history of a loss, which nobody here reads."""

    def min(self) -> None: ...

    def max(self) -> None: ...

    def mean(self) -> None: ...

    def current(self) -> None: ...


_HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
_HistoryBuffer.__name__ = _HistoryBuffer.__qualname__ = "HistoryBuffer"  # torch 2.5 goes by the first


def checkpoint_types(history_buffer: type) -> List[Any]:
    """For torch's safe loader: what timm's train.py and mmengine store beside the weights.

    Args:
        history_buffer: mmengine's class ``HistoryBuffer``, or what stands for it.
    """

    def history_method(owner: type, name: str) -> Any:
        """``getattr``, by which mmengine stores a history's methods, of nothing but these."""
        if owner is history_buffer and name in ("min", "max", "mean", "current"):
            return getattr(owner, name)
        raise pickle.UnpicklingError(f"a checkpoint asks for {name} of {owner}, which is not loaded")

    def named(function: Callable[..., Any], module: str, name: str) -> Callable[..., Any]:
        """``function``, as the loader finds it under a name in a checkpoint: torch 2.5 goes by what it says itself."""

        def call(*arguments: Any) -> Any:
            return function(*arguments)

        call.__module__, call.__name__, call.__qualname__ = module, name, name
        return call

    # numpy's functions moved in numpy 2; a checkpoint may name either place
    multiarray = (np._core if hasattr(np, "_core") else np.core).multiarray
    places = [f"numpy.{place}.multiarray" for place in ("core", "_core")]
    return [
        argparse.Namespace,
        history_buffer,
        named(history_method, "builtins", "getattr"),
        np.dtype,
        np.ndarray,
        *{type(np.dtype(kind)) for kind in np.typecodes["All"]},
        *(named(multiarray.scalar, place, "scalar") for place in places),
        *(named(multiarray._reconstruct, place, "_reconstruct") for place in places),
    ]


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


# What a model is created with, and the option of timm's train.py that says it, with its kind: other scripts have
# options of the same names that mean something else.
_SCRIPT_ARGUMENTS = {"num_classes": ("num_classes", int), "in_chans": ("in_chans", int), "global_pool": ("gp", str)}


def _model_args(meta: Dict[str, Any]) -> Dict[str, Any]:
    told = meta.get("model_args", {})
    try:
        args = json.loads(told) if isinstance(told, str) else told
    except ValueError:
        args = None
    if not isinstance(args, dict):
        raise ValueError(
            f"its entry model_args must be a dict (in safetensors, as JSON) of what its model was created with, got "
            f"{told!r}; save it again with one, such as {{}}"
        )
    args = dict(args)
    script = meta.get("args")  # of timm's train.py, or one like it
    if isinstance(script, argparse.Namespace):
        values = {argument: getattr(script, option, None) for argument, (option, _) in _SCRIPT_ARGUMENTS.items()}
        told = {argument: value for argument, value in values.items() if type(value) is _SCRIPT_ARGUMENTS[argument][1]}
        pictures, more = {"pretrained_cfg_overlay": _pictures_of(vars(script))}, getattr(script, "model_kwargs", None)
        args = {**told, **pictures, **(more if isinstance(more, dict) else {}), **args}
    args.pop("pretrained", None)  # where the training began; these weights are what came of it
    overlay = args.pop("pretrained_cfg_overlay", None)
    if overlay:  # JSON knows no tuples, which timm takes
        overlay = {name: tuple(value) if isinstance(value, list) else value for name, value in overlay.items()}
        args["pretrained_cfg_overlay"] = overlay
    return args


def _pictures_of(options: Dict[str, Any]) -> Dict[str, Any]:
    """What timm's train.py, or a script like it, was told of the pictures, by the names in ``pretrained_cfg``."""
    kinds: Dict[str, Any] = dict(
        input_size=(list, tuple), mean=(list, tuple), std=(list, tuple), interpolation=str, crop_pct=(int, float)
    )
    told = {name: options[name] for name, kind in kinds.items() if options.get(name)}
    told = {name: value for name, value in told.items() if isinstance(value, kinds[name])}
    channels = options["in_chans"] if type(options.get("in_chans")) is int else 3
    for name in ("img_size", "input_size"):  # the latter is one number in the scripts of DeiT and its kin
        if type(size := options.get(name)) is int and size:
            told.setdefault("input_size", [channels, size, size])
    for name in ("mean", "std"):
        if len(told.get(name, ())) == 1:  # one number is for all channels there
            told[name] = list(told[name]) * channels
    return told
