"""Pictures of a run: its curves, and some predictions."""

from pathlib import Path
from typing import Any, Dict, Sequence, Union

import torch
from torch import nn

from ..extras import require
from ..files import atomic_path
from .data import Images
from .evaluation import predict

__all__ = ["plot_history", "plot_predictions"]


def _pyplot() -> Any:
    require("matplotlib", "drawing a picture").use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Union[str, Path]) -> None:
    with atomic_path(path) as file:
        figure.savefig(file, dpi=100, format="png", bbox_inches="tight")
    _pyplot().close(figure)


def plot_history(history: Sequence[Dict[str, float]], path: Union[str, Path], title: str) -> None:
    """Loss and accuracy against epochs, as a PNG file."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    epochs = [record["epoch"] for record in history]
    lines = ("o-", "s-") if len(epochs) <= 50 else ("-", "-")  # marks would run into one another
    for axis, quantity in ((left, "loss"), (right, "accuracy")):
        axis.plot(epochs, [record[f"train_{quantity}"] for record in history], lines[0], label="training, augmented")
        axis.plot(epochs, [record[f"test_{quantity}"] for record in history], lines[1], label="test, deploy form")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    left.set_ylabel("cross-entropy")
    left.set_yscale("log")  # early weight averages are far off
    right.set_ylabel("accuracy (%)")
    right.set_ylim(-2, 102)
    figure.suptitle(title, parse_math=False)  # a folder's name may have dollars in it
    _save(figure, path)


def plot_predictions(
    model: nn.Module, images: Images, path: Union[str, Path], title: str, rows: int = 3, columns: int = 8
) -> None:
    """Some images with what ``model`` makes of them, as a PNG file; a few mistakes, in red frames, close the rows.

    Where there are fewer images than cells, each is shown once and the other cells stay empty.
    """
    plt = _pyplot()
    probabilities = predict(model, images).softmax(1).cpu()
    confidence, predicted = probabilities.max(1)
    wrong = predicted != images.labels.cpu()
    mistakes = wrong.nonzero().flatten()[:rows].tolist()  # one a row
    right = (~wrong).nonzero().flatten()
    count = min(len(right), rows * columns - len(mistakes))
    right = right[torch.linspace(0, len(right) - 1, count).long()].tolist()
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.95 * rows), squeeze=False)
    for row in axes:
        count = columns - bool(mistakes)
        shown = right[:count] + mistakes[:1]
        right, mistakes = right[count:], mistakes[1:]
        for axis in row[len(shown) :]:
            axis.axis("off")
        for axis, index in zip(row, shown):
            axis.imshow(images.pixels[index].cpu().numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            name, truth = images.classes[int(predicted[index])], images.classes[int(images.labels[index])]
            is_wrong = name != truth
            note = f"{100 * float(confidence[index]):.0f} %" + f", is {truth}" * is_wrong
            axis.set_title(f"{name}\n{note}", parse_math=False, fontsize=9, color="C3" if is_wrong else "k")
            axis.spines[:].set(color="C3" if is_wrong else "0.8", linewidth=2.5 if is_wrong else 0.8)
    figure.suptitle(f"{title}; in red frames, mistakes" if wrong.any() else title, parse_math=False)
    figure.tight_layout()
    _save(figure, path)
