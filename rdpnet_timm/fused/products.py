"""The matrix products of a fused train step, over maps ``(N, C, H, W)`` in channels_last.

Such a map is a matrix of M = N H W rows of C channels. Products that keep the rows run as 1x1 convolutions by oneDNN,
which takes 0.5 to 0.8 times as long as MKL for them on AMD. Products that sum over the rows run as loops of our own
where channels fill registers, else as ``torch.bmm``; oneDNN takes several times as long for so few channels.
"""

from functools import cache
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import vector_loops
from .lanes import REGISTER
from .threads import over_parts

__all__ = ["add_product", "outer_sums", "pointwise", "rows"]

BLOCK = 1024  # positions that torch.bmm sums in the maps' own dtype; over all of M that would cost digits


def rows(x: Tensor) -> Tensor:
    """A channels_last map ``(N, C, H, W)`` as the matrix ``(M, C)`` that it is in memory."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def outer_sums(a: Tensor, b: Tensor) -> np.ndarray:
    """``a^T b``, ``(C_a, C_b)`` in float64; of ``a`` with itself the upper triangle at least."""
    channels_a, channels_b = a.shape[1], b.shape[1]
    if channels_a % 4 == 0 and channels_b * b.element_size() % (2 * REGISTER) == 0:
        totals = np.zeros((torch.get_num_threads(), channels_a, channels_b))
        arrays = (each.permute(0, 2, 3, 1).numpy() for each in (a, b))
        over_parts(vector_loops.outer_sums, len(a), *arrays, a is b, totals)
        return totals.sum(0)
    a, b = rows(a), rows(b)
    whole = len(a) // BLOCK * BLOCK
    total = torch.mm(a[whole:].t(), b[whole:]).double()
    if whole:
        blocks = [each[:whole].view(-1, BLOCK, each.shape[1]) for each in (a, b)]
        total += torch.bmm(blocks[0].transpose(1, 2), blocks[1]).sum(0, dtype=torch.float64)
    return total.numpy()


@cache
def _onednn() -> bool:
    """Whether oneDNN's convolutions with something behind them can be called; torch's own compiler calls them so."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_convolution_pointwise", "_convolution_pointwise_")
    )


def pointwise(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, relu: bool = False) -> Tensor:
    """The 1x1 convolution of ``x`` by ``weight`` ``(C_out, C)``, and ReLU behind it."""
    image, kernel = _as_images(x), _kernel(weight)
    if relu and x.dtype == torch.float32 and _onednn():
        out = torch.ops.mkldnn._convolution_pointwise(image, kernel, bias, [0, 0], [1, 1], [1, 1], 1, "relu", [], "")
    else:
        out = F.conv2d(image, kernel, bias)
        if relu:
            out.relu_()
    return _as_map(out, x)


def add_product(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``out`` with the 1x1 convolution of ``x`` by ``weight`` ``(C_out, C)`` added, in place where that is possible."""
    if x.dtype == torch.float32 and _onednn():
        added = torch.ops.mkldnn._convolution_pointwise_.binary(
            _as_images(out), _as_images(x), _kernel(weight), None, [0, 0], [1, 1], [1, 1], 1, "add", 1.0, None, [], None
        )
        return _as_map(added, x)
    rows(out).addmm_(rows(x), weight.t())
    return out


def _kernel(weight: Tensor) -> Tensor:
    return weight[:, :, None, None].contiguous(memory_format=torch.channels_last)


def _as_images(x: Tensor) -> Tensor:
    """The rows of ``x`` as 16 images where they can be: with fewer, torch takes a slow path for 1x1 convolutions."""
    n, channels, height, width = x.shape
    positions = n * height * width
    shape = (16, positions // 16, 1) if positions % 16 == 0 else (positions, 1, 1)
    return x.permute(0, 2, 3, 1).view(*shape, channels).permute(0, 3, 1, 2)


def _as_map(image: Tensor, like: Tensor) -> Tensor:
    n, _, height, width = like.shape
    return image.permute(0, 2, 3, 1).reshape(n, height, width, -1).permute(0, 3, 1, 2)
