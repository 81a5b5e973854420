"""The fused train step of the Depth-Block, the Point-Block and the stem, as functions with gradients.

Each takes a block's input, its branches' parameters and the eps of its norms, and gives the block's output. It calls
``observe`` with the statistics of the branches over this batch, ``(branches, 2, channels)`` in float64, means and
biased variances, and with the number of positions that they are of: within the function and not behind it, so that
gradient checkpointing, which stops as soon as everything saved is there again, treats them as it does batch norm's.

Maps are float32 or float64, on a CPU; the output is in channels_last. The orders of branches are those of the blocks:
3x3, 1x1 and identity; both pointwise ones, then the identity; 3x3 and 1x1.

Under autocast parameters are float32 and the output has autocast's dtype. In bfloat16, where this CPU multiplies in it
and channels fill registers, maps are kept in it and products of it are summed in float32; elsewhere, and in float16,
a step is computed in float32. What is per channel is float64 either way.
"""

from types import ModuleType
from typing import Any, Callable, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from . import formulas, loops, products, reference, vector_loops
from .lanes import HAS_BFLOAT16
from .products import array, fills_registers
from .threads import over_parts

__all__ = ["depth_step", "point_step", "stem_step"]

Observer = Callable[[Tensor, int], None]
# a backward pass that is called under autocast is computed without, as the forward pass was
_remember_autocast = torch.amp.custom_fwd(device_type="cpu")
_as_forward = torch.amp.custom_bwd(device_type="cpu")


def depth_step(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    eps: Sequence[float],
    observe: Observer,
    stride: int = 1,
    dilation: int = 1,
) -> Tensor:
    """The Depth-Block of ``x`` ``(N, C, H, W)``: 3x3 weight ``(C, 1, 3, 3)``, 1x1 weight ``(C, 1, 1, 1)``, three norms.

    With a stride, only the outputs that a strided Point-Block behind this block reads are computed; the statistics are
    those of all positions.
    """
    channels = [len(weight)]
    return _apply(_DepthStep, channels, x, weight, scale, _floats(eps), observe, stride, dilation, *gammas, *betas)


def point_step(
    x: Tensor,
    weights: Sequence[Tensor],
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    eps: Sequence[float],
    observe: Observer,
    shuffle_groups: int = 1,
) -> Tensor:
    """The Point-Block of ``x`` ``(N, C, H, W)``, a channel shuffle in front of it included.

    There is a weight ``(C_out, C, 1, 1)`` for every norm but, where there is an identity branch, the last.
    """
    groups, number = max(1, shuffle_groups), len(weights)
    channels = weights[0].shape[:2]
    return _apply(_PointStep, channels, x, _floats(eps), observe, groups, number, *weights, *gammas, *betas)


def stem_step(
    x: Tensor,
    weight: Tensor,
    weight_1x1: Tensor,
    gammas: Sequence[Tensor],
    betas: Sequence[Tensor],
    eps: Sequence[float],
    observe: Observer,
    stride: int,
) -> Tensor:
    """The stem of images ``(N, C, H, W)``, which get no gradient.

    The weights are ``(C_out, C, 3, 3)`` and ``(C_out, C, 1, 1)``.
    """
    return _apply(_StemStep, [len(weight)], x, weight, weight_1x1, _floats(eps), observe, stride, *gammas, *betas)


def _floats(eps: Sequence[float]) -> Tuple[float, ...]:
    """``eps`` for compiled code, which is made for one type; somebody may have set one to an int."""
    return tuple(map(float, eps))


def _apply(function: Any, channels: Sequence[int], x: Tensor, *arguments: Any) -> Tensor:
    """The output of an autograd function, under autocast computed as its dtype allows with maps of ``channels``."""
    if not torch.is_autocast_enabled("cpu"):
        return function.apply(_channels_last(x), *arguments)
    dtype = torch.get_autocast_dtype("cpu")
    is_kept = dtype == torch.bfloat16 and HAS_BFLOAT16 and all(fills_registers(each, dtype) for each in channels)
    with torch.autocast("cpu", enabled=False):
        return function.apply(_channels_last(x.to(dtype if is_kept else torch.float32)), *arguments).to(dtype)


