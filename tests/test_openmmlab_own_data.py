"""One's own pictures: the configs of docs/own_data.md work, and what is wrong with the data is told by name first."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import mmcv
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from rdpnet_timm.demo.sample_voc import VOC_CLASSES, make_sample_voc
from rdpnet_timm.openmmlab.config_reading import class_counts, named_classes
from rdpnet_timm.openmmlab.data_check import check_data
from rdpnet_timm.openmmlab.export import _class_names
from rdpnet_timm.openmmlab.own_data import detection, segmentation
from rdpnet_timm.openmmlab.runner import DataCheckingRunner, _require_data, _take_own_classes

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


def test_mmsegs_inferences_and_augmented_tests_see_the_size_that_is_trained_at(own: Path) -> None:
    from mmengine.dataset import Compose
    from mmseg.apis import inference_model, init_model
    from mmseg.utils import register_all_modules

    cfg = config_of_the_page("segmentation", own, **SMALLEST["segmentation"])
    register_all_modules()
    picture = str(own / "data/ground/JPEGImages" / f"{first(own, 'ground')}.jpg")
    Image.open(picture).resize((640, 480)).save(picture)
    assert inference_model(init_model(cfg, device="cpu"), picture).img_shape == (240, 320)
    assert len(cfg.test_dataloader.dataset.pipeline) == 4  # of the other the inference has taken LoadAnnotations out
    mask = dict(seg_map_path=picture.replace("JPEGImages", "SegmentationClass")[:-3] + "png")
    seen = Compose(cfg.tta_pipeline)(dict(img_path=picture, seg_fields=[], reduce_zero_label=False, **mask))["inputs"]
    assert [tuple(each.shape[1:]) for each in seen][:5:2] == [(120, 160), (180, 240), (240, 320)] and len(seen) == 12


@pytest.mark.parametrize("function", ["detection", "segmentation"])
def test_the_pipelines_of_their_own_name_are_those_of_the_data(own: Path, function: str) -> None:
    cfg = config_of_the_page(function, own)
    assert cfg.train_pipeline == cfg.train_dataloader.dataset.pipeline
    assert cfg.test_pipeline == cfg.val_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline


def test_the_table_of_precisions_has_ones_own_classes_also_in_a_folder_called_voc2007(own: Path) -> None:
    (own / "data/parts").rename(own / "data/VOC2007")
    cfg = config_of_the_page("detection", own, **SMALLEST["detection"])
    for dataset in (cfg.train_dataloader.dataset, cfg.val_dataloader.dataset, cfg.test_dataloader.dataset):
        dataset.type = "VOCDataset"
        dataset.data_root = f"{own}/data/"
        dataset.data_prefix.sub_data_root = "VOC2007/"
        dataset.ann_file = f"VOC2007/{dataset.ann_file}"
    given = build_dataset({**cfg.test_dataloader.dataset, "ann_file": f"{own}/data/{dataset.ann_file}"})
    assert given.metainfo["dataset_type"] == "VOC2007"  # VOC's names are printed for this
    (metric,) = DataCheckingRunner.from_cfg(cfg).test_loop.evaluator.metrics
    assert metric.dataset_meta["classes"] == ("bolt", "nut") and "dataset_type" not in metric.dataset_meta
    voc = dict(type="VOCDataset", metainfo=dict(classes=tuple(VOC_CLASSES)))
    _take_own_classes(voc)
    assert voc["type"] == "VOCDataset"


def test_boxes_of_more_classes_than_voc_has_can_be_drawn(own: Path) -> None:
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.structures import InstanceData

    classes = ("bolt", "nut", *map(str, range(20)))
    dataset = detection(own / "data/parts", classes, (64, 64), 1)["test_dataloader"]["dataset"]
    found = InstanceData(bboxes=np.array([[8.0, 8, 40, 40]]), labels=np.array([21]), scores=np.ones(1))
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = build_dataset(dataset).metainfo
    visualizer.add_datasample(
        "one", np.zeros((64, 64, 3), np.uint8), DetDataSample(pred_instances=found), draw_gt=False
    )
    assert visualizer.get_image().any()


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


def xml(name: str = "<name>nut</name>", box: Any = (10, 20, 60, 80), size: Any = (256, 192), more: str = "") -> bytes:
    corners = "".join(f"<{side}>{at}</{side}>" for side, at in zip(("xmin", "ymin", "xmax", "ymax"), box or ()))
    inner = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>{inner}<object>{name}{more}<bndbox>{corners}</bndbox></object></annotation>".encode()


def build_dataset(cfg: Any) -> Any:
    """As mmdet or mmseg builds it, without what is done to the pictures."""
    import mmdet.datasets
    import mmseg.datasets

    kind = getattr(mmdet.datasets, cfg["type"], None) or getattr(mmseg.datasets, cfg["type"])
    others = {name: value for name, value in cfg.items() if name not in ("type", "_delete_", "pipeline")}
    return kind(**others, pipeline=[])


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
        ("ImageSets/Main/train.txt", b"a\n\nb\n", r"line 2 of the list .*train.txt is empty"),
        ("Annotations/{}.xml", xml(box=None), r"has none for <xmin>, and mmdet reads a number there"),
        ("Annotations/{}.xml", xml(box=(1, 1, "nan", 9)), r"has 'nan' for <xmax>"),
        ("Annotations/{}.xml", xml(box=(1, 1, "", 9)), r"has '' for <xmax>"),
        ("Annotations/{}.xml", xml(name=""), r"has an object without <name>"),
        ("Annotations/{}.xml", xml(more="<difficult>Unspecified</difficult>"), r"has 'Unspecified' for <difficult>"),
        ("Annotations/{}.xml", xml(more="<difficult></difficult>"), r"has '' for <difficult>"),
        ("Annotations/{}.xml", xml(size=("256.0", 192)), r"has '256.0' for <width>"),
        ("JPEGImages/{}.jpg", None, r"1 of 8 pictures: .*/JPEGImages/\S+\.jpg is missing"),
        ("JPEGImages/{}.jpg", b"not a picture", r"\.jpg is no picture \(UnidentifiedImageError\)"),
        ("JPEGImages/{}.jpg", b"\xff\xd8\xff\xe0", r"\.jpg is no picture"),
    ],
)
def test_what_is_wrong_with_boxes_is_told_by_name(own: Path, file: str, content: Any, told: str) -> None:
    path = own / "data/parts" / file.format(first(own, "parts"))
    path.unlink() if content is None else path.write_bytes(content)
    errors, warnings = check_data(boxes(own))
    assert any(re.search(told, error) for error in errors) and not warnings, errors
    assert len(errors) == 1 or file.endswith("train.txt")
    if file.startswith("Annotations"):
        with pytest.raises((AttributeError, ElementTree.ParseError, OSError, TypeError, ValueError)):
            build_dataset(boxes(own))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (dict(box=(60, 60, 20, 20)), r"1 of 8 annotations have boxes of no size, or with their corners the wrong way"),
        (dict(box=(0.1, 0.2, 0.5, 0.6)), r"have boxes of no size"),
        (dict(box=(200, 20, 300, 90)), r"1 of 8 annotations have boxes that reach beyond their picture: .*\.xml$"),
        (
            dict(size=(512, 384)),
            r"another size than the picture has, .*: .*\.xml says 512 x 384, the picture has 256 x 192",
        ),
    ],
    ids=str,
)
def test_boxes_that_mmdet_takes_as_they_are_are_a_warning(own: Path, content: Any, told: str) -> None:
    (own / "data/parts/Annotations" / f"{first(own, 'parts')}.xml").write_bytes(xml(**content))
    errors, (warning,) = check_data(boxes(own))
    assert not errors and re.search(told, warning), warning
    assert len(build_dataset(boxes(own))) == 8


def test_what_mmdets_filter_leaves_out_is_a_warning_and_nothing_left_an_error(own: Path) -> None:
    path = own / "data/parts/Annotations" / f"{first(own, 'parts')}.xml"
    path.write_bytes(xml(box=(11, 21, 31, 41), size=(256, 20)))

    def warnings(**others: Any) -> Any:
        errors, found = check_data({**boxes(own), **others})
        return [] if errors else [warning for warning in found if "another size" not in warning]

    assert warnings(filter_cfg=dict(bbox_min_size=20, min_size=20)) == []
    for name, told, kept in (
        ("bbox_min_size", "have boxes with a side below filter_cfg.bbox_min_size=21, which are left out", (8, 1)),
        ("min_size", "give a picture a side below filter_cfg.min_size=21, and it is left out", (7, 0)),
    ):
        built = build_dataset({**boxes(own), "filter_cfg": {name: 21}})
        assert (len(built), built.get_data_info(0)["instances"][0]["ignore_flag"]) == kept
        assert warnings(filter_cfg={name: 21}) == [f"1 of 8 annotations {told}: {path}"]
        assert warnings(filter_cfg={name: 21}, test_mode=True) == []
        (error,) = check_data({**boxes(own), "filter_cfg": {name: 300}}).errors
        assert "there is no object in" in error and error.endswith("no crowd and not left out")


def test_a_folder_that_mmdet_does_not_look_into_is_told(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = boxes(own)
    del dataset["data_prefix"]
    (error,) = check_data(dataset).errors
    assert error.endswith("set data_prefix=dict(sub_data_root='')")
    with pytest.raises(FileNotFoundError):
        build_dataset(dataset)
    monkeypatch.chdir(own / "data/parts")
    assert check_data(dataset) == ([], []) and len(build_dataset(dataset)) == 8
    dataset = coco(own, data_prefix=dict(img_path="JPEGImages"))
    (error,) = check_data(dataset).errors
    assert "data_prefix has no img" in error
    with pytest.raises(KeyError):
        build_dataset(dataset)


@pytest.mark.parametrize("what", ["nothing", "difficult", "fractions"])
def test_no_object_to_train_on_is_an_error_and_none_to_test_on_a_warning(own: Path, what: str) -> None:
    contents = dict(
        nothing=b"<annotation/>",
        difficult=xml(more="<difficult>1</difficult>"),
        fractions=xml(box=(0.1, 0.2, 0.5, 0.6)),
    )
    for path in (own / "data/parts/Annotations").iterdir():
        path.write_bytes(contents[what])
    (error,) = check_data(boxes(own)).errors
    assert re.search(r"no object in .*train.txt to train on", error)
    errors, warnings = check_data(boxes(own), is_training=False)
    assert not errors and warnings[-1] == error


def test_what_is_in_an_object_of_another_class_is_not_looked_at_as_in_mmdet(own: Path) -> None:
    path = own / "data/parts/Annotations" / f"{first(own, 'parts')}.xml"
    path.write_bytes(xml(name="<name>washer</name>", box=("nan", 1, 1, 1)))
    errors, (other, empty) = check_data(boxes(own))
    assert not errors and "'washer' (1)" in other
    assert re.search(rf"^1 of 8 annotations have no object .* left out \(filter_cfg.filter_empty_gt\): {path}$", empty)
    assert len(build_dataset(boxes(own))) == 7
    kept = {**boxes(own), "filter_cfg": dict(bbox_min_size=1)}
    assert check_data(kept) == ([], [other]) and len(build_dataset(kept)) == 8


def test_a_dataset_by_its_class_is_looked_through_as_by_its_name(own: Path) -> None:
    from mmdet.datasets import CocoDataset, XMLDataset
    from mmseg.datasets import BaseSegDataset, PascalVOCDataset

    shutil.rmtree(own / "data/parts/JPEGImages")
    shutil.rmtree(own / "data/ground/JPEGImages")
    for dataset, kind in ((boxes(own), XMLDataset), (coco(own), CocoDataset), (masks(own), BaseSegDataset)):
        found = check_data(dataset)
        assert found.errors and check_data({**dataset, "type": kind}) == found
    dataset = {**masks(own), "type": PascalVOCDataset}
    _take_own_classes(dataset)
    assert dataset["type"] == "mmseg.BaseSegDataset"


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


def test_a_class_without_an_object_is_a_warning(own: Path) -> None:
    errors, (warning,) = check_data({**boxes(own), "metainfo": dict(classes=("bolt", "nut", "washer"))})
    assert not errors and re.search(r"in .*train\.txt there is no object of the classes 'washer'$", warning)


def test_a_class_that_is_left_out_is_a_warning(own: Path) -> None:
    dataset = {**boxes(own), "metainfo": dict(classes=("nut",)), "filter_cfg": None}
    errors, (warning,) = check_data(dataset)
    assert not errors and re.search(r"are called 'bolt' \(\d+\), .* they are left out", warning)


def damaged_mask(path: Path, kind: str) -> None:
    labels = np.asarray(Image.open(path)).copy()
    if kind == "label":
        labels[0, 0] = 7
        Image.fromarray(labels).save(path)
    elif kind == "colours":
        Image.fromarray(labels).convert("RGB").save(path)
    elif kind == "turned":
        Image.fromarray(labels.T.copy()).save(path)
    elif kind == "halved":
        Image.fromarray(labels[::2, ::2].copy()).save(path)
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
        ("turned", r"1 of 8 masks have another size .*: \S+\.png has 192 x 256, the picture 256 x 192$"),
        ("halved", r"\.png has 128 x 96, the picture 256 x 192$"),
    ],
)
def test_what_is_wrong_with_masks_is_told_by_name(own: Path, kind: str, told: str) -> None:
    damaged_mask(own / "data/ground/SegmentationClass" / f"{first(own, 'ground')}.png", kind)
    errors, _ = check_data(masks(own))
    assert len(errors) == 1 and re.search(told, errors[0]), errors


def relabelled(root: Path, numbers: Dict[int, int]) -> None:
    for path in (root / "data/ground/SegmentationClass").iterdir():
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.vectorize(lambda label: numbers.get(label, label))(labels).astype(np.uint8)).save(path)


def test_masks_of_one_label_and_255_are_an_error_for_training_and_a_warning_else(own: Path) -> None:
    relabelled(own, {1: 255, 2: 255})
    (error,) = check_data(masks(own)).errors
    assert re.search(r"nothing to tell apart: in the 8 masks .* no pixel is 'grass' \(1\), 'road' \(2\);", error)
    assert error.endswith("their labels are [0, 255], and 255 is no class, it is left out: a mask of 0 and 255 needs "
                          "another number for 255")  # fmt: skip
    errors, (warning,) = check_data(masks(own), is_training=False)
    assert not errors and error.endswith(warning)
    dataset = {**masks(own), "metainfo": dict(classes=("road",))}
    (error,) = check_data(dataset).errors  # its loss is 0, whatever the network says
    assert "masks looked through there is no second class; their labels are [0, 255]" in error
    assert check_data(dataset, is_training=False) == ([], [])
    relabelled(own, {255: 0})
    assert check_data(masks(own)).errors[0].endswith("their labels are [0]")


def test_a_class_without_a_pixel_is_a_warning(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relabelled(own, {2: 1})
    errors, (warning,) = check_data(masks(own))
    assert not errors and warning.startswith("in the 8 masks looked through no pixel is 'road' (2); their labels are [")
    assert check_data(masks(own), ignored_labels=[2]) == ([], [])
    relabelled(own, {1: 0, 255: 0})
    monkeypatch.setattr("rdpnet_timm.openmmlab.data_check.MASKS", 4)  # the others may have it
    errors, (warning,) = check_data(masks(own))
    assert not errors and warning.startswith("in the 4 masks looked through")


def test_a_part_of_vocs_classes_has_vocs_numbers(own: Path) -> None:
    dataset = {**masks(own), "type": "PascalVOCDataset", "metainfo": dict(classes=("background", "cat", "dog"))}
    (error,) = check_data(dataset).errors
    assert "no pixel is 'cat' (8), 'dog' (12)" in error and error.endswith("are a BaseSegDataset")
    relabelled(own, {1: 8, 2: 12})
    assert check_data(dataset) == ([], [])
    built = build_dataset({**dataset, "ann_file": str(own / "data/ground" / dataset["ann_file"])})
    assert {8: 1, 12: 2}.items() <= built.label_map.items()


def test_a_picture_has_the_size_that_it_is_read_with(own: Path) -> None:
    name = first(own, "ground")
    path = own / "data/ground/JPEGImages" / f"{name}.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright
    Image.open(path).save(path, exif=exif)
    (error,) = check_data(masks(own)).errors
    assert "has 256 x 192, the picture 192 x 256" in error
    assert mmcv.imread(str(path)).shape == (256, 192, 3)
    as_it_lies = [dict(type="LoadImageFromFile", color_type="color_ignore_orientation")]
    assert check_data({**masks(own), "pipeline": as_it_lies}).errors == []
    damaged_mask(own / "data/ground/SegmentationClass" / f"{name}.png", "turned")
    assert check_data(masks(own)).errors == []


def test_pictures_without_masks_can_be_tried_on_but_not_trained_on(own: Path) -> None:
    dataset = masks(own)
    shutil.rmtree(own / "data/ground/SegmentationClass")
    dataset["data_prefix"].pop("seg_map_path")
    (error,) = check_data(dataset).errors
    assert "data_prefix has no seg_map_path" in error
    dataset["pipeline"] = [step for step in dataset["pipeline"] if step["type"] != "LoadAnnotations"]
    assert check_data(dataset) == ([], []) and len(build_dataset(dataset)) == 8


def test_classes_are_read_from_a_file_as_mmengine_does(own: Path) -> None:
    file = own / "classes.txt"
    file.write_text("bolt\nnut\n")
    dataset = {**boxes(own), "metainfo": dict(classes=str(file))}
    assert check_data(dataset) == ([], [])
    assert list(named_classes(dataset) or ()) == build_dataset(dataset).metainfo["classes"] == ["bolt", "nut"]
    cfg = config_of_the_page("detection", own)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.metainfo.classes = str(file)
    _require_data(cfg, "train_dataloader", "test_dataloader")
    detector = SimpleNamespace(roi_head=SimpleNamespace(bbox_head=SimpleNamespace(num_classes=2)))
    assert _class_names(detector, cfg, None) == ["bolt", "nut"]  # an export's
    cfg.model.roi_head.bbox_head.num_classes = 4
    with pytest.raises(ValueError, match=r"num_classes is 4, the data have 2 classes \(bolt, nut\)"):
        _require_data(cfg, "train_dataloader")
    with pytest.raises(ValueError, match=r"the string 'bolt', .* one class is \('bolt',\)"):
        check_data({**boxes(own), "metainfo": dict(classes="bolt")})
    with pytest.raises(ValueError, match="a set has another order in each run"):
        check_data({**boxes(own), "metainfo": dict(classes={"bolt", "nut"})})
    voc = dict(type="PascalVOCDataset", metainfo=dict(classes=str(file)))
    _take_own_classes(voc)
    assert voc["type"] == "mmseg.BaseSegDataset"


def test_heads_of_ones_own_number_need_classes_in_the_metainfo(own: Path) -> None:
    dataset = {**masks(own), "type": "PascalVOCDataset"}
    cfg = dict(train_dataloader=dict(dataset=dataset), model=dict(decode_head=dict(num_classes=3)))
    del dataset["metainfo"]
    with pytest.raises(ValueError, match=r"num_classes is 3, .* 21 classes .*, those of a PascalVOCDataset"):
        _require_data(cfg, "train_dataloader")
    cfg["model"]["decode_head"]["num_classes"] = 21
    _require_data(cfg, "train_dataloader")


def test_classes_in_another_order_than_in_training_are_an_error(own: Path) -> None:
    cfg = config_of_the_page("detection", own)
    cfg.val_dataloader.dataset.metainfo.classes = ("nut", "bolt")
    _require_data(cfg, "train_dataloader", "test_dataloader")
    with pytest.raises(ValueError, match="come as nut, bolt, and in the train_dataloader as bolt, nut"):
        _require_data(cfg, "val_dataloader")


def test_a_head_for_borders_has_two_classes_of_its_own() -> None:
    border = dict(type="STDCHead", num_classes=2, boundary_threshold=0.1)
    model = dict(decode_head=dict(num_classes=3), auxiliary_head=[dict(type="FCNHead", num_classes=4), border])
    assert class_counts(model) == {"model.decode_head": 3, "model.auxiliary_head[0]": 4}


def coco(root: Path, categories: Any = ("bolt", "nut"), **others: Any) -> Any:
    """data/parts in COCO's layout, its categories numbered from 1."""
    folder, images, objects = root / "data/parts", [], []
    for number, name in enumerate((folder / "ImageSets/Main/train.txt").read_text().split()):
        images.append(dict(id=number, file_name=f"{name}.jpg", width=256, height=192))
        for thing in ElementTree.parse(folder / "Annotations" / f"{name}.xml").iter("object"):
            kind = 1 + ("bolt", "nut").index(thing.findtext("name", ""))
            about = dict(id=len(objects), image_id=number, category_id=kind, area=400, iscrowd=0)
            objects.append(dict(**about, bbox=[10, 10, 20, 20]))
    listed = [dict(id=number, name=name) for number, name in enumerate(categories, 1)]
    (root / "coco.json").write_text(json.dumps(dict(images=images, annotations=objects, categories=listed)))
    prefix, classes = dict(img=f"{folder}/JPEGImages/"), dict(classes=("bolt", "nut"))
    return {
        **dict(type="CocoDataset", ann_file=str(root / "coco.json"), data_prefix=prefix, metainfo=classes),
        **dict(filter_cfg=dict(filter_empty_gt=True, min_size=32)),
        **others,
    }


