"""The OpenMMLab demo: from random weights to useful scores in minutes, and pictures of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mim")

from rdpnet_timm.demo import openmmlab as demo
from rdpnet_timm.demo.narration import Narrator
from rdpnet_timm.demo.pictures import BLACK, CAPTION
from rdpnet_timm.demo.sample_voc import LOOKS, VOC_CLASSES

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("openmmlab_demo")]


def test_both_networks_learn_the_drawn_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VOCDEVKIT", "somewhere else")  # the demo's own data is what counts
    demo.run(tmp_path)
    scores = json.loads((tmp_path / "openmmlab.json").read_text())
    assert scores["mAP"] >= 0.5
    assert scores["mIoU"] >= 0.5
    assert scores["same_boxes_on_device"] >= 0.99
    found = json.loads((tmp_path / "on_device/found/boxes.json").read_text())
    assert len(found) == demo.SHOWN and sum(len(boxes) for boxes in found.values()) >= demo.SHOWN

    masks = np.asarray(Image.open(tmp_path / "masks.png").convert("RGB")).astype(int)
    row = masks.shape[0] // 3  # pictures, true masks, masks found, each below its caption
    true, found = (masks[number * row + CAPTION : (number + 1) * row] for number in (1, 2))
    inside = ~np.isin(true.sum(2), (0, 3 * 255, 224 + 224 + 192))  # neither background nor gap nor border
    assert (np.abs(true - found).sum(2)[inside] < 60).mean() > 0.5
    detections = Image.open(tmp_path / "detections.png")
    assert detections.height > 3 * 192 and detections.width == masks.shape[1]


def test_a_detection_is_right_where_label_and_place_are_and_the_rest_is_marked() -> None:
    true = [("car", [0, 0, 10, 10]), ("cat", [20, 0, 30, 10]), ("cow", [40, 0, 50, 10])]
    found = [
        ("car", 0.6, [0, 0, 10, 9]),
        ("car", 0.9, [1, 0, 10, 10]),  # the better of two, so the other is wrong
        ("dog", 0.8, [20, 0, 30, 10]),  # the right place, another label
        ("cow", 0.7, [45, 5, 55, 15]),  # the right label, another place
    ]
    judged = demo.judged(true, found)
    assert [(text.split()[-1], colour == BLACK) for text, _, colour in judged[:4]] == [
        ("0.90", True), ("0.80", False), ("0.70", False), ("0.60", False)
    ]  # fmt: skip
    assert [text for text, _, _ in judged[4:]] == ["missed"]


def test_every_class_has_a_look_of_its_own() -> None:
    assert len(set(LOOKS.values())) == len(VOC_CLASSES) == 20


def test_a_failed_run_is_reported_with_its_output(tmp_path: Path) -> None:
    config = tmp_path / "broken.py"
    config.write_text("raise ValueError('a broken config')\n")
    with pytest.raises(RuntimeError, match=r"(?s)mim train mmdet failed.*a broken config"):
        demo._train("mmdet", config, tmp_path / "work", tmp_path, Narrator())
