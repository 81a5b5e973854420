"""The passes over maps of a fused train step on a GPU, in Triton; what is per channel is computed within them.

Notation and algebra are those of :mod:`.formulas`. A map lies in channels_last, that is as ``(positions, channels)``;
a program takes some positions with all of their channels. Sums over positions are summed in float32 within a program
and in float64 over programs, by atomic additions to zeros. Products are of three TF32 products each, as precise as
float32 but for the last bits.

The steps of a module are eight kernels in all, since for a small network a step's time is the number of its kernels:

- forward: :func:`depth_sums`, :func:`depth_out`, :func:`point_kernel`, :func:`point_out`
- backward: :func:`point_sums`, :func:`point_gradients`, :func:`point_input`, :func:`depth_input`
"""

import triton
import triton.language as tl

__all__ = [
    "depth_input", "depth_out", "depth_sums", "point_gradients", "point_input", "point_kernel", "point_out",
    "point_sums",
]  # fmt: skip


@triton.jit
def _norm(mean, variance, gamma_ptr, eps, i, mask):
    """The inv and alpha of a norm over channels ``i``."""
    inv = 1 / tl.sqrt(variance + eps)
    return inv, tl.load(gamma_ptr + i, mask, 0.0) * inv


@triton.jit
def _track(mean, variance, running_mean_ptr, running_var_ptr, tracked_ptr, momentum, count, i, mask, is_first):
    """Move running statistics as batch norm does; one program of a channel does it."""
    old = tl.load(running_mean_ptr + i, mask, 0.0)
    tl.store(running_mean_ptr + i, (old + momentum * (mean - old)).to(tl.float32), mask)
    unbiased = variance * (count / (count - 1))
    old = tl.load(running_var_ptr + i, mask, 0.0)
    tl.store(running_var_ptr + i, (old + momentum * (unbiased - old)).to(tl.float32), mask)
    if is_first:
        tl.store(tracked_ptr, tl.load(tracked_ptr) + 1)


@triton.jit
def _depth_statistics(sums_ptr, scale_ptr, count, channels, c, c_in):
    """Means and variances of a and of x, and s, in float64."""
    mean_a = tl.load(sums_ptr + c, c_in, 0.0) / count
    var_a = tl.maximum(tl.load(sums_ptr + channels + c, c_in, 0.0) / count - mean_a * mean_a, 0.0)
    mean_x = tl.load(sums_ptr + 2 * channels + c, c_in, 0.0) / count
    var_x = tl.maximum(tl.load(sums_ptr + 3 * channels + c, c_in, 0.0) / count - mean_x * mean_x, 0.0)
    return mean_a, var_a, mean_x, var_x, tl.load(scale_ptr + c, c_in, 0.0).to(tl.float64)


