"""Bias correction: what rounding the weights will add to a layer's output on average, its bias takes away."""

from copy import deepcopy
from typing import Any, Dict, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..measure.difference import evaluating
from ..reparam import Kernel
from .equalization import BATCH, STANDARDIZED, groups_of, kernel_of, scale_inputs

__all__ = ["correct_bias", "rounded"]


def rounded(weight: Tensor, steps: float = 127, per_channel: bool = True) -> Tensor:
    """``weight`` in multiples of its largest value by ``steps``, the largest of an output channel or of all.

    There are as many multiples either way as are whole; with steps of 63.5 the largest value itself becomes
    63; NNCF, in float32, makes 64 of one now and then.
    """
    largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().amax().expand(len(weight))
    scale = largest.clamp_min(torch.finfo(weight.dtype).tiny).reshape(-1, *[1] * (weight.ndim - 1)) / steps
    return (weight / scale).round().clamp(-int(steps), int(steps)) * scale


def correct_bias(
    model: nn.Module,
    images: Union[Tensor, Sequence[Tensor]],
    inplace: bool = False,
    steps: float = 127,
    per_channel: bool = True,
) -> nn.Module:
    """Correct the biases of all convolutions and linear layers for the rounding of their weights.

    A layer without a bias gets one: what a batch norm behind it scales, it scales in the rounded weights as well.

    Rounding changes a layer's output by ``dW * x``; its mean over many images, ``dW * E[x]``, is not zero. ``E[x]`` by
    channel is measured on ``images``; the few outputs at the border, which see zeros, are not treated apart.

    Args:
        model: the float model.
        images: calibration images ``(N, C, H, W)`` as the model takes them, on any device; or a list of what it takes
            at a time.
        inplace: change ``model`` itself rather than a copy.
        steps: into how many a weight's largest value is divided, see :func:`.quantize.weight_steps`; other steps than
            the quantiser's are another rounding, and correct nothing.
        per_channel: a scale for each output channel, as the quantiser has it.

    Source: Nagel et al., 2019, section 4.2, with the mean input measured rather than derived from batch norms.
    """
    if not inplace:
        model = deepcopy(model)
    sums: Dict[nn.Module, Tensor] = {}
    counts: Dict[nn.Module, int] = {}

    def record(layer: nn.Module, inputs: Tuple[Any, ...], _: Any) -> None:
        x = inputs[0]
        channel = 1 if isinstance(layer, nn.Conv2d) else x.ndim - 1
        places = [axis for axis in range(x.ndim) if axis != channel]
        sums[layer] = sums.get(layer, 0) + x.sum(places, dtype=torch.float64)
        counts[layer] = counts.get(layer, 0) + x.numel() // x.shape[channel]

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and not isinstance(m, STANDARDIZED)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        with evaluating(model):
            for batch in images.split(BATCH) if isinstance(images, Tensor) else images:
                model(batch.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for layer, total in sums.items():
            mean = total / max(1, counts[layer])
            kernel = kernel_of(layer)
            error = Kernel(rounded(kernel.weight, steps, per_channel) - kernel.weight, kernel.bias)
            bias = kernel.bias - scale_inputs(error, mean, groups_of(layer)).weight.flatten(1).sum(1)
            layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=layer.weight.requires_grad)
    return model