def _channels_last(x: Tensor) -> Tensor:
    # with one channel torch's own answer is content with strides which the loops cannot walk
    if x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    inner = x.permute(0, 2, 3, 1)
    return x if inner.is_contiguous() else inner.contiguous().permute(0, 3, 1, 2)


def _saved(ctx: Any) -> Tuple[Tensor, ...]:
    """What the forward pass has kept, maps first: the input and the output.

    Where hooks have put them elsewhere meanwhile, they come back in torch's own memory format.
    """
    x, out, *parameters = ctx.saved_tensors
    return _channels_last(x), _channels_last(out), *parameters


def _needs_reference(gradient: Tensor) -> bool:
    """Whether gradients of gradients are asked for, or ``gradient`` is several in one, of either of torch's vmaps."""
    batched = torch._C._functorch.is_batchedtensor, torch._C._functorch.is_legacy_batchedtensor
    return torch.is_grad_enabled() or any(is_batched(gradient) for is_batched in batched)


def _empty_map(like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
    return like.new_empty(n, height, width, channels).permute(0, 3, 1, 2)


def _totals(*shape: int) -> np.ndarray:
    """Zeros for every part, in float64."""
    return np.zeros((torch.get_num_threads(), *shape))


def _passes(x: Tensor) -> ModuleType:
    """The loops over maps of so many channels."""
    return vector_loops if fills_registers(x.shape[1], x.dtype) else loops


def _copied(parameter: Tensor, *shape: int) -> np.ndarray:
    """A parameter as an array of its own: with a view by numpy, FSDP could not free its memory between two uses."""
    return parameter.detach().reshape(shape).clone().numpy()


def _arrays(parameters: Sequence[Tensor]) -> Tuple[np.ndarray, ...]:
    """Parameters of one shape, copied as well."""
    return tuple(torch.stack([parameter.detach() for parameter in parameters]).numpy())


class _DepthStep(torch.autograd.Function):
    @staticmethod
    @_remember_autocast
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        eps: Any,
        observe: Any,
        stride: int,
        dilation: int,
        *affine: Any,
    ):
        n, channels, height, width = x.shape
        values, gammas, betas = array(x), _arrays(affine[:3]), _arrays(affine[3:])
        passes = _passes(x)
        totals = _totals(4, channels)
        flat = _copied(weight, channels, 9)
        over_parts(passes.depth_sums, n, values, np.ascontiguousarray(flat.T), dilation, totals)
        count = n * height * width
        taps, kernel, bias, statistics, state = formulas.depth_kernel(
            totals, flat, _copied(scale, channels), gammas, betas, eps, count
        )
        out = _empty_map(x, n, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
        over_parts(passes.depth_output, n, values, kernel, bias, stride, dilation, array(out))
        ctx.save_for_backward(x, out, weight, scale, *affine)
        ctx.arguments = (eps, stride, dilation)
        ctx.state = (taps, statistics, state)
        observe(torch.from_numpy(statistics), count)
        return out

    @staticmethod
    @_as_forward
    def backward(ctx: Any, gradient: Tensor):
        x, out, weight, scale, *affine = _saved(ctx)
        eps, stride, dilation = ctx.arguments
        if _needs_reference(gradient):
            inputs = (x, weight, scale, *affine)
            found = reference.gradients(reference.depth, inputs, (eps, stride, dilation), gradient)
            return (*found[:3], *(None,) * 4, *found[3:])
        taps, statistics, state = ctx.state
        n, channels, height, width = x.shape
        arrays = array(_channels_last(gradient)), array(out), array(x)
        passes = _passes(x)
        totals, count = _totals(3, channels), n * height * width
        over_parts(passes.depth_backward_sums, n, *arrays, stride, totals)
        coefficients, gradients, total = formulas.depth_coefficients(
            totals, _copied(scale, channels), eps, statistics, state, count
        )
        gradient_x = torch.empty_like(x)
        totals = _totals(10, channels)
        over_parts(passes.depth_backward, n, *arrays, taps, coefficients, stride, dilation, array(gradient_x), totals)
        sums = totals.sum(0)
        gradient_weight = torch.from_numpy(sums[:9].T).to(weight.dtype, memory_format=torch.contiguous_format)
        gamma_1 = torch.from_numpy(state[0] * (sums[9] - statistics[0, 0] * total)).to(weight.dtype)
        of_scale, gamma_2, gamma_3, beta = torch.from_numpy(gradients)
        return (
            gradient_x,
            gradient_weight.view_as(weight),
            of_scale.view_as(scale),
            *(None,) * 4,
            *(gamma_1, gamma_2, gamma_3),
            *(beta, beta.clone(), beta.clone()),
        )


class _PointState:
    """What a Point-Block keeps for its backward pass besides maps: small matrices, float64 where per channel."""

    def __init__(self, x: Tensor, weights: Tensor, gammas: Any, betas: Any, eps: Any) -> None:
        n, _, height, width = x.shape
        self.count = n * height * width
        self.weights = weights
        self.mean, covariance = formulas.covariance(*products.moments(x), self.count, weights.numpy())
        self.products = weights @ torch.from_numpy(covariance)
        kernel, bias, self.statistics, self.state = formulas.point_kernel(
            weights.numpy(), self.products.numpy(), self.mean, _arrays(gammas), _arrays(betas), eps
        )
        exact, self.bias = torch.from_numpy(kernel), torch.from_numpy(bias)
        self.kernel = _rounded(exact, x)
        if self.kernel is not exact:  # the mean stays what it is
            self.bias += (exact - self.kernel) @ torch.from_numpy(self.mean).to(exact.dtype)

    def gradients(
        self, gradient: Tensor, out: Tensor, x: Tensor, needs_x: bool
    ) -> Tuple[Optional[Tensor], Any, Any, Any]:
        """Gradients of x, of the weights ``(branches, out, C)``, of the gammas ``(branches, out)`` and of a beta."""
        n, channels = out.shape[:2]
        masked = torch.empty_like(out)
        totals = _totals(channels)
        over_parts(_passes(out).masked_gradient, n, array(_channels_last(gradient)), array(out), array(masked), totals)
        sums = totals.sum(0)
        outer = products.outer_sums(masked, x)
        of_weights, scaled, of_gammas = formulas.point_gradients(
            self.weights.numpy(), self.products.numpy(), self.mean, self.state, outer, sums, self.count
        )
        of_x = None
        if needs_x:
            quadratic = _rounded(self.weights.flatten(0, 1).t() @ torch.from_numpy(scaled).flatten(0, 1), x)
            mean_gradient, mean = (
                torch.from_numpy(each).to(quadratic.dtype) for each in (sums / self.count, self.mean)
            )
            shift = -(self.kernel.t() @ mean_gradient) - quadratic @ mean
            of_x = products.pointwise((masked, x), (self.kernel, quadratic), shift)
        beta = torch.from_numpy(sums).to(self.weights.dtype)
        return of_x, torch.from_numpy(of_weights), torch.from_numpy(of_gammas), beta


def _rounded(weight: Tensor, x: Tensor) -> Tensor:
    """``weight`` as a product with ``x`` rounds it."""
    return weight.to(x.dtype).to(weight.dtype)


class _PointStep(torch.autograd.Function):
    @staticmethod
    @_remember_autocast
    def forward(ctx: Any, x: Tensor, eps: Any, observe: Any, groups: int, number: int, *parameters: Tensor):
        weights, affine = parameters[:number], parameters[number:]
        matrices = [weight.detach().flatten(1) for weight in weights]
        branches = len(affine) // 2
        if branches > number:
            matrices.append(torch.eye(x.shape[1], dtype=weights[0].dtype, device=x.device))
        stacked = _unshuffled(torch.stack(matrices), groups)
        state = _PointState(x, stacked, affine[:branches], affine[branches:], eps)
        out = products.pointwise((x,), (state.kernel.t(),), state.bias, relu=True)
        ctx.save_for_backward(x, out, *parameters)
        ctx.state, ctx.arguments = state, (eps, groups, number)
        observe(torch.from_numpy(state.statistics), state.count)
        return out

    @staticmethod
    @_as_forward
    def backward(ctx: Any, gradient: Tensor):
        x, out, *parameters = _saved(ctx)
        eps, groups, number = ctx.arguments
        if _needs_reference(gradient):
            found = reference.gradients(reference.point, (x, *parameters), (eps, groups, number), gradient)
            return (found[0], *(None,) * 4, *found[1:])
        of_x, of_weights, of_gammas, beta = ctx.state.gradients(gradient, out, x, ctx.needs_input_grad[0])
        of_weights = _shuffled(of_weights[:number], groups)
        return (
            of_x,
            *(None,) * 4,
            *(matrix.contiguous()[:, :, None, None] for matrix in of_weights),
            *of_gammas,
            *(beta.clone() for _ in of_gammas),
        )


def _unshuffled(weights: Tensor, groups: int) -> Tensor:
    """Weights ``(branches, out, C)`` for the channels as they come, where the branches read them shuffled.

    The shuffle brings channel i C/g + j to place j g + i, so that column j g + i is this channel's.
    """
    return _transposed_columns(weights, weights.shape[2] // groups, groups) if groups > 1 else weights


def _shuffled(weights: Tensor, groups: int) -> Tensor:
    """The way back from :func:`_unshuffled`."""
    return _transposed_columns(weights, groups, weights.shape[2] // groups) if groups > 1 else weights


def _transposed_columns(weights: Tensor, first: int, second: int) -> Tensor:
    return weights.unflatten(2, (first, second)).transpose(2, 3).flatten(2)


class _StemStep(torch.autograd.Function):
    @staticmethod
    @_remember_autocast
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, weight_1x1: Tensor, eps: Any, observe: Any, stride: int, *affine: Tensor
    ):
        patches = _patches(x, stride)
        stacked = weight.new_zeros(2, weight.shape[0], patches.shape[1])
        taps = _taps(stacked, x.shape[1])
        taps[0] = weight.detach().flatten(2).transpose(1, 2)
        taps[1, :, 4] = weight_1x1.detach().flatten(1)
        state = _PointState(patches, stacked, affine[:2], affine[2:], eps)
        out = products.pointwise((patches,), (state.kernel.t(),), state.bias, relu=True)
        ctx.save_for_backward(x, out, weight, weight_1x1, *affine)
        ctx.state, ctx.arguments = state, (eps, stride)
        observe(torch.from_numpy(state.statistics), state.count)
        return out

    @staticmethod
    @_as_forward
    def backward(ctx: Any, gradient: Tensor):
        x, out, weight, weight_1x1, *affine = _saved(ctx)
        eps, stride = ctx.arguments
        if _needs_reference(gradient):
            inputs = (x, weight, weight_1x1, *affine)
            found = reference.gradients(reference.stem, inputs, (eps, stride), gradient)
            return (None, *found[1:3], *(None,) * 3, *found[3:])
        _, of_weights, of_gammas, beta = ctx.state.gradients(gradient, out, _patches(x, stride), False)
        taps = _taps(of_weights, x.shape[1])
        return (
            None,
            taps[0].transpose(1, 2).reshape(weight.shape),
            taps[1, :, 4].reshape(weight_1x1.shape),
            *(None,) * 3,
            *of_gammas,
            *(beta, beta.clone()),
        )


def _taps(weights: Tensor, channels: int) -> Tensor:
    """Weights for patches as ``(branches, C_out, 9, C)``, without the columns that meet zeros."""
    return weights[:, :, : 9 * channels].view(*weights.shape[:2], 9, channels)


def _patches(x: Tensor, stride: int) -> Tensor:
    """The 3x3 patches of ``x``, on which the stem is a Point-Block: 9 C channels and zeros up to a multiple of 16."""
    n, channels, height, width = x.shape
    out = _empty_map(x, n, (9 * channels + 15) // 16 * 16, (height - 1) // stride + 1, (width - 1) // stride + 1)
    over_parts(loops.patches, n, array(x), stride, array(out))
    return out
