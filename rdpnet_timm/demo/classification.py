"""A classifier of handwritten digits (1797 real pictures that come with scikit-learn), and its two forms compared."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import torch
from torch import nn

from ..checkpoint import save_model
from ..convert import reparameterize
from ..measure.difference import Verification, verify
from ..measure.size import count
from ..measure.timing import Measurement, measure
from ..train import RECIPES, Images, Recipe, Result, Run, read_data, train
from ..train.data import normalized
from ..train.evaluation import predict
from ..train.plots import plot_history, plot_predictions
from ..train.progress import progress_bar
from .narration import Narrator

__all__ = ["Comparison", "compare", "run"]

MODEL = "rdpnet_025_cifar"
FORMS = ("train form", "deploy form")


@dataclass(frozen=True)
class Comparison:
    """The two forms of a trained model side by side; pairs are (train form, deploy form).

    Attributes:
        correct: test images classified correctly.
        total: test images.
        disagreements: test images that the two classify differently.
        verification: how far outputs for the test images differ.
        parameters: number of parameters.
        bytes: size of the weight file.
        latency: times in ms for one image.
    """

    correct: Tuple[int, int]
    total: int
    disagreements: int
    verification: Verification
    parameters: Tuple[int, int]
    bytes: Tuple[int, int]
    latency: Measurement


def compare(model: nn.Module, test: Images, output: Path, rounds: int = 100) -> Comparison:
    """Put the deploy form beside ``model``, on the images ``test``; both weight files are written to ``output``."""
    deployed = reparameterize(model)
    files = [output / f"digits_{form.replace(' ', '_')}.safetensors" for form in FORMS]
    for form, file, arguments in zip((model, deployed), files, ({}, {"inference_mode": True})):
        save_model(form, file, MODEL, {"num_classes": len(test.classes), **arguments}, test.classes)
    logits = predict(model, test), predict(deployed, test)
    predicted = [each.argmax(1) for each in logits]
    size = (3, *test.pixels.shape[1:3])
    x = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    config = model.pretrained_cfg
    x_all = normalized(test.pixels.permute(0, 3, 1, 2), config["mean"], config["std"])
    model.eval(), deployed.eval()
    with torch.inference_mode():
        latency = measure({FORMS[0]: lambda: model(x), FORMS[1]: lambda: deployed(x)}, rounds)
    forms = (model, deployed)
    return Comparison(
        correct=tuple(int((each == test.labels).sum()) for each in predicted),  # type: ignore[arg-type]
        total=len(test),
        disagreements=int((predicted[0] != predicted[1]).sum()),
        verification=verify(model, deployed, x_all),
        parameters=tuple(count(form, size).params for form in forms),  # type: ignore[arg-type]
        bytes=tuple(file.stat().st_size for file in files),  # type: ignore[arg-type]
        latency=latency,
    )


def run(
    output: Path, recipe: Recipe = RECIPES["demo"], rounds: int = 100, narrator: Optional[Narrator] = None
) -> Tuple[Result, Comparison]:
    """Train on the digits, compare the two forms, write weights and pictures to ``output``, print what is found."""
    narrator = narrator or Narrator()
    narrator.say("\nClassification of handwritten digits")
    training, test = read_data("digits")
    narrator.say(f"{MODEL} on {len(training)} real 8x8 pictures, enlarged to 32x32; {len(test)} more are for the test.")
    shown = narrator.during("training", has_bar=True)
    with tempfile.TemporaryDirectory() as folder, shown, progress_bar("training") as report:
        result = train(Run(MODEL, recipe), (training, test), folder, report)
    with narrator.during("comparing the two forms"):
        found = compare(result.model, test, output, rounds)
    _print_comparison(found, narrator)
    plot_history(result.history, output / "training.png", f"{MODEL} on handwritten digits")
    title = f"{MODEL}, deploy form: {found.correct[1]} of {found.total} test pictures right"
    plot_predictions(reparameterize(result.model), test, output / "predictions.png", title)
    narrator.say(f"Pictures: {output}/training.png, {output}/predictions.png")
    return result, found


def _print_comparison(found: Comparison, narrator: Narrator) -> None:
    medians = [found.latency.median(form) for form in FORMS]
    rows: Dict[str, List[str]] = {
        "": list(FORMS),
        f"correct of {found.total}": [str(each) for each in found.correct],
        "accuracy": [f"{100 * each / found.total:.2f} %" for each in found.correct],
        "parameters": [f"{each:,}" for each in found.parameters],
        "weight file": [f"{each / 1e3:.0f} kB" for each in found.bytes],
        "median latency, one picture": [f"{each:.2f} ms" for each in medians],
    }
    narrator.say("The same network before and after reparameterisation:")
    for name, cells in rows.items():
        narrator.say(f"  {name:30}" + "".join(f"{cell:>14}" for cell in cells))
    narrator.say(
        f"Pictures that the two forms classify differently: {found.disagreements}. Their {found.verification}."
    )
    ratio = found.latency.ratio(*FORMS)
    interval = "" if ratio.low is None else f"95 % interval {ratio.low:.1f} to {ratio.high:.1f}, "
    narrator.say(
        f"The deploy form is {ratio.estimate:.1f} times as fast ({interval}{found.latency.rounds} interleaved rounds, "
        f"{torch.get_num_threads()} threads"
        f"{'; the machine was busy' if found.latency.is_noisy else ''})."
    )
