"""The passes of :mod:`.loops` with explicit registers, for channels that fill whole ones.

Names, arguments and results are those of :mod:`.loops`; maps may be bfloat16 besides, as int16. The innermost loop runs
along a row with a register's channels, and keeps its sums in registers. A row of sums is float32, the totals are
float64.

A 3x3 window is nine registers, p, q and r for the rows above, at and below the position, which slide: each position
loads three. A row outside the map is read from inside, and meets weights of 0. With a dilation d a row is d rows of
every d-th position, each a loop of its own.
"""

from typing import Any

import numpy as np

from .jit import compiled, compiled_part
from .lanes import (
    accumulate,
    add_product,
    broadcast,
    lane_count,
    load,
    load_pairs,
    open_relu,
    prefetch,
    relu,
    store,
    zero,
)
from .loops import patches

BLOCK = 256  # positions whose products are summed in the maps' own dtype, and which stay in the cache meanwhile
TILE = 6  # positions that :func:`pointwise` works on at once

__all__ = [
    "add_sums",
    "depth_backward",
    "depth_backward_sums",
    "depth_output",
    "depth_sums",
    "fill_panel",
    "masked_gradient",
    "outer_sums",
    "outer_sums_of_pairs",
    "pair_positions",
    "patches",
    "pointwise",
]


@compiled_part
def _with_zeros(taps: Any, flips: bool) -> Any:
    """``taps`` ``(9, C)``, the last of them first if wished, and a tenth row of zeros."""
    channels = taps.shape[1]
    result = np.zeros((10, channels), taps.dtype)
    for t in range(9):
        for c in range(channels):
            result[t, c] = taps[8 - t if flips else t, c]
    return result


@compiled_part
def _taps(taps: Any, c: int, above: bool, below: bool) -> Any:
    """The nine weights of the channels from ``c``; 0 for the rows above and below where these lie outside the map."""
    channels = taps.shape[1]
    p = 0 if above else 9
    r = 6 if below else 9
    return (
        load(taps, p * channels + c),
        load(taps, (p + 1 if above else 9) * channels + c),
        load(taps, (p + 2 if above else 9) * channels + c),
        load(taps, 3 * channels + c),
        load(taps, 4 * channels + c),
        load(taps, 5 * channels + c),
        load(taps, r * channels + c),
        load(taps, (r + 1 if below else 9) * channels + c),
        load(taps, (r + 2 if below else 9) * channels + c),
    )


@compiled
def depth_sums(start: int, stop: int, part: int, x: Any, taps: Any, dilation: int, totals: Any) -> None:
    """Sums of a, a^2, x, x^2, see :func:`.loops.depth_sums`."""
    _, height, width, channels = x.shape
    row, k = width * channels, _with_zeros(taps, False)
    for line in range(start * height, stop * height):
        h = line % height
        above, below = h >= dilation, h + dilation < height
        for c in range(0, channels, lane_count(x)):
            k0, k1, k2, k3, k4, k5, k6, k7, k8 = _taps(k, c, above, below)
            i = line * row + c
            u, v = i - dilation * row if above else i, i + dilation * row if below else i
            s0 = s1 = s2 = s3 = zero(x)
            for first in range(min(dilation, width)):
                o = first * channels
                p0 = q0 = r0 = zero(x)
                p1, q1, r1 = load(x, u + o), load(x, i + o), load(x, v + o)
                for w in range(first, width, dilation):
                    p2 = q2 = r2 = zero(x)
                    if w + dilation < width:
                        o = (w + dilation) * channels
                        p2, q2, r2 = load(x, u + o), load(x, i + o), load(x, v + o)
                    prefetch(x, v + o + row)
                    a = (k0 * p0 + k1 * p1 + k2 * p2) + (k3 * q0 + k4 * q1 + k5 * q2) + (k6 * r0 + k7 * r1 + k8 * r2)
                    s0 = s0 + a
                    s1 = s1 + a * a
                    s2 = s2 + q1
                    s3 = s3 + q1 * q1
                    p0, p1, q0, q1, r0, r1 = p1, p2, q1, q2, r1, r2
            t = part * 4 * channels + c
            accumulate(totals, t, s0)
            accumulate(totals, t + channels, s1)
            accumulate(totals, t + 2 * channels, s2)
            accumulate(totals, t + 3 * channels, s3)