@triton.jit
def depth_sums(
    x_ptr, weight_ptr, a_ptr, sums_ptr, count, height, width, channels, dilation,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write a = conv3x3(x), and add up the sums of a, a^2, x, x^2."""
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    p = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    p_in = p < count
    row, column = p // width % height, p % width
    a = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    x = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for tap in tl.static_range(9):
        down, right = (tap // 3 - 1) * dilation, (tap % 3 - 1) * dilation
        inside = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width) & p_in
        where = (p + down * width + right)[:, None] * channels + c[None, :]
        value = tl.load(x_ptr + where, inside[:, None] & c_in[None, :], 0.0)
        a += value * tl.load(weight_ptr + c * 9 + tap, c_in, 0.0)[None, :]
        if tap == 4:
            x = value
    tl.store(a_ptr + p[:, None] * channels + c[None, :], a, p_in[:, None] & c_in[None, :])
    tl.atomic_add(sums_ptr + c, tl.sum(a, 0).to(tl.float64), c_in)
    tl.atomic_add(sums_ptr + channels + c, tl.sum(a * a, 0).to(tl.float64), c_in)
    tl.atomic_add(sums_ptr + 2 * channels + c, tl.sum(x, 0).to(tl.float64), c_in)
    tl.atomic_add(sums_ptr + 3 * channels + c, tl.sum(x * x, 0).to(tl.float64), c_in)


@triton.jit
def depth_out(
    x_ptr, a_ptr, out_ptr, sums_ptr, gram_ptr, scale_ptr,
    gamma_1_ptr, gamma_2_ptr, gamma_3_ptr, beta_1_ptr, beta_2_ptr, beta_3_ptr, eps_1, eps_2, eps_3,
    mean_1_ptr, mean_2_ptr, mean_3_ptr, var_1_ptr, var_2_ptr, var_3_ptr,
    tracked_1_ptr, tracked_2_ptr, tracked_3_ptr, momentum_1, momentum_2, momentum_3,
    count, height, width, channels, out_count, out_height, out_width, stride,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The Depth-Block's output at every ``stride``-th position, and its moments: sums of x x^T, then of x."""
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    mean_a, var_a, mean_x, var_x, s = _depth_statistics(sums_ptr, scale_ptr, count, channels, c, c_in)
    _, alpha_1 = _norm(mean_a, var_a, gamma_1_ptr, eps_1, c, c_in)
    _, alpha_2 = _norm(s * mean_x, s * s * var_x, gamma_2_ptr, eps_2, c, c_in)
    _, alpha_3 = _norm(mean_x, var_x, gamma_3_ptr, eps_3, c, c_in)
    if tl.program_id(0) == 0:
        _track(mean_a, var_a, mean_1_ptr, var_1_ptr, tracked_1_ptr, momentum_1, count, c, c_in, True)
        _track(s * mean_x, s * s * var_x, mean_2_ptr, var_2_ptr, tracked_2_ptr, momentum_2, count, c, c_in, True)
        _track(mean_x, var_x, mean_3_ptr, var_3_ptr, tracked_3_ptr, momentum_3, count, c, c_in, True)
    centre = alpha_2 * s + alpha_3
    bias = (
        tl.load(beta_1_ptr + c, c_in, 0.0) + tl.load(beta_2_ptr + c, c_in, 0.0) + tl.load(beta_3_ptr + c, c_in, 0.0)
        - alpha_1 * mean_a - centre * mean_x
    )  # fmt: skip
    of_a, of_x, bias = alpha_1.to(tl.float32), centre.to(tl.float32), bias.to(tl.float32)
    gram = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(tl.program_id(0) * BLOCK_M, out_count, tl.num_programs(0) * BLOCK_M):
        p = start + tl.arange(0, BLOCK_M)
        mask = (p < out_count)[:, None] & c_in[None, :]
        row, column = p // out_width % out_height * stride, p % out_width * stride
        where = ((p // (out_height * out_width) * height + row) * width + column)[:, None] * channels + c[None, :]
        a, x = tl.load(a_ptr + where, mask, 0.0), tl.load(x_ptr + where, mask, 0.0)
        out = tl.maximum(of_a[None, :] * a + of_x[None, :] * x + bias[None, :], 0.0)
        out = tl.where(mask, out, 0.0)
        tl.store(out_ptr + p[:, None] * channels + c[None, :], out, mask)
        gram += tl.dot(tl.trans(out), out, input_precision="tf32x3")
        total += tl.sum(out, 0)
    square = c[:, None] * channels + c[None, :]
    tl.atomic_add(gram_ptr + square, gram.to(tl.float64), c_in[:, None] & c_in[None, :])
    tl.atomic_add(gram_ptr + channels * channels + c, total.to(tl.float64), c_in)


@triton.jit
def _shuffled(c, channels, groups):
    """Where a channel shuffle puts channel ``c``: the pointwise weights' column for it."""
    return c % (channels // groups) * groups + c // (channels // groups)


@triton.jit
def point_kernel(
    gram_ptr, weight_a_ptr, weight_b_ptr, merged_ptr, bias_ptr, products_ptr, state_ptr,
    gamma_1_ptr, gamma_2_ptr, gamma_3_ptr, beta_1_ptr, beta_2_ptr, beta_3_ptr, eps_1, eps_2, eps_3,
    mean_1_ptr, mean_2_ptr, mean_3_ptr, var_1_ptr, var_2_ptr, var_3_ptr,
    tracked_1_ptr, tracked_2_ptr, tracked_3_ptr, momentum_1, momentum_2, momentum_3,
    count, channels, out_channels, groups,
    WEIGHTS: tl.constexpr, NORMS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The Point-Block's kernel, in the order of its input's channels, and what its gradients need.

    ``merged`` is W ``(out, C)``, ``bias`` ``(out,)``, ``products`` the W_i V ``(norms, out, C)``, ``state`` m, inv and
    alpha ``(3, norms, out)`` in float64. With one norm more than weights, the last branch is the identity.
    """
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    o_in = o < out_channels
    mask = o_in[:, None] & c_in[None, :]
    where = o[:, None] * channels + c[None, :]
    mean_x = tl.load(gram_ptr + channels * channels + c, c_in, 0.0) / count
    square = c[:, None] * channels + c[None, :]
    covariance = tl.load(gram_ptr + square, c_in[:, None] & c_in[None, :], 0.0) / count
    covariance = (covariance - mean_x[:, None] * mean_x[None, :]).to(tl.float32)
    column = _shuffled(c, channels, groups)
    merged = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    bias = tl.zeros((BLOCK_O,), tl.float64)
    for i in tl.static_range(NORMS):
        if i < WEIGHTS:
            weight_ptr = weight_a_ptr if i == 0 else weight_b_ptr
            weight = tl.load(weight_ptr + o[:, None] * channels + column[None, :], mask, 0.0)
        else:
            weight = tl.where(mask & (o[:, None] == column[None, :]), 1.0, 0.0)
        gamma_ptr = gamma_1_ptr if i == 0 else (gamma_2_ptr if i == 1 else gamma_3_ptr)
        beta_ptr = beta_1_ptr if i == 0 else (beta_2_ptr if i == 1 else beta_3_ptr)
        eps = eps_1 if i == 0 else (eps_2 if i == 1 else eps_3)
        product = tl.dot(weight, covariance, input_precision="ieee")
        mean = tl.sum(weight * mean_x[None, :], 1)
        variance = tl.maximum(tl.sum(weight.to(tl.float64) * product, 1), 0.0)
        inv, alpha = _norm(mean, variance, gamma_ptr, eps, o, o_in)
        merged += alpha.to(tl.float32)[:, None] * weight
        bias += tl.load(beta_ptr + o, o_in, 0.0) - alpha * mean
        tl.store(products_ptr + i * out_channels * channels + where, product, mask)
        tl.store(state_ptr + i * out_channels + o, mean, o_in)
        tl.store(state_ptr + (NORMS + i) * out_channels + o, inv, o_in)
        tl.store(state_ptr + (2 * NORMS + i) * out_channels + o, alpha, o_in)
        mean_ptr = mean_1_ptr if i == 0 else (mean_2_ptr if i == 1 else mean_3_ptr)
        var_ptr = var_1_ptr if i == 0 else (var_2_ptr if i == 1 else var_3_ptr)
        tracked_ptr = tracked_1_ptr if i == 0 else (tracked_2_ptr if i == 1 else tracked_3_ptr)
        momentum = momentum_1 if i == 0 else (momentum_2 if i == 1 else momentum_3)
        is_first = tl.program_id(0) == 0
        _track(mean, variance, mean_ptr, var_ptr, tracked_ptr, momentum, count, o, o_in, is_first)
    tl.store(merged_ptr + where, merged, mask)
    tl.store(bias_ptr + o, bias.to(tl.float32), o_in)


@triton.jit
def point_out(
    x_ptr, merged_ptr, bias_ptr, out_ptr, count, channels, out_channels,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write ReLU(W x + b)."""
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    o_in = o < out_channels
    p = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    p_in = p < count
    x = tl.load(x_ptr + p[:, None] * channels + c[None, :], p_in[:, None] & c_in[None, :], 0.0)
    weight = tl.load(merged_ptr + o[None, :] * channels + c[:, None], o_in[None, :] & c_in[:, None], 0.0)
    out = tl.dot(x, weight, input_precision="tf32x3") + tl.load(bias_ptr + o, o_in, 0.0)[None, :]
    where = p[:, None] * out_channels + o[None, :]
    tl.store(out_ptr + where, tl.maximum(out, 0.0), p_in[:, None] & o_in[None, :])


@triton.jit
def point_sums(
    x_ptr, out_ptr, gradient_ptr, sums_ptr, count, channels, out_channels,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of g x^T, then of g, where g is the gradient behind the ReLU."""
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    o_in = o < out_channels
    outer = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    total = tl.zeros((BLOCK_O,), tl.float32)
    for start in range(tl.program_id(0) * BLOCK_M, count, tl.num_programs(0) * BLOCK_M):
        p = start + tl.arange(0, BLOCK_M)
        p_in = p < count
        where, mask = p[:, None] * out_channels + o[None, :], p_in[:, None] & o_in[None, :]
        g = tl.load(gradient_ptr + where, mask, 0.0)
        g = tl.where(tl.load(out_ptr + where, mask, 0.0) > 0, g, 0.0)
        x = tl.load(x_ptr + p[:, None] * channels + c[None, :], p_in[:, None] & c_in[None, :], 0.0)
        outer += tl.dot(tl.trans(g), x, input_precision="tf32x3")
        total += tl.sum(g, 0)
    where = o[:, None] * channels + c[None, :]
    tl.atomic_add(sums_ptr + where, outer.to(tl.float64), o_in[:, None] & c_in[None, :])
    tl.atomic_add(sums_ptr + out_channels * channels + o, total.to(tl.float64), o_in)


@triton.jit
def point_gradients(
    sums_ptr, gram_ptr, weight_a_ptr, weight_b_ptr, merged_ptr, products_ptr, state_ptr, dx_ptr,
    weight_gradients_ptr, affine_gradients_ptr, count, channels, out_channels, groups,
    WEIGHTS: tl.constexpr, NORMS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of the Point-Block's parameters, and what its input's needs: dx = W^T g + Q x + r.

    ``dx`` is Q ``(C, C)``, then r ``(C,)``, in float64 and zero before; the weights' gradients are
    ``(weights, out, C)``; ``affine_gradients`` are of the gammas and of every beta, ``(norms + 1, out)``.
    """
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    o_in = o < out_channels
    mask = o_in[:, None] & c_in[None, :]
    where = o[:, None] * channels + c[None, :]
    mean_x = tl.load(gram_ptr + channels * channels + c, c_in, 0.0) / count
    total = tl.load(sums_ptr + out_channels * channels + o, o_in, 0.0)
    outer = (tl.load(sums_ptr + where, mask, 0.0) - total[:, None] * mean_x[None, :]).to(tl.float32)
    column = _shuffled(c, channels, groups)
    shuffled = o[:, None] * channels + column[None, :]
    q = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    r = -tl.sum(tl.load(merged_ptr + where, mask, 0.0) * (total / count)[:, None], 0)
    for i in tl.static_range(NORMS):
        if i < WEIGHTS:
            weight_ptr = weight_a_ptr if i == 0 else weight_b_ptr
            weight = tl.load(weight_ptr + shuffled, mask, 0.0)
        else:
            weight = tl.where(mask & (o[:, None] == column[None, :]), 1.0, 0.0)
        mean = tl.load(state_ptr + i * out_channels + o, o_in, 0.0)
        inv = tl.load(state_ptr + (NORMS + i) * out_channels + o, o_in, 0.0)
        alpha = tl.load(state_ptr + (2 * NORMS + i) * out_channels + o, o_in, 0.0)
        e = tl.sum(weight.to(tl.float64) * outer, 1)
        p = -alpha * inv * inv * e / count
        tl.store(affine_gradients_ptr + i * out_channels + o, (inv * e).to(tl.float32), o_in)
        if i < WEIGHTS:
            product = tl.load(products_ptr + i * out_channels * channels + where, mask, 0.0)
            gradient = alpha.to(tl.float32)[:, None] * outer + (count * p).to(tl.float32)[:, None] * product
            tl.store(weight_gradients_ptr + i * out_channels * channels + shuffled, gradient, mask)
        scaled = p.to(tl.float32)[:, None] * weight
        q += tl.dot(tl.trans(scaled), weight, input_precision="ieee")
        r -= tl.sum(scaled * mean[:, None], 0)
    tl.store(affine_gradients_ptr + NORMS * out_channels + o, total.to(tl.float32), o_in)
    square = c[:, None] * channels + c[None, :]
    tl.atomic_add(dx_ptr + square, q.to(tl.float64), c_in[:, None] & c_in[None, :])
    tl.atomic_add(dx_ptr + channels * channels + c, r, c_in)


@triton.jit
def point_input(
    x_ptr, out_ptr, gradient_ptr, merged_ptr, dx_ptr, depth_x_ptr, a_ptr, masked_ptr, sums_ptr,
    height, width, channels, out_count, out_height, out_width, out_channels, stride,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of the Point-Block's input behind the Depth-Block's ReLU, g, and the sums of g, g x and g a."""
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    p = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    p_in = p < out_count
    mask = p_in[:, None] & c_in[None, :]
    between = tl.load(x_ptr + p[:, None] * channels + c[None, :], mask, 0.0)
    square = c[:, None] * channels + c[None, :]
    q = tl.load(dx_ptr + square, c_in[:, None] & c_in[None, :], 0.0).to(tl.float32)
    r = tl.load(dx_ptr + channels * channels + c, c_in, 0.0).to(tl.float32)
    dx = tl.dot(between, q, input_precision="tf32x3") + r[None, :]
    for first in range(0, out_channels, BLOCK_O):
        o = first + tl.arange(0, BLOCK_O)
        o_in = o < out_channels
        where, inside = p[:, None] * out_channels + o[None, :], p_in[:, None] & o_in[None, :]
        g = tl.load(gradient_ptr + where, inside, 0.0)
        g = tl.where(tl.load(out_ptr + where, inside, 0.0) > 0, g, 0.0)
        weight = tl.load(merged_ptr + o[:, None] * channels + c[None, :], o_in[:, None] & c_in[None, :], 0.0)
        dx += tl.dot(g, weight, input_precision="tf32x3")
    dx = tl.where(between > 0, dx, 0.0)
    tl.store(masked_ptr + p[:, None] * channels + c[None, :], dx, mask)
    row, column = p // out_width % out_height * stride, p % out_width * stride
    where = ((p // (out_height * out_width) * height + row) * width + column)[:, None] * channels + c[None, :]
    x, a = tl.load(depth_x_ptr + where, mask, 0.0), tl.load(a_ptr + where, mask, 0.0)
    tl.atomic_add(sums_ptr + c, tl.sum(dx, 0).to(tl.float64), c_in)
    tl.atomic_add(sums_ptr + channels + c, tl.sum(dx * x, 0).to(tl.float64), c_in)
    tl.atomic_add(sums_ptr + 2 * channels + c, tl.sum(dx * a, 0).to(tl.float64), c_in)


@triton.jit
def depth_input(
    x_ptr, a_ptr, masked_ptr, weight_ptr, scale_ptr, sums_ptr, gradient_sums_ptr,
    gamma_1_ptr, gamma_2_ptr, gamma_3_ptr, eps_1, eps_2, eps_3,
    dx_ptr, weight_gradient_ptr, channel_gradients_ptr,
    count, height, width, channels, out_height, out_width, stride, dilation,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of the Depth-Block's input and parameters.

    ``weight_gradient`` ``(C, 9)`` is zero before; ``channel_gradients`` are of s, of three gammas and of every beta,
    ``(5, C)``.
    """
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    mean_a, var_a, mean_x, var_x, s = _depth_statistics(sums_ptr, scale_ptr, count, channels, c, c_in)
    inv_1, alpha_1 = _norm(mean_a, var_a, gamma_1_ptr, eps_1, c, c_in)
    inv_2, alpha_2 = _norm(s * mean_x, s * s * var_x, gamma_2_ptr, eps_2, c, c_in)
    inv_3, alpha_3 = _norm(mean_x, var_x, gamma_3_ptr, eps_3, c, c_in)
    total = tl.load(gradient_sums_ptr + c, c_in, 0.0)
    e_3 = tl.load(gradient_sums_ptr + channels + c, c_in, 0.0) - mean_x * total
    e_1 = tl.load(gradient_sums_ptr + 2 * channels + c, c_in, 0.0) - mean_a * total
    p_1 = -alpha_1 * inv_1 * inv_1 * e_1 / count
    p_x = -(alpha_2 * inv_2 * inv_2 * s * s * s + alpha_3 * inv_3 * inv_3) * e_3 / count
    centre = alpha_2 * s + alpha_3
    if tl.program_id(0) == 0:
        tl.store(channel_gradients_ptr + c, (alpha_2 * e_3 * eps_2 * inv_2 * inv_2).to(tl.float32), c_in)
        tl.store(channel_gradients_ptr + channels + c, (inv_1 * e_1).to(tl.float32), c_in)
        tl.store(channel_gradients_ptr + 2 * channels + c, (inv_2 * s * e_3).to(tl.float32), c_in)
        tl.store(channel_gradients_ptr + 3 * channels + c, (inv_3 * e_3).to(tl.float32), c_in)
        tl.store(channel_gradients_ptr + 4 * channels + c, total.to(tl.float32), c_in)
    da_of_g, da_of_a = alpha_1.to(tl.float32), p_1.to(tl.float32)
    da_rest = (-alpha_1 * total / count - p_1 * mean_a).to(tl.float32)
    dx_of_g, dx_of_x = centre.to(tl.float32), p_x.to(tl.float32)
    dx_rest = (-centre * total / count - p_x * mean_x).to(tl.float32)

    p = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    p_in = p < count
    image, row, column = p // (height * width), p // width % height, p % width
    x = tl.load(x_ptr + p[:, None] * channels + c[None, :], p_in[:, None] & c_in[None, :], 0.0)
    dx = dx_of_x[None, :] * x + dx_rest[None, :]
    for tap in tl.static_range(9):
        # the position whose output reads x through this tap
        down, right = row - (tap // 3 - 1) * dilation, column - (tap % 3 - 1) * dilation
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width) & p_in
        where = ((image * height + down) * width + right)[:, None] * channels + c[None, :]
        a = tl.load(a_ptr + where, inside[:, None] & c_in[None, :], 0.0)
        is_read = inside & (down % stride == 0) & (right % stride == 0)
        where = ((image * out_height + down // stride) * out_width + right // stride)[:, None] * channels + c[None, :]
        g = tl.load(masked_ptr + where, is_read[:, None] & c_in[None, :], 0.0)
        da = da_of_g[None, :] * g + da_of_a[None, :] * a + da_rest[None, :]
        da = tl.where(inside[:, None], da, 0.0)
        dx += da * tl.load(weight_ptr + c * 9 + tap, c_in, 0.0)[None, :]
        if tap == 4:
            dx += dx_of_g[None, :] * g
        tl.atomic_add(weight_gradient_ptr + c * 9 + tap, tl.sum(da * x, 0), c_in)
    tl.store(dx_ptr + p[:, None] * channels + c[None, :], dx, p_in[:, None] & c_in[None, :])
