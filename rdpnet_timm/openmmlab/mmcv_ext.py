"""A stand-in for ``mmcv._ext``, mmcv's compiled operators, served by torchvision's.

It takes that module's name where mmcv is installed without compiled operators (mmcv-lite), so that detectors run
without a compiler, on a CPU; on CUDA, which no test covers, torchvision's own kernels do the same. The functions have
mmcv's names, arguments and in-place outputs. An operator that is not here raises an error, when it is called, that says
how to get the compiled one.

This file is loaded on its own, before any of its neighbours can be imported: it knows torch and torchvision only.
``RDPNET_MMCV_EXT=0`` keeps it away.
"""

import logging
import os
from typing import Any, Callable, NoReturn, Tuple

import torch
import torchvision
from torch import Tensor
from torchvision.ops import deform_conv2d, sigmoid_focal_loss

_COMPILED_MMCV = (
    "the compiled mmcv has it: pip uninstall mmcv-lite, then `pip install mmcv` (or `mim install mmcv`) on a machine "
    "with a compiler, or a wheel of mmcv for your torch; it is used in place of the stand-in as soon as it is there"
)

if os.environ.get("LOCAL_RANK", "0") == "0":
    logging.getLogger("rdpnet_timm").warning(
        "mmcv has no compiled operators (mmcv._ext): torchvision %s serves nms, roi_align, roi_pool, deformable "
        "convolution and the sigmoid focal loss in their place; RDPNET_MMCV_EXT=0 turns this off",
        torchvision.__version__,
    )


def __getattr__(name: str) -> Callable[..., NoReturn]:
    # mmcv asks for all operators of a file when it is imported, so only calling one that is missing may fail.
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator '{name}' is not compiled here and torchvision has none; {_COMPILED_MMCV}"
        )

    return missing


def get_compiler_version() -> str:
    """What mmcv reports as its compiler."""
    return "none (torchvision's operators)"


def get_compiling_cuda_version() -> str:
    """What mmcv reports as its CUDA version."""
    return "none (torchvision's operators)"


