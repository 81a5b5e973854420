"""One's own pictures: the configs of docs/own_data.md work, and what is wrong with the data is told by name first."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config
from PIL import Image

from rdpnet_timm.demo.sample_voc import VOC_CLASSES, make_sample_voc
from rdpnet_timm.openmmlab.data_check import check_data
from rdpnet_timm.openmmlab.own_data import detection, segmentation
from rdpnet_timm.openmmlab.runner import DataCheckingRunner

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own_data.md").read_text()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets with other classes than VOC's, of drawn pictures: data/parts has boxes, data/ground masks."""
    root = tmp_path_factory.mktemp("own")
    devkit = make_sample_voc(root / "drawn", images=45)
    for name, year, kind in (("parts", "VOC2007", "Main"), ("ground", "VOC2012", "Segmentation")):
        folder, source = root / "data" / name, devkit / year
        names = sorted(path.stem for path in (source / "JPEGImages").glob("*.jpg"))[:10]
        (folder / "ImageSets" / kind).mkdir(parents=True)
        (folder / "ImageSets" / kind / "train.txt").write_text("\n".join(names[:8]) + "\n")
        (folder / "ImageSets" / kind / "val.txt").write_text("\n".join(names[8:]) + "\n")
        for part in ("JPEGImages", "Annotations" if name == "parts" else "SegmentationClass"):
            (folder / part).mkdir()
        for picture in names:
            shutil.copy(source / "JPEGImages" / f"{picture}.jpg", folder / "JPEGImages")
            if name == "parts":
                text = (source / "Annotations" / f"{picture}.xml").read_text()
                for index, known in enumerate(VOC_CLASSES):
                    text = text.replace(f"<name>{known}</name>", f"<name>{('bolt', 'nut')[index % 2]}</name>")
                (folder / "Annotations" / f"{picture}.xml").write_text(text)
            else:
                labels = np.asarray(Image.open(source / "SegmentationClass" / f"{picture}.png"))
                own = np.where((labels > 0) & (labels < 255), 1 + labels % 2, labels).astype(np.uint8)
                Image.fromarray(own).save(folder / "SegmentationClass" / f"{picture}.png")
    return root


