"""The train step of a block in torch's own operations, for torch.compile to make few kernels of on an accelerator.

There a step of a small network is as long as its list of kernels. So what the algebra leaves to compute is written as
torch.compile fuses it best: the depthwise convolution as a sum of nine shifted products, which joins the sums over
positions and their derivatives, rather than as a convolution, which stands alone; all pointwise branches as one matrix
product. Means and variances are those of the branches, as in :mod:`.formulas`; the derivatives are torch's.

Under autocast only matrix products are in its precision: what is summed over positions is summed in float32, and the
output has autocast's dtype.
"""

from typing import Any, Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["depth", "point"]


def depth(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    eps: Sequence[float],
    observe: Callable[[Tensor, int], Any],
    dilation: int,
) -> Tensor:
    """The Depth-Block, whose branches are a = conv3x3(x), s x, and x: two means and variances are enough for three.

    Args:
        x: ``(N, C, H, W)``.
        weight: of the 3x3 convolution, ``(C, 1, 3, 3)``.
        scale: s, the weight of the 1x1 convolution, ``(C, 1, 1, 1)``.
        gammas: scales of the three norms, each ``(C,)``.
        betas: their shifts.
        eps: their eps.
        observe: called with means and biased variances, ``(3, 2, C)``, and the number of positions.
        dilation: of the 3x3 convolution.
    """
    given, x = x, _at_least_float32(x)
    height, width = x.shape[2:]
    padded = F.pad(x, [dilation] * 4)
    a = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i * dilation :, j * dilation :][:, :, :height, :width]
            a = a + shifted * weight[:, 0, i, j].reshape(-1, 1, 1)
    var_a, mean_a = torch.var_mean(a, (0, 2, 3), correction=0)
    var_x, mean_x = torch.var_mean(x, (0, 2, 3), correction=0)
    s = scale.flatten()
    means, variances = [mean_a, s * mean_x, mean_x], [var_a, s * s * var_x, var_x]
    alpha_1, alpha_2, alpha_3 = (
        gamma * torch.rsqrt(variance + each) for gamma, variance, each in zip(gammas, variances, eps)
    )
    centre = alpha_2 * s + alpha_3
    bias = betas[0] + betas[1] + betas[2] - alpha_1 * mean_a - centre * mean_x
    _observe(observe, means, variances, x.numel() // x.shape[1])
    parts = (part.reshape(-1, 1, 1) for part in (alpha_1, centre, bias))
    return torch.relu(next(parts) * a + next(parts) * x + next(parts)).to(_output_dtype(given))


def point(
    x: Tensor,
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    eps: Sequence[float],
    observe: Callable[[Tensor, int], Any],
    stride: int,
) -> Tensor:
    """The Point-Block: the sum of the norms of the W_i x, and of x where there is one norm more than weights.

    Args:
        x: ``(N, C, H, W)``.
        weights: the W_i, each ``(out, C, 1, 1)``.
        gammas: scales of the norms, each ``(out,)``.
        betas: their shifts.
        eps: their eps.
        observe: called with means and biased variances, ``(norms, 2, out)``, and the number of positions.
        stride: of the convolutions.
    """
    x = x[:, :, ::stride, ::stride]
    batch, channels, height, width = x.shape
    positions = x.permute(0, 2, 3, 1).reshape(-1, channels)
    outputs = positions @ torch.cat([weight.flatten(1) for weight in weights]).t()
    outputs = _at_least_float32(outputs)
    if len(gammas) > len(weights):
        outputs = torch.cat([outputs, positions.to(outputs.dtype)], dim=1)
    outputs = outputs.reshape(len(positions), len(gammas), -1)
    variances, means = torch.var_mean(outputs, 0, correction=0)
    _observe(observe, means.unbind(), variances.unbind(), len(positions))
    out = torch.zeros_like(outputs[:, 0])
    for i, (gamma, each) in enumerate(zip(gammas, eps)):
        out = out + (outputs[:, i] - means[i]) * (gamma * torch.rsqrt(variances[i] + each))
    out = torch.relu(out + torch.stack(list(betas)).sum(0)).to(_output_dtype(x))
    return out.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def _observe(observe: Callable[[Tensor, int], Any], means: Sequence[Tensor], variances: Any, count: int) -> None:
    with torch.no_grad():
        observe(torch.stack([torch.stack([mean, var]) for mean, var in zip(means, variances)]).detach(), count)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _output_dtype(x: Tensor) -> torch.dtype:
    """What a convolution of ``x`` returns."""
    device = x.device.type
    casts = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else x.dtype
