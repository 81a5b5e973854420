"""How far two forms of a model differ, in one line."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Difference", "Verification", "evaluating", "randomize_norms", "verify"]


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        max_difference: largest absolute difference between outputs.
        max_output: largest absolute output of the first model.
        input_shape: ``(N, C, H, W)`` of the images.
        dtype: floating-point type of the comparison.
    """

    max_difference: float
    max_output: float
    input_shape: Tuple[int, ...]
    dtype: torch.dtype

    @property
    def relative(self) -> float:
        """``max_difference`` as a fraction of ``max_output``; NaN where an output was not finite."""
        if self.max_difference == 0:
            return 0.0
        return self.max_difference / self.max_output if self.max_output else float("inf")

    def require(self, tolerance: float) -> None:
        """Accept a relative difference of up to ``tolerance``.

        Raises:
            RuntimeError: it is larger, or not a number.
        """
        if not self.relative <= tolerance:
            raise RuntimeError(f"the two forms are not the same function: {self}; accepted are {tolerance:g}")

    def __str__(self) -> str:
        shape, dtype = "x".join(map(str, self.input_shape)), str(self.dtype).removeprefix("torch.")
        return (
            f"outputs differ by at most {self.max_difference:.2e}, which is {self.relative:.2e} of the largest, "
            f"{self.max_output:.2e} ({shape}, {dtype})"
        )


class Difference(NamedTuple):
    """How far an artefact's logits are from those of the PyTorch deploy form.

    Attributes:
        largest: largest absolute difference, as a fraction of the largest logit.
        rms: root mean square of the difference, as a fraction of that of the logits.
        agreement: share of images with the same first class.
        images: how many were compared.
    """

    largest: float
    rms: float
    agreement: float
    images: int

    @classmethod
    def between(cls, expected: np.ndarray, actual: np.ndarray) -> "Difference":
        """Compare logits ``(N, classes)``; all is infinite where one is not a finite number."""
        if expected.shape != actual.shape:
            raise RuntimeError(
                f"the artefact returns the shape {actual.shape} where the model returns {expected.shape}"
            )
        error = actual.astype(np.float64) - expected
        largest = float(np.abs(error).max() / np.abs(expected).max())
        rms = float(np.sqrt((error**2).mean() / (expected.astype(np.float64) ** 2).mean()))
        same = expected.reshape(len(expected), -1).argmax(1) == actual.reshape(len(actual), -1).argmax(1)
        if not (np.isfinite(largest) and np.isfinite(rms)):
            largest = rms = float("inf")
        return cls(largest, rms, float(same.mean()), len(expected))


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode without gradients, and every module back into its own mode at the end."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def verify(model: nn.Module, deployed: nn.Module, x: Optional[Tensor] = None) -> Verification:
    """Compare the evaluation outputs of two forms of a model.

    Both are compared in evaluation mode, whatever mode they are in, and left in the mode they were in. Outputs may be
    tensors or any nesting of lists, tuples and dicts of tensors, as detectors and ``features_only`` models return them.

    Args:
        model: the model as trained.
        deployed: its deploy form.
        x: images ``(N, C, H, W)``; by default two random ones of the model's input size (224 where it names none),
            always the same.

    Raises:
        ValueError: the models return different numbers of outputs or outputs of different shapes.
    """
    parameter = next(model.parameters())
    if x is None:
        channels, height, width = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
        shape = (2, getattr(model, "in_chans", channels), height, width)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.to(parameter)
    with evaluating(model, deployed):
        expected = [tensor.double() for tensor in tree_leaves(model(x))]
        actual = [tensor.double() for tensor in tree_leaves(deployed(x))]
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        raise ValueError(
            f"the two models do not return the same shapes: {[tuple(t.shape) for t in expected]} and "
            f"{[tuple(t.shape) for t in actual]}; are they two forms of one model?"
        )
    return Verification(
        max_difference=max((a - b).abs().max().item() for a, b in zip(expected, actual)),
        max_output=max(a.abs().max().item() for a in expected),
        input_shape=tuple(x.shape),
        dtype=x.dtype,
    )


def randomize_norms(model: nn.Module, seed: int = 0, decades: float = 1.0) -> nn.Module:
    """Give every batch norm of a model, in place, random statistics and affine parameters, and return the model.

    In a fresh model batch norm is nearly the identity, which hides most errors of a conversion. Scales and variances
    spread evenly over ``decades`` orders of magnitude around 1, scales with either sign; means and shifts over -1 to 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                sign = uniform(module.weight, -1, 1).sign()
                module.weight.copy_(sign * 10 ** uniform(module.weight, -decades / 2, decades / 2))
                module.bias.copy_(uniform(module.bias, -1, 1))
                module.running_mean.copy_(uniform(module.running_mean, -1, 1))
                module.running_var.copy_(10 ** uniform(module.running_var, -decades / 2, decades / 2))
    return model
