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

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("openmmlab_demo")]


def test_both_networks_learn_the_drawn_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VOCDEVKIT", "somewhere else")  # the demo's own data is what counts
    demo.run(tmp_path)
    scores = json.loads((tmp_path / "openmmlab.json").read_text())
    assert scores["mAP"] >= 0.5
    assert scores["mIoU"] >= 0.5

    masks = np.asarray(Image.open(tmp_path / "masks.png").convert("RGB")).astype(int)
    height = (masks.shape[0] - 2 * demo.GAP) // 3  # pictures, true masks, masks found
    true, found = (masks[row * (height + demo.GAP) :][:height] for row in (1, 2))
    inside = ~np.isin(true.sum(2), (0, 3 * 255, 224 + 224 + 192))  # neither background nor gap nor border
    assert (np.abs(true - found).sum(2)[inside] < 60).mean() > 0.5
    detections = Image.open(tmp_path / "detections.png")
    assert detections.height > 2 * 144


def test_a_failed_run_is_reported_with_its_output(tmp_path: Path) -> None:
    config = tmp_path / "broken.py"
    config.write_text("raise ValueError('a broken config')\n")
    with pytest.raises(RuntimeError, match=r"(?s)mim train mmdet failed.*a broken config"):
        demo._train("mmdet", config, tmp_path / "work", tmp_path)
