"""The state of a run on disk: what run it is of, and when it may be replaced."""

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..files import atomic_path
from .data import Images
from .recipe import Recipe
from .run import Run

__all__ = ["Begun", "State"]


@dataclass(frozen=True)
class Begun:
    """What there is of an epoch that has not come to its end: sums over its steps, their number and their time."""

    loss: float = 0.0
    hits: float = 0.0
    steps: int = 0
    seconds: float = 0.0


class State:
    """Model, optimizer and averaged weights of a run, its steps and its log so far, in a file."""

    def __init__(
        self,
        path: Path,
        run: Run,
        data: Tuple[Images, Images],
        digests: Sequence[str],
        epoch_steps: int,
        model: nn.Module,
        ema: Optional[ModelEmaV3],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Read and write nothing yet.

        Args:
            path: of the file.
            run: what is trained.
            data: training images and test images.
            digests: of these, see :meth:`Images.digest`.
            epoch_steps: steps in an epoch.
            model: the model that is trained.
            ema: its averaged weights, if any.
            optimizer: what trains it.
        """
        self.path = path
        self.recipe = run.recipe
        self.epoch_steps = epoch_steps
        self.description: Dict[str, Any] = dict(
            model=run.model,
            model_args=dict(run.model_args),
            seed=run.seed,
            images=len(data[0]),
            training_data=digests[0],
            test_data=digests[1],
            amp=run.amp,
            recipe=asdict(run.recipe),
            weights=run.origin,
        )
        # for those who load the weights of a run that goes on
        self.creation: Dict[str, Any] = dict(
            arch=run.model, model_args=run.creation_args(model, data[0]), classes=list(data[0].classes)
        )
        self.parts: Dict[str, Any] = dict(model=model, optimizer=optimizer)
        if ema is not None:
            self.parts["ema"] = ema

    def require_finite(self, step: int, loss: float) -> None:
        """Raise a FloatingPointError if the training has diverged: ``loss`` or a tensor of the state is not finite."""
        broken = "" if math.isfinite(loss) else f"the loss is {loss}"
        for name, part in self.parts.items():
            broken = broken or _not_finite(part.state_dict(), name)
        if broken:
            kept = f"the last good checkpoint is '{self.path}'" if self.path.exists() else "nothing was saved so far"
            raise FloatingPointError(
                f"{broken} in epoch {step / self.epoch_steps:.4g}: lower the learning rate "
                f"({self.recipe.learning_rate}) or begin with a longer warm-up; {kept}"
            )

    def save(self, step: int, history: List[Dict[str, float]], begun: Begun) -> None:
        """Replace the file, as a whole, after ``step`` steps.

        Raises:
            FloatingPointError: the training has diverged.
            ValueError: the file is of another run.
        """
        self.require_finite(step, begun.loss)
        self.require_own()
        content = dict(self.creation, step=step, history=history, description=self.description, begun=asdict(begun))
        content.update({name: part.state_dict() for name, part in self.parts.items()})
        with atomic_path(self.path) as file:
            torch.save(content, file)

    def require_own(self) -> None:
        """Raise a ValueError where another run began in the same folder and has saved since."""
        if self.path.exists():
            found = self._read(mmap=True)
            self._check(found["description"], found["step"], found.get("begun"))

    def load(self) -> Tuple[int, List[Dict[str, float]], Begun]:
        """Take over what the file holds, if there is one.

        Returns:
            The step to go on from, the records up to there, and what there is of the next one.

        Raises:
            ValueError: it is of another run, or broken, or holds what is not finite; or it is gone, and weights of a
                finished run are there.
            OSError: it cannot be read.
        """
        if not self.path.exists():
            self._require_unfinished()
            return 0, [], Begun()
        content = self._read()
        try:
            step, history, description = content["step"], content["history"], content["description"]
            self._check(description, step, content.get("begun"))
            for name, part in self.parts.items():
                broken = _not_finite(content[name], name)
                if broken:
                    raise ValueError(f"'{self.path}' is of a run that has diverged, {broken}; delete it to start anew")
                part.load_state_dict(content[name])
            return step, history, Begun(**content["begun"])
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise self._is_none(error) from error

    def _read(self, mmap: bool = False) -> Any:
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=mmap)
        except OSError as error:  # of what cannot be read nobody knows that it is to be thrown away
            raise OSError(
                f"cannot read the checkpoint '{self.path}' ({error.strerror or error}): the run goes on from it once "
                "it can be read; to start anew, name another output folder"
            ) from error
        except Exception as error:  # which one depends on the bytes
            raise self._is_none(error) from error

    def _is_none(self, error: Exception) -> ValueError:
        return ValueError(
            f"'{self.path}' is not a checkpoint of this run ({type(error).__name__}); name another output folder, or "
            "move it away to start anew"
        )

    def _require_unfinished(self) -> None:
        """Refuse a folder that holds the result of a run and no checkpoint to tell whether it is of this one."""
        kept = [name for name in ("weights.safetensors", "weights.json") if (self.path.parent / name).exists()]
        if kept:
            raise ValueError(
                f"'{self.path.parent}' holds {' and '.join(kept)} of a finished run, whose {self.path.name} is gone, "
                "and they would be overwritten: name another output folder, or move them away to train anew"
            )

    def _check(self, found: Dict[str, Any], step: int, begun: Any) -> None:
        found = {"weights": "", **found}  # earlier ones did not name them
        finish = "finish the run with the version of rdpnet-timm that began it, or delete the file to start anew"
        missing = [f"description.{name}" for name in self.description if name not in found]
        if missing or begun is None:
            missing += ["begun"] * (begun is None)
            raise ValueError(
                f"'{self.path}' lacks {', '.join(missing)}, so it does not tell whether it is of these data and "
                f"settings: it was written by another version; {finish}"
            )
        unknown = sorted(set(found["recipe"]) - {field.name for field in fields(Recipe)})
        if unknown:
            raise ValueError(
                f"'{self.path}' was trained by a recipe with the settings {', '.join(unknown)}, which this version "
                f"does not have; {finish}"
            )
        # Another length is still the same run as long as it asks for the same steps up to here.
        former = Recipe(**found["recipe"])
        length = ("epochs", "cooldown", "small_epochs")
        theirs = {**found, **{f"recipe.{name}": value for name, value in asdict(former).items()}}
        ours = {**self.description, **{f"recipe.{name}": value for name, value in asdict(self.recipe).items()}}
        skipped = {"recipe", *(f"recipe.{name}" for name in length)}
        differing = [name for name in ours if name not in skipped and ours[name] != theirs[name]]
        if former != self.recipe and any(
            former.at_step(done, self.epoch_steps) != self.recipe.at_step(done, self.epoch_steps)
            for done in range(step)
        ):
            differing += [f"recipe.{name}" for name in length if ours[f"recipe.{name}"] != theirs[f"recipe.{name}"]]
        if differing:
            raise ValueError(
                f"'{self.path}' belongs to another run, with "
                + ", ".join(f"{name} {theirs[name]} rather than {ours[name]}" for name in differing)
                + "; name another output folder, or delete it"
            )


def _not_finite(state: Any, name: str) -> str:
    """What of a state dict, dicts in it included, is not finite; empty where all is."""
    tensors = {key: tensor for key, tensor in _tensors(state, name) if tensor.is_floating_point()}
    if not tensors:
        return ""
    finite = torch.stack(
        [tensor.isfinite().all().to(next(iter(tensors.values())).device) for tensor in tensors.values()]
    )
    return next((f"{key} is not finite" for key, each in zip(tensors, finite.tolist()) if not each), "")


def _tensors(state: Any, name: str) -> Iterator[Tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, part in state.items():
            yield from _tensors(part, f"{name}.{key}")
