"""The matrix products of a fused train step, over maps ``(N, C, H, W)`` in channels_last.

Such a map is a matrix of M = N H W rows of C channels. Products that keep the rows run as 1x1 convolutions by oneDNN,
which takes 0.5 to 0.8 times as long as MKL for them on AMD; products that sum over the rows run as ``torch.bmm``, since
oneDNN takes several times as long for a weight's gradient of few channels.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["outer_sums", "pointwise", "rows"]

BLOCK = 1024  # positions that are summed in the maps' own dtype; over all of M that would cost digits


def rows(x: Tensor) -> Tensor:
    """A channels_last map ``(N, C, H, W)`` as the matrix ``(M, C)`` that it is in memory."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def outer_sums(a: Tensor, b: Tensor) -> Tensor:
    """``a^T b``, ``(C_a, C_b)`` in float64, of maps or matrices of as many rows."""
    a, b = (rows(each) if each.dim() == 4 else each for each in (a, b))
    whole = len(a) // BLOCK * BLOCK
    total = torch.mm(a[whole:].t(), b[whole:]).double()
    if whole:
        blocks = (each[:whole].view(-1, BLOCK, each.shape[1]) for each in (a, b))
        total += torch.bmm(next(blocks).transpose(1, 2), next(blocks)).sum(0, dtype=torch.float64)
    return total


def pointwise(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """The 1x1 convolution of ``x`` by ``weight`` ``(C_out, C)``."""
    n, channels, height, width = x.shape
    as_one_row = x.permute(0, 2, 3, 1).reshape(*_batches(n * height * width), channels).permute(0, 3, 1, 2)
    kernel = weight[:, :, None, None].contiguous(memory_format=torch.channels_last)
    out = F.conv2d(as_one_row, kernel, bias)
    return out.permute(0, 2, 3, 1).reshape(n, height, width, -1).permute(0, 3, 1, 2)


def _batches(positions: int) -> "tuple[int, int, int]":
    """A shape for so many positions: torch takes a slow path for 1x1 convolutions of fewer than 16 images."""
    return (16, positions // 16, 1) if positions % 16 == 0 else (positions, 1, 1)
