"""Whether an exported network answers as OpenMMLab does: its own way from a picture to a result, and the comparison."""

from typing import Any, Callable, List, NamedTuple, Sequence

import numpy as np
import torch

from .picture import picture_transforms

__all__ = ["Agreement", "Answer", "agreement", "openmmlab_answers", "overlaps"]

Answer = List[np.ndarray]


class Agreement(NamedTuple):
    """How far two answers to the same pictures are the same.

    Attributes:
        pictures: how many were compared.
        compared: boxes, in whichever answer has more of them; or pixels.
        same: share that the other answer has too: its class and, of boxes, an IoU of 0.99 and the score to 1e-3.
        near: the same for a class and an IoU of 0.5; of pixels the same as ``same``.
        overlap: smallest IoU of two boxes that are near each other.
        score: largest difference of the scores of two boxes that are near each other.
        unit: of what was compared, 'boxes' or 'pixels'.
    """

    pictures: int
    compared: int
    same: float
    near: float
    overlap: float
    score: float
    unit: str = "boxes"


def openmmlab_answers(model: Any, settings: Any) -> Callable[[np.ndarray], Answer]:
    """What ``mim test`` computes of a picture ``(H, W, 3)``, uint8, RGB, by the config's own test pipeline.

    Boxes, scores and labels of a detector; classes and logits of a segmentor.
    """
    from mmcv.transforms import Compose

    scope = settings.get("default_scope", "mmdet")
    transforms, _ = picture_transforms(settings)
    transforms[0] = {**transforms[0], "type": f"{scope}.LoadImageFromNDArray"}
    pipeline = Compose([{**each, "type": _scoped(each["type"], scope)} for each in transforms])

    def answer(picture: np.ndarray) -> Answer:
        data = pipeline(dict(img=np.ascontiguousarray(picture[..., ::-1]), img_id=0))
        with torch.no_grad():
            sample = model.test_step({name: [value] for name, value in data.items()})[0]
        if scope == "mmseg":
            return [sample.pred_sem_seg.data[0].numpy(), sample.seg_logits.data.numpy()]
        found = sample.pred_instances
        return [found.bboxes.numpy(), found.scores.numpy(), found.labels.numpy()]

    return answer


def _scoped(kind: Any, scope: str) -> Any:
    return kind if not isinstance(kind, str) or "." in kind else f"{scope}.{kind}"


def agreement(expected: Sequence[Answer], actual: Sequence[Answer]) -> Agreement:
    """Compare the answers to some pictures, all of a detector (boxes, scores, labels) or all of a segmentor (classes).

    Raises:
        RuntimeError: an answer has another shape than the one expected.
    """
    if len(expected[0]) < 3:
        return _of_classes(expected, actual)
    compared, same, near, overlap, score = 0, 0, 0, 1.0, 0.0
    for (boxes, scores, labels), (found, found_scores, found_labels) in zip(expected, actual):
        if found.shape != (len(found), 4) or not len(found) == len(found_scores) == len(found_labels):
            raise RuntimeError(
                f"expected boxes (N, 4), scores (N,) and labels (N,), got {found.shape}, {found_scores.shape} and "
                f"{found_labels.shape}"
            )
        compared += max(len(boxes), len(found))
        iou = overlaps(boxes, found) * (labels[:, None] == found_labels[None])
        while iou.size and iou.max() >= 0.5:
            row, column = np.unravel_index(iou.argmax(), iou.shape)
            difference = abs(float(scores[row]) - float(found_scores[column]))
            overlap, score, near = min(overlap, float(iou[row, column])), max(score, difference), near + 1
            same += bool(iou[row, column] >= 0.99 and difference <= 1e-3)
            iou[row], iou[:, column] = 0, 0
    of = max(1, compared)
    none = compared == 0
    return Agreement(len(expected), compared, 1.0 if none else same / of, 1.0 if none else near / of, overlap, score)


def _of_classes(expected: Sequence[Answer], actual: Sequence[Answer]) -> Agreement:
    pixels, same = 0, 0
    for (classes, *_), (found, *_) in zip(expected, actual):
        if classes.shape != found.shape:
            raise RuntimeError(f"expected classes {classes.shape}, got {found.shape}")
        pixels, same = pixels + classes.size, same + int((classes == found).sum())
    return Agreement(len(expected), pixels, same / pixels, same / pixels, 1.0, 0.0, "pixels")


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of each of the boxes ``(N, 4)`` with each of ``(M, 4)``, as ``(N, M)``."""
    first, second = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    common = sides.clip(0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first, second)]
    return common / np.maximum(areas[0] + areas[1] - common, np.finfo(np.float64).tiny)
