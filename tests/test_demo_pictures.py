"""What the demo says and draws: no long silence, no labels that touch."""

import time
from pathlib import Path
from typing import List

import numpy as np
from PIL import Image

from rdpnet_timm.demo.narration import Narrator
from rdpnet_timm.demo.pictures import BLACK, CAPTION, RED, save_rows, with_boxes


def test_a_long_silence_is_broken_and_only_that() -> None:
    said: List[str] = []
    narrator = Narrator(silence=0.2, output=said.append)
    with narrator.during("training"):
        time.sleep(0.7)
        narrator.say("done")
    assert said[0].startswith("  ... training, ") and said[-1] == "done"
    before = len(said)
    time.sleep(0.5)
    assert len(said) == before, "nothing goes on any more"


def test_labels_lie_inside_the_picture_and_beside_one_another() -> None:
    picture = Image.new("RGB", (320, 240), "white")
    boxes = [(f"a long label {n}", (300, 2 + 4 * n, 318, 40 + 4 * n), BLACK if n % 2 else RED) for n in range(3)]
    alone = [np.asarray(with_boxes(picture, [box])) for box in boxes]
    labels = [(each == box[2]).all(2).sum() for each, box in zip(alone, boxes)]
    together = np.asarray(with_boxes(picture, boxes))
    black, red = (together == BLACK).all(2).sum(), (together == RED).all(2).sum()
    assert abs(black - labels[1]) <= 0.05 * labels[1], "nothing covers it"
    assert red > 0.9 * (labels[0] + labels[2]) - 200


def test_rows_have_captions(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 40), "green")
    save_rows([("one", [picture, picture]), ("two", [picture, picture])], tmp_path / "rows.png")
    drawn = np.asarray(Image.open(tmp_path / "rows.png").convert("RGB")).astype(int)
    assert drawn.shape[0] == 2 * (40 + CAPTION)
    for top in (0, 40 + CAPTION):
        assert (drawn[top : top + CAPTION].sum(2) < 200).any(), "a caption in black"
        assert (drawn[top + CAPTION : top + CAPTION + 40, :60] == (0, 128, 0)).all()
