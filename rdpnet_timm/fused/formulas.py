r"""What is per channel in a fused train step, in float64: from sums over positions to kernels, and back.

Notation, as in docs/train_step.md. M positions (n, h, w). Branch i is the norm of a linear map, with scale gamma_i,
shift beta_i and eps_i; over the batch the map's output has the mean m_i and the biased variance v_i, and

    inv_i = 1 / sqrt(v_i + eps_i)            alpha_i = gamma_i inv_i.

The block is ReLU(sum_i alpha_i (L_i x - m_i) + beta_i). Let g be the gradient behind the ReLU, that is the gradient
of the output where the output is positive and 0 elsewhere, and S = sum g over positions. With

    e_i = sum g (L_i x - m_i)                p_i = -alpha_i inv_i^2 e_i / M

batch norm's derivative gives, for every branch,

    dgamma_i = inv_i e_i      dbeta_i = S    d(L_i x) = alpha_i (g - S / M) + p_i (L_i x - m_i)         (1)

and everything below is (1) with L_i written out. All sums over positions come in as float64 totals.
"""

from typing import Any, Tuple

import numpy as np

from .jit import compiled, compiled_sums

__all__ = ["covariance", "depth_coefficients", "depth_kernel", "point_gradients", "point_kernel"]


@compiled
def depth_kernel(
    totals: Any, weight: Any, scale: Any, gammas: Any, betas: Any, eps: Any, count: int
) -> Tuple[Any, Any, Any, Any, Any]:
    """The Depth-Block's kernel of this batch. Its branches: a = conv3x3(x), s x, and x.

    Two means and two variances are enough: s x has the mean s m_x and the variance s^2 v_x. Then

        out = ReLU(alpha_1 (a - m_a) + (alpha_2 s + alpha_3) (x - m_x) + beta_1 + beta_2 + beta_3),

    whose kernel is alpha_1 k with alpha_2 s + alpha_3 added to the centre tap.

    Args:
        totals: ``(parts, 4, C)``: sums of a, a^2, x, x^2.
        weight: k, ``(C, 9)``.
        scale: s, ``(C,)``.
        gammas: scales of the three norms, each ``(C,)``.
        betas: their shifts.
        eps: their eps.
        count: M.

    Returns:
        taps: k transposed, ``(9, C)``.
        kernel: ``(9, C)``, and bias: ``(C,)``, in the weight's dtype.
        statistics: ``(3, 2, C)``, means and variances of the three branches.
        state: ``(7, C)``, for :func:`depth_coefficients`.
    """
    channels = weight.shape[0]
    taps = np.empty((9, channels), weight.dtype)
    kernel = np.empty((9, channels), weight.dtype)
    bias = np.empty(channels, weight.dtype)
    statistics = np.empty((3, 2, channels))
    state = np.empty((7, channels))
    for c in range(channels):
        sum_a = sum_aa = sum_x = sum_xx = 0.0
        for part in range(totals.shape[0]):
            sum_a += totals[part, 0, c]
            sum_aa += totals[part, 1, c]
            sum_x += totals[part, 2, c]
            sum_xx += totals[part, 3, c]
        mean_a, mean_x = sum_a / count, sum_x / count
        # rounding may leave a constant channel a variance below 0
        var_a, var_x = max(sum_aa / count - mean_a**2, 0.0), max(sum_xx / count - mean_x**2, 0.0)
        s = np.float64(scale[c])
        statistics[0, 0, c], statistics[0, 1, c] = mean_a, var_a
        statistics[1, 0, c], statistics[1, 1, c] = s * mean_x, s * s * var_x
        statistics[2, 0, c], statistics[2, 1, c] = mean_x, var_x
        beta = 0.0
        for i in range(3):
            inv = 1 / np.sqrt(statistics[i, 1, c] + eps[i])
            state[i, c] = inv
            state[3 + i, c] = gammas[i][c] * inv
            beta += betas[i][c]
        state[6, c] = beta
        centre = state[4, c] * s + state[5, c]
        for t in range(9):
            taps[t, c] = weight[c, t]
            kernel[t, c] = state[3, c] * weight[c, t] + (centre if t == 4 else 0.0)
        bias[c] = beta - state[3, c] * mean_a - centre * mean_x
    return taps, kernel, bias, statistics, state


