"""The matrix products of a fused train step, over maps ``(N, C, H, W)`` in channels_last.

Such a map is a matrix of M = N H W rows of C channels. Where channels fill registers, products are loops of our own:
they add, shift and clip in the pass that multiplies, and take 0.6 to 0.95 of the time of oneDNN's 1x1 convolutions (AMD
EPYC, Zen 4, maps out of the cache; the less, the fewer the channels). In bfloat16 they use AMX tiles where the CPU has
them. Elsewhere they are torch's.
"""

from types import ModuleType
from typing import Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from . import loops, tile_loops, tiles, vector_loops
from .lanes import REGISTER
from .threads import over_parts

__all__ = ["array", "fills_registers", "moments", "outer_sums", "pointwise", "rows"]

BLOCK = 1024  # positions that torch.bmm sums in the maps' own dtype; over all of M that would cost digits


def rows(x: Tensor) -> Tensor:
    """A channels_last map ``(N, C, H, W)`` as the matrix ``(M, C)`` that it is in memory."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def array(x: Tensor) -> np.ndarray:
    """A channels_last map as the array ``(N, H, W, C)`` that it is in memory; of int16 where it is bfloat16."""
    x = x.detach().permute(0, 2, 3, 1)
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


def fills_registers(channels: int, dtype: torch.dtype) -> bool:
    """Whether ``channels`` values fill registers; those of bfloat16 are float32 there."""
    return channels * max(dtype.itemsize, 4) % REGISTER == 0


def moments(x: Tensor) -> Tuple[np.ndarray, np.ndarray]:
    """``x^T x``, ``(C, C)``, of which the upper triangle is there at least, and the sums of ``x``, in float64."""
    channels = x.shape[1]
    if channels % 4 == 0 and fills_registers(channels, x.dtype):
        totals = _outer_loops(x, x, channels + 1)
        return totals[:channels], totals[channels]
    totals = np.zeros((torch.get_num_threads(), channels))
    over_parts(loops.channel_sums, len(x), array(x), totals)
    return _outer_blocks(x, x), totals.sum(0)


def outer_sums(a: Tensor, b: Tensor) -> np.ndarray:
    """``a^T b``, ``(C_a, C_b)`` in float64."""
    is_walked = fills_registers(a.shape[1], a.dtype) if a.dtype == torch.bfloat16 else a.shape[1] % 4 == 0
    if is_walked and fills_registers(b.shape[1], b.dtype):
        return _outer_loops(a, b, a.shape[1])
    return _outer_blocks(a, b)


def _outer_loops(a: Tensor, b: Tensor, count: int) -> np.ndarray:
    """``count`` rows of :func:`.vector_loops.outer_sums`: the last is that of sums, where ``a`` has fewer channels."""
    totals = np.zeros((torch.get_num_threads(), count, b.shape[1]))
    sums = vector_loops.outer_sums
    if b.dtype == torch.bfloat16:
        sums = tile_loops.outer_sums if tiles.are_usable() else vector_loops.outer_sums_of_pairs
    over_parts(sums, len(a), array(a), array(b), count > a.shape[1], totals)
    return totals.sum(0)


def _outer_blocks(a: Tensor, b: Tensor) -> np.ndarray:
    a, b = (_at_least_float32(rows(each)) for each in (a, b))
    whole = len(a) // BLOCK * BLOCK
    total = torch.mm(a[whole:].t(), b[whole:]).double()
    if whole:
        blocks = [each[:whole].view(-1, BLOCK, each.shape[1]) for each in (a, b)]
        total += torch.bmm(blocks[0].transpose(1, 2), blocks[1]).sum(0, dtype=torch.float64)
    return total.numpy()


def pointwise(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, relu: bool = False) -> Tensor:
    """The sum of the 1x1 convolutions of ``inputs`` by ``weights``, each ``(C_i, C_out)``, and ReLU behind it.

    Bfloat16 maps meet weights rounded to it.
    """
    dtype = inputs[0].dtype
    n, _, height, width = inputs[0].shape
    channels, positions = len(bias), n * height * width
    if fills_registers(channels, dtype) and positions >= vector_loops.TILE:
        out = inputs[0].new_empty(n, height, width, channels).permute(0, 3, 1, 2)
        maps, matrices = tuple(map(array, inputs)), tuple(weight.contiguous().numpy() for weight in weights)
        passes: ModuleType = vector_loops
        if dtype == torch.bfloat16:
            maps, matrices = tuple(each.view(np.int32) for each in maps), tuple(map(_pairs, weights))
            if tiles.are_usable() and positions >= tile_loops.TILE:
                passes = tile_loops
        over_parts(passes.pointwise, positions // passes.TILE, maps, matrices, bias.numpy(), relu, array(out))
        return out
    out = torch.addmm(bias, _at_least_float32(rows(inputs[0])), weights[0])
    for x, weight in zip(inputs[1:], weights[1:]):
        out.addmm_(_at_least_float32(rows(x)), weight)
    if relu:
        out.relu_()
    return out.to(dtype).view(n, height, width, channels).permute(0, 3, 1, 2)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def _pairs(weight: Tensor) -> np.ndarray:
    """Bfloat16 values of ``weight`` ``(C, C_out)`` in pairs along C: ``(C / 2, C_out)`` of int32."""
    pairs = weight.bfloat16().unflatten(0, (-1, 2)).transpose(1, 2).contiguous()
    return pairs.view(torch.int32).squeeze(2).numpy()
