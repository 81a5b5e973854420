"""Write the result of a run as a weight file with its card."""

import datetime
import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from ..checkpoint import save_model
from ..convert import reparameterize
from ..files import atomic_path, sha256
from ..measure.machine import describe
from .data import Images
from .evaluation import Evaluation, evaluate
from .plots import plot_history
from .run import Run
from .trainer import Result

__all__ = ["finish", "release"]


def finish(result: Result, run: Run, test: Images, output: Path, data: str) -> Dict[str, Any]:
    """What is left of a run in its folder: ``weights.safetensors``, their card, which is returned, and its curves.

    Args:
        result: the finished run.
        run: what was run.
        test: the test images.
        output: the folder.
        data: the name of the data set, for card and curves.
    """
    card = release(result, run, test, output / "weights.safetensors", data)
    plot_history(result.history, output / "training.png", f"{run.model} on {data}")
    return card


def release(result: Result, run: Run, test: Images, path: Path, data: str) -> Dict[str, Any]:
    """Write ``path`` (.safetensors, in the train form) and beside it ``.json``, its card, which is returned.

    The file says how pictures were prepared where that is not what its model's name stands for, as in a network for
    224x224 that was trained on 32x32. It is in half precision where, rounded so, the network classifies no fewer of the
    ``test`` images correctly in either form. A running variance that half precision cannot hold rules it out.

    Args:
        result: the finished run.
        run: what was run.
        test: the test images.
        path: where the weights go.
        data: the name of the data set, for the card.
    """
    test = test.to(run.device)
    model, found, precision = result.model, (result.train_form, result.deploy_form), "float32"
    rounded = _rounded(model)
    if rounded is not None:
        rounded_found = _evaluate_forms(rounded, test)
        if all(half.correct >= full.correct for half, full in zip(rounded_found, found)):
            model, found, precision = rounded, rounded_found, "float16"
    arguments = run.creation_args(model, test)
    save_model(deepcopy(model).to(getattr(torch, precision)), path, run.model, arguments, test.classes)
    about = describe()
    card: Dict[str, Any] = dict(
        model=run.model,
        model_args=dict(run.model_args),
        data=data,
        classes=list(test.classes),
        training_images=result.training_images,
        training_data=result.digests[0],
        test_data=result.digests[1],
        recipe=asdict(run.recipe),
        epochs=run.recipe.epochs,
        amp=run.amp,
        seed=run.seed,
        **({"weights": run.origin} if run.weights else {}),
        test_images=len(test),
        accuracy_train_form=found[0].accuracy,
        accuracy_deploy_form=found[1].accuracy,
        accuracy_before_rounding=result.train_form.accuracy,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        precision=precision,
        sha256=sha256(path),
        seconds=round(sum(record["seconds"] for record in result.history)),
        date=datetime.date.today().isoformat(),
        machine=about["gpu"] if run.device.startswith("cuda") else f"{about['cpu']}, {torch.get_num_threads()} threads",
        versions={name: about["versions"][name] for name in ("python", "torch", "timm", "rdpnet-timm")},
    )
    with atomic_path(path.with_suffix(".json")) as file:
        file.write_text(json.dumps(card, indent=1) + "\n")
    return card


def _rounded(model: nn.Module) -> Optional[nn.Module]:
    """``model`` with its weights rounded to half precision; None where that cannot hold them."""
    rounded = deepcopy(model)

    def fits(tensor: Tensor) -> bool:
        return not tensor.is_floating_point() or bool(tensor.half().isfinite().all())

    if not all(fits(tensor) for tensor in model.state_dict().values()):
        return None
    rounded.load_state_dict(
        {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    )
    return rounded


def _evaluate_forms(model: nn.Module, images: Images) -> Tuple[Evaluation, Evaluation]:
    return evaluate(model, images), evaluate(reparameterize(model), images)