@pytest.fixture
def own(drawn: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it to damage."""
    shutil.copytree(drawn / "data", tmp_path / "data")
    yield tmp_path


def config_of_the_page(function: str, root: Path, **changes: Any) -> Config:
    """The code of the page, word by word but for the two paths."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if f"import {function}" in block]
    assert len(code.splitlines()) <= 12
    file = root / f"{function}.py"
    file.write_text(code.replace('"rdpnet_timm::', f'"{ROOT}/mm_configs/').replace('"data/', f'"{root}/data/'))
    cfg = Config.fromfile(file)
    # a runner takes the visualizer of its name that its process has already, with the folder of an earlier training
    name = root.name + function
    names = {"experiment_name": name, "visualizer.name": name}
    cfg.merge_from_dict({"work_dir": str(root / f"work_{function}"), **names, **changes})
    return cfg


SMALLEST: Dict[str, Dict[str, Any]] = {
    "detection": {
        "model.backbone.widen_factor": 0.25,
        "model.neck.in_channels": [16, 32, 64, 320],
        "train_cfg.max_epochs": 1,
    },
    "segmentation": {
        "model.backbone.widen_factor": 0.25,
        "model.decode_head.in_channels": 320,
        "model.decode_head.c1_in_channels": 16,
        "model.auxiliary_head.in_channels": 64,
        "train_cfg.max_epochs": 1,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("function", ["detection", "segmentation"])
def test_the_config_of_the_page_trains_to_the_end_of_its_schedule_and_names_the_classes(
    own: Path, function: str
) -> None:
    cfg = config_of_the_page(function, own, **SMALLEST[function])
    runner = DataCheckingRunner.from_cfg(cfg)
    runner.train()
    (log,) = (own / f"work_{function}").glob("*/*.log")
    text = log.read_text()
    for name in cfg.train_dataloader.dataset.metainfo.classes:
        assert re.search(rf"^\| +{name} +\|", text, re.M), text[-2000:]
    assert "aeroplane |" not in text
    assert runner.iter == 2 and runner.param_schedulers[1].end == 2  # of one epoch of two batches
    (scalars,) = (own / f"work_{function}").glob("*/vis_data/scalars.json")
    key = "pascal_voc/mAP" if function == "detection" else "mIoU"
    assert any(key in json.loads(line) for line in scalars.read_text().splitlines())


def test_the_table_of_precisions_has_ones_own_classes_also_in_a_folder_called_voc2007(own: Path) -> None:
    (own / "data/parts").rename(own / "data/VOC2007")
    cfg = config_of_the_page("detection", own, **SMALLEST["detection"])
    for dataset in (cfg.train_dataloader.dataset, cfg.val_dataloader.dataset, cfg.test_dataloader.dataset):
        dataset.data_root = f"{own}/data/"
        dataset.data_prefix.sub_data_root = "VOC2007/"
        dataset.ann_file = f"VOC2007/{dataset.ann_file}"
    loop = DataCheckingRunner.from_cfg(cfg).test_loop
    assert loop.dataloader.dataset.metainfo["dataset_type"] == "VOC2007"  # VOC's names are printed for this
    assert [metric.dataset_meta["dataset_type"] for metric in loop.evaluator.metrics] == [None]
    assert loop.evaluator.metrics[0].dataset_meta["classes"] == ("bolt", "nut")


def test_a_voc_config_with_other_metainfo_reads_masks_of_these_classes(own: Path) -> None:
    cfg = Config.fromfile(ROOT / "mm_configs/small/deeplabv3plus_rdpnet075_small.py")
    cfg.merge_from_dict({"work_dir": str(own / "work"), "experiment_name": own.name})
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = 3
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(own / "data/ground")
        loader.dataset.metainfo = dict(classes=("background", "grass", "road"))
    dataset = DataCheckingRunner.from_cfg(cfg).test_loop.dataloader.dataset
    assert dataset.metainfo["classes"] == ("background", "grass", "road") and len(dataset) == 2
    labels = dataset[0]["data_samples"].gt_sem_seg.data.unique().tolist()
    assert {1, 2} & set(labels) and set(labels) <= {0, 1, 2, 255}


def boxes(root: Path) -> Any:
    return detection(root / "data/parts", ("bolt", "nut"), (64, 64), 1)["train_dataloader"]["dataset"]


def masks(root: Path) -> Any:
    return segmentation(root / "data/ground", ("background", "grass", "road"), (64, 64), 1)["train_dataloader"][
        "dataset"
    ]


def first(root: Path, kind: str) -> str:
    return next((root / "data" / kind / "ImageSets").glob("*/train.txt")).read_text().split()[0]


def test_data_in_order_give_no_finding(own: Path) -> None:
    assert check_data(boxes(own)) == check_data(masks(own)) == ([], [])
    nested = dict(type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[boxes(own), masks(own)]))
    assert check_data(nested) == ([], [])


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("ImageSets/Main/train.txt", b"\n", r"list .*train.txt is empty"),
        ("ImageSets/Main/train.txt", None, r"list .*train.txt cannot be read"),
        ("Annotations/{}.xml", None, r"1 of 8 annotations: .*/Annotations/\S+\.xml is missing"),
        ("Annotations/{}.xml", b"", r"\.xml is not XML \(no element found: line 1, column 0\)"),
        ("Annotations/{}.xml", b"<annotation><object><name>nut</name></object></annotation>", r"without name or box"),
        ("JPEGImages/{}.jpg", None, r"1 of 8 pictures: .*/JPEGImages/\S+\.jpg is missing"),
        ("JPEGImages/{}.jpg", b"not a picture", r"\.jpg is no picture \(UnidentifiedImageError\)"),
        ("JPEGImages/{}.jpg", b"\xff\xd8\xff\xe0", r"\.jpg is no picture"),
    ],
)
def test_what_is_wrong_with_boxes_is_told_by_name(own: Path, file: str, content: Any, told: str) -> None:
    path = own / "data/parts" / file.format(first(own, "parts"))
    path.unlink() if content is None else path.write_bytes(content)
    errors, warnings = check_data(boxes(own))
    assert len(errors) == 1 and re.search(told, errors[0]) and not warnings, errors


def test_a_picture_under_another_suffix_is_pointed_at(own: Path) -> None:
    picture = own / "data/parts/JPEGImages" / f"{first(own, 'parts')}.jpg"
    picture.rename(picture.with_suffix(".png"))
    assert re.search(r"is missing \(there is \S+\.png: the config reads \.jpg\)", check_data(boxes(own)).errors[0])


