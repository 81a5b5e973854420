"""Cross-layer equalisation: the same function, with weights that lose less in INT8.

ReLU is positively homogeneous, ``ReLU(s * x) == s * ReLU(x)`` for ``s > 0``, so a factor may move from the output
channels of one layer to the input channels of the next without changing the function. On a straight path of
convolutions that holds along the whole length, from the stem through all layers to the classifier.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section 4.1.
"""

from copy import deepcopy
from itertools import pairwise
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, SelectAdaptivePool2d, StdConv2d, StdConv2dSame
from torch import Tensor, fx, nn

from ..measure.difference import evaluating
from ..reparam import Kernel, float64

__all__ = [
    "FEWEST_IMAGES",
    "STANDARDIZED",
    "Equalization",
    "Layer",
    "NotStraight",
    "equalize",
    "equalize_activations",
    "groups_of",
    "kernel_of",
    "scale_inputs",
    "scale_outputs",
    "straight_path",
]

Layer = Union[nn.Conv2d, nn.Linear]

FEWEST_IMAGES = 32  # real ones, for activations: what fewer hardly excite is enlarged, and cut off on other images
BATCH = 16  # images at a time, or the activations of hundreds would take gigabytes
DEAD = 1e-3  # of its bias: a channel whose weights are below it has died of decay, to 0 or nearly

# they multiply by other weights than they hold
STANDARDIZED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)

# f(s * x) == s * f(x) channel by channel for every s > 0: factors pass through these unchanged
_HOMOGENEOUS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, SelectAdaptivePool2d,
)  # fmt: skip
_HOMOGENEOUS_FUNCTIONS = (F.relu, torch.relu, torch.flatten, F.adaptive_avg_pool2d, F.max_pool2d, F.dropout)
_HOMOGENEOUS_METHODS = ("relu", "flatten", "contiguous")


class NotStraight(ValueError):
    """The model is no straight path of convolutions and ReLUs, so no factor can move along it."""


class Equalization(NamedTuple):
    """``model``: equalised; ``sweeps``: how many it took; ``largest_change``: of a factor, in the last of them."""

    model: nn.Module
    sweeps: int
    largest_change: float


def scale_outputs(kernel: Kernel, factors: Tensor) -> Kernel:
    """The convolution whose output channel ``i`` is ``factors[i]`` times the given one's; ``factors (out,)``."""
    return Kernel(kernel.weight * factors.reshape(-1, *[1] * (kernel.weight.ndim - 1)), kernel.bias * factors)


def scale_inputs(kernel: Kernel, factors: Tensor, groups: int = 1) -> Kernel:
    """The convolution that gives the same for ``x`` as the given one for ``factors * x``; ``factors (in,)``."""
    weight = kernel.weight.unflatten(0, (groups, -1))  # (groups, out / groups, in / groups, ...)
    spread = factors.reshape(groups, 1, -1, *[1] * (weight.ndim - 3))
    return Kernel((weight * spread).flatten(0, 1), kernel.bias)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, nn.Linear, *_HOMOGENEOUS)) or super().is_leaf_module(module, name)


def straight_path(model: nn.Module) -> List[Layer]:
    """The convolutions and linear layers of a model in their order, if it is one straight path of them.

    Between them there may be what is positively homogeneous: ReLU, pooling, flattening, dropout.

    Raises:
        NotStraight: something else is there, or the path branches; the message names the place.
    """
    advice = "cross-layer equalisation needs one straight path of convolutions and ReLUs"
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception as error:  # a model's forward may raise anything when it is traced
        raise NotStraight(f"{advice}; this model cannot be traced ({error})") from None
    layers: List[Layer] = []
    for previous, node in pairwise(nodes):
        inputs = node.all_input_nodes
        if node.op == "placeholder" or inputs != [previous] or len(previous.users) > 1:
            raise NotStraight(
                f"{advice}, and this model branches at '{node.name}', which has the inputs "
                f"{[i.name for i in inputs]}; a train-form model must be reparameterised first"
            )
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if not {"weight", "bias"} <= module._parameters.keys() or isinstance(module, STANDARDIZED):
                raise NotStraight(
                    f"{advice} with weights of their own, and '{node.name}' computes its weights at every call; those "
                    "that were pruned become its own by torch.nn.utils.prune.remove, parametrised ones by "
                    "torch.nn.utils.parametrize.remove_parametrizations"
                )
            layers.append(module)
        elif not _is_homogeneous(node, module):
            raise NotStraight(f"{advice}, and '{node.name}' ({module or node.target}) is none of these")
    if len({id(layer) for layer in layers}) < len(layers):
        raise NotStraight(f"{advice}, and this model uses a layer twice")
    for first, second in pairwise(layers):
        if _out_channels(first) != _in_channels(second):
            raise NotStraight(
                f"{advice}; {second} does not have the {_out_channels(first)} outputs of {first} as its inputs"
            )
    return layers


