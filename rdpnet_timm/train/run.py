"""What a training run is: model, recipe, seed, machine."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import to_2tuple
from torch import nn

from ..checkpoint import load_checkpoint, load_model
from ..files import sha256
from .data import Images, preparation
from .recipe import Recipe

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """What is trained, and on what machine.

    Attributes:
        model: name of a timm model.
        recipe: how to train.
        seed: of the initialisation, the order of the images and their augmentation.
        model_args: arguments of the model, such as ``shuffle_groups=0``.
        device: 'cpu', 'cuda', ...
        amp: autocast to bfloat16.
        compile: mode of ``torch.compile``; '' does not compile. With these two, '' and 'default', whole steps are
            recorded as CUDA graphs on a GPU; modes such as 'reduce-overhead' record parts of them by themselves.
        weights: what the model begins with: a checkpoint, or a timm name for its pretrained weights; a classifier of
            other classes, by number or by name, is made anew. '' begins at random.

    Raises:
        ValueError: ``model_args`` says what the data say or cannot be written, or the seed is none of torch's.
    """

    model: str
    recipe: Recipe
    seed: int = 0
    model_args: Tuple[Tuple[str, Any], ...] = ()
    device: str = "cpu"
    amp: bool = False
    compile: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"a seed is a whole number of at most 64 bits, got {self.seed}")
        refused = [
            name
            for name, value in self.model_args
            if name in ("num_classes", "pretrained") or (name == "in_chans" and value != 3)
        ]
        if refused:
            raise ValueError(
                f"--model-args cannot say {', '.join(refused)}: the data say how many classes there are, pictures are "
                "read in three colours, and what to begin with is said by --weights"
            )
        try:
            json.dumps(dict(self.model_args))  # as weights and card will say them, at the end
        except TypeError as error:
            raise ValueError(f"--model-args must be what JSON can say, numbers, texts and lists: {error}") from None

    def create_model(self, classes: Sequence[str]) -> nn.Module:
        """The model for ``classes``, in channels_last, as ``weights`` has it, or initialised by the seed alone.

        Raises:
            RuntimeError: ``weights`` are in the deploy form, or of a network with other arguments.
            ValueError: the arguments are wrong, or ``weights`` are of another model.
        """
        torch.manual_seed(self.seed)
        arguments = dict(self.model_args)
        try:
            if self.weights:
                model = self._begun_with(arguments, classes)
            else:
                model = timm.create_model(self.model, num_classes=len(classes), **arguments)
        except (AssertionError, TypeError) as error:
            raise ValueError(f"{self.model} cannot be created with the arguments {arguments}: {error}") from error
        return model.to(device=self.device, memory_format=torch.channels_last)

    def _begun_with(self, arguments: Dict[str, Any], classes: Sequence[str]) -> nn.Module:
        if Path(self.weights).is_file():
            # created by the arguments of this run, as the weights that it writes will say, and compared with the file's
            theirs = load_model(self.weights, self.model)
            model = timm.create_model(self.model, num_classes=theirs.num_classes, **arguments)
            load_checkpoint(model, self.weights)
            model.pretrained_cfg.update(arguments.get("pretrained_cfg_overlay", {}))  # which counts before the file's
            names = theirs.pretrained_cfg.get("label_names")
        elif self.weights.partition(".")[0] == self.model.partition(".")[0]:
            model = load_model(self.weights, **arguments)
            names = model.pretrained_cfg.get("label_names")
        else:
            raise ValueError(
                f"'{self.weights}' is no file, and no name of weights of {self.model} (--weights, --model): give a "
                "checkpoint of this model, or its name, with a tag or without"
            )
        if model.num_classes != len(classes) or (names and tuple(names) != tuple(classes)):
            model.reset_classifier(len(classes))
        return model

    @property
    def image_size(self) -> Tuple[int, int]:
        """Height and width of the images that the model takes."""
        arguments, config = dict(self.model_args), timm.get_pretrained_cfg(self.model)
        own = config.input_size[1:] if config else (32, 32)
        told = arguments.get("pretrained_cfg_overlay", {}).get("input_size", (3, *own))[1:]
        height, width = to_2tuple(arguments.get("img_size") or told)
        return height, width

    def creation_args(self, model: nn.Module, images: Images) -> Dict[str, Any]:
        """What timm needs beside the name to create the ``model`` again and to prepare pictures as ``images`` were."""
        arguments = dict(self.model_args, num_classes=len(images.classes))
        own = timm.get_pretrained_cfg(self.model)
        said = resolve_data_config(pretrained_cfg=own.to_dict() if own else {})
        prepared = preparation(images.pixels.shape[1:3])
        trained = {part: getattr(prepared, part) for part in ("input_size", "interpolation", "crop_pct", "crop_mode")}
        trained.update({part: tuple(model.pretrained_cfg[part]) for part in ("mean", "std")})
        overlay = {
            **arguments.get("pretrained_cfg_overlay", {}),
            **{part: value for part, value in trained.items() if said[part] != value},
        }
        return {**arguments, "pretrained_cfg_overlay": overlay} if overlay else arguments

    @cached_property
    def origin(self) -> str:
        """``weights`` as a card names them: a file by its name and SHA-256 sum, as it was when the run began."""
        path = Path(self.weights)
        return f"{path.name}, SHA-256 {sha256(path)}" if self.weights and path.is_file() else self.weights
