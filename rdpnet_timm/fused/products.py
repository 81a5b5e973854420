"""The matrix products of a fused train step, over maps ``(N, C, H, W)`` in channels_last.

Such a map is a matrix of M = N H W rows of C channels. Where channels fill registers, products are loops of our own:
they add, shift and clip in the pass that multiplies, and keep a core as busy as oneDNN does for many channels, and busier
for few (on an AMD EPYC, Zen 4, 0.6 to 0.95 of its time with the maps out of the cache). Elsewhere they are torch's.
"""

from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from . import vector_loops
from .lanes import REGISTER
from .threads import over_parts

__all__ = ["outer_sums", "pointwise", "rows"]

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


def pointwise(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, relu: bool = False) -> Tensor:
    """The sum of the 1x1 convolutions of ``inputs`` by ``weights``, each ``(C_i, C_out)``, and ReLU behind it."""
    n, _, height, width = inputs[0].shape
    channels, positions = len(bias), n * height * width
    if channels * bias.element_size() % REGISTER == 0 and positions >= vector_loops.TILE:
        out = bias.new_empty(n, height, width, channels)
        maps = tuple(x.permute(0, 2, 3, 1).numpy() for x in inputs)
        matrices = tuple(weight.contiguous().numpy() for weight in weights)
        over_parts(
            vector_loops.pointwise, positions // vector_loops.TILE, maps, matrices, bias.numpy(), relu, out.numpy()
        )
        return out.permute(0, 3, 1, 2)
    out = torch.addmm(bias, rows(inputs[0]), weights[0])
    for x, weight in zip(inputs[1:], weights[1:]):
        out.addmm_(rows(x), weight)
    if relu:
        out.relu_()
    return out.view(n, height, width, channels).permute(0, 3, 1, 2)
