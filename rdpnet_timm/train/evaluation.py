"""Classify images, and count how many are right."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..measure.difference import evaluating, without_tf32
from .data import Images, normalized

__all__ = ["Evaluation", "evaluate", "model_input", "predict"]

AT_ONCE = 500 * 32 * 32  # pixels of one batch: activations take up to a gigabyte or two


@dataclass(frozen=True)
class Evaluation:
    """``correct`` of ``total`` images, and the mean cross-entropy."""

    correct: int
    total: int
    loss: float

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.correct / self.total


def predict(model: nn.Module, images: Images, amp: bool = False) -> Tensor:
    """Logits ``(N, classes)``, float32, in evaluation mode, for ``images`` that lie on the model's device.

    A batch has as many pixels as 500 images of 32x32: larger images come in smaller ones. On a GPU too convolutions
    keep all of float32's mantissa: what decides whether half precision costs a picture must be more exact than that.

    Raises:
        ValueError: the model has another number of classes than the images.
    """
    logits = []
    height, width = images.pixels.shape[1:3]
    batch_size = max(1, AT_ONCE // (height * width))
    with evaluating(model), without_tf32():
        for pixels in images.pixels.split(batch_size):
            with torch.autocast(pixels.device.type, torch.bfloat16, enabled=amp):
                logits.append(model(model_input(pixels.permute(0, 3, 1, 2), model)).float())
    if logits[0].shape[1] != len(images.classes):
        raise ValueError(
            f"the model has {logits[0].shape[1]} classes, the images have {len(images.classes)}: "
            f"{', '.join(images.classes[:5])}...; take weights that were trained on these classes"
        )
    return torch.cat(logits)


def evaluate(model: nn.Module, images: Images, amp: bool = False) -> Evaluation:
    """Classify ``images``, see :func:`predict`."""
    logits = predict(model, images, amp)
    correct = int((logits.argmax(1) == images.labels).sum())
    return Evaluation(correct, len(images), float(F.cross_entropy(logits.double(), images.labels)))


def model_input(pixels: Tensor, model: nn.Module) -> Tensor:
    """uint8 ``(N, 3, H, W)`` to float32, normalised as the model's config says."""
    return normalized(pixels, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