def _is_homogeneous(node: fx.Node, module: Optional[nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(module, _HOMOGENEOUS)
    if node.op == "call_function":
        return node.target in _HOMOGENEOUS_FUNCTIONS
    return node.op == "output" or (node.op == "call_method" and node.target in _HOMOGENEOUS_METHODS)


def _in_channels(layer: Layer) -> int:
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


def _out_channels(layer: Layer) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def groups_of(layer: Layer) -> int:
    """Groups of a convolution; a linear layer has one."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def kernel_of(layer: Layer) -> Kernel:
    """Weight, in float64, and bias of a layer, which is zero where it has none."""
    weight = float64(layer.weight)
    return Kernel(weight, weight.new_zeros(len(weight)) if layer.bias is None else float64(layer.bias))


def _ranges(kernel: Kernel) -> Kernel:
    """A kernel's largest absolute weights ``(out, in / groups)``: all that equalisation has to know of it."""
    return Kernel(
        kernel.weight.abs().flatten(2).amax(2) if kernel.weight.ndim > 2 else kernel.weight.abs(), kernel.bias
    )


def _input_ranges(ranges: Kernel, groups: int) -> Tensor:
    return ranges.weight.unflatten(0, (groups, -1)).amax(1).flatten()


def equalize(model: nn.Module, inplace: bool = False, tolerance: float = 1e-2, max_sweeps: int = 1000) -> Equalization:
    """Equalise the channel ranges of a straight path, from the first layer to the classifier.

    Each sweep gives every channel between two layers the same range ``sqrt(r1 * r2)`` in both, ``r1`` being the
    largest absolute weight that makes it and ``r2`` the largest that reads it. A sweep disturbs what it did one layer
    before, so sweeps are repeated until no factor differs from 1 by more than ``tolerance``.

    Args:
        model: a straight path: an RDPNet in its deploy form, for one. The outputs stay the same in exact arithmetic.
        inplace: change ``model`` itself rather than a copy.
        tolerance: when to stop.
        max_sweeps: when to stop at the latest.

    Raises:
        NotStraight: the model is not a straight path.
    """
    if not inplace:
        model = deepcopy(model)
    layers = straight_path(model)
    ranges = [_ranges(kernel_of(layer)) for layer in layers]
    total = [torch.ones_like(kernel.bias) for kernel in ranges[:-1]]
    change, sweeps = float("inf"), 0
    while change > tolerance and sweeps < max_sweeps:
        change, sweeps = 0.0, sweeps + 1
        for index, layer in enumerate(layers[1:]):
            outputs, inputs = ranges[index].weight.amax(1), _input_ranges(ranges[index + 1], groups_of(layer))
            # A channel that died in training is as good as a constant, its bias; what reads it can be of any size.
            constants = ranges[index].bias.abs()
            outputs = torch.where(outputs <= DEAD * constants, constants, outputs)
            factors = torch.sqrt(inputs / outputs)
            factors[(outputs == 0) | (inputs == 0)] = 1.0  # and where that is 0, so is what comes of it
            ranges[index] = scale_outputs(ranges[index], factors)
            ranges[index + 1] = scale_inputs(ranges[index + 1], 1 / factors, groups_of(layer))
            total[index] *= factors
            change = max(change, float((factors - 1).abs().max()))
    _apply(total, layers)
    return Equalization(model, sweeps, change)


def equalize_activations(model: nn.Module, images: Tensor, inplace: bool = False) -> nn.Module:
    """Move factors along a straight path so that the channels of an activation, which share one scale, are alike.

    With weights rounded by output channel, a layer's outputs may be scaled freely. What reads them sets the price: a
    depthwise convolution has one scale an input channel too, so in front of it every channel gets the same range; in
    front of a dense layer a channel's activation and the weights that read it, each relative to its row, share what
    there is, as ``sqrt(range of weights / range of activation)``.

    Args:
        model: a straight path. The outputs stay the same in exact arithmetic.
        images: calibration images ``(N, C, H, W)`` as the model takes them, on any device; real ones, and no fewer than
            :data:`FEWEST_IMAGES`, or the ranges of activations in INT8 are too small for other images.
        inplace: change ``model`` itself rather than a copy.

    Raises:
        NotStraight: the model is not a straight path.

    Source: the sharing in front of a dense layer is that of Xiao et al., "SmoothQuant", 2023, equation 4.
    """
    if not inplace:
        model = deepcopy(model)
    layers = straight_path(model)
    found: Dict[Layer, Tensor] = {}

    def record(layer: Layer, inputs: Tuple[Tensor, ...]) -> None:
        largest = inputs[0].abs().transpose(0, 1).flatten(1).amax(1).double()
        found[layer] = torch.maximum(found.get(layer, largest), largest)

    hooks = [layer.register_forward_pre_hook(record) for layer in layers[1:]]
    try:
        with evaluating(model):
            for batch in images.split(BATCH):
                model(batch.to(layers[0].weight.device))
    finally:
        for hook in hooks:
            hook.remove()
    total = []
    for layer in layers[1:]:
        activation, weight = found[layer], _ranges(kernel_of(layer)).weight
        if groups_of(layer) == len(activation):
            factors = 1 / activation
        else:
            largest = weight.amax(1, keepdim=True)  # a row of zeros has no say
            relative = Kernel(weight / largest.where(largest > 0, 1.0), weight.new_zeros(len(weight)))
            factors = torch.sqrt(_input_ranges(relative, groups_of(layer)) / activation)
        alive = factors.isfinite() & (factors > 0)
        factors = torch.where(alive, factors, 1.0)
        total.append(torch.where(alive, factors / factors[alive].median(), 1.0) if alive.any() else factors)
    _apply(total, layers)
    return model


def _apply(total: Sequence[Tensor], layers: Sequence[Layer]) -> None:
    """Multiply the outputs of each layer but the last by its factors, and divide what reads them, in place."""
    kernels = [kernel_of(layer) for layer in layers]
    for index, (factors, layer) in enumerate(zip(total, layers[1:])):
        kernels[index] = scale_outputs(kernels[index], factors)
        kernels[index + 1] = scale_inputs(kernels[index + 1], 1 / factors, groups_of(layer))
    with torch.no_grad():
        for layer, kernel in zip(layers, kernels):
            layer.weight.copy_(kernel.weight)
            if layer.bias is not None:
                layer.bias.copy_(kernel.bias)