def test_many_files_of_one_kind_are_counted_and_the_first_are_named(own: Path) -> None:
    shutil.rmtree(own / "data/parts/JPEGImages")
    (error,) = check_data(boxes(own)).errors
    assert error.startswith("8 of 8 pictures") and error.endswith("and 3 more") and error.count("is missing") == 5


@pytest.mark.parametrize("classes", [("bolts", "nut"), ("bolt", "nuts")])
def test_a_class_under_another_name_is_an_error_with_both_names(own: Path, classes: Any) -> None:
    (error,) = check_data({**boxes(own), "metainfo": dict(classes=classes)}).errors
    wrong = next(name for name in classes if name.endswith("s"))
    assert re.search(rf"are called '{wrong[:-1]}' \(\d+\), .* of its classes '{wrong}' there is no object", error)


def test_a_class_that_is_left_out_is_a_warning(own: Path) -> None:
    errors, (warning,) = check_data({**boxes(own), "metainfo": dict(classes=("nut",))})
    assert not errors and re.search(r"are called 'bolt' \(\d+\), .* they are left out", warning)


def damaged_mask(path: Path, kind: str) -> None:
    labels = np.asarray(Image.open(path)).copy()
    if kind == "label":
        labels[0, 0] = 7
        Image.fromarray(labels).save(path)
    elif kind == "colours":
        Image.fromarray(labels).convert("RGB").save(path)
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("label", r"1 of 8 masks looked through: \S+\.png has the labels \[7\], beside the 3 classes \(0 to 2\)"),
        ("colours", r"\.png is a picture in colours \(RGB\)"),
        ("cut off", r"\.png is cut off"),
        ("missing", r"1 of 8 masks: \S+\.png is missing"),
    ],
)
def test_what_is_wrong_with_masks_is_told_by_name(own: Path, kind: str, told: str) -> None:
    damaged_mask(own / "data/ground/SegmentationClass" / f"{first(own, 'ground')}.png", kind)
    errors, _ = check_data(masks(own))
    assert len(errors) == 1 and re.search(told, errors[0]), errors


def test_the_label_that_the_model_ignores_is_no_fault(own: Path) -> None:
    damaged_mask(own / "data/ground/SegmentationClass" / f"{first(own, 'ground')}.png", "label")
    assert check_data(masks(own), ignored_labels=[7]).errors == []


def test_the_runner_stops_before_it_builds_with_all_faults_and_the_layout_not_vocs_archives(own: Path) -> None:
    cfg = config_of_the_page("detection", own, **{"model.roi_head.bbox_head.num_classes": 20})
    (own / "data/parts/Annotations" / f"{first(own, 'parts')}.xml").write_text("")
    val = (own / "data/parts/ImageSets/Main/val.txt").read_text().split()[0]
    (own / "data/parts/JPEGImages" / f"{val}.jpg").unlink()
    with pytest.raises(ValueError) as error:
        DataCheckingRunner.from_cfg(cfg)
    for told in (
        f"{val}.jpg is missing",
        "model.roi_head.bbox_head.num_classes is 20, the data have 2 classes (bolt, nut)",
    ):
        assert told in str(error.value)
    assert "data_root" in str(error.value) and "robots.ox" not in str(error.value)
    assert not (own / "work_detection").exists()


@pytest.mark.parametrize("function", [detection, segmentation])
@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        (dict(classes="bolt"), TypeError, r'one class is \("bolt",\)'),
        (dict(classes=()), ValueError, "each once"),
        (dict(classes=("a", "a")), ValueError, "each once"),
        (dict(size=(320,)), ValueError, r"got \(320,\)"),
        (dict(size=(320, 16)), ValueError, "at least 32"),
        (dict(epochs=0), ValueError, "epochs must be .* got 0"),
        (dict(epochs=1.5), ValueError, "epochs must be .* got 1.5"),
        (dict(batch_size=0), ValueError, "batch_size must be .* got 0"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused(function: Any, wrong: Dict[str, Any], error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        function(**{**dict(folder="data", classes=("a", "b"), size=(64, 64), epochs=1), **wrong})


def test_masks_need_batches_of_two() -> None:
    with pytest.raises(ValueError, match="batch norm"):
        segmentation("data", ("a", "b"), (64, 64), 1, batch_size=1)
