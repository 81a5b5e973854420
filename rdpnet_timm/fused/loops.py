"""The passes over maps, as plain loops: any CPU, float32 and float64, any dilation.

Maps are arrays ``(N, H, W, C)``, which is what channels_last is in memory. Every function takes the part of the batch,
``start`` to ``stop``, that is its own, and the number of this part, under which it writes its totals. Totals are
float64; what is added up in the maps' own dtype in between is a row, since a float32 sum over a whole map loses digits.
"""

from typing import Any

import numpy as np

from .jit import compiled, compiled_part

__all__ = [
    "channel_sums",
    "depth_backward",
    "depth_backward_sums",
    "depth_output",
    "depth_sums",
    "masked_gradient",
    "patches",
]


@compiled_part
def _convolve_row(image: Any, h: int, taps: Any, dilation: int, out: Any) -> None:
    """Row ``h`` of the depthwise 3x3 convolution of ``image`` ``(H, W, C)``; ``out`` is ``(W, C)``."""
    height, width, channels = image.shape
    out[:] = 0
    for i in range(3):
        y = h + (i - 1) * dilation
        if y < 0 or y >= height:
            continue
        for j in range(3):
            shift = (j - 1) * dilation
            for w in range(max(0, -shift), min(width, width - shift)):
                for c in range(channels):
                    out[w, c] += taps[3 * i + j, c] * image[y, w + shift, c]


@compiled
def depth_sums(start: int, stop: int, part: int, x: Any, taps: Any, dilation: int, totals: Any) -> None:
    """Sums of a, a^2, x, x^2 in ``totals`` ``(parts, 4, C)``; a is the convolution of ``x`` by ``taps`` ``(9, C)``."""
    _, height, width, channels = x.shape
    a, row = np.empty((width, channels), x.dtype), np.empty((4, channels), x.dtype)
    for n in range(start, stop):
        for h in range(height):
            _convolve_row(x[n], h, taps, dilation, a)
            row[:] = 0
            for w in range(width):
                for c in range(channels):
                    row[0, c] += a[w, c]
                    row[1, c] += a[w, c] * a[w, c]
                    row[2, c] += x[n, h, w, c]
                    row[3, c] += x[n, h, w, c] * x[n, h, w, c]
            totals[part] += row


@compiled
def depth_output(
    start: int, stop: int, part: int, x: Any, kernel: Any, bias: Any, stride: int, dilation: int, out: Any
) -> None:
    """``out = ReLU(conv(x, kernel) + bias)`` at every ``stride``-th position."""
    _, rows, columns, channels = out.shape
    a = np.empty((x.shape[2], channels), x.dtype)
    for n in range(start, stop):
        for y in range(rows):
            _convolve_row(x[n], y * stride, kernel, dilation, a)
            for w in range(columns):
                for c in range(channels):
                    value = a[w * stride, c] + bias[c]
                    out[n, y, w, c] = value if not value <= 0 else 0  # as ReLU does, NaN stays NaN


