"""Models and their weights on disk: load whole or not at all, write whole or not at all."""

import io
import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from .convert import reparameterize
from .files import atomic_path
from .measure.difference import Verification, verify
from .rdpnet import RDPNet, convert_state_dict, name_classes, require_same_function
from .weights.reading import Checkpoint, read_checkpoint

__all__ = ["convert_checkpoint", "deploy_form_of", "load_checkpoint", "load_model", "save_model"]

# entries of a timm model's configuration that say how its pictures are prepared
PREPARATION = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def load_checkpoint(model: nn.Module, path: Union[str, Path], use_ema: bool = True) -> None:
    """Load a checkpoint into a model, whole or not at all; an RDPNet in its deploy form takes train-form weights.

    What the file says of classes and of how pictures are prepared goes into the model's ``pretrained_cfg``.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`.
        RuntimeError: the weights are not those of this model; the message names the first difference. Strides,
            channel shuffle and pooling cannot be read off weights, so a file that names its model must name one with
            those of this.
    """
    checkpoint = read_checkpoint(path, use_ema)
    _load_whole(model, checkpoint, str(path))
    if config := getattr(model, "pretrained_cfg", None):
        overlay = checkpoint.model_args.get("pretrained_cfg_overlay", {})
        config.update({name: value for name, value in overlay.items() if name in PREPARATION})


def _load_whole(model: nn.Module, checkpoint: Checkpoint, source: str) -> None:
    """Load the weights of a checkpoint and the names of their classes."""
    if isinstance(model, RDPNet):
        pool = model.global_pool.pool_type if model.num_classes else None
        require_same_function(source, checkpoint, model.strides, model.shuffle_groups, pool)
    try:
        state_dict = convert_state_dict(checkpoint.state_dict, model)
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
                f"{tuple(tensor.shape)}; create the model with the width, in_chans, num_classes and global_pool of the "
                "weights"
            )
    model.load_state_dict(state_dict)
    name_classes(model, checkpoint.classes)