def _wide(*tensors: Tensor) -> Tuple[Tensor, ...]:
    """Half-precision tensors in float32, others as they are: torchvision lacks some half-precision kernels."""
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that stay, by descending score; width and height are ``x2 - x1 + offset``.

    Equal scores keep their order.
    """
    boxes, scores = _wide(boxes, scores)
    if offset:  # (x2 + 1) - x1 is the width with offset 1, of the boxes and of their intersections
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores.to(boxes), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """``output (K, C, aligned_height, aligned_width)`` from ``input (N, C, H, W)`` and ``rois (K, 5)``."""
    _refuse_max_pooling(pool_mode)
    wide_input, wide_rois = _wide(input, rois)
    pooled = torch.ops.torchvision.roi_align(
        wide_input, wide_rois.to(wide_input), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """``grad_input (N, C, H, W)`` from ``grad_output (K, C, aligned_height, aligned_width)``."""
    _refuse_max_pooling(pool_mode)
    wide_grad, wide_rois = _wide(grad_output, rois)
    grad = torch.ops.torchvision._roi_align_backward(
        wide_grad,
        wide_rois.to(wide_grad),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(grad)


def _refuse_max_pooling(pool_mode: int) -> None:
    if pool_mode == 0:
        raise NotImplementedError(
            f"mmcv's operator 'roi_align' with pool_mode='max' is not compiled here and torchvision has only 'avg'; "
            f"{_COMPILED_MMCV}"
        )


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """``output (K, C, pooled_height, pooled_width)`` from ``input (N, C, H, W)`` and ``rois (K, 5)``.

    torchvision's operator rounds a box to whole pixels first, mmcv's does not: so bin by bin, in torch, mmcv's bins.
    """
    height, width = input.shape[2:]
    output.zero_()
    argmax.fill_(-1)  # of empty bins, whose output is 0 and which pass no gradient
    for k, (image, x1, y1, x2, y2) in enumerate(rois.float().cpu()):
        top, bottom = _bins(y1 * spatial_scale, (y2 + 1) * spatial_scale, pooled_height, height)
        left, right = _bins(x1 * spatial_scale, (x2 + 1) * spatial_scale, pooled_width, width)
        for i, (y, y_end) in enumerate(zip(top, bottom)):
            for j, (x, x_end) in enumerate(zip(left, right)):
                if y_end > y and x_end > x:
                    largest, index = input[int(image), :, y:y_end, x:x_end].flatten(1).max(1)
                    row, column = index // (x_end - x) + y, index % (x_end - x) + x
                    output[k, :, i, j], argmax[k, :, i, j] = largest, (row * width + column).to(argmax)


def _bins(start: Tensor, end: Tensor, count: int, size: int) -> Tuple[list, list]:
    """First and one past the last pixel of each bin of ``[start, end)``, cut to ``[0, size)``; all empty if it is."""
    if end <= start:
        return [0] * count, [0] * count
    edges = torch.arange(count + 1) * ((end - start) / count) + start
    return (
        edges[:-1].floor().clamp(0, size).int().tolist(),
        edges[1:].ceil().clamp(0, size).int().tolist(),
    )


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """``grad_input (N, C, H, W)``: each bin's gradient goes to the pixel that was its largest."""
    images, channels = rois[:, 0].long(), grad_input.shape[1]
    planes = (images[:, None] * channels + torch.arange(channels, device=rois.device))[:, :, None, None]
    pixels = planes * grad_input[0, 0].numel() + argmax.long()
    taken = argmax >= 0
    (wide_grad,) = _wide(grad_output)
    total = torch.zeros(grad_input.numel(), dtype=wide_grad.dtype, device=wide_grad.device)
    grad_input.copy_(total.index_add_(0, pixels[taken], wide_grad[taken]).view_as(grad_input))


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution v1: ``output (N, out, H', W')``, ``offset (N, 2 * groups * kH * kW, H', W')``."""
    input, weight, offset = _wide(input, weight, offset)
    output.copy_(deform_conv2d(input, offset, weight, None, (dH, dW), (padH, padW), (dilationH, dilationW)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of :func:`deform_conv_forward` by its input and offsets."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _deform_conv_gradients(gradOutput, input, weight, offset, None, geometry)
    gradInput.copy_(grads[0])
    gradOffset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` by its weight, times ``scale``, added to ``gradWeight``."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _deform_conv_gradients(gradOutput, input, torch.zeros_like(gradWeight), offset, None, geometry)
    gradWeight.add_(grads[1], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Deformable convolution v2: v1 with a ``mask (N, groups * kernel_h * kernel_w, H', W')``."""
    input, weight, bias, offset, mask = _wide(input, weight, bias, offset, mask)
    geometry = ((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w))
    output.copy_(deform_conv2d(input, offset, weight, bias if with_bias else None, *geometry, mask))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward` by all of its inputs."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    grads = _deform_conv_gradients(grad_output, input, weight, offset, mask, geometry)
    for target, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads):
        target.copy_(grad)
    if with_bias:
        grad_bias.copy_(grads[4])


def _deform_conv_gradients(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Any, geometry: Tuple[int, ...]
) -> Tuple[Tensor, ...]:
    """Gradients by input, weight, offset, mask and bias."""
    use_mask = mask is not None
    if mask is None:
        mask = input.new_zeros(input.shape[0], 1)
    grad, input, weight, offset, mask = _wide(grad, input, weight, offset, mask)
    bias = input.new_zeros(weight.shape[0])
    return torch.ops.torchvision._deform_conv2d_backward(grad, input, weight, offset, mask, bias, *geometry, use_mask)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss ``(N, C)`` of logits ``(N, C)`` and classes ``(N,)``, C being the background; ``weight`` per class."""
    output.copy_(_sigmoid_focal_loss(_wide(input)[0], target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of each element of the loss by its logit, ``(N, C)``."""
    with torch.enable_grad():
        logits = _wide(input)[0].detach().requires_grad_()
        loss = _sigmoid_focal_loss(logits, target, weight, gamma, alpha)
        grad_input.copy_(torch.autograd.grad(loss.sum(), logits)[0])


def _sigmoid_focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    one_hot = (target[:, None] == torch.arange(logits.shape[1], device=logits.device)).to(logits)
    loss = sigmoid_focal_loss(logits, one_hot, alpha, gamma)
    return loss * weight.to(loss)[target][:, None] if weight.numel() else loss
