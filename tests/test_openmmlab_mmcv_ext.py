"""The stand-in for mmcv's compiled operators, against references written out here in float64."""

import importlib.util
import math
import sys
from typing import Any, List, Tuple

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("mmcv")

from rdpnet_timm.openmmlab import patches  # provides the stand-in where the start-up hook has not

EXT = importlib.import_module("mmcv._ext")
if not EXT.__file__.endswith("mmcv_ext.py"):
    pytest.skip("mmcv has compiled operators here", allow_module_level=True)

from mmcv import ops  # noqa: E402


def random_boxes(count: int, seed: int, size: float = 60.0) -> Tensor:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, size, (count, 2))
    return torch.tensor(np.concatenate([corners, corners + rng.uniform(2, 25, (count, 2))], 1), dtype=torch.float32)


def reference_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> List[int]:
    """Greedy suppression, box by box; equal scores in their order."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0.0, x2 - x1 + offset) * max(0.0, y2 - y1 + offset)

    kept: List[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -float(scores[i])):
        box = boxes[index].tolist()
        overlaps = []
        for other in (boxes[k].tolist() for k in kept):
            inside = area(*(max(a, b) for a, b in zip(box[:2], other[:2])), *map(min, box[2:], other[2:]))
            overlaps.append(inside / (area(*box) + area(*other) - inside))
        if all(overlap <= threshold for overlap in overlaps):
            kept.append(index)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_nms_keeps_what_greedy_suppression_keeps(threshold: float, offset: int) -> None:
    boxes, scores = random_boxes(120, 0), torch.rand(120, generator=torch.Generator().manual_seed(1))
    detections, kept = ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == reference_nms(boxes, scores, threshold, offset)
    assert torch.equal(detections, torch.cat([boxes[kept], scores[kept, None]], 1))


def test_nms_with_offset_counts_the_last_pixel() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]])  # 2x2 pixels each, 2 of 6 in common; without offset none
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.3, offset=0)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.3, offset=1)[1].tolist() == [0]


def test_nms_keeps_the_first_of_equal_scores() -> None:
    boxes = random_boxes(40, 3).repeat(2, 1)
    scores = torch.full((80,), 0.5)
    assert ops.nms(boxes, scores, 0.5)[1].tolist() == reference_nms(boxes, scores, 0.5, 0)


def test_nms_of_nothing_is_nothing() -> None:
    detections, kept = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert detections.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.long


def test_nms_filters_by_score_and_count() -> None:
    boxes, scores = random_boxes(60, 4), torch.rand(60, generator=torch.Generator().manual_seed(2))
    kept = [index for index in reference_nms(boxes, scores, 0.5, 0) if scores[index] > 0.3][:5]
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=5)[1].tolist() == kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_other_precisions(dtype: torch.dtype) -> None:
    boxes = random_boxes(50, 5).to(dtype)
    scores = torch.linspace(0.1, 0.9, 50).to(dtype)
    assert EXT.nms(boxes, scores, 0.5, 0).tolist() == reference_nms(boxes, scores, 0.5, 0)


@pytest.mark.parametrize("split_threshold", [10000, 10])
def test_batched_nms_suppresses_within_a_class_only(split_threshold: int) -> None:
    boxes, classes = random_boxes(90, 6), torch.arange(90) % 3
    scores = torch.rand(90, generator=torch.Generator().manual_seed(3))
    expected = []
    for label in range(3):
        members = (classes == label).nonzero().flatten()
        expected += members[reference_nms(boxes[members], scores[members], 0.4, 0)].tolist()
    settings = dict(type="nms", iou_threshold=0.4, split_thr=split_threshold)
    detections, kept = ops.batched_nms(boxes, scores, classes, settings)
    assert kept.tolist() == sorted(expected, key=lambda i: -float(scores[i]))
    assert torch.equal(detections[:, :4], boxes[kept])


def bilinear(plane: Tensor, y: Tensor, x: Tensor, beyond: float) -> Tensor:
    """``plane (C, H, W)`` at one point; 0 where it lies more than a pixel outside, else held in where ``beyond``."""
    height, width = plane.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(plane.shape[0])
    if beyond:  # RoIAlign repeats the border
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    y0, x0 = math.floor(y), math.floor(x)
    total = plane.new_zeros(plane.shape[0])
    for row in (y0, y0 + 1):
        for column in (x0, x0 + 1):
            if 0 <= row < height and 0 <= column < width:
                total = total + plane[:, row, column] * (1 - (y - row).abs()) * (1 - (x - column).abs())
    return total


def reference_roi_align(
    maps: Tensor, rois: Tensor, size: Tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    shift = 0.5 if aligned else 0.0
    pooled = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_height, bin_width = height / size[0], width / size[1]
        rows = sampling_ratio or math.ceil(bin_height)
        columns = sampling_ratio or math.ceil(bin_width)
        for i in range(size[0]):
            for j in range(size[1]):
                samples = [
                    bilinear(
                        maps[int(image)],
                        maps.new_tensor(y1 + (i + (a + 0.5) / rows) * bin_height),
                        maps.new_tensor(x1 + (j + (b + 0.5) / columns) * bin_width),
                        beyond=True,
                    )
                    for a in range(rows)
                    for b in range(columns)
                ]
                pooled.append(sum(samples, maps.new_zeros(maps.shape[1])) / max(len(samples), 1))
    return torch.stack(pooled).reshape(len(rois), *size, maps.shape[1]).permute(0, 3, 1, 2)


def maps_and_rois(dtype: torch.dtype = torch.float64) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64).to(dtype)
    rois = [[0, 2, 3, 30, 25], [1, 0, 0, 43, 35], [1, 10, 10, 11, 10.5], [0, -6, -5, 9, 50], [1, 30, 5, 70, 60]]
    return maps.requires_grad_(), torch.tensor(rois, dtype=dtype)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_and_its_gradient_are_the_averages_of_bilinear_samples(aligned: bool, sampling_ratio: int) -> None:
    maps, rois = maps_and_rois()
    actual = ops.roi_align(maps, rois, (3, 2), 0.25, sampling_ratio, "avg", aligned)
    expected = reference_roi_align(maps, rois, (3, 2), 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn(actual.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(actual, maps, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, maps, upstream)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_roi_align_in_lower_precision_stays_near(dtype: torch.dtype, tolerance: float) -> None:
    maps, rois = maps_and_rois(dtype)
    actual = ops.roi_align(maps, rois, (3, 2), 0.25, 2, "avg", True)
    assert actual.dtype == dtype
    wide = maps.detach().double().requires_grad_()
    expected = reference_roi_align(wide, rois.double(), (3, 2), 0.25, 2, True)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    (gradient,) = torch.autograd.grad(actual.sum(), maps)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), wide)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)


def test_roi_align_of_no_rois_is_empty_and_passes_no_gradient() -> None:
    maps, _ = maps_and_rois()
    pooled = ops.roi_align(maps, torch.zeros(0, 5, dtype=torch.float64), (3, 2), 0.25, 2, "avg", True)
    assert pooled.shape == (0, 3, 3, 2)
    pooled.sum().backward()
    assert torch.equal(maps.grad, torch.zeros_like(maps))


def test_roi_pool_and_its_gradient_are_the_largest_of_each_bin() -> None:
    maps, rois = maps_and_rois(torch.float32)
    actual = ops.roi_pool(maps, rois, (3, 2), 0.25)
    expected = torch.zeros_like(actual)
    expected_gradient = torch.zeros_like(maps)
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        y1, y2, x1, x2 = y1 * 0.25, (y2 + 1) * 0.25, x1 * 0.25, (x2 + 1) * 0.25
        for c, i, j in np.ndindex(3, 3, 2):
            pixels = [
                (float(maps[int(image), c, y, x]), y, x)
                for y in range(math.floor(y1 + i * (y2 - y1) / 3), math.ceil(y1 + (i + 1) * (y2 - y1) / 3))
                for x in range(math.floor(x1 + j * (x2 - x1) / 2), math.ceil(x1 + (j + 1) * (x2 - x1) / 2))
                if 0 <= y < 9 and 0 <= x < 11
            ]
            if pixels:
                expected[k, c, i, j], y, x = max(pixels)
                expected_gradient[int(image), c, y, x] += 1
    assert torch.equal(actual, expected)
    actual.sum().backward()
    assert torch.equal(maps.grad, expected_gradient)


def reference_deform_conv(
    x: Tensor, offset: Tensor, weight: Tensor, stride: int, padding: int, dilation: int, groups: int, mask: Any
) -> Tensor:
    images, channels = x.shape[:2]
    out_channels, per_group, kernel, _ = weight.shape
    height, width = offset.shape[2:]
    deform_groups = offset.shape[1] // (2 * kernel**2)
    rows = []
    for n in range(images):
        for i in range(height):
            for j in range(width):
                columns = []
                for c in range(channels):
                    g = c // (channels // deform_groups)
                    for k in range(kernel**2):
                        at = g * kernel**2 + k
                        y = i * stride - padding + k // kernel * dilation + offset[n, 2 * at, i, j]
                        z = j * stride - padding + k % kernel * dilation + offset[n, 2 * at + 1, i, j]
                        sample = bilinear(x[n, c : c + 1], y, z, beyond=False)[0]
                        columns.append(sample if mask is None else sample * mask[n, at, i, j])
                columns = torch.stack(columns).reshape(groups, per_group * kernel**2)
                filters = weight.reshape(groups, out_channels // groups, -1)
                rows.append(torch.einsum("gok,gk->go", filters, columns).flatten())
    return torch.stack(rows).reshape(images, height, width, out_channels).permute(0, 3, 1, 2)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("stride, padding, dilation, groups, deform_groups", [(1, 1, 1, 1, 1), (2, 2, 2, 2, 2)])
def test_deformable_convolution_and_its_gradients_follow_the_definition(
    stride: int, padding: int, dilation: int, groups: int, deform_groups: int, modulated: bool
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    size = (4 + 2 * padding - 2 * dilation - 1) // stride + 1
    x, weight, bias = draw(1, 4, 4, 4), draw(4, 4 // groups, 3, 3), draw(4)
    offset, mask = draw(1, deform_groups * 18, size, size), draw(1, deform_groups * 9, size, size)
    if modulated:
        geometry = (stride, padding, dilation, groups, deform_groups)
        actual = ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
        expected = reference_deform_conv(x, offset, weight, stride, padding, dilation, groups, mask)
        expected = expected + bias[:, None, None]
        inputs = [x, offset, weight, mask, bias]
    else:
        actual = ops.deform_conv2d(x, offset, weight, stride, padding, dilation, groups, deform_groups)
        expected = reference_deform_conv(x, offset, weight, stride, padding, dilation, groups, None)
        inputs = [x, offset, weight]
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    upstream = torch.randn(actual.shape, generator=generator, dtype=torch.float64)
    for found, wanted in zip(*(torch.autograd.grad(output, inputs, upstream) for output in (actual, expected))):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss_and_its_gradient_follow_the_formula(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 3, generator=generator, dtype=torch.float64).mul(3).requires_grad_()
    target = torch.tensor([0, 1, 2, 0, 1, 2, 2] if weighted else [0, 1, 2, 3, 3, 0, 1])  # 3 is the background
    weight = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64) if weighted else None
    actual = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "sum")
    p, total = logits.sigmoid(), logits.new_zeros(())
    for n in range(7):
        for c in range(3):
            is_class = int(target[n]) == c
            probability = p[n, c] if is_class else 1 - p[n, c]
            term = -(0.25 if is_class else 0.75) * (1 - probability) ** 2 * probability.log()
            total = total + term * (weight[target[n]] if weighted else 1)
    torch.testing.assert_close(actual, total, rtol=1e-10, atol=1e-10)
    gradients = (torch.autograd.grad(loss, logits)[0] for loss in (actual, total))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_an_operator_that_is_missing_says_its_name_and_what_to_do() -> None:
    with pytest.raises(NotImplementedError, match=r"'softnms' is not compiled .*pip install mmcv"):
        ops.soft_nms(torch.rand(2, 4), torch.rand(2))
    with pytest.raises(NotImplementedError, match=r"'roi_align' with pool_mode='max' .*pip install mmcv"):
        ops.roi_align(*maps_and_rois(), (3, 2), 0.25, 2, "max", True)


def test_a_compiled_module_is_given_way_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    patches.provide_mmcv_ext()
    assert "mmcv._ext" not in sys.modules


def test_the_switch_keeps_the_stand_in_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setenv("RDPNET_MMCV_EXT", "0")
    patches.provide_mmcv_ext()
    assert "mmcv._ext" not in sys.modules


def test_without_the_start_up_hook_the_package_provides_it_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    patches.provide_mmcv_ext()
    patches.provide_mmcv_ext()
    assert sys.modules["mmcv._ext"].__file__.endswith("mmcv_ext.py")
    assert len([record for record in caplog.records if "RDPNET_MMCV_EXT=0" in record.message]) == 1
    monkeypatch.setattr(sys.modules["mmcv"], "_ext", EXT)