@compiled
def depth_output(
    start: int, stop: int, part: int, x: Any, kernel: Any, bias: Any, stride: int, dilation: int, out: Any
) -> None:
    """``out = ReLU(conv(x, kernel) + bias)``, see :func:`.loops.depth_output`."""
    _, height, width, channels = x.shape
    _, rows, columns, _ = out.shape
    row, k = width * channels, _with_zeros(kernel, False)
    for line in range(start * rows, stop * rows):
        n, h = line // rows, line % rows * stride
        above, below = h >= dilation, h + dilation < height
        for c in range(0, channels, lane_count(x)):
            k0, k1, k2, k3, k4, k5, k6, k7, k8 = _taps(k, c, above, below)
            b = load(bias, c)
            i, j = (n * height + h) * row + c, line * columns * channels + c
            u, v = i - dilation * row if above else i, i + dilation * row if below else i
            # with a stride of 1 positions slide along the row; otherwise each reads its own window
            for first in range(min(dilation, width)):
                o = first * channels
                p0 = q0 = r0 = zero(x)
                p1, q1, r1 = load(x, u + o), load(x, i + o), load(x, v + o)
                for w in range(first, width, dilation):
                    p2 = q2 = r2 = zero(x)
                    if w + dilation < width:
                        o = (w + dilation) * channels
                        p2, q2, r2 = load(x, u + o), load(x, i + o), load(x, v + o)
                    prefetch(x, v + o + row)
                    if stride == 1 or w % stride == 0:
                        a = k0 * p0 + k1 * p1 + (k2 * p2 + b)
                        a = a + (k3 * q0 + k4 * q1 + k5 * q2) + (k6 * r0 + k7 * r1 + k8 * r2)
                        store(out, j + (w if stride == 1 else w // stride) * channels, relu(a))
                    p0, p1, q0, q1, r0, r1 = p1, p2, q1, q2, r1, r2


@compiled
def depth_backward_sums(
    start: int, stop: int, part: int, gradient: Any, out: Any, x: Any, stride: int, totals: Any
) -> None:
    """Sums of g, g x, g out, see :func:`.loops.depth_backward_sums`."""
    _, height, width, channels = x.shape
    _, rows, columns, _ = out.shape
    for line in range(start * rows, stop * rows):
        n, h = line // rows, line % rows * stride
        for c in range(0, channels, lane_count(x)):
            i, j = (n * height + h) * width * channels + c, line * columns * channels + c
            s0 = s1 = s2 = zero(x)
            for w in range(columns):
                o = load(out, j + w * channels)
                g = open_relu(load(gradient, j + w * channels), o)
                prefetch(out, j + (w + columns) * channels)
                prefetch(gradient, j + (w + columns) * channels)
                prefetch(x, i + (w + columns) * stride * channels)
                s0 = s0 + g
                s1 = s1 + g * load(x, i + w * stride * channels)
                s2 = s2 + g * o
            t = part * 3 * channels + c
            accumulate(totals, t, s0)
            accumulate(totals, t + channels, s1)
            accumulate(totals, t + 2 * channels, s2)


@compiled
def depth_backward(
    start: int,
    stop: int,
    part: int,
    gradient: Any,
    out: Any,
    x: Any,
    taps: Any,
    coefficients: Any,
    stride: int,
    dilation: int,
    gradient_x: Any,
    totals: Any,
) -> None:
    """``gradient_x`` and the sums of da x_t and g a, see :func:`.loops.depth_backward`.

    Row h of da and row h - d of ``gradient_x`` go together. ``da`` is a ring of the 2 d + 1 last rows, with a border of
    d zeros on either side, and ``rest`` one of what else ``gradient_x`` is made of.
    """
    _, height, width, channels = x.shape
    ring = 2 * dilation + 1
    da = np.zeros((ring, width + 2 * dilation, channels), taps.dtype)
    rest = np.empty((ring, width, channels), taps.dtype)
    k, flipped = _with_zeros(taps, False), _with_zeros(taps, True)
    for n in range(start, stop):
        for h in range(height + dilation):
            if h < height:
                _da_row(n, h, part, gradient, out, x, k, coefficients, stride, dilation, da, rest, totals)
                _weight_sums(n, h, part, x, dilation, da, totals)
            if h >= dilation:
                _gradient_row(n, h - dilation, flipped, dilation, da, rest, gradient_x)


@compiled_part
def _da_row(
    n: int,
    h: int,
    part: int,
    gradient: Any,
    out: Any,
    x: Any,
    k: Any,
    coefficients: Any,
    stride: int,
    dilation: int,
    da: Any,
    rest: Any,
    totals: Any,
) -> None:
    """Row ``h`` of da and of c3 g + c4 x + c5, and the sums of g a."""
    _, height, width, channels = x.shape
    _, rows, columns, _ = out.shape
    row = width * channels
    above, below = h >= dilation, h + dilation < height
    slot, is_read = h % (2 * dilation + 1), h % stride == 0
    for c in range(0, channels, lane_count(x)):
        k0, k1, k2, k3, k4, k5, k6, k7, k8 = _taps(k, c, above, below)
        c0, c1, c2 = load(coefficients, c), load(coefficients, channels + c), load(coefficients, 2 * channels + c)
        c3, c4 = load(coefficients, 3 * channels + c), load(coefficients, 4 * channels + c)
        c5 = load(coefficients, 5 * channels + c)
        i, j = (n * height + h) * row + c, (n * rows + h // stride) * columns * channels + c
        u, v = i - dilation * row if above else i, i + dilation * row if below else i
        to_da, to_rest = (slot * (width + 2 * dilation) + dilation) * channels + c, slot * row + c
        s = zero(x)
        for first in range(min(dilation, width)):
            o = first * channels
            p0 = q0 = r0 = zero(x)
            p1, q1, r1 = load(x, u + o), load(x, i + o), load(x, v + o)
            for w in range(first, width, dilation):
                p2 = q2 = r2 = zero(x)
                if w + dilation < width:
                    o = (w + dilation) * channels
                    p2, q2, r2 = load(x, u + o), load(x, i + o), load(x, v + o)
                prefetch(x, v + o + row)
                a = (k0 * p0 + k1 * p1 + k2 * p2) + (k3 * q0 + k4 * q1 + k5 * q2) + (k6 * r0 + k7 * r1 + k8 * r2)
                g = zero(x)
                if is_read and (stride == 1 or w % stride == 0):
                    y = j + (w if stride == 1 else w // stride) * channels
                    g = open_relu(load(gradient, y), load(out, y))
                    prefetch(gradient, y + columns * channels)
                    prefetch(out, y + columns * channels)
                    s = s + g * a
                store(da, to_da + w * channels, c0 * g + (c1 * a + c2))
                store(rest, to_rest + w * channels, c3 * g + (c4 * q1 + c5))
                p0, p1, q0, q1, r0, r1 = p1, p2, q1, q2, r1, r2
        accumulate(totals, (part * 10 + 9) * channels + c, s)


@compiled_part
def _weight_sums(n: int, h: int, part: int, x: Any, dilation: int, da: Any, totals: Any) -> None:
    """Sums of da x_t of row ``h``: position w of x meets da at w + d, w and w - d."""
    _, height, width, channels = x.shape
    row = width * channels
    above, below = h >= dilation, h + dilation < height
    shift = dilation * channels
    for c in range(0, channels, lane_count(x)):
        i = (n * height + h) * row + c
        u, v = i - dilation * row if above else i, i + dilation * row if below else i
        from_da = (h % (2 * dilation + 1) * (width + 2 * dilation) + dilation) * channels + c
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = zero(x)
        for o in range(0, row, channels):
            d0, d1, d2 = load(da, from_da + o + shift), load(da, from_da + o), load(da, from_da + o - shift)
            p, q, r = load(x, u + o), load(x, i + o), load(x, v + o)
            s0 = s0 + d0 * p
            s1 = s1 + d1 * p
            s2 = s2 + d2 * p
            s3 = s3 + d0 * q
            s4 = s4 + d1 * q
            s5 = s5 + d2 * q
            s6 = s6 + d0 * r
            s7 = s7 + d1 * r
            s8 = s8 + d2 * r
        t = part * 10 * channels + c
        if above:
            accumulate(totals, t, s0)
            accumulate(totals, t + channels, s1)
            accumulate(totals, t + 2 * channels, s2)
        accumulate(totals, t + 3 * channels, s3)
        accumulate(totals, t + 4 * channels, s4)
        accumulate(totals, t + 5 * channels, s5)
        if below:
            accumulate(totals, t + 6 * channels, s6)
            accumulate(totals, t + 7 * channels, s7)
            accumulate(totals, t + 8 * channels, s8)


@compiled_part
def _gradient_row(n: int, y: int, flipped: Any, dilation: int, da: Any, rest: Any, gradient_x: Any) -> None:
    """Row ``y`` of ``gradient_x``: the transposed convolution of da, one by the flipped weights, plus ``rest``."""
    _, height, width, channels = gradient_x.shape
    ring, row = 2 * dilation + 1, (width + 2 * dilation) * channels
    above, below = y >= dilation, y + dilation < height
    shift = dilation * channels
    for c in range(0, channels, lane_count(gradient_x)):
        k0, k1, k2, k3, k4, k5, k6, k7, k8 = _taps(flipped, c, above, below)
        u, i, v = (y - dilation) % ring * row + c, y % ring * row + c, (y + dilation) % ring * row + c
        j, z = (n * height + y) * width * channels + c, y % ring * width * channels + c
        for o in range(0, width * channels, channels):
            a = k0 * load(da, u + o) + k1 * load(da, u + o + shift) + k2 * load(da, u + o + 2 * shift)
            a = a + (k3 * load(da, i + o) + k4 * load(da, i + o + shift) + k5 * load(da, i + o + 2 * shift))
            a = a + (k6 * load(da, v + o) + k7 * load(da, v + o + shift) + k8 * load(da, v + o + 2 * shift))
            store(gradient_x, j + o, a + load(rest, z + o))


@compiled
def masked_gradient(start: int, stop: int, part: int, gradient: Any, out: Any, masked: Any, totals: Any) -> None:
    """``masked`` and its sums, see :func:`.loops.masked_gradient`."""
    _, rows, columns, channels = out.shape
    for line in range(start * rows, stop * rows):
        for c in range(0, channels, lane_count(out)):
            i = line * columns * channels + c
            s = zero(out)
            for o in range(i, i + columns * channels, channels):
                g = open_relu(load(gradient, o), load(out, o))
                store(masked, o, g)
                s = s + g
            accumulate(totals, part * channels + c, s)


@compiled
def outer_sums(start: int, stop: int, part: int, a: Any, b: Any, is_symmetric: bool, totals: Any) -> None:
    """Sums of a b^T over positions in ``totals`` ``(parts, C_a, C_b)``.

    Of a symmetric one the upper triangle, and in a row behind it, of ``(parts, C_a + 1, C_b)``, the sums of b.
    C_a is a multiple of 4 and C_b one of a register.
    """
    _, rows, columns, height = a.shape
    last = stop * rows * columns
    for first in range(start * rows * columns, last, BLOCK):
        stop_at = min(first + BLOCK, last)
        _add_outer(part, first, stop_at, height, b.shape[3], a, b, is_symmetric, totals)
        if is_symmetric:
            add_sums(part, first, stop_at, b, totals)


@compiled_part
def add_sums(part: int, first: int, last: int, x: Any, totals: Any) -> None:
    """Add the sums of positions ``first`` to ``last`` to the last row of ``totals``."""
    channels = x.shape[3]
    for c in range(0, channels, lane_count(x)):
        s = zero(x)
        for position in range(first, last):
            s = s + load(x, position * channels + c)
        accumulate(totals, ((part + 1) * totals.shape[1] - 1) * channels + c, s)


@compiled
def outer_sums_of_pairs(start: int, stop: int, part: int, a: Any, b: Any, is_symmetric: bool, totals: Any) -> None:
    """:func:`outer_sums` of bfloat16 maps: a block is brought into pairs of positions, which halves the products."""
    _, rows, columns, height = a.shape
    width, last = b.shape[3], stop * rows * columns
    to_a, to_b = np.empty(BLOCK // 2 * height, np.int32), np.empty(BLOCK // 2 * width, np.int32)
    for first in range(start * rows * columns, last, BLOCK):
        stop_at = min(first + BLOCK, last)
        pair_positions(first, stop_at, height, a, to_a)
        if not is_symmetric:
            pair_positions(first, stop_at, width, b, to_b)
        count = (stop_at - first + 1) // 2
        _add_outer(part, 0, count, height, width, to_a, to_a if is_symmetric else to_b, is_symmetric, totals)
        if is_symmetric:
            add_sums(part, first, stop_at, b, totals)


@compiled_part
def pair_positions(first: int, stop: int, channels: int, x: Any, pairs: Any) -> None:
    """Neighbouring positions of ``first`` to ``stop`` as ``pairs`` ``(positions / 2, channels)``, zeros behind."""
    nothing = np.zeros(channels, x.dtype)
    to, last = 0, stop * channels
    for position in range(first * channels, last, 2 * channels):
        following = position + channels
        for c in range(0, channels, lane_count(x)):
            if following < last:
                store(pairs, to + c, load_pairs(x, position + c, x, following + c))
            else:
                store(pairs, to + c, load_pairs(x, position + c, nothing, c))
        to += channels


@compiled_part
def _add_outer(
    part: int,
    first: int,
    last: int,
    height: int,
    width: int,
    a: Any,
    b: Any,
    is_symmetric: bool,
    totals: Any,
) -> None:
    """Add the sums of positions ``first`` to ``last``.

    Four channels of ``a`` meet two registers of ``b``: eight sums in registers, six loads for eight products.
    """
    lanes = lane_count(b)
    for r in range(0, height, 4):
        for c in range(r // (2 * lanes) * 2 * lanes if is_symmetric else 0, width, 2 * lanes):
            other = lanes if c + lanes < width else 0  # a single register is computed twice, and added once
            s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = zero(b)
            for position in range(first, last):
                u, v = load(b, position * width + c), load(b, position * width + c + other)
                y = broadcast(a, position * height + r)
                s0, t0 = add_product(s0, y, u), add_product(t0, y, v)
                y = broadcast(a, position * height + r + 1)
                s1, t1 = add_product(s1, y, u), add_product(t1, y, v)
                y = broadcast(a, position * height + r + 2)
                s2, t2 = add_product(s2, y, u), add_product(t2, y, v)
                y = broadcast(a, position * height + r + 3)
                s3, t3 = add_product(s3, y, u), add_product(t3, y, v)
            i = (part * totals.shape[1] + r) * width + c
            accumulate(totals, i, s0)
            accumulate(totals, i + width, s1)
            accumulate(totals, i + 2 * width, s2)
            accumulate(totals, i + 3 * width, s3)
            if other:
                accumulate(totals, i + lanes, t0)
                accumulate(totals, i + width + lanes, t1)
                accumulate(totals, i + 2 * width + lanes, t2)
                accumulate(totals, i + 3 * width + lanes, t3)


@compiled
def pointwise(start: int, stop: int, part: int, inputs: Any, weights: Any, bias: Any, is_relu: bool, out: Any) -> None:
    """The sum of the 1x1 convolutions of ``inputs``, maps ``(N, H, W, C_i)``, by ``weights`` ``(C_i, C_out)``.

    Maps and weights may both be pairs of bfloat16 values, neighbours along C_i.

    ``start`` to ``stop`` are tiles of six positions, of which there is one at least; the last part takes what remains.
    Six positions meet two registers of outputs: twelve sums in registers, eight loads for twelve products. Weights of
    two registers lie together meanwhile, since rows of many channels would crowd into a few sets of the cache.
    """
    n, rows, columns, width = out.shape
    lanes, depth = lane_count(out), 0
    for weight in weights:
        depth += weight.shape[0]
    panel = np.empty(depth * 2 * lanes, weights[0].dtype)
    last = n * rows * columns if stop == n * rows * columns // TILE else stop * TILE
    for first in range(start * TILE, last, BLOCK // TILE * TILE):
        for c in range(0, width, 2 * lanes):
            other = lanes if c + lanes < width else 0  # a single register is computed twice
            fill_panel(weights, c, other, panel)
            for position in range(first, min(first + BLOCK // TILE * TILE, last), TILE):
                position = min(position, last - TILE)
                s0 = s1 = s2 = s3 = s4 = s5 = load(bias, c)
                t0 = t1 = t2 = t3 = t4 = t5 = load(bias, c + other)
                w = 0
                for x in inputs:
                    channels = x.shape[3]
                    for i in range(position * channels, (position + 1) * channels):
                        u, v = load(panel, w), load(panel, w + lanes)
                        y = broadcast(x, i)
                        s0, t0 = add_product(s0, y, u), add_product(t0, y, v)
                        y = broadcast(x, i + channels)
                        s1, t1 = add_product(s1, y, u), add_product(t1, y, v)
                        y = broadcast(x, i + 2 * channels)
                        s2, t2 = add_product(s2, y, u), add_product(t2, y, v)
                        y = broadcast(x, i + 3 * channels)
                        s3, t3 = add_product(s3, y, u), add_product(t3, y, v)
                        y = broadcast(x, i + 4 * channels)
                        s4, t4 = add_product(s4, y, u), add_product(t4, y, v)
                        y = broadcast(x, i + 5 * channels)
                        s5, t5 = add_product(s5, y, u), add_product(t5, y, v)
                        w += 2 * lanes
                o = position * width + c
                _store_pair(out, o, other, s0, t0, is_relu)
                _store_pair(out, o + width, other, s1, t1, is_relu)
                _store_pair(out, o + 2 * width, other, s2, t2, is_relu)
                _store_pair(out, o + 3 * width, other, s3, t3, is_relu)
                _store_pair(out, o + 4 * width, other, s4, t4, is_relu)
                _store_pair(out, o + 5 * width, other, s5, t5, is_relu)


@compiled_part
def fill_panel(weights: Any, c: int, other: int, panel: Any) -> None:
    """Bring two registers of every row of ``weights``, from column ``c`` and ``c + other``, to lie together."""
    lanes, to = lane_count(panel), 0
    for weight in weights:
        for i in range(c, weight.size, weight.shape[1]):
            store(panel, to, load(weight, i))
            store(panel, to + lanes, load(weight, i + other))
            to += 2 * lanes


@compiled_part
def _store_pair(out: Any, index: int, other: int, a: Any, b: Any, is_relu: bool) -> None:
    """Write two registers, one at ``index`` and one ``other`` elements behind it."""
    store(out, index, relu(a) if is_relu else a)
    store(out, index + other, relu(b) if is_relu else b)