@compiled
def depth_coefficients(
    totals: Any, scale: Any, eps: Any, statistics: Any, state: Any, count: int
) -> Tuple[Any, Any, Any]:
    """What the Depth-Block's second backward pass needs per channel, and gradients that are known before it.

    e_2 = s e_3. Where g is not 0 the ReLU was open, so that a need not be computed again for e_1: by the formula of
    ``out``, with sums over positions,

        alpha_1 e_1 = sum g out - (beta_1 + beta_2 + beta_3) S - (alpha_2 s + alpha_3) e_3,

    which is p_1 but for factors. (e_1 itself would divide by alpha_1, which may be 0; the second pass sums g a.)
    By (1), with da the gradient of a,

        da = alpha_1 (g - S/M) + p_1 (a - m_a)
        dx = conv3x3^T(da) + (alpha_2 s + alpha_3) (g - S/M) + (s^2 p_2 + p_3) (x - m_x)
        ds = sum (alpha_2 (g - S/M) + p_2 s (x - m_x)) x = alpha_2 e_3 (1 - inv_2^2 s^2 v_x)
           = alpha_2 e_3 eps_2 inv_2^2

    Args:
        totals: ``(parts, 3, C)``: sums of g, g x, g out.
        scale: s, ``(C,)``.
        eps: of the three norms.
        statistics: of :func:`depth_kernel`.
        state: of :func:`depth_kernel`.
        count: M.

    Returns:
        coefficients: ``(6, C)``, of da = c0 g + c1 a + c2 and dx = conv3x3^T(da) + c3 g + c4 x + c5, in the dtype of
            ``scale``.
        gradients: ``(4, C)``: of s, gamma_2, gamma_3 and of every beta, in the dtype of ``scale``.
        total: S, ``(C,)``.
    """
    channels = scale.shape[0]
    coefficients = np.empty((6, channels), scale.dtype)
    gradients = np.empty((4, channels), scale.dtype)
    total = np.empty(channels)
    for c in range(channels):
        sum_g = sum_gx = sum_gout = 0.0
        for part in range(totals.shape[0]):
            sum_g += totals[part, 0, c]
            sum_gx += totals[part, 1, c]
            sum_gout += totals[part, 2, c]
        s, mean_a, mean_x = np.float64(scale[c]), statistics[0, 0, c], statistics[2, 0, c]
        alpha_1, alpha_2, alpha_3 = state[3, c], state[4, c], state[5, c]
        centre = alpha_2 * s + alpha_3
        e_3 = sum_gx - mean_x * sum_g
        alpha_e_1 = sum_gout - state[6, c] * sum_g - centre * e_3
        p_1 = -(state[0, c] ** 2) * alpha_e_1 / count
        p_2 = -alpha_2 * state[1, c] ** 2 * s * e_3 / count
        p_3 = -alpha_3 * state[2, c] ** 2 * e_3 / count
        p_x = s * s * p_2 + p_3
        coefficients[0, c] = alpha_1
        coefficients[1, c] = p_1
        coefficients[2, c] = -alpha_1 * sum_g / count - p_1 * mean_a
        coefficients[3, c] = centre
        coefficients[4, c] = p_x
        coefficients[5, c] = -centre * sum_g / count - p_x * mean_x
        gradients[0, c] = alpha_2 * e_3 * eps[1] * state[1, c] ** 2
        gradients[1, c] = state[1, c] * s * e_3
        gradients[2, c] = state[2, c] * e_3
        gradients[3, c] = sum_g
        total[c] = sum_g
    return coefficients, gradients, total


@compiled
def covariance(gram: Any, totals: Any, count: int, like: Any) -> Tuple[Any, Any]:
    """Mean ``(C,)`` in float64, and covariance ``(C, C)`` in the dtype of ``like``, of a Point-Block's input.

    Args:
        gram: sums of x x^T, ``(C, C)``, in float64, of which the upper triangle is read.
        totals: sums of x, ``(C,)``, likewise.
        count: M.
        like: an array of the wanted dtype.
    """
    channels = gram.shape[0]
    mean = totals / count
    result = np.empty((channels, channels), like.dtype)
    for i in range(channels):
        for j in range(channels):
            result[i, j] = gram[min(i, j), max(i, j)] / count - mean[i] * mean[j]
    return mean, result


