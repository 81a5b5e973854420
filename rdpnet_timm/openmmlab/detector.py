"""A whole two-stage detector of mmdet as one traceable function: a picture to boxes, scores and labels.

mmdet's own ``predict`` cannot be traced: it builds Python objects whose number depends on the picture. Its networks are
kept, the backbone, the neck, the heads and the table of anchors; what chooses boxes between them is written here with
torchvision's ``nms`` and ``roi_align``, which export as ONNX's NonMaxSuppression and RoiAlign.
"""

from copy import copy
from itertools import pairwise
from typing import Any, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from .config_reading import kind_of
from .picture import Picture, Resize, Unsupported

__all__ = ["Detector"]


class Detector(nn.Module):
    """Faster R-CNN: a picture ``(H, W, 3)``, RGB, to what mmdet finds in it, best first.

    Args:
        model: a two-stage detector of mmdet, in evaluation mode. Its modules are shared, not copied.
        resize: that of the test pipeline.
        score_threshold: boxes at or below it are left out; by default the config's.

    Attributes:
        fills_proposals: make up the number of proposals that the config allows from those that were suppressed; to time
            networks of random weights, which would else leave different numbers of them.

    Raises:
        Unsupported: another kind of detector, or a part that is none of Faster R-CNN's.
    """

    outputs = ("boxes", "scores", "labels")
    fills_proposals = False

    def __init__(self, model: Any, resize: Optional[Resize], score_threshold: Optional[float] = None) -> None:
        super().__init__()
        _require_faster_rcnn(model)
        self.picture = Picture(model.data_preprocessor, resize)
        self.backbone, self.rpn_head = model.backbone, model.rpn_head
        self.neck = _doubling(model.neck, model.backbone, self.picture) if model.with_neck else None
        self.bbox_head = model.roi_head.bbox_head
        self.rpn_cfg, self.rcnn_cfg = model.rpn_head.test_cfg, model.roi_head.test_cfg
        self.extractor = model.roi_head.bbox_roi_extractor
        self.score_threshold = float(self.rcnn_cfg.score_thr if score_threshold is None else score_threshold)

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Boxes ``(N, 4)`` as x1, y1, x2, y2 in pixels of the picture, scores ``(N,)``, labels ``(N,)``."""
        x, given, size = self.picture(image)
        maps = self.backbone(x)
        if self.neck is not None:
            maps = self.neck(maps)
        rois = self._by_level(self._proposals(maps, size))
        return self._boxes(self._pooled(maps, rois), torch.cat(rois), given, size)

    def _proposals(self, maps: List[Tensor], size: Tensor) -> Tensor:
        """Boxes ``(P, 4)`` that may hold an object, at most as many as the config says, best first."""
        head, config = self.rpn_head, self.rpn_cfg
        boxes, scores, levels = [], [], []
        for level, (logits, deltas) in enumerate(zip(*head(maps))):
            chances = logits[0].permute(1, 2, 0).reshape(-1).sigmoid()
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            anchors = self._anchors(level, maps[level])
            most = config.get("nms_pre", -1)
            if most > 0:
                # Among the true ones lie as many of no size: then the number to take is a constant, and not the
                # lesser of two, which OpenVINO on more than one thread now and then takes of the last picture.
                chances, best = F.pad(chances, (0, most), value=-1.0).topk(most)
                anchors, deltas = (F.pad(each, (0, 0, 0, most))[best] for each in (anchors, deltas))
            boxes.append(_decode(head.bbox_coder, anchors, deltas, size))
            scores.append(chances)
            levels.append(torch.full_like(chances, level))
        all_boxes, all_scores, all_levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        good = all_scores >= 0
        smallest = config.get("min_bbox_size", -1)
        if smallest >= 0:
            good = good & (all_boxes[:, 2:] - all_boxes[:, :2] > smallest).all(1)
        good = good.nonzero().squeeze(1)
        all_boxes, all_scores, all_levels = all_boxes[good], all_scores[good], all_levels[good]
        kept = all_boxes[_suppressed(all_boxes, all_scores, all_levels, config.nms, size)]
        return (torch.cat([kept, all_boxes]) if self.fills_proposals else kept)[: config.max_per_img]

    def _anchors(self, level: int, map_: Tensor) -> Tensor:
        """Anchors ``(h * w * A, 4)`` of a map ``(1, C, h, w)``."""
        generator = self.rpn_head.prior_generator
        width, height = generator.strides[level]
        x = torch.arange(map_.shape[3], dtype=map_.dtype) * width
        y = torch.arange(map_.shape[2], dtype=map_.dtype) * height
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack((columns, rows, columns, rows), dim=2).reshape(-1, 1, 4)
        return (shifts + generator.base_anchors[level]).reshape(-1, 4)

    def _by_level(self, boxes: Tensor) -> List[Tensor]:
        """The boxes sorted by the map that they are read from, the larger from the coarser.

        Source: Lin et al., "Feature Pyramid Networks for Object Detection", 2017, equation 1.
        """
        count = self.extractor.num_inputs
        if count == 1:
            return [boxes]
        scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(torch.log2(scale / self.extractor.finest_scale + 1e-6)).clamp(0, count - 1)
        return [boxes[(level == index).nonzero().squeeze(1)] for index in range(count)]

    def _pooled(self, maps: List[Tensor], rois: List[Tensor]) -> Tensor:
        """What the maps hold at the boxes, ``(P, C, h, w)``."""
        return torch.cat(
            [
                roi_align(
                    map_,
                    F.pad(boxes, (1, 0)),
                    layer.output_size,
                    layer.spatial_scale,
                    layer.sampling_ratio,
                    layer.aligned,
                )
                for map_, boxes, layer in zip(maps, rois, self.extractor.roi_layers)
            ]
        )

    def _boxes(self, pooled: Tensor, rois: Tensor, given: Tensor, size: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        head, config = self.bbox_head, self.rcnn_cfg
        logits, deltas = head(pooled)
        chances = F.softmax(logits, dim=1)[:, :-1]
        roi, label = (chances > self.score_threshold).nonzero().unbind(1)
        score = chances[roi, label]
        if not head.reg_class_agnostic:
            deltas = deltas.reshape(-1, head.num_classes, 4)[roi, label]
        else:
            deltas = deltas[roi]
        boxes = _decode(head.bbox_coder, rois[roi], deltas, size)
        boxes = boxes * (given.to(boxes) / size.to(boxes)).flip(0).repeat(2)
        kept = _suppressed(boxes, score, label, config.nms, given)
        if config.max_per_img > 0:  # else mmdet keeps all; of proposals it does not, there -1 leaves out the last
            kept = kept[: config.max_per_img]
        return boxes[kept], score[kept], label[kept]


def _doubling(neck: Any, backbone: Any, picture: Picture) -> Any:
    """An FPN that enlarges its maps by two rather than to the next one's size, where that is the same.

    With a size that is computed from a map's, OpenVINO on more than one thread now and then takes the last picture's.
    """
    if type(neck).__name__ != "FPN" or set(neck.upsample_cfg) != {"mode"} or picture.divisor % 32:
        return neck
    with torch.no_grad():  # the least picture: with an output stride of 16 two maps have one size
        maps = backbone(picture.mean.new_zeros(1, 3, picture.divisor, picture.divisor))
    sides = [map_.shape[2] for map_ in maps[neck.start_level : neck.backbone_end_level]]
    if any(fine != 2 * coarse for fine, coarse in pairwise(sides)):
        return neck
    neck = copy(neck)
    neck.upsample_cfg = {**neck.upsample_cfg, "scale_factor": 2}
    return neck


def _decode(coder: Any, boxes: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    """Boxes ``(N, 4)`` moved and stretched by ``deltas`` ``(N, 4)``, cut off at the picture's ``size`` ``(H, W)``.

    Source: Girshick et al., "Rich feature hierarchies", 2014, appendix C.
    """
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    extent = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + extent * deltas[:, :2]
    # mmdet's limit, which keeps exp() finite
    half = extent * deltas[:, 2:].clamp(-_LARGEST, _LARGEST).exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], dim=1)
    if not coder.clip_border:
        return boxes
    limits = size.to(boxes).flip(0).repeat(2)
    return torch.minimum(boxes.clamp(min=0), limits)


_LARGEST = 4.135166556742356  # log(1000 / 16)


def _suppressed(boxes: Tensor, scores: Tensor, kinds: Tensor, config: Any, size: Tensor) -> Tensor:
    """Places of the boxes that survive non-maximum suppression among those of their kind, best first."""
    if not config.get("class_agnostic", False):
        # apart from each other by more than the picture, boxes of two kinds do not overlap
        boxes = boxes + (kinds.to(boxes) * (size.max().to(boxes) + 1))[:, None]
    return nms(boxes, scores, float(config["iou_threshold"]))


def _require_faster_rcnn(model: Any) -> None:
    from mmdet.models import BBoxHead, RPNHead, SingleRoIExtractor, StandardRoIHead, TwoStageDetector
    from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder

    def require(good: bool, part: str, expected: str) -> None:
        if not good:
            raise Unsupported(
                f"this detector cannot be exported: its {part}, and what is exported is Faster R-CNN: {expected}"
            )

    def name(part: Any) -> str:
        return f"is a {type(part).__name__}"

    require(isinstance(model, TwoStageDetector), f"type {name(model)}", "a TwoStageDetector of mmdet")
    rpn, roi = model.rpn_head, model.roi_head
    require(type(rpn) is RPNHead, f"rpn_head {name(rpn)}", "an RPNHead")
    require(rpn.use_sigmoid_cls, "rpn_head has a softmax", "an RPNHead with sigmoid scores")
    require(
        type(rpn.prior_generator) is AnchorGenerator,
        f"anchor_generator {name(rpn.prior_generator)}",
        "an AnchorGenerator",
    )
    require(type(roi) is StandardRoIHead, f"roi_head {name(roi)}", "a StandardRoIHead")
    require(not roi.with_mask, "roi_head finds masks too", "boxes only")
    require(not roi.with_shared_head, "roi_head has a shared_head", "none")
    extractor, head = roi.bbox_roi_extractor, roi.bbox_head
    require(type(extractor) is SingleRoIExtractor, f"bbox_roi_extractor {name(extractor)}", "a SingleRoIExtractor")
    for layer in extractor.roi_layers:
        require(
            type(layer).__name__ == "RoIAlign" and layer.pool_mode == "avg",
            f"roi_layer {name(layer)}",
            "RoIAlign by mean",
        )
    require(
        isinstance(head, BBoxHead)
        and all(
            getattr(type(head), method) is getattr(BBoxHead, method)
            for method in ("predict_by_feat", "_predict_by_feat_single")
        ),
        f"bbox_head {name(head)}",
        "a BBoxHead that chooses boxes as mmdet's own does",
    )
    require(
        head.with_cls and head.with_reg and not head.custom_cls_channels,
        "bbox_head has other outputs", "a softmax over the classes and box deltas",
    )  # fmt: skip
    for part, coder in (("rpn_head", rpn.bbox_coder), ("bbox_head", head.bbox_coder)):
        require(
            type(coder) is DeltaXYWHBBoxCoder and not coder.add_ctr_clamp, f"{part}'s bbox_coder {name(coder)}",
            "a DeltaXYWHBBoxCoder",
        )  # fmt: skip
    for part, config in (("rpn", rpn.test_cfg), ("rcnn", roi.test_cfg)):
        nms = config.get("nms") or {"type": "nothing"}
        kind = kind_of({"type": "nms", **nms})
        # split_thr is of memory alone; with the others of mmcv's arguments other boxes stay
        others = sorted(set(nms) - {"type", "iou_threshold", "class_agnostic", "split_thr"})
        told = f"{kind} with {', '.join(others)}" if others else kind
        require(kind == "nms" and not others, f"test_cfg.{part} suppresses by {told}", "plain nms")