def load_model(
    source: Union[str, Path],
    model: Optional[str] = None,
    use_ema: bool = True,
    random_weights: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Create a model together with its weights: from a timm name, or from a checkpoint.

    Args:
        source: a name known to timm, with the tag of its pretrained weights (``resnet18.a1_in1k``) or without, for
            those that the name stands for; ``hf-hub:...`` or ``local-dir:...``; or the path of a checkpoint.
        model: the timm name of the checkpoint's model; by default the one that the file names. Beside a name it can say
            nothing else than that.
        use_ema: take the averaged weights where the file has them.
        random_weights: create the model of a name with random weights, as for timing.
        kwargs: arguments for the model. ``num_classes`` is read off a checkpoint's weights, of an RDPNet's also the
            form and ``in_chans``; where 0 is asked for, the file's classifier is left out.

    Raises:
        FileNotFoundError: ``source`` is neither a name that timm knows nor a file.
        RuntimeError, ValueError: there are no weights for the name; ``model`` is another one; random weights are asked
            of a file; the file cannot be read, does not fit, or does not tell what model it is of; ``features_only`` is
            asked of a file.
    """
    if not Path(source).is_file():
        return _pretrained(str(source), model, random_weights, kwargs)
    if random_weights:
        raise ValueError(f"'{source}' has weights, and random ones were asked for (--random-weights): name its model")
    if kwargs.get("features_only"):
        raise ValueError(
            f"features_only=True wraps a network, whose names are then not those in '{source}': load all of it, and "
            "wrap that, by timm.models.FeatureListNet(load_model(...), out_indices=...), or call its "
            "forward_intermediates"
        )
    checkpoint = read_checkpoint(source, use_ema)
    if checkpoint.arch and model and _base(checkpoint.arch) != _base(model):
        raise ValueError(
            f"'{source}' says that it is of {checkpoint.arch}, and {model} was named (--model): name no model, or the "
            "checkpoint of that one"
        )
    name = model or checkpoint.arch
    if name is None:
        raise ValueError(
            f"'{source}' does not say what model it is of; name it (--model){_candidates(checkpoint.state_dict)}"
        )
    if kwargs.get("num_classes") == 0:
        layers = [f"{layer}." for layer in _classifiers(name)]
        kept = {key: value for key, value in checkpoint.state_dict.items() if not key.startswith(tuple(layers))}
        checkpoint = checkpoint._replace(state_dict=kept)
    created = timm.create_model(name, pretrained=False, **{**_creation_args(checkpoint, name), **kwargs})
    if not isinstance(created, RDPNet):
        created = _in_form_of(created, checkpoint.state_dict)
    _load_whole(created, checkpoint, str(source))
    return created


def _base(name: str) -> str:
    return name.partition(".")[0]


def _pretrained(name: str, model: Optional[str], random_weights: bool, kwargs: Dict[str, Any]) -> nn.Module:
    is_elsewhere = name.startswith(("hf-hub:", "local-dir:"))
    if not (is_elsewhere or timm.is_model(name)):
        raise FileNotFoundError(
            f"'{name}' is neither a file nor a model that timm knows; for the names see timm.list_models('rdpnet*')"
        )
    if model and _base(model) != _base(name):
        raise ValueError(f"'{name}' is a model and {model} (--model) another one: name one of them, or a checkpoint")
    if not (random_weights or is_elsewhere):
        config = timm.models.get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            raise ValueError(
                f"there are no pretrained weights for '{name}': give a checkpoint in its place, or ask for random "
                "weights, for timing or a trial (rdpnet export --random-weights; `rdpnet verify` without a name takes "
                "them of itself; in Python random_weights=True)"
            )
    created = timm.create_model(name, pretrained=not random_weights, **kwargs)
    if random_weights:
        name_classes(created, None)
    return created


def _creation_args(checkpoint: Checkpoint, name: str) -> Dict[str, Any]:
    """What to create the model of a checkpoint with: what the file says, and what its weights show."""
    args = {**checkpoint.model_args, **_args_of(checkpoint.state_dict)}
    for layer in _classifiers(name):
        weight = checkpoint.state_dict.get(f"{layer}.weight")
        if weight is not None:
            args["num_classes"] = weight.shape[0]
    return args


def _classifiers(name: str) -> Tuple[str, ...]:
    """The layers of a model of timm's that give its classes."""
    classifier = getattr(timm.models.get_pretrained_cfg(name), "classifier", None)
    return (classifier,) if isinstance(classifier, str) else tuple(classifier or ())


def _in_form_of(model: nn.Module, state_dict: Dict[str, Tensor]) -> nn.Module:
    """``model``, of any family, in its deploy form where the weights are those of that."""
    if model.state_dict().keys() == state_dict.keys():
        return model
    deployed = reparameterize(model)
    return deployed if deployed.state_dict().keys() == state_dict.keys() else model


def _args_of(state_dict: Dict[str, Tensor]) -> Dict[str, Any]:
    """The arguments of an RDPNet that its weights show; empty for other networks."""
    if not any(name.startswith("stages.0.0.depth.") for name in state_dict):
        return {}
    merged = state_dict.get("stem.reparam_conv.weight")
    stem = state_dict.get("stem.branches.conv3x3.conv.weight", merged)
    if stem is None:
        return {}
    head = state_dict.get("head.weight")
    identity = any(re.search(r"\.point\.branches\.identity\.", name) for name in state_dict)
    single = merged is None and "stem.branches.conv1x1.conv.weight" not in state_dict
    return {
        "in_chans": stem.shape[1],
        "num_classes": 0 if head is None else head.shape[0],
        **({"inference_mode": True} if merged is not None else {}),
        **({"pointwise_identity": True} if identity else {}),
        **({"single_branch": True} if single else {}),
    }


def _candidates(state_dict: Dict[str, Tensor]) -> str:
    """What an RDPNet's weights say of its name: the width, but not whether it is the ImageNet or the CIFAR form."""
    for name in ("stages.0.0.point.reparam_conv.weight", "stages.0.0.point.branches.conv1x1_a.conv.weight"):
        if name in state_dict:
            variant = f"rdpnet_{round(state_dict[name].shape[0] / 64 * 100):03d}"
            return f": its width is that of {variant} and {variant}_cifar"
    return ""


def save_model(
    model: nn.Module,
    path: Union[str, Path],
    arch: str,
    model_args: Dict[str, Any],
    classes: Optional[Sequence[str]] = None,
) -> None:
    """Write a model's weights with its timm name and arguments, whole or not at all.

    Args:
        model: the model.
        path: where to, ``.safetensors``, or ``.pth`` (``.pt``, ``.pth.tar``) for a file like those of timm's train.py.
        arch: the timm name of the model.
        model_args: what ``timm.create_model`` needs beside the name.
        classes: the names of the classes, where known.

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
            if classes:
                metadata["classes"] = json.dumps(list(classes))
            temporary.write_bytes(safetensors.torch.save(state_dict, metadata))
        else:
            buffer = io.BytesIO()  # torch's own writer does not say what was wrong with the disk
            content = {"arch": arch, "model_args": model_args, "state_dict": state_dict}
            torch.save({**content, "classes": list(classes)} if classes else content, buffer)
            temporary.write_bytes(buffer.getbuffer())


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
        ValueError: the checkpoint cannot be read, is in the deploy form already, or is of a network without one.
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
    if not verification.parts:
        raise ValueError(f"'{source}' is of {model or checkpoint.arch}, in which there is nothing to merge")
    verification.require(tolerance)
    arch = model or str(checkpoint.arch)
    args = _creation_args(checkpoint, arch)
    if _args_of(checkpoint.state_dict):
        args["inference_mode"] = True
    save_model(deployed, output, arch, args, checkpoint.classes)
    return verification