@compiled_sums
def point_kernel(
    weights: Any, products: Any, mean: Any, gammas: Any, betas: Any, eps: Any
) -> Tuple[Any, Any, Any, Any]:
    """The Point-Block's kernel of this batch.

    Its branches are W_i x, with x of C channels and covariance V:

        m_i = W_i mean(x)        v_i = diag(W_i V W_i^T)        out = ReLU(sum_i alpha_i (W_i x - m_i) + beta_i)

    (Centred first, the variance is a positive form and loses no digits in float32.)

    Args:
        weights: the W_i, ``(branches, out, C)``; an identity branch is a matrix as well.
        products: the W_i V, likewise.
        mean: ``(C,)``.
        gammas: scales of the norms, each ``(out,)``.
        betas: their shifts.
        eps: their eps.

    Returns:
        kernel: ``(out, C)``, and bias: ``(out,)``, in the weights' dtype.
        statistics: ``(branches, 2, out)``, means and variances of the branches.
        state: ``(2, branches, out)``, inv and alpha, for :func:`point_gradients`.
    """
    branches, out, channels = weights.shape
    kernel = np.zeros((out, channels), weights.dtype)
    bias = np.empty(out, weights.dtype)
    statistics = np.empty((branches, 2, out))
    state = np.empty((2, branches, out))
    for o in range(out):
        shift = 0.0
        for i in range(branches):
            m = 0.0
            v = 0.0
            for c in range(channels):
                m += weights[i, o, c] * mean[c]
                v += np.float64(weights[i, o, c]) * products[i, o, c]
            v = max(v, 0.0)
            inv = 1 / np.sqrt(v + eps[i])
            alpha = gammas[i][o] * inv
            statistics[i, 0, o], statistics[i, 1, o] = m, v
            state[0, i, o], state[1, i, o] = inv, alpha
            shift += betas[i][o] - alpha * m
            for c in range(channels):
                kernel[o, c] += weights.dtype.type(alpha) * weights[i, o, c]
        bias[o] = shift
    return kernel, bias, statistics, state


@compiled_sums
def point_gradients(
    weights: Any, products: Any, mean: Any, state: Any, outer: Any, totals: Any, count: int
) -> Tuple[Any, Any, Any]:
    """The Point-Block's gradients, from S = sum g and from sum g x^T.

    With T = sum g x^T - S mean(x)^T, (1) gives

        e_i = rowsum(W_i * T)        dW_i = alpha_i T + M p_i W_i V
        dx = sum_i W_i^T (alpha_i (g - S/M) + p_i W_i (x - mean(x)))
           = W^T (g - S/M) + Q (x - mean(x))        Q = sum_i W_i^T diag(p_i) W_i,

    with W the kernel: one product with g and one with x, whatever the number of branches.

    Args:
        weights: the W_i, ``(branches, out, C)``.
        products: the W_i V, likewise.
        mean: ``(C,)``.
        state: of :func:`point_kernel`.
        outer: sums of g x^T, ``(out, C)``, in float64.
        totals: S, ``(out,)``, likewise.
        count: M.

    Returns:
        gradients of the weights, ``(branches, out, C)``; the p_i W_i, likewise; gradients of the gammas,
        ``(branches, out)``; all in the weights' dtype.
    """
    branches, out, channels = weights.shape
    gradients, scaled = np.empty_like(weights), np.empty_like(weights)
    gamma_gradients = np.empty((branches, out), weights.dtype)
    for i in range(branches):
        for o in range(out):
            e = 0.0
            for c in range(channels):
                e += weights[i, o, c] * (outer[o, c] - totals[o] * mean[c])
            inv, alpha = state[0, i, o], state[1, i, o]
            p = -alpha * inv**2 * e / count
            gamma_gradients[i, o] = inv * e
            for c in range(channels):
                gradients[i, o, c] = alpha * (outer[o, c] - totals[o] * mean[c]) + count * p * products[i, o, c]
                scaled[i, o, c] = p * weights[i, o, c]
    return gradients, scaled, gamma_gradients
