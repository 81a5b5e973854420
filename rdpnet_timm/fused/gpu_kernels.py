"""A fused train step on a GPU, in Triton: passes over maps, and between them what is per channel.

Notation and algebra are those of :mod:`.formulas`. A map lies in channels_last, that is as ``(positions, channels)``;
a program takes some positions with all of their channels. Sums over positions are summed in float32 within a program
and added to zeros by atomic operations, in float64 where they are of single channels. What is per channel is float64
and computed once, in kernels of one program or few: a GPU has many times the float32 units. Products are of three TF32
products each, as precise as float32 but for the last bits.

The steps of a module are ten kernels in all, since for a small network a step's time is that of its kernels' starts:

- forward: :func:`depth_sums`, :func:`depth_kernel`, :func:`depth_out`, :func:`point_kernel`, :func:`point_out`
- backward: :func:`point_sums`, :func:`point_gradients`, :func:`point_input`, :func:`depth_gradients`,
  :func:`depth_input`
"""

import triton
import triton.language as tl

__all__ = [
    "depth_gradients", "depth_input", "depth_kernel", "depth_out", "depth_sums", "point_gradients", "point_input",
    "point_kernel", "point_out", "point_sums",
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
def depth_kernel(
    sums_ptr, scale_ptr, gamma_1_ptr, gamma_2_ptr, gamma_3_ptr, beta_1_ptr, beta_2_ptr, beta_3_ptr, eps_1, eps_2, eps_3,
    mean_1_ptr, mean_2_ptr, mean_3_ptr, var_1_ptr, var_2_ptr, var_3_ptr,
    tracked_1_ptr, tracked_2_ptr, tracked_3_ptr, momentum_1, momentum_2, momentum_3,
    kernel_ptr, state_ptr, count, channels, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What the Depth-Block's output is of a, of x and of 1, ``(3, C)``.

    ``state`` is s, the means of a and of x, three inv and three alphas, ``(9, C)`` in float64.
    """
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    mean_a = tl.load(sums_ptr + c, c_in, 0.0) / count
    var_a = tl.maximum(tl.load(sums_ptr + channels + c, c_in, 0.0) / count - mean_a * mean_a, 0.0)
    mean_x = tl.load(sums_ptr + 2 * channels + c, c_in, 0.0) / count
    var_x = tl.maximum(tl.load(sums_ptr + 3 * channels + c, c_in, 0.0) / count - mean_x * mean_x, 0.0)
    s = tl.load(scale_ptr + c, c_in, 0.0).to(tl.float64)
    inv_1, alpha_1 = _norm(mean_a, var_a, gamma_1_ptr, eps_1, c, c_in)
    inv_2, alpha_2 = _norm(s * mean_x, s * s * var_x, gamma_2_ptr, eps_2, c, c_in)
    inv_3, alpha_3 = _norm(mean_x, var_x, gamma_3_ptr, eps_3, c, c_in)
    _track(mean_a, var_a, mean_1_ptr, var_1_ptr, tracked_1_ptr, momentum_1, count, c, c_in, True)
    _track(s * mean_x, s * s * var_x, mean_2_ptr, var_2_ptr, tracked_2_ptr, momentum_2, count, c, c_in, True)
    _track(mean_x, var_x, mean_3_ptr, var_3_ptr, tracked_3_ptr, momentum_3, count, c, c_in, True)
    centre = alpha_2 * s + alpha_3
    bias = (
        tl.load(beta_1_ptr + c, c_in, 0.0) + tl.load(beta_2_ptr + c, c_in, 0.0) + tl.load(beta_3_ptr + c, c_in, 0.0)
        - alpha_1 * mean_a - centre * mean_x
    )  # fmt: skip
    tl.store(kernel_ptr + c, alpha_1.to(tl.float32), c_in)
    tl.store(kernel_ptr + channels + c, centre.to(tl.float32), c_in)
    tl.store(kernel_ptr + 2 * channels + c, bias.to(tl.float32), c_in)
    tl.store(state_ptr + c, s, c_in)
    tl.store(state_ptr + channels + c, mean_a, c_in)
    tl.store(state_ptr + 2 * channels + c, mean_x, c_in)
    tl.store(state_ptr + 3 * channels + c, inv_1, c_in)
    tl.store(state_ptr + 4 * channels + c, inv_2, c_in)
    tl.store(state_ptr + 5 * channels + c, inv_3, c_in)
    tl.store(state_ptr + 6 * channels + c, alpha_1, c_in)
    tl.store(state_ptr + 7 * channels + c, alpha_2, c_in)
    tl.store(state_ptr + 8 * channels + c, alpha_3, c_in)


@triton.jit
def depth_out(
    x_ptr, a_ptr, kernel_ptr, out_ptr, gram_ptr, height, width, channels, out_count, out_height, out_width, stride,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The Depth-Block's output at every ``stride``-th position, and its moments: sums of x x^T, then of x."""
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    of_a = tl.load(kernel_ptr + c, c_in, 0.0)[None, :]
    of_x = tl.load(kernel_ptr + channels + c, c_in, 0.0)[None, :]
    bias = tl.load(kernel_ptr + 2 * channels + c, c_in, 0.0)[None, :]
    gram = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(tl.program_id(0) * BLOCK_M, out_count, tl.num_programs(0) * BLOCK_M):
        p = start + tl.arange(0, BLOCK_M)
        mask = (p < out_count)[:, None] & c_in[None, :]
        row, column = p // out_width % out_height * stride, p % out_width * stride
        where = ((p // (out_height * out_width) * height + row) * width + column)[:, None] * channels + c[None, :]
        a, x = tl.load(a_ptr + where, mask, 0.0), tl.load(x_ptr + where, mask, 0.0)
        out = tl.where(mask, tl.maximum(of_a * a + of_x * x + bias, 0.0), 0.0)
        tl.store(out_ptr + p[:, None] * channels + c[None, :], out, mask)
        gram += tl.dot(tl.trans(out), out, input_precision="tf32x3")
        total += tl.sum(out, 0)
    square = c[:, None] * channels + c[None, :]
    tl.atomic_add(gram_ptr + square, gram, c_in[:, None] & c_in[None, :])
    tl.atomic_add(gram_ptr + channels * channels + c, total, c_in)


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
    mean_x = tl.load(gram_ptr + channels * channels + c, c_in, 0.0).to(tl.float64) / count
    square = c[:, None] * channels + c[None, :]
    second = tl.load(gram_ptr + square, c_in[:, None] & c_in[None, :], 0.0).to(tl.float64)
    share = 1 / count.to(tl.float64)
    covariance = (second * share - mean_x[:, None] * mean_x[None, :]).to(tl.float32)
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
        product = tl.dot(weight, covariance, input_precision="tf32x3")
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
    tl.atomic_add(sums_ptr + where, outer, o_in[:, None] & c_in[None, :])
    tl.atomic_add(sums_ptr + out_channels * channels + o, total, o_in)


@triton.jit
def point_gradients(
    sums_ptr, gram_ptr, weight_a_ptr, weight_b_ptr, merged_ptr, products_ptr, state_ptr, dx_ptr,
    weight_gradients_ptr, affine_gradients_ptr, count, channels, out_channels, groups,
    WEIGHTS: tl.constexpr, NORMS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of the Point-Block's parameters, and what its input's needs: dx = W^T g + Q x + r.

    ``dx`` is Q ``(C, C)``, then r ``(C,)``, zero before; the weights' gradients are ``(weights, out, C)``;
    ``affine_gradients`` are of the gammas and of every beta, ``(norms + 1, out)``.
    """
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    o_in = o < out_channels
    mask = o_in[:, None] & c_in[None, :]
    where = o[:, None] * channels + c[None, :]
    mean_x = tl.load(gram_ptr + channels * channels + c, c_in, 0.0).to(tl.float64) / count
    total = tl.load(sums_ptr + out_channels * channels + o, o_in, 0.0).to(tl.float64)
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
        q += tl.dot(tl.trans(scaled), weight, input_precision="tf32x3")
        r -= tl.sum(scaled * mean[:, None], 0)
    tl.store(affine_gradients_ptr + NORMS * out_channels + o, total.to(tl.float32), o_in)
    square = c[:, None] * channels + c[None, :]
    tl.atomic_add(dx_ptr + square, q, c_in[:, None] & c_in[None, :])
    tl.atomic_add(dx_ptr + channels * channels + c, r.to(tl.float32), c_in)


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
    q = tl.load(dx_ptr + square, c_in[:, None] & c_in[None, :], 0.0)
    r = tl.load(dx_ptr + channels * channels + c, c_in, 0.0)
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
def depth_gradients(
    gradient_sums_ptr, state_ptr, eps_2, coefficients_ptr, channel_gradients_ptr, count, channels,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What :func:`depth_input` needs per channel, and gradients that are known before it.

    ``coefficients`` ``(6, C)`` are of da = c0 g + c1 a + c2 and dx = conv3x3^T(da) + c3 g + c4 x + c5;
    ``channel_gradients`` ``(5, C)`` are of s, of three gammas and of every beta.
    """
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    s = tl.load(state_ptr + c, c_in, 0.0)
    mean_a = tl.load(state_ptr + channels + c, c_in, 0.0)
    mean_x = tl.load(state_ptr + 2 * channels + c, c_in, 0.0)
    inv_1 = tl.load(state_ptr + 3 * channels + c, c_in, 0.0)
    inv_2 = tl.load(state_ptr + 4 * channels + c, c_in, 0.0)
    inv_3 = tl.load(state_ptr + 5 * channels + c, c_in, 0.0)
    alpha_1 = tl.load(state_ptr + 6 * channels + c, c_in, 0.0)
    alpha_2 = tl.load(state_ptr + 7 * channels + c, c_in, 0.0)
    alpha_3 = tl.load(state_ptr + 8 * channels + c, c_in, 0.0)
    total = tl.load(gradient_sums_ptr + c, c_in, 0.0)
    e_3 = tl.load(gradient_sums_ptr + channels + c, c_in, 0.0) - mean_x * total
    e_1 = tl.load(gradient_sums_ptr + 2 * channels + c, c_in, 0.0) - mean_a * total
    p_1 = -alpha_1 * inv_1 * inv_1 * e_1 / count
    p_x = -(alpha_2 * inv_2 * inv_2 * s * s * s + alpha_3 * inv_3 * inv_3) * e_3 / count
    centre = alpha_2 * s + alpha_3
    tl.store(coefficients_ptr + c, alpha_1.to(tl.float32), c_in)
    tl.store(coefficients_ptr + channels + c, p_1.to(tl.float32), c_in)
    tl.store(coefficients_ptr + 2 * channels + c, (-alpha_1 * total / count - p_1 * mean_a).to(tl.float32), c_in)
    tl.store(coefficients_ptr + 3 * channels + c, centre.to(tl.float32), c_in)
    tl.store(coefficients_ptr + 4 * channels + c, p_x.to(tl.float32), c_in)
    tl.store(coefficients_ptr + 5 * channels + c, (-centre * total / count - p_x * mean_x).to(tl.float32), c_in)
    tl.store(channel_gradients_ptr + c, (alpha_2 * e_3 * eps_2 * inv_2 * inv_2).to(tl.float32), c_in)
    tl.store(channel_gradients_ptr + channels + c, (inv_1 * e_1).to(tl.float32), c_in)
    tl.store(channel_gradients_ptr + 2 * channels + c, (inv_2 * s * e_3).to(tl.float32), c_in)
    tl.store(channel_gradients_ptr + 3 * channels + c, (inv_3 * e_3).to(tl.float32), c_in)
    tl.store(channel_gradients_ptr + 4 * channels + c, total.to(tl.float32), c_in)


@triton.jit
def depth_input(
    x_ptr, a_ptr, masked_ptr, weight_ptr, coefficients_ptr, dx_ptr, weight_gradient_ptr,
    count, height, width, channels, out_height, out_width, stride, dilation,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of the Depth-Block's input, and of its 3x3 weight, ``(C, 9)`` and zero before."""
    c = tl.arange(0, BLOCK_C)
    c_in = c < channels
    da_of_g = tl.load(coefficients_ptr + c, c_in, 0.0)
    da_of_a = tl.load(coefficients_ptr + channels + c, c_in, 0.0)
    da_rest = tl.load(coefficients_ptr + 2 * channels + c, c_in, 0.0)
    dx_of_g = tl.load(coefficients_ptr + 3 * channels + c, c_in, 0.0)
    dx_of_x = tl.load(coefficients_ptr + 4 * channels + c, c_in, 0.0)
    dx_rest = tl.load(coefficients_ptr + 5 * channels + c, c_in, 0.0)
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
