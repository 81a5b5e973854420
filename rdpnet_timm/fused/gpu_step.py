"""The fused train step of a module of RDPNet on a GPU, Depth-Block, channel shuffle and Point-Block, as one function.

float32, maps in channels_last, up to :data:`CHANNELS` input channels. What the kernels compute is in
:mod:`.gpu_kernels`; here are the memory that they work on, and how much of it a program takes.
"""

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
import triton
from torch import Tensor, nn

from . import gpu_kernels as kernels
from . import reference

__all__ = ["CHANNELS", "module_step"]

CHANNELS = 128  # a program holds all channels of its positions, and their products with one another
PROCESSORS = 132  # of an H100


class _Settings(NamedTuple):
    """What is no tensor of the graph."""

    depth_norms: Sequence[nn.BatchNorm2d]
    point_norms: Sequence[nn.BatchNorm2d]
    weights: int  # pointwise ones
    stride: int
    dilation: int
    groups: int


def module_step(
    x: Tensor,
    depth: Tuple[Sequence[Tensor], Sequence[nn.BatchNorm2d]],
    point: Tuple[Sequence[Tensor], Sequence[nn.BatchNorm2d]],
    stride: int,
    dilation: int,
    groups: int,
) -> Tensor:
    """The module's output of ``x`` ``(N, C, H, W)``; running statistics move as they do branch by branch.

    Args:
        x: the input.
        depth: weights ``(C, 1, 3, 3)`` and ``(C, 1, 1, 1)``, and the three norms.
        point: weights ``(C_out, C, 1, 1)``, and their norms, one more where there is an identity branch.
        stride: of the Point-Block.
        dilation: of the 3x3 convolution.
        groups: of the channel shuffle; 0 or 1 is none.
    """
    settings = _Settings(depth[1], point[1], len(point[0]), stride, dilation, max(1, groups))
    norms = [*depth[1], *point[1]]
    parameters = [*depth[0], *point[0], *(norm.weight for norm in norms), *(norm.bias for norm in norms)]
    inner = x.permute(0, 2, 3, 1)
    x = x if inner.is_contiguous() else inner.contiguous().permute(0, 3, 1, 2)
    return _ModuleStep.apply(x, settings, *parameters)


