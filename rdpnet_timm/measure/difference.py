"""How far two forms of a model differ: whole outputs, and every converted part on an input of its own."""

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterable, Iterator, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..convert import deploy_method, reparameterize

__all__ = ["Difference", "Verification", "compare_outputs", "evaluating", "randomize_norms", "verify", "without_tf32"]

# A part meets images of ordinary size, on which its biases tell, and of so large ones that no bias keeps a channel
# from passing the ReLU behind it.
_SCALES = (1.0, 1e3)


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` or :func:`compare_outputs` found.

    Attributes:
        max_difference: largest absolute difference between outputs; NaN where an output was NaN or infinite.
        max_output: largest absolute output of the first model.
        input_shape: ``(N, C, H, W)`` of the images.
        dtype: floating-point type of the comparison of outputs.
        parts: how many converted parts were compared one by one; 0 where nothing was converted, so that the outputs
            show no more than that a model is like itself.
        largest_of_parts: largest relative difference of a part, see :func:`verify`; NaN as above.
        worst_part: the name of that part, ``""`` being the whole model.
    """

    max_difference: float
    max_output: float
    input_shape: Tuple[int, ...]
    dtype: torch.dtype
    parts: int = 0
    largest_of_parts: float = 0.0
    worst_part: str = ""

    @property
    def relative(self) -> float:
        """``max_difference`` as a fraction of ``max_output``, or what a part has where that is more; NaN if one is."""
        return _worst([_ratio(self.max_difference, self.max_output), self.largest_of_parts])

    def require(self, tolerance: float) -> None:
        """Accept a relative difference of up to ``tolerance``, of the outputs and of every part.

        Raises:
            RuntimeError: one is larger, or not a number.
        """
        if not self.relative <= tolerance:
            raise RuntimeError(f"the two forms are not the same function: {self}; accepted are {tolerance:g}")

    def __str__(self) -> str:
        shape, dtype = "x".join(map(str, self.input_shape)), str(self.dtype).removeprefix("torch.")
        line = (
            f"outputs differ by at most {self.max_difference:.2e}, which is "
            f"{_ratio(self.max_difference, self.max_output):.2e} of the largest, {self.max_output:.2e} "
            f"({shape}, {dtype})"
        )
        if self.parts:
            where = f", '{self.worst_part}'" if self.largest_of_parts and self.worst_part else ""
            line += f"; {self.parts} converted parts by at most {self.largest_of_parts:.2e}{where}"
        return line


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
        largest = _ratio(*_extremes([(torch.from_numpy(expected), torch.from_numpy(np.ascontiguousarray(actual)))]))
        error, reference = actual.astype(np.float64) - expected, expected.astype(np.float64)
        rms = _ratio(float(np.sqrt((error**2).mean())), float(np.sqrt((reference**2).mean())))
        same = expected.reshape(len(expected), -1).argmax(1) == actual.reshape(len(actual), -1).argmax(1)
        if not (np.isfinite(largest) and np.isfinite(rms)):
            largest = rms = float("inf")
        return cls(largest, rms, float(same.mean()), len(expected))


def _extremes(pairs: Iterable[Tuple[Tensor, Tensor]]) -> Tuple[float, float]:
    """The largest absolute difference in pairs of tensors, and the largest value of the first ones.

    Computed in float64. Whatever is NaN, or infinite in both, makes the difference NaN: torch's ``max`` keeps NaN,
    where Python's drops it.
    """
    zero = torch.zeros((), dtype=torch.float64, device="cpu")  # whatever the default device is
    differences, values = [zero], [zero]
    for expected, actual in pairs:
        if expected.numel():
            a, b = expected.detach().cpu().double(), actual.detach().cpu().double()
            differences.append((a - b).abs().max())
            values.append(a.abs().max())
    return torch.stack(differences).max().item(), torch.stack(values).max().item()


def _ratio(difference: float, value: float) -> float:
    if difference == 0:
        return 0.0
    return difference / value if value else difference * float("inf")


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


@contextmanager
def without_tf32() -> Iterator[None]:
    """On a GPU too, all of float32's mantissa; cuDNN's convolutions round to ten bits of it by default."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # from torch 2.9 on; where somebody has set it, reading the older name is an error
    is_new = hasattr(matmul, "fp32_precision")
    switches = (cudnn.conv if is_new else cudnn, matmul)
    name, exact = ("fp32_precision", "ieee") if is_new else ("allow_tf32", False)
    before = [getattr(switch, name) for switch in switches]
    try:
        for switch in switches:
            setattr(switch, name, exact)
        yield
    finally:
        for switch, value in zip(switches, before):
            setattr(switch, name, value)


def compare_outputs(model: nn.Module, deployed: nn.Module, x: Optional[Tensor] = None) -> Verification:
    """Compare the evaluation outputs of two models on the same images.

    It shows what the images excite, and no more: a channel that is dead on all of them may hold anything. That two
    forms are one function, :func:`verify` shows.

    Both are compared in evaluation mode, whatever mode they are in, and left in the mode they were in. Outputs may be
    tensors or any nesting of lists, tuples and dicts of tensors, as detectors and ``features_only`` models return them.

    Args:
        model: the model as trained.
        deployed: its deploy form.
        x: images ``(N, C, H, W)``; by default two random ones of the model's input size (224 where it names none),
            always the same.

    Raises:
        ValueError: the models return no tensors, different numbers of them or other shapes.
    """
    x = _images(model) if x is None else x
    parameter = next(model.parameters(), x)
    x = x.to(parameter)
    with evaluating(model, deployed), without_tf32():
        expected, actual = (
            [leaf for leaf in tree_leaves(form(x)) if isinstance(leaf, Tensor)] for form in (model, deployed)
        )
    if not expected or [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        raise ValueError(
            f"the two models do not return the same shapes: {[tuple(t.shape) for t in expected]} and "
            f"{[tuple(t.shape) for t in actual]}; are they two forms of one model?"
        )
    return Verification(*_extremes(zip(expected, actual)), tuple(x.shape), x.dtype)


def _images(model: nn.Module) -> Tensor:
    channels, height, width = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    shape = (2, getattr(model, "in_chans", channels), height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")


def verify(model: nn.Module, deployed: nn.Module, x: Optional[Tensor] = None) -> Verification:
    """Show that two forms of a model are one function: all of it, not what some images happen to excite.

    Besides the outputs (:func:`compare_outputs`), every part of ``model`` that has a deploy form is compared with its
    counterpart of the same name, in float64: on random inputs of its own, so that no layer before it can hide a
    channel, and its weights with those that reparameterising it gives, column by column and row by row. Weights
    outside these parts must be the same in both. ``relative`` of the result is the largest difference of all, each as a
    fraction of the largest value it is compared with.

    Where the names of the parts are not those of ``deployed``, as in a traced model, the outputs alone are compared,
    and the result's ``parts`` is 0.

    Args:
        model: the model as trained.
        deployed: its deploy form.
        x: images ``(N, C, H, W)``; by default two random ones of the model's input size (224 where it names none),
            always the same.

    Raises:
        ValueError: the models return no tensors, different numbers of them or other shapes.
    """
    model, deployed = (_unwrapped(form) for form in (model, deployed))
    x = _images(model) if x is None else x
    units = _units(model)
    inputs: Dict[str, Tuple[Any, Any]] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            shapes = tree_map(lambda v: _Shape(tuple(v.shape)) if _is_floating(v) else v, (args, kwargs))
            inputs.setdefault(name, shapes)

        return hook

    handles = [unit.register_forward_pre_hook(keep(name), with_kwargs=True) for name, unit in units.items()]
    try:
        outputs = compare_outputs(model, deployed, x)
    finally:
        for handle in handles:
            handle.remove()
    counterparts = dict(deployed.named_modules())
    if not all(name in counterparts for name in units):
        return outputs
    found = _compare_weights_outside(model, deployed, units)
    parts = 0
    for name, unit in units.items():
        twin = counterparts[name]
        parts += list(unit.state_dict()) != list(twin.state_dict())
        found[name] = _compare_part(unit, twin, inputs.get(name), len(x))
    worst = max(found, key=lambda name: _order(found[name]), default="")
    return replace(outputs, parts=parts, largest_of_parts=found.get(worst, 0.0), worst_part=worst)


@dataclass(frozen=True)
class _Shape:
    """Stands for a tensor among the arguments of a part."""

    shape: Tuple[int, ...]


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's or a data-parallel wrapper."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and [name] == [child for child, _ in model.named_children()]:
            return _unwrapped(inner)
    return model


def _units(model: nn.Module, prefix: str = "") -> Dict[str, nn.Module]:
    """The outermost modules that have a deploy form, by name."""
    if deploy_method(model) is not None:
        return {prefix: model}
    units: Dict[str, nn.Module] = {}
    for name, child in model.named_children():
        units.update(_units(child, f"{prefix}.{name}" if prefix else name))
    return units


def _order(value: float) -> Tuple[bool, float]:
    """Sorts NaN behind every number."""
    return value != value, value


def _worst(differences: Iterable[float]) -> float:
    return max(differences, key=_order, default=0.0)


def _compare_part(unit: nn.Module, twin: nn.Module, arguments: Any, batch: int) -> float:
    """The largest relative difference of a part and its deploy form, in outputs and in weights."""
    # on the CPU, which has float64 whatever device the model is on
    unit, twin = (deepcopy(module).cpu().eval() for module in (unit, twin))
    dtype = next((p.dtype for p in twin.parameters()), torch.float64)
    unit, twin = unit.double(), twin.double()
    merged = reparameterize(unit)
    found = [_compare_weights(merged, twin, dtype)]
    if arguments is not None:
        generator = torch.Generator().manual_seed(0)

        def random(value: Any, scale: float) -> Any:
            if not isinstance(value, _Shape):
                return value.detach().cpu() if isinstance(value, Tensor) else value
            shape = (1, *value.shape[1:]) if value.shape[:1] == (batch,) else value.shape
            return scale * torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

        for scale in _SCALES:
            args, kwargs = tree_map(lambda value, scale=scale: random(value, scale), arguments)
            with torch.no_grad():
                expected, actual = (
                    [leaf for leaf in tree_leaves(form(*deepcopy(args), **deepcopy(kwargs))) if _is_floating(leaf)]
                    for form in (unit, twin)
                )
            same_shapes = [a.shape for a in expected] == [b.shape for b in actual]
            found.append(_ratio(*_extremes(zip(expected, actual))) if same_shapes else float("inf"))
    return _worst(found)


def _compare_weights(expected: nn.Module, actual: nn.Module, dtype: torch.dtype) -> float:
    """The largest difference of weights, by row and by column; 0 where the two modules are not built alike."""
    ours, theirs = expected.state_dict(), actual.state_dict()
    if {name: tensor.shape for name, tensor in ours.items()} != {name: t.shape for name, t in theirs.items()}:
        return 0.0  # another way to write the function, which its outputs must show
    return _worst(_weight_difference(tensor, theirs[name], dtype) for name, tensor in ours.items())


def _compare_weights_outside(model: nn.Module, deployed: nn.Module, units: Iterable[str]) -> Dict[str, float]:
    """By name the difference of the weights that belong to no converted part; infinite where one is not there."""
    prefixes = tuple(f"{name}." if name else "" for name in units)
    theirs, found = deployed.state_dict(), {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(prefixes):
            other = theirs.get(name)
            same_shape = other is not None and other.shape == tensor.shape
            found[name] = _weight_difference(tensor, other, other.dtype) if same_shape else float("inf")
    return found


def _weight_difference(expected: Tensor, actual: Tensor, dtype: torch.dtype) -> float:
    """Difference of two weights ``(out, in, ...)``: of each row and each column as a fraction of its largest entry."""
    if not (expected.is_floating_point() and expected.numel()):
        return 0.0
    a, b = expected.detach().cpu().double(), actual.detach().cpu().double()
    tiny = torch.finfo(dtype).tiny if dtype.is_floating_point else 0.0  # below it, numbers have fewer digits
    found = []
    for kept in (0, 1) if a.ndim > 1 else (None,):
        error, largest = (
            value.abs().amax() if kept is None else value.abs().transpose(0, kept).flatten(1).amax(1)
            for value in (a - b, a)
        )
        found.append((error / largest.clamp_min(tiny)).max().item())
    return _worst(found)


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
