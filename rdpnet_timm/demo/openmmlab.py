"""A detector and a segmentor by OpenMMLab on drawn pictures: trained, evaluated in the deploy form, looked at."""

import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Dict, List, Tuple

from PIL import Image, ImageDraw

from .sample_voc import VOC_CLASSES, make_sample_voc, voc_palette

__all__ = ["require_configs", "run"]

CONFIGS = Path(__file__).resolve().parents[2] / "mm_configs" / "demo"
DETECTOR, SEGMENTOR = CONFIGS / "faster_rcnn_rdpnet075_sample.py", CONFIGS / "deeplabv3plus_rdpnet075_sample.py"
GAP = 6


def run(output: Path) -> None:
    """Make a sample data set, train and evaluate a detector and a segmentor on it, and draw what they see.

    Leaves in ``output`` the data, the work folders of both runs, ``detections.png`` and ``masks.png`` (ground truth
    above, predictions below), and ``openmmlab.json`` with mAP and mIoU.

    Raises:
        FileNotFoundError: the configs are not beside the package; they are part of the source, not of the wheel.
        RuntimeError: a run failed; its output is on the screen.
    """
    require_configs()
    output = Path(output).resolve()
    devkit = output / "VOCdevkit"
    if not devkit.exists():
        print(f"drawing a sample data set into {make_sample_voc(output)}", flush=True)
    scores: Dict[str, float] = {}
    for package, config, metric, whole, folder in (
        ("mmdet", DETECTOR, "pascal_voc/mAP", 1, output / "detector"),
        ("mmsegmentation", SEGMENTOR, "mIoU", 100, output / "segmentor"),  # which reports per cent
    ):
        start, name = time.monotonic(), metric.split("/")[-1]
        _train(package, config, folder, devkit)
        scores[name] = _last(folder, metric) / whole
        print(f"{package}: {name} {scores[name]:.3f}, {time.monotonic() - start:.0f} s")
    os.environ["VOCDEVKIT"] = str(devkit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenMMLab's packages of one another's deprecations
        draw_detections(DETECTOR, _checkpoint(output / "detector"), devkit / "VOC2007", output / "detections.png")
        draw_masks(SEGMENTOR, _checkpoint(output / "segmentor"), devkit / "VOC2012", output / "masks.png")
    (output / "openmmlab.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(f"mAP {scores['mAP']:.3f}, mIoU {scores['mIoU']:.3f}; pictures: {output}/detections.png, {output}/masks.png")


def require_configs() -> None:
    """Check that the configs are there.

    Raises:
        FileNotFoundError: they are not beside the package; they are part of the source, not of the wheel.
    """
    if not CONFIGS.is_dir():
        raise FileNotFoundError(f"there is no {CONFIGS}: the demo runs from a clone of the repository")


def _train(package: str, config: Path, folder: Path, devkit: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "mim", "train", package, str(config), "--work-dir", str(folder)]
    print(f"\n$ VOCDEVKIT={devkit} mim {' '.join(command[5:])}", flush=True)
    env = {**os.environ, "VOCDEVKIT": str(devkit), "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        tail: List[str] = []
        for line in process.stdout or ():
            tail = [*tail[-40:], line]
            # progress, scores and the hook's report; the configuration and environment are in the log file
            step = re.search(r"(?:Epoch|Iter)\(train\) +(\S.*?\])  .*?\bloss: (\S+)", line)
            if step:
                print(f"  {step[1]} loss {step[2]}", flush=True)
            elif any(word in line for word in ("mAP:", "mIoU:", "MACs", "M parameters")):
                print(f"  {line.split(' - ')[-1].strip()}", flush=True)
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


def draw_detections(config: Path, checkpoint: str, year: Path, file: Path, count: int = 5) -> None:
    """Draw ``count`` test pictures with the true boxes above those found (score at least 0.5)."""
    from xml.etree import ElementTree

    from mmdet.apis import inference_detector, init_detector

    model = init_detector(str(config), checkpoint, device="cpu")
    rows: Tuple[List[Image.Image], List[Image.Image]] = ([], [])
    for name in _names(year, "Main/test.txt", count):
        path = year / "JPEGImages" / f"{name}.jpg"
        true = []
        for node in ElementTree.parse(year / "Annotations" / f"{name}.xml").iter("object"):
            box = [int(node.findtext(f"bndbox/{corner}", "0")) - 1 for corner in ("xmin", "ymin", "xmax", "ymax")]
            true.append((str(node.findtext("name")), box))
        found = inference_detector(model, str(path)).pred_instances
        kept = found[found.scores >= 0.5]
        shown = [
            (f"{VOC_CLASSES[label]} {score:.2f}", box)
            for label, score, box in zip(kept.labels.tolist(), kept.scores.tolist(), kept.bboxes.tolist())
        ]
        for row, boxes in zip(rows, (true, shown)):
            row.append(_with_boxes(Image.open(path).convert("RGB"), boxes))
    _save_grid(rows, file)


def _with_boxes(picture: Image.Image, boxes: List[Tuple[str, Any]]) -> Image.Image:
    draw = ImageDraw.Draw(picture)
    for text, box in boxes:
        draw.rectangle(box, outline=(255, 255, 255), width=2)
        corner = (box[0], max(0, box[1] - 12))
        draw.rectangle(draw.textbbox(corner, text), fill=(0, 0, 0))
        draw.text(corner, text, fill=(255, 255, 255))
    return picture


def draw_masks(config: Path, checkpoint: str, year: Path, file: Path, count: int = 5) -> None:
    """Draw ``count`` validation pictures above their true masks above those predicted, in VOC's colours."""
    import numpy as np
    from mmseg.apis import inference_model, init_model

    model = init_model(str(config), checkpoint, device="cpu")
    pictures, true, found = [], [], []
    for name in _names(year, "Segmentation/val.txt", count):
        path = year / "JPEGImages" / f"{name}.jpg"
        pictures.append(Image.open(path).convert("RGB"))
        true.append(Image.open(year / "SegmentationClass" / f"{name}.png").convert("RGB"))
        labels = inference_model(model, str(path)).pred_sem_seg.data[0].numpy()
        mask = Image.fromarray(labels.astype(np.uint8))
        mask.putpalette(voc_palette())
        found.append(mask.convert("RGB"))
    _save_grid((pictures, true, found), file)


def _save_grid(rows: Tuple[List[Image.Image], ...], file: Path) -> None:
    """Save rows of pictures of one size as one picture."""
    width, height = rows[0][0].size
    size = (len(rows[0]) * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP)
    grid = Image.new("RGB", size, "white")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            grid.paste(picture, (j * (width + GAP), i * (height + GAP)))
    file.parent.mkdir(parents=True, exist_ok=True)
    grid.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