@compiled
def depth_backward_sums(
    start: int, stop: int, part: int, gradient: Any, out: Any, x: Any, stride: int, totals: Any
) -> None:
    """Sums of g, g x, g out in ``totals`` ``(parts, 3, C)``; g is ``gradient`` where ``out`` is positive."""
    _, rows, columns, channels = out.shape
    row = np.empty((3, channels), x.dtype)
    for n in range(start, stop):
        for y in range(rows):
            row[:] = 0
            for w in range(columns):
                for c in range(channels):
                    g = gradient[n, y, w, c] if out[n, y, w, c] > 0 else x.dtype.type(0)
                    row[0, c] += g
                    row[1, c] += g * x[n, y * stride, w * stride, c]
                    row[2, c] += g * out[n, y, w, c]
            totals[part] += row


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
    """``gradient_x``, and in ``totals`` ``(parts, 10, C)`` the sums of da x_t over nine taps and of g a.

    ``coefficients`` are those of :func:`.formulas.depth_coefficients`. At positions which the stride skips g is 0.
    """
    _, height, width, channels = x.shape
    flipped = np.ascontiguousarray(taps[::-1])
    a, row = np.empty((width, channels), x.dtype), np.empty((10, channels), x.dtype)
    da, rest = np.empty((height, width, channels), x.dtype), np.empty((height, width, channels), x.dtype)
    for n in range(start, stop):
        for h in range(height):
            _convolve_row(x[n], h, taps, dilation, a)
            row[:] = 0
            for w in range(width):
                read = h % stride == 0 and w % stride == 0
                for c in range(channels):
                    g = x.dtype.type(0)
                    if read and out[n, h // stride, w // stride, c] > 0:
                        g = gradient[n, h // stride, w // stride, c]
                    da[h, w, c] = coefficients[0, c] * g + coefficients[1, c] * a[w, c] + coefficients[2, c]
                    rest[h, w, c] = coefficients[3, c] * g + coefficients[4, c] * x[n, h, w, c] + coefficients[5, c]
                    row[9, c] += g * a[w, c]
            for i in range(3):
                y = h + (i - 1) * dilation
                if y < 0 or y >= height:
                    continue
                for j in range(3):
                    shift = (j - 1) * dilation
                    for w in range(max(0, -shift), min(width, width - shift)):
                        for c in range(channels):
                            row[3 * i + j, c] += da[h, w, c] * x[n, y, w + shift, c]
            totals[part] += row
        for h in range(height):
            _convolve_row(da, h, flipped, dilation, a)
            for w in range(width):
                for c in range(channels):
                    gradient_x[n, h, w, c] = a[w, c] + rest[h, w, c]


@compiled
def masked_gradient(start: int, stop: int, part: int, gradient: Any, out: Any, masked: Any, totals: Any) -> None:
    """``masked`` is ``gradient`` where ``out`` is positive, and ``totals`` ``(parts, C)`` its sums."""
    _, rows, columns, channels = out.shape
    row = np.empty(channels, out.dtype)
    for n in range(start, stop):
        for y in range(rows):
            row[:] = 0
            for w in range(columns):
                for c in range(channels):
                    g = gradient[n, y, w, c] if out[n, y, w, c] > 0 else out.dtype.type(0)
                    masked[n, y, w, c] = g
                    row[c] += g
            totals[part] += row


@compiled
def channel_sums(start: int, stop: int, part: int, x: Any, totals: Any) -> None:
    """Sums of ``x`` in ``totals`` ``(parts, C)``."""
    _, rows, columns, channels = x.shape
    row = np.empty(channels, x.dtype)
    for n in range(start, stop):
        for y in range(rows):
            row[:] = 0
            for w in range(columns):
                for c in range(channels):
                    row[c] += x[n, y, w, c]
            totals[part] += row


@compiled
def patches(start: int, stop: int, part: int, x: Any, stride: int, out: Any) -> None:
    """The 3x3 patches of ``x``, zero outside the map: ``out`` is ``(N, rows, columns, 9 C or more)``, then zeros."""
    _, _, width, channels = x.shape
    padded = np.zeros((3, width + 2, channels), x.dtype)
    for n in range(start, stop):
        for y in range(out.shape[1]):
            if channels == 3:  # a number that the compiler knows: the values of a colour image are copied without loops
                _patch_row(x[n], y * stride, 3, stride, padded, out[n, y])
            else:
                _patch_row(x[n], y * stride, channels, stride, padded, out[n, y])


@compiled_part
def _patch_row(image: Any, h: int, channels: int, stride: int, padded: Any, out: Any) -> None:
    """The patches around row ``h`` of ``image``, by way of ``padded``, which is this row and its neighbours."""
    height, width, _ = image.shape
    columns, depth = out.shape
    for i in range(3):
        y = h + i - 1
        if y >= 0 and y < height:
            for w in range(width):
                for c in range(channels):
                    padded[i, w + 1, c] = image[y, w, c]
        else:
            padded[i] = 0
    for w in range(columns):
        for i in range(3):
            for j in range(3):
                for c in range(channels):
                    out[w, (3 * i + j) * channels + c] = padded[i, w * stride + j, c]
        for c in range(9 * channels, depth):
            out[w, c] = 0
