"""The products of :mod:`.vector_loops`, of bfloat16 maps, in AMX tiles.

Names, arguments and results are those of :mod:`.vector_loops`; the channels of all maps are multiples of 16.
"""

from typing import Any

import numpy as np

from .jit import compiled
from .lanes import accumulate, lane_count, load, relu, store
from .tiles import PAIRS, SUMS, add_products, configure, release, shapes, store_sums, transpose, zero_sums
from .vector_loops import add_sums, fill_panel, pair_positions

BLOCK = 512  # positions whose products are summed in float32, and which stay in the cache meanwhile
TILE = SUMS  # positions that :func:`pointwise` works on at once
GAP = 16  # behind a row of BLOCK / 2 pairs: rows a power of two apart would crowd into a few sets of the cache

__all__ = ["outer_sums", "pointwise"]


@compiled
def outer_sums(start: int, stop: int, part: int, a: Any, b: Any, is_symmetric: bool, totals: Any) -> None:
    """Sums of a b^T over positions in ``totals``, see :func:`.vector_loops.outer_sums`.

    A block is brought into pairs of positions; those of ``a`` become rows, a channel each.
    """
    _, rows, columns, height = a.shape
    width, last = b.shape[3], stop * rows * columns
    to_b = np.empty(BLOCK // 2 * width, np.int32)
    to_a = to_b if is_symmetric else np.empty(BLOCK // 2 * height, np.int32)
    row = BLOCK // 2 + GAP
    turned, sums = np.empty(height * row, np.int32), np.empty(SUMS * SUMS, np.float32)
    configure(shapes(PAIRS))
    for first in range(start * rows * columns, last, BLOCK):
        stop_at = min(first + BLOCK, last)
        pairs = (stop_at - first + 1) // 2
        whole = (pairs + PAIRS - 1) // PAIRS * PAIRS
        pair_positions(first, stop_at, width, b, to_b)
        to_b[pairs * width : whole * width] = 0
        if not is_symmetric:
            pair_positions(first, stop_at, height, a, to_a)
            to_a[pairs * height : whole * height] = 0
        for r in range(0, height, PAIRS):
            for k in range(0, whole, PAIRS):
                transpose(to_a, k * height + r, height, turned, r * row + k, row)
        for r in range(0, height, SUMS):
            lower = PAIRS if r + PAIRS < height else 0  # a single tile is computed twice, and added once
            for c in range(r if is_symmetric else 0, width, SUMS):
                right = PAIRS if c + PAIRS < width else 0
                zero_sums()
                for k in range(0, whole, PAIRS):
                    add_products(turned, r * row + k, lower * row, row, to_b, k * width + c, right, width)
                store_sums(sums)
                for i in range(PAIRS + lower):
                    t = (part * totals.shape[1] + r + i) * width + c
                    accumulate(totals, t, load(sums, i * SUMS))
                    if right:
                        accumulate(totals, t + right, load(sums, i * SUMS + right))
        if is_symmetric:
            add_sums(part, first, stop_at, b, totals)
    release()


@compiled
def pointwise(start: int, stop: int, part: int, inputs: Any, weights: Any, bias: Any, is_relu: bool, out: Any) -> None:
    """The sum of the 1x1 convolutions of ``inputs`` by ``weights``, see :func:`.vector_loops.pointwise`.

    ``start`` to ``stop`` are tiles of 32 positions, of which there is one at least; the last part takes what remains.
    """
    n, rows, columns, width = out.shape
    lanes, depth, pairs = lane_count(out), 0, PAIRS
    for weight in weights:
        depth += weight.shape[0]
        if weight.shape[0] % PAIRS:
            pairs = PAIRS // 2
    panel, sums = np.empty(depth * SUMS, np.int32), np.empty(SUMS * SUMS, np.float32)
    last = n * rows * columns if stop == n * rows * columns // TILE else stop * TILE
    configure(shapes(pairs))
    for first in range(start * TILE, last, BLOCK):
        for c in range(0, width, SUMS):
            other = lanes if c + lanes < width else 0  # a single tile is computed twice
            fill_panel(weights, c, other, panel)
            b, other_b = load(bias, c), load(bias, c + other)
            for position in range(first, min(first + BLOCK, last), TILE):
                position = min(position, last - TILE)
                zero_sums()
                w = 0
                for x in inputs:
                    channels = x.shape[3]
                    for i in range(position * channels, (position + 1) * channels, pairs):
                        add_products(x, i, PAIRS * channels, channels, panel, w, PAIRS, SUMS)
                        w += pairs * SUMS
                store_sums(sums)
                o = position * width + c
                for i in range(0, SUMS * SUMS, SUMS):
                    s, t = load(sums, i) + b, load(sums, i + lanes) + other_b
                    store(out, o, relu(s) if is_relu else s)
                    store(out, o + other, relu(t) if is_relu else t)
                    o += width
    release()
