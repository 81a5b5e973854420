"""The drawn data set has the layout, the labels and the promises of `rdpnet sample-voc`."""

import hashlib
from pathlib import Path
from typing import Dict, Set
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rdpnet_timm.cli import main
from rdpnet_timm.demo.sample_voc import VOC_CLASSES, make_sample_voc, voc_palette

SPLITS = {
    "VOC2007": {"train": 22, "val": 8, "trainval": 30, "test": 15},
    "VOC2012": {"train": 30, "val": 15, "trainval": 45},
}


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample_voc(tmp_path_factory.mktemp("sample"), images=45)


def names(year: Path, split: str, part: str = "Main") -> list:
    return (year / "ImageSets" / part / f"{split}.txt").read_text().split()


def objects(year: Path, name: str) -> Dict[str, list]:
    """Class to box, of one annotation."""
    root = ElementTree.parse(year / "Annotations" / f"{name}.xml").getroot()
    corners = ("xmin", "ymin", "xmax", "ymax")
    return {
        str(node.findtext("name")): [int(str(node.findtext(f"bndbox/{corner}"))) for corner in corners]
        for node in root.iter("object")
    }


def digests(folder: Path) -> Dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("year", SPLITS)
def test_every_split_lists_its_pictures_which_are_all_there(devkit: Path, year: str) -> None:
    for split, count in SPLITS[year].items():
        assert len(names(devkit / year, split)) == count
        assert names(devkit / year, split, "Segmentation") == names(devkit / year, split)
    everything = set(names(devkit / year, "trainval")) | set(names(devkit / year, "test") if year == "VOC2007" else ())
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
        assert {path.name for path in (devkit / year / folder).iterdir()} == {f"{n}.{suffix}" for n in everything}
    assert set(names(devkit / year, "train")) | set(names(devkit / year, "val")) == set(
        names(devkit / year, "trainval")
    )


def test_the_test_pictures_are_none_of_the_training_ones(devkit: Path) -> None:
    year = devkit / "VOC2007"
    assert not set(names(year, "trainval")) & set(names(year, "test"))


@pytest.mark.parametrize("year, splits", [("VOC2007", ("trainval", "test")), ("VOC2012", ("train", "val"))])
def test_all_twenty_classes_are_in_every_split(devkit: Path, year: str, splits: tuple) -> None:
    assert len(VOC_CLASSES) == 20
    for split in splits:
        found: Set[str] = set()
        for name in names(devkit / year, split):
            found |= set(objects(devkit / year, name))
        assert found == set(VOC_CLASSES)


def test_boxes_and_masks_show_the_same_objects(devkit: Path) -> None:
    year = devkit / "VOC2012"
    for name in names(year, "trainval"):
        mask = np.asarray(Image.open(year / "SegmentationClass" / f"{name}.png"))
        assert mask.shape == np.asarray(Image.open(year / "JPEGImages" / f"{name}.jpg")).shape[:2]
        boxes = objects(year, name)
        assert {VOC_CLASSES[label - 1] for label in np.unique(mask) if label not in (0, 255)} == set(boxes)
        assert 255 in mask
        for thing, (x1, y1, x2, y2) in boxes.items():
            rows, columns = np.nonzero(mask == VOC_CLASSES.index(thing) + 1)
            inner = columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1
            # the border label covers the outermost pixels, more of them at a sharp corner
            assert x1 <= inner[0] <= x1 + 8 and y1 <= inner[1] <= y1 + 8, (name, thing)
            assert x2 - 8 <= inner[2] <= x2 and y2 - 8 <= inner[3] <= y2, (name, thing)


def test_masks_have_the_official_colours(devkit: Path) -> None:
    # from the development kit's documentation
    official = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    palette = voc_palette()
    assert {label: tuple(palette[3 * label : 3 * label + 3]) for label in official} == official
    mask = Image.open(next((devkit / "VOC2012" / "SegmentationClass").iterdir()))
    assert mask.mode == "P" and mask.getpalette() == palette


def test_class_files_say_which_pictures_have_the_class(devkit: Path) -> None:
    year = devkit / "VOC2007"
    lines = (year / "ImageSets/Main/person_test.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == names(year, "test")
    for line in lines:
        name, present = line.split()
        assert int(present) == (1 if "person" in objects(year, name) else -1)


def test_the_seed_decides_every_byte(devkit: Path, tmp_path: Path) -> None:
    assert digests(make_sample_voc(tmp_path / "same", images=45)) == digests(devkit)
    other = digests(make_sample_voc(tmp_path / "other", images=45, seed=1))
    assert list(other) == list(digests(devkit)) and other != digests(devkit)


def test_an_existing_devkit_is_never_touched(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "VOCdevkit").mkdir()
    (tmp_path / "VOCdevkit" / "mine.txt").write_text("precious")
    assert main(["sample-voc", str(tmp_path)]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert digests(tmp_path) == {"VOCdevkit/mine.txt": hashlib.sha256(b"precious").hexdigest()}


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(ElementTree.ElementTree, "write", fail)
    with pytest.raises(OSError, match="disk full"):
        make_sample_voc(tmp_path, images=45)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--images", "44"], ["--seed", "-1"]])
def test_wrong_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list) -> None:
    assert main(["sample-voc", str(tmp_path), *arguments]) == 1
    assert arguments[1] in capsys.readouterr().err and not list(tmp_path.iterdir())