def test_boxes_in_cocos_layout_are_looked_through_too(own: Path) -> None:
    assert check_data(coco(own)) == ([], []) and len(build_dataset(coco(own))) == 8
    errors = check_data(coco(own, ("bolts", "nuts"))).errors
    assert re.search(r"has no category 'bolt', 'nut', .* its others are 'bolts', 'nuts'$", errors[0])
    assert re.search(r"no object in .*coco\.json to train on", errors[1]) and len(errors) == 2
    with pytest.raises(ValueError, match="need at least one array"):
        build_dataset(coco(own, ("bolts", "nuts")))
    errors, (warning,) = check_data(coco(own, ("nut", "bolt")))
    assert not errors and "come as 'nut', 'bolt'" in warning
    assert build_dataset(coco(own, ("nut", "bolt"))).cat2label == {1: 0, 2: 1}  # a nut by the name of a bolt
    picture = own / "data/parts/JPEGImages" / f"{first(own, 'parts')}.jpg"
    picture.unlink()
    assert check_data(coco(own)).errors == [f"1 of 8 pictures: {picture} is missing"]
    dataset = coco(own)
    (own / "coco.json").write_text("[]")
    (error,) = check_data(dataset).errors
    assert "coco.json is no annotation of COCO's kind" in error


@pytest.mark.parametrize(
    ("change", "kept", "error", "warning"),
    [
        (dict(bbox=None), 1, r"1 of 8 annotations: \S+\.jpg has an object with the bbox None and the area 400", None),
        (dict(area=None), 1, r"has an object with the bbox \[10, 10, 20, 20\] and the area None", None),
        (dict(category_id=3), 1, None, r"are called 'number 3' \(1\), .* they are left out"),
        (dict(image_id=77), 1, None, r"1 of 9 ids .* are of no image there: image_id 77"),
        (dict(bbox=[200, 10, 90, 20]), 1, None, r"1 of 8 annotations have boxes that reach beyond .*: \S+\.jpg$"),
        (dict(bbox=[30, 30, -20, -20]), 1, None, r"1 of 8 annotations have boxes of no size"),
        (dict(area=0), 1, None, r"1 of 8 annotations have boxes of no size"),
        (dict(category_id=1), 0, None, r"in .*coco\.json there is no object of the classes 'nut'"),
        (dict(area=0), 0, r"no object in .*coco\.json to train on", r"8 of 8 annotations have boxes of no size"),
        (dict(iscrowd=1), 0, r"no object in .*coco\.json to train on", None),
    ],
    ids=str,
)
def test_what_is_wrong_with_boxes_in_cocos_layout_is_told(
    own: Path, change: Dict[str, Any], kept: int, error: Any, warning: Any
) -> None:
    """``kept`` is 0 where all objects are changed, 1 where it is the last."""
    dataset = coco(own)
    content = json.loads((own / "coco.json").read_text())
    for thing in content["annotations"][-kept:]:
        thing.update(change)
    content["annotations"] = [
        {name: value for name, value in thing.items() if value is not None} for thing in content["annotations"]
    ]
    (own / "coco.json").write_text(json.dumps(content))
    found = check_data(dataset)
    for told, texts in ((error, found.errors), (warning, found.warnings)):
        assert len(texts) == (told is not None) and (told is None or re.search(told, texts[0])), found
    if error and kept:
        with pytest.raises((KeyError, TypeError, ValueError)):
            build_dataset(dataset)


