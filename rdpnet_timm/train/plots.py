"""Pictures of a run: its curves, and some predictions."""

from pathlib import Path
from typing import Any, Dict, Sequence, Union

import torch
from torch import nn

from ..extras import require
from ..files import atomic_path
from .data import Images
from .trainer import predict

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
    for axis, quantity in ((left, "loss"), (right, "accuracy")):
        axis.plot(epochs, [record[f"train_{quantity}"] for record in history], "o-", label="training, augmented")
        axis.plot(epochs, [record[f"test_{quantity}"] for record in history], "s-", label="test, deploy form")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    left.set_ylabel("cross-entropy")
    left.set_ylim(0, 1.1 * max(record["train_loss"] for record in history))  # early weight averages are far off
    right.set_ylabel("accuracy (%)")
    right.set_ylim(0, 100)
    figure.suptitle(title)
    _save(figure, path)


def plot_predictions(
    model: nn.Module, images: Images, path: Union[str, Path], title: str, rows: int = 3, columns: int = 8
) -> None:
    """Some images with what ``model`` makes of them, as a PNG file; all mistakes first, as far as they fit."""
    plt = _pyplot()
    probabilities = predict(model, images).softmax(1).cpu()
    confidence, predicted = probabilities.max(1)
    wrong = predicted != images.labels.cpu()
    mistakes = wrong.nonzero().flatten()[: rows * columns // 2]
    others = (~wrong).nonzero().flatten()
    others = others[torch.linspace(0, len(others) - 1, rows * columns - len(mistakes)).long()]
    figure, axes = plt.subplots(rows, columns, figsize=(1.35 * columns, 1.75 * rows))
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, [*mistakes.tolist(), *others.tolist()]):
        axis.imshow(images.pixels[index].cpu().numpy(), interpolation="nearest")
        name, truth = images.classes[int(predicted[index])], images.classes[int(images.labels[index])]
        label = f"{name}, {100 * float(confidence[index]):.0f} %"
        axis.set_title(
            f"{label}\nis {truth}" if name != truth else label, fontsize=9, color="C3" if name != truth else "k"
        )
    figure.suptitle(title)
    figure.tight_layout()
    _save(figure, path)