class _ModuleStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: _Settings, *parameters: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        weight, scale, points, gammas, betas = _split(settings, parameters)
        out_height, out_width = -(-height // settings.stride), -(-width // settings.stride)
        count, out_count = n * height * width, n * out_height * out_width
        out_channels = len(points[0])
        block_c, number = _block(channels), len(settings.point_norms)

        # zeros: four sums of the Depth-Block; in float32 its output's moments
        sizes = [4 * channels, -(-channels * (channels + 1) // 2)]
        sums, gram = x.new_zeros(sum(sizes), dtype=torch.float64).split(sizes)
        gram = gram.view(torch.float32)
        a = torch.empty_like(x)
        rows = _rows(block_c, 4096)
        kernels.depth_sums[(triton.cdiv(count, rows),)](
            x, weight, a, sums, count, height, width, channels, settings.dilation,
            BLOCK_M=rows, BLOCK_C=block_c, num_warps=16,
        )  # fmt: skip
        kernel = x.new_empty(3, channels)
        depth_state = x.new_empty(9, channels, dtype=torch.float64)
        kernels.depth_kernel[(1,)](
            sums, scale, *gammas[:3], *betas[:3], *_eps(settings.depth_norms), *_running(settings.depth_norms),
            kernel, depth_state, count, channels, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
        between = _map(x, n, channels, out_height, out_width)
        rows = _rows(block_c, 4096, at_most=64)
        kernels.depth_out[(_programs(out_count, rows, block_c),)](
            x, a, kernel, between, gram, height, width, channels, out_count, out_height, out_width, settings.stride,
            BLOCK_M=rows, **_options(block_c),
        )  # fmt: skip
        merged, bias = x.new_empty(out_channels, channels), x.new_empty(out_channels)
        products = x.new_empty(number, out_channels, channels)
        state = x.new_empty(3, number, out_channels, dtype=torch.float64)
        kernels.point_kernel[(triton.cdiv(out_channels, 16),)](
            gram, points[0], points[-1], merged, bias, products, state,
            *_three(gammas[3:]), *_three(betas[3:]), *_three(_eps(settings.point_norms)),
            *_running(settings.point_norms),
            out_count, channels, out_channels, settings.groups,
            WEIGHTS=settings.weights, NORMS=number, BLOCK_O=16, **_options(block_c),
        )  # fmt: skip
        out = _map(x, n, out_channels, out_height, out_width)
        block_o = min(64, _block(out_channels))
        rows = _rows(max(block_c, block_o), 4096)
        kernels.point_out[(triton.cdiv(out_count, rows), triton.cdiv(out_channels, block_o))](
            between, merged, bias, out, out_count, channels, out_channels,
            BLOCK_M=rows, BLOCK_O=block_o, BLOCK_C=block_c, num_warps=8, num_stages=1,
        )  # fmt: skip
        ctx.save_for_backward(x, *parameters, a, between, out, depth_state, gram, merged, products, state)
        ctx.settings = settings
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Optional[Tensor], ...]:
        settings = ctx.settings
        x, *parameters = ctx.saved_tensors[:-8]
        if torch.is_grad_enabled():  # a graph of the gradients is wanted
            x_gradient, *others = reference.gradients(_branches, [x, *parameters], [settings], gradient)
            return x_gradient, None, *others
        a, between, out, depth_state, gram, merged, products, state = ctx.saved_tensors[-8:]
        n, channels, height, width = x.shape
        weight, scale, points, _, _ = _split(settings, parameters)
        out_channels, out_height, out_width = out.shape[1:]
        count, out_count = n * height * width, n * out_height * out_width
        block_c, number = _block(channels), len(settings.point_norms)
        inner = gradient.permute(0, 2, 3, 1)
        gradient = gradient if inner.is_contiguous() else inner.contiguous().permute(0, 3, 1, 2)

        # zeros: three sums of the Depth-Block; in float32 sums of g x^T and of g, Q and r, the 3x3 weight's gradient
        sizes = [out_channels * (channels + 1), channels * (channels + 1), 9 * channels]
        doubles = 3 * channels
        zeros = x.new_zeros(doubles + -(-sum(sizes) // 2), dtype=torch.float64)
        depth_sums = zeros[:doubles]
        point_sums, dx, weight_gradient = zeros[doubles:].view(torch.float32)[: sum(sizes)].split(sizes)
        block_o = min(64, _block(out_channels))
        rows, blocks = _rows(max(block_c, block_o), 4096, at_most=64), triton.cdiv(out_channels, block_o)
        kernels.point_sums[(_programs(out_count, rows, block_c), blocks)](
            between, out, gradient, point_sums, out_count, channels, out_channels,
            BLOCK_M=rows, BLOCK_O=block_o, **_options(block_c),
        )  # fmt: skip
        weight_gradients = x.new_empty(settings.weights, out_channels, channels)
        affine_gradients = x.new_empty(number + 1, out_channels)
        kernels.point_gradients[(triton.cdiv(out_channels, 16),)](
            point_sums, gram, points[0], points[-1], merged, products, state, dx,
            weight_gradients, affine_gradients, out_count, channels, out_channels, settings.groups,
            WEIGHTS=settings.weights, NORMS=number, BLOCK_O=16, **_options(block_c),
        )  # fmt: skip
        masked = torch.empty_like(between)
        rows = _rows(max(block_c, block_o), 4096)
        kernels.point_input[(triton.cdiv(out_count, rows),)](
            between, out, gradient, merged, dx, x, a, masked, depth_sums,
            height, width, channels, out_count, out_height, out_width, out_channels, settings.stride,
            BLOCK_M=rows, BLOCK_O=block_o, BLOCK_C=block_c, num_warps=8, num_stages=1,
        )  # fmt: skip
        coefficients, channel_gradients = x.new_empty(6, channels), x.new_empty(5, channels)
        kernels.depth_gradients[(1,)](
            depth_sums, depth_state, settings.depth_norms[1].eps, coefficients, channel_gradients, count, channels,
            BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
        x_gradient = torch.empty_like(x)
        rows = _rows(block_c, 4096)
        kernels.depth_input[(triton.cdiv(count, rows),)](
            x, a, masked, weight, coefficients, x_gradient, weight_gradient,
            count, height, width, channels, out_height, out_width, settings.stride, settings.dilation,
            BLOCK_M=rows, BLOCK_C=block_c, num_warps=16,
        )  # fmt: skip
        return (
            x_gradient,
            None,
            weight_gradient.view_as(weight),
            channel_gradients[0].view_as(scale),
            *(each.view_as(points[0]) for each in weight_gradients),
            *channel_gradients[1:4],
            *affine_gradients[:-1],
            *[channel_gradients[4]] * 3,
            *[affine_gradients[-1]] * number,
        )


def _split(settings: _Settings, parameters: Sequence[Tensor]) -> Tuple[Tensor, Tensor, Any, Any, Any]:
    """3x3 weight, 1x1 weight, pointwise weights, scales and shifts of all norms."""
    weight, scale, *others = parameters
    points, others = others[: settings.weights], others[settings.weights :]
    return weight, scale, points, others[: len(others) // 2], others[len(others) // 2 :]


def _branches(inputs: Sequence[Tensor], settings: _Settings) -> Tensor:
    """The same module, branch by branch."""
    x, *parameters = inputs
    weight, scale, points, gammas, betas = _split(settings, parameters)
    depth, point = _eps(settings.depth_norms), _eps(settings.point_norms)
    x = reference.depth([x, weight, scale, *gammas[:3], *betas[:3]], depth, settings.stride, settings.dilation)
    return reference.point([x, *points, *gammas[3:], *betas[3:]], point, settings.groups, settings.weights)


def _map(like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
    return like.new_empty(n, height, width, channels).permute(0, 3, 1, 2)


def _block(channels: int) -> int:
    """Channels that a program is made for; products want 16 at least."""
    return max(16, triton.next_power_of_2(channels))


def _rows(block_c: int, size: int, at_most: int = 256) -> int:
    """Positions of a program that takes about ``size`` values."""
    return max(16, min(at_most, size // block_c))


def _programs(count: int, rows: int, block_c: int) -> int:
    """Programs of a pass which adds up products of channels: the more there are, the fewer programs."""
    return min(triton.cdiv(count, rows), PROCESSORS * max(1, 128 // block_c))


def _options(block_c: int) -> Dict[str, Any]:
    """How a kernel is compiled that multiplies ``block_c`` channels with one another."""
    return dict(BLOCK_C=block_c, num_warps=4 if block_c <= 32 else 8, num_stages=1)


def _eps(norms: Sequence[nn.BatchNorm2d]) -> Sequence[float]:
    return [norm.eps for norm in norms]


def _three(values: Sequence[Any]) -> Sequence[Any]:
    """Filled up to three; what a kernel does not read."""
    return [*values, *[values[0]] * (3 - len(values))]


def _running(norms: Sequence[nn.BatchNorm2d]) -> Sequence[Any]:
    """Means, variances, numbers of batches and momenta, of each three."""
    return [
        *_three([norm.running_mean for norm in norms]),
        *_three([norm.running_var for norm in norms]),
        *_three([norm.num_batches_tracked for norm in norms]),
        *_three([norm.momentum for norm in norms]),
    ]