def test_training_does_not_ask_for_test_data_of_its_own_nor_testing_for_training_data(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: List[str] = []
    for name in ("train", "test"):
        monkeypatch.setattr(Runner, name, lambda runner, name=name: called.append(name))
    cfg = config_of_the_page("detection", own, **SMALLEST["detection"])
    cfg.test_dataloader.dataset.ann_file = "ImageSets/Main/elsewhere.txt"
    runner = DataCheckingRunner.from_cfg(cfg)
    runner.train()
    with pytest.raises(FileNotFoundError, match=r"no data for the test_dataloader: there is no .*elsewhere\.txt"):
        runner.test()
    (own / "data/parts/ImageSets/Main/train.txt").rename(own / "data/parts/ImageSets/Main/elsewhere.txt")
    runner.test()
    with pytest.raises(FileNotFoundError, match="no data for the train_dataloader"):
        runner.train()
    assert called == ["train", "test"]


@pytest.mark.slow
def test_pictures_that_fill_no_batch_are_told_with_both_numbers(own: Path) -> None:
    (own / "data/ground/ImageSets/Segmentation/train.txt").write_text(f"{first(own, 'ground')}\n")
    runner = DataCheckingRunner.from_cfg(config_of_the_page("segmentation", own, **SMALLEST["segmentation"]))
    with pytest.raises(ValueError, match=r"^1 pictures to train on do not fill a batch of 4"):
        runner.train()


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
        (dict(classes={"a"}), TypeError, "a set has another order in each run"),
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


def test_masks_need_batches_of_two_and_a_second_class() -> None:
    with pytest.raises(ValueError, match="batch norm"):
        segmentation("data", ("a", "b"), (64, 64), 1, batch_size=1)
    with pytest.raises(ValueError, match=r'got \(\'road\',\): .* \("background", "road"\)'):
        segmentation("data", ("road",), (64, 64), 1)


def test_one_head_can_be_changed_without_the_other() -> None:
    model = segmentation("data", ("a", "b"), (64, 64), 1)["model"]
    model["decode_head"].update(in_channels=320)
    assert model["auxiliary_head"] == dict(num_classes=2)
