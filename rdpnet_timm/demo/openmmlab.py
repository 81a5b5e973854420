"""A detector and a segmentor by OpenMMLab on drawn pictures: trained, evaluated in the deploy form, looked at."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from PIL import Image

from ..extras import require_all
from ..files import configs
from .narration import Narrator
from .pictures import BLACK, RED, Box, save_rows, with_boxes
from .sample_voc import LOOKS, VOC_CLASSES, make_sample_voc, voc_palette

__all__ = ["run"]

DETECTOR, SEGMENTOR = "faster_rcnn_rdpnet075_sample.py", "deeplabv3plus_rdpnet075_sample.py"
LARGER = 1.25  # pictures are drawn so much larger, for the labels
SHOWN = 4
LEAST = 0.5  # score of a detection that is drawn


def run(output: Path, narrator: Optional[Narrator] = None) -> None:
    """Make a sample data set, train and evaluate a detector and a segmentor on it, and draw what they see.

    Leaves in ``output`` the data, the work folders of both runs, ``detections.png`` and ``masks.png`` (the truth above
    what was found), the exported detector and what it found without PyTorch in ``on_device``, and ``openmmlab.json``
    with mAP, mIoU and the share of boxes that are the same with and without PyTorch.

    Raises:
        ImportError: OpenMMLab's packages are not installed.
        RuntimeError: a run failed; the end of its output is in the message.
    """
    require_all(("mim", "mmdet", "mmseg", "onnx", "onnxruntime"), "the demo", "demo")
    output, narrator = Path(output).resolve(), narrator or Narrator()
    devkit = output / "VOCdevkit"
    narrator.say(
        "\nDetection and segmentation by OpenMMLab, on drawn pictures of twenty kinds of shapes that stand for"
    )
    narrator.say("VOC's classes: both networks start from random weights, and are evaluated in the deploy form.")
    with narrator.during("drawing the data"):
        if not devkit.exists():
            narrator.say(f"The data: {make_sample_voc(output)}")
    scores: Dict[str, float] = {}
    folder = configs() / "demo"
    for package, name, metric, whole, work in (
        ("mmdet", DETECTOR, "pascal_voc/mAP", 1, output / "detector"),
        ("mmsegmentation", SEGMENTOR, "mIoU", 100, output / "segmentor"),  # which reports per cent
    ):
        start, short = time.monotonic(), metric.split("/")[-1]
        _train(package, folder / name, work, devkit, narrator)
        scores[short] = _last(work, metric) / whole
        narrator.say(f"{package}: {short} {scores[short]:.3f}, {time.monotonic() - start:.0f} s")
    with warnings.catch_warnings(), _environment("VOCDEVKIT", str(devkit)), narrator.during("drawing what they see"):
        warnings.simplefilter("ignore")  # OpenMMLab's packages of one another's deprecations
        config, checkpoint, year = folder / DETECTOR, _checkpoint(output / "detector"), devkit / "VOC2007"
        found, same = detect_on_device(config, checkpoint, year, output / "on_device")
        draw_detections(config, checkpoint, year, output / "detections.png", found)
        draw_masks(folder / SEGMENTOR, _checkpoint(output / "segmentor"), devkit / "VOC2012", output / "masks.png")
    scores["same_boxes_on_device"] = same
    (output / "openmmlab.json").write_text(json.dumps(scores, indent=2) + "\n")
    narrator.say(
        f"The detector as ONNX, run without PyTorch: in {SHOWN} pictures {same:.1%} of the boxes are PyTorch's, with an"
    )
    narrator.say(f"overlap of 0.99 and scores to 0.001; {output}/on_device")
    narrator.say(f"Pictures: {output}/detections.png, {output}/masks.png")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _train(package: str, config: Path, folder: Path, devkit: Path, narrator: Narrator) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "mim", "train", package, str(config), "--work-dir", str(folder)]
    narrator.say(f"\n$ VOCDEVKIT={devkit} mim {' '.join(command[5:])}")
    env = {**os.environ, "VOCDEVKIT": str(devkit), "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process, narrator.during("starting"):
        tail: List[str] = []
        for line in process.stdout or ():
            tail = [*tail[-40:], line]
            # progress, scores and the hook's report; the configuration and environment are in the log file
            step = re.search(r"(?:Epoch|Iter)\(train\) +(\S.*?\])  .*?\bloss: (\S+)", line)
            if step:
                narrator.now("training")
                narrator.say(f"  {step[1]} loss {step[2]}")
            elif any(word in line for word in ("mAP:", "mIoU:", "MACs", "M parameters")):
                narrator.now("evaluating")
                narrator.say(f"  {line.split(' - ')[-1].strip()}")
    if process.returncode:
        raise RuntimeError(f"mim train {package} failed ({process.returncode}):\n{''.join(tail)}")


def _last(folder: Path, metric: str) -> float:
    """The last value of ``metric`` in the newest run's log."""
    logs = sorted(folder.glob("*/vis_data/scalars.json"))
    found = [entry[metric] for entry in map(json.loads, logs[-1].read_text().splitlines()) if metric in entry]
    return float(found[-1])


