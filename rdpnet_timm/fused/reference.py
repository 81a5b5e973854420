"""The same functions, branch by branch, of torch's own operations: for gradients of gradients, and of vmap."""

from typing import Any, Callable, List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["depth", "gradients", "point", "stem"]


def _relu_of_sum(outputs: Sequence[Tensor], affine: Sequence[Tensor], eps: Sequence[float]) -> Tensor:
    """ReLU of the sum of the norms of ``outputs``; ``affine`` are the scales, then the shifts."""
    gammas, betas = affine[: len(outputs)], affine[len(outputs) :]
    normalized = [
        F.batch_norm(output, None, None, gamma, beta, training=True, eps=e)
        for output, gamma, beta, e in zip(outputs, gammas, betas, eps)
    ]
    return torch.relu(torch.stack(normalized).sum(0))


def depth(inputs: Sequence[Tensor], eps: Sequence[float], stride: int, dilation: int) -> Tensor:
    """The Depth-Block; ``inputs`` are x, both weights, three scales, three shifts."""
    x, weight, scale, *affine = inputs
    convolved = F.conv2d(x, weight, padding=dilation, dilation=dilation, groups=len(weight))
    out = _relu_of_sum([convolved, x * scale.view(1, -1, 1, 1), x], affine, eps)
    return out[:, :, ::stride, ::stride]


def point(inputs: Sequence[Tensor], eps: Sequence[float], groups: int, number: int) -> Tensor:
    """The Point-Block; ``inputs`` are x, ``number`` weights, scales, shifts."""
    x, *parameters = inputs
    x = F.channel_shuffle(x, groups) if groups > 1 else x
    weights, affine = parameters[:number], parameters[number:]
    outputs = [F.conv2d(x, weight) for weight in weights] + [x]
    return _relu_of_sum(outputs[: len(affine) // 2], affine, eps)


def stem(inputs: Sequence[Tensor], eps: Sequence[float], stride: int) -> Tensor:
    """The stem; ``inputs`` are x, both weights, two scales, two shifts."""
    x, weight, weight_1x1, *affine = inputs
    convolved = F.conv2d(x, weight, stride=stride, padding=1)
    return _relu_of_sum([convolved, F.conv2d(x[:, :, ::stride, ::stride], weight_1x1)], affine, eps)


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], arguments: Sequence[Any], gradient: Tensor
) -> List[Optional[Tensor]]:
    """Gradients of ``function(inputs, *arguments)``, None for what requires none; with a graph if one is asked for."""
    wanted = [each for each in inputs if each.requires_grad]
    x, *parameters = inputs
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        out = function([x.to(parameters[0].dtype), *parameters], *arguments)  # x may be bfloat16
    found = iter(torch.autograd.grad(out, wanted, gradient.to(out.dtype), create_graph=create_graph))
    return [next(found) if each.requires_grad else None for each in inputs]
