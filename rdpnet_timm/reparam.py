"""The algebra of structural reparameterisation, written once.

Everything here is a pure function on a *kernel*: the pair ``(weight, bias)`` of a convolution, ``weight`` of shape
``(out_channels, in_channels / groups, k, k)`` and ``bias`` of shape ``(out_channels,)``. Nothing knows of modules.
Blocks write their ``reparameterize()`` as a sentence made of these words, and the arithmetic is in float64 throughout.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", 2021, for fusing and adding branches.
"""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Kernel",
    "add_kernels",
    "float64",
    "fuse_norm",
    "identity_weight",
    "pad_kernel",
    "permute_inputs",
    "shuffle_permutation",
]


class Kernel(NamedTuple):
    """A convolution as a value: ``weight (out, in / groups, k, k)`` and ``bias (out,)``."""

    weight: Tensor
    bias: Tensor


def float64(tensor: Tensor) -> Tensor:
    """``tensor`` in float64, detached; on the CPU where its device has no float64 (MPS)."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device=device, dtype=torch.float64)


def identity_weight(channels: int, groups: int = 1, device: Optional[torch.device] = None) -> Tensor:
    """The 1x1 weight ``(channels, channels / groups, 1, 1)`` of the convolution that returns its input."""
    per_group = channels // groups
    rows = torch.eye(per_group, dtype=torch.float64, device=device).repeat(groups, 1)
    return rows.reshape(channels, per_group, 1, 1)


def fuse_norm(
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    scale: Optional[Tensor] = None,
    shift: Optional[Tensor] = None,
) -> Kernel:
    """Fuse a bias-free convolution with the batch norm behind it, as that norm acts in evaluation.

    ``W' = W * scale / sqrt(variance + eps)`` and ``b' = shift - mean * scale / sqrt(variance + eps)``; a norm without
    an affine part has scale 1 and shift 0.
    """
    factor = torch.rsqrt(float64(variance) + eps)
    if scale is not None:
        factor = factor * float64(scale)
    bias = -float64(mean) * factor
    if shift is not None:
        bias = bias + float64(shift)
    return Kernel(float64(weight) * factor.reshape(-1, 1, 1, 1), bias)


def pad_kernel(kernel: Kernel, size: int) -> Kernel:
    """Zero-pad an odd-sized kernel to ``size x size``, its centre staying the centre."""
    margin = (size - kernel.weight.shape[-1]) // 2
    return Kernel(F.pad(kernel.weight, [margin] * 4), kernel.bias)


def add_kernels(*kernels: Kernel) -> Kernel:
    """The one convolution that gives the sum of several over the same input."""
    weights, biases = zip(*kernels)
    return Kernel(torch.stack(weights).sum(0), torch.stack(biases).sum(0))


def shuffle_permutation(channels: int, groups: int) -> Tensor:
    """The channel shuffle as indices ``(channels,)``: output channel ``i`` is input channel ``permutation[i]``.

    Source: Zhang et al., "ShuffleNet", 2018: reshape to ``(groups, channels / groups)``, transpose, flatten.
    """
    return torch.arange(channels, device="cpu").reshape(groups, -1).t().reshape(-1)


def permute_inputs(kernel: Kernel, permutation: Tensor) -> Kernel:
    """Move a permutation of channels in front of a dense convolution into the convolution.

    ``conv(W, x[permutation]) == conv(W', x)``: column ``i`` of ``W`` meets input channel ``permutation[i]``, so it
    becomes column ``permutation[i]`` of ``W'``.
    """
    weight = torch.empty_like(kernel.weight)
    weight[:, permutation.to(weight.device)] = kernel.weight
    return Kernel(weight, kernel.bias)