def _checkpoint(folder: Path) -> str:
    return (folder / "last_checkpoint").read_text().strip()


def _names(year: Path, split: str, count: int) -> List[str]:
    return (year / "ImageSets" / split).read_text().split()[:count]


def _enlarged(picture: Image.Image, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    return picture.resize((int(picture.width * LARGER), int(picture.height * LARGER)), resample)


def _scaled(box: Sequence[float]) -> List[float]:
    return [LARGER * corner for corner in box]


Found = Dict[str, List[Tuple[str, float, List[float]]]]  # by name of the picture: label, score, box


def detect_on_device(
    config: Path, checkpoint: str, year: Path, folder: Path, count: int = SHOWN
) -> Tuple[Found, float]:
    """Export a detector, and let a Python that does not load PyTorch find boxes by it in ``count`` test pictures.

    Returns:
        What it found, and the share of boxes that are the same as mmdet's.

    Raises:
        RuntimeError: the other Python failed; the end of its output is in the message.
    """
    from ..deploy.calibration import load_pictures
    from ..openmmlab.export import export_openmmlab

    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for name in _names(year, "Main/test.txt", count):
        shutil.copy(year / "JPEGImages" / f"{name}.jpg", pictures)
    (exported,) = export_openmmlab(
        config, folder, checkpoint, name="detector", pictures=load_pictures(pictures), rounds=3, overwrite=True
    )
    script = Path(__file__).with_name("on_device.py")
    command = [sys.executable, str(script), str(exported.path), str(pictures), str(folder / "found")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed ({done.returncode}):\n{done.stderr[-2000:]}")
    found = json.loads((folder / "found" / "boxes.json").read_text())
    return {Path(name).stem: boxes for name, boxes in found.items()}, exported.agreement.same


def draw_detections(
    config: Path, checkpoint: str, year: Path, file: Path, on_device: Optional[Found] = None, count: int = SHOWN
) -> None:
    """Draw ``count`` test pictures with the true boxes above those found (score at least ``LEAST``).

    Args:
        config: the detector's.
        checkpoint: its weights.
        year: folder of the data.
        file: what to write.
        on_device: boxes found without PyTorch, for a row of their own.
        count: of pictures.
    """
    from xml.etree import ElementTree

    from mmdet.apis import inference_detector, init_detector

    model = init_detector(str(config), checkpoint, device="cpu")
    above, below, last = [], [], []
    for name in _names(year, "Main/test.txt", count):
        path = year / "JPEGImages" / f"{name}.jpg"
        true = []
        for node in ElementTree.parse(year / "Annotations" / f"{name}.xml").iter("object"):
            box = [float(node.findtext(f"bndbox/{corner}", "0")) - 1 for corner in ("xmin", "ymin", "xmax", "ymax")]
            true.append((str(node.findtext("name")), box))
        found = inference_detector(model, str(path)).pred_instances
        kept = found[found.scores >= LEAST]
        detections = [
            (VOC_CLASSES[label], score, box)
            for label, score, box in zip(kept.labels.tolist(), kept.scores.tolist(), kept.bboxes.tolist())
        ]
        picture = _enlarged(Image.open(path).convert("RGB"))
        above.append(with_boxes(picture, [(LOOKS[label], _scaled(box), BLACK) for label, box in true]))
        below.append(with_boxes(picture, judged(true, detections)))
        if on_device is not None:
            kept_there = [each for each in on_device[name] if each[1] >= LEAST]
            last.append(with_boxes(picture, judged(true, kept_there)))
    rows = [
        ("Drawn shapes, which stand for VOC's classes: what is there", above),
        (f"What the detector finds with a score of {LEAST} or more; in red what is wrong or was missed", below),
    ]
    if last:
        rows.append(("What the same detector finds as an ONNX file, without PyTorch", last))
    save_rows(rows, file)


def judged(true: Sequence[Tuple[str, Any]], found: Sequence[Tuple[str, float, Any]]) -> List[Box]:
    """Boxes to draw, the most certain first: black where label and place (IoU 0.5) are right, red elsewhere."""
    left = list(true)
    boxes: List[Box] = []
    for label, score, box in sorted(found, key=lambda detection: -detection[1]):
        hits = [thing for thing in left if thing[0] == label and _iou(thing[1], box) >= 0.5]
        if hits:
            left.remove(hits[0])
        boxes.append((f"{LOOKS[label]} {score:.2f}", _scaled(box), BLACK if hits else RED))
    boxes += [("missed", _scaled(box), RED) for _, box in left if not _is_hit(box, found)]
    return boxes


def _is_hit(box: Any, found: Sequence[Tuple[str, float, Any]]) -> bool:
    """Whether something, whatever it was taken for, was found at this place."""
    return any(_iou(box, other) >= 0.5 for _, _, other in found)


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    import numpy as np

    from ..openmmlab.agreement import overlaps

    return overlaps(np.array([a]), np.array([b])).item()


def draw_masks(config: Path, checkpoint: str, year: Path, file: Path, count: int = SHOWN) -> None:
    """Draw ``count`` validation pictures above their true masks above those predicted, in VOC's colours."""
    import numpy as np
    from mmseg.apis import inference_model, init_model

    model = init_model(str(config), checkpoint, device="cpu")
    pictures: List[Image.Image] = []
    true: List[Image.Image] = []
    found: List[Image.Image] = []
    right = total = 0
    for name in _names(year, "Segmentation/val.txt", count):
        path = year / "JPEGImages" / f"{name}.jpg"
        pictures.append(_enlarged(Image.open(path).convert("RGB")))
        truth = Image.open(year / "SegmentationClass" / f"{name}.png")
        labels = inference_model(model, str(path)).pred_sem_seg.data[0].numpy()
        counted = (np.asarray(truth) != 255) & ((np.asarray(truth) != 0) | (labels != 0))  # objects, true or found
        right += int((labels == np.asarray(truth))[counted].sum())
        total += int(counted.sum())
        mask = Image.fromarray(labels.astype(np.uint8))
        mask.putpalette(voc_palette())
        for row, drawn in ((true, truth), (found, mask)):
            row.append(_enlarged(drawn.convert("RGB"), Image.Resampling.NEAREST))
    share = f"{100 * right / max(total, 1):.0f} %"
    rows = [
        ("Drawn shapes, which stand for VOC's classes", pictures),
        ("What is there: a colour of VOC's palette for each class, and its border, which does not count", true),
        (f"What the segmentor finds: {share} of the pixels of these objects, true or found, are right", found),
    ]
    save_rows(rows, file)
