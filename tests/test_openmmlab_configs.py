"""The configs: they build, they say what the paper and OpenMMLab say, and missing data is the first thing they tell."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import List

import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from rdpnet_timm.demo.sample_voc import make_sample_voc
from rdpnet_timm.openmmlab.runner import DataCheckingRunner

FOLDER = Path(__file__).parent.parent / "mm_configs"
CONFIGS = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py") if path.parent.name != "_base_")
DETECTORS = [name for name in CONFIGS if "faster_rcnn" in name]
SEGMENTORS = [name for name in CONFIGS if "deeplabv3plus" in name]


def test_every_config_is_one_of_the_two_kinds() -> None:
    assert sorted(DETECTORS + SEGMENTORS) == CONFIGS
    assert {"faster_rcnn_rdpnet_voc.py", "faster_rcnn_rdpnet075_voc.py"} <= set(DETECTORS)
    assert {"deeplabv3plus_rdpnet_voc.py", "deeplabv3plus_rdpnet075_voc.py"} <= set(SEGMENTORS)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_builds_and_its_neck_takes_the_maps_of_its_backbone(name: str) -> None:
    cfg = Config.fromfile(FOLDER / name)
    init_default_scope("mmdet")
    from mmdet.registry import MODELS

    cfg.model.roi_head.bbox_head.fc_out_channels = 8  # the heads' sizes are not in question
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.randn(1, 3, 64, 64))
    assert [64 // map_.shape[-1] for map_ in maps] == [4, 8, 16, 32, 64]


@pytest.mark.parametrize("name", SEGMENTORS)
def test_a_segmentor_builds_with_output_stride_16_and_low_level_maps_of_stride_4(name: str) -> None:
    cfg = Config.fromfile(FOLDER / name)
    init_default_scope("mmseg")
    from mmseg.registry import MODELS

    cfg.merge_from_dict({"model.decode_head.channels": 16, "model.auxiliary_head.channels": 8})
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.randn(1, 3, 64, 64))
        logits = model.decode_head(maps)
    assert [64 // map_.shape[-1] for map_ in maps] == [4, 16, 16]
    assert logits.shape == (1, 11 if "camvid" in name else 21, 16, 16)


@pytest.mark.parametrize("name, width", [("faster_rcnn_rdpnet_voc.py", 1.25), ("faster_rcnn_rdpnet075_voc.py", 0.75)])
def test_the_detection_configs_are_those_of_the_paper(name: str, width: float) -> None:
    cfg = Config.fromfile(FOLDER / name)
    assert (cfg.model.backbone.type, cfg.model.backbone.widen_factor) == ("RDPNet", width)
    train = cfg.train_dataloader.dataset.dataset
    assert (train.ann_file, cfg.test_dataloader.dataset.ann_file) == (
        "VOC2007/ImageSets/Main/trainval.txt",
        "VOC2007/ImageSets/Main/test.txt",
    )
    evaluator = cfg.val_evaluator
    assert (evaluator.type, evaluator.metric, evaluator.eval_mode) == ("VOCMetric", "mAP", "11points")
    assert "ReparameterizeHook" in [hook.type for hook in cfg.custom_hooks]


@pytest.mark.parametrize(
    "name, width", [("deeplabv3plus_rdpnet_voc.py", 1.25), ("deeplabv3plus_rdpnet075_voc.py", 0.75)]
)
def test_the_segmentation_configs_are_those_of_the_paper(name: str, width: float) -> None:
    cfg = Config.fromfile(FOLDER / name)
    assert (cfg.model.backbone.type, cfg.model.backbone.widen_factor) == ("RDPNet", width)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.momentum, optimizer.lr) == ("SGD", 0.9, 0.01)
    assert cfg.param_scheduler[0].type == "PolyLR"
    assert cfg.train_dataloader.dataset.ann_file == "ImageSets/Segmentation/train.txt"
    assert cfg.test_dataloader.dataset.ann_file == "ImageSets/Segmentation/val.txt"
    assert cfg.val_evaluator.iou_metrics == ["mIoU"]


def test_the_augmented_set_is_added_to_the_training_pictures() -> None:
    cfg = Config.fromfile(FOLDER / "deeplabv3plus_rdpnet_vocaug.py")
    parts = cfg.train_dataloader.dataset.datasets
    assert [part.ann_file for part in parts] == ["ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/aug.txt"]
    assert [part.data_prefix.seg_map_path for part in parts] == ["SegmentationClass", "SegmentationClassAug"]


@pytest.mark.parametrize("runner", [DataCheckingRunner, Runner])  # mmsegmentation's test.py calls the latter
@pytest.mark.parametrize("name", ["faster_rcnn_rdpnet_voc.py", "deeplabv3plus_rdpnet_voc.py"])
def test_missing_data_is_told_first_with_path_layout_and_way_out(
    name: str, runner: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOCDEVKIT", str(tmp_path / "nowhere"))
    cfg = Config.fromfile(FOLDER / name)
    cfg.work_dir = str(tmp_path / "work")
    with pytest.raises(FileNotFoundError) as error:
        runner.from_cfg(cfg)
    for told in (str(tmp_path / "nowhere"), "VOCdevkit/VOC2012/{JPEGImages", "VOCDEVKIT=", "rdpnet sample-voc"):
        assert told in str(error.value)
    assert not (tmp_path / "work").exists()


def test_training_data_that_is_missing_beside_test_data_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devkit = make_sample_voc(tmp_path, images=45)
    monkeypatch.setenv("VOCDEVKIT", str(devkit))
    (devkit / "VOC2012/ImageSets/Segmentation/train.txt").unlink()
    cfg = Config.fromfile(FOLDER / "demo/deeplabv3plus_rdpnet075_sample.py")
    cfg.merge_from_dict({"work_dir": str(tmp_path / "work"), "model.backbone.widen_factor": 0.75})
    runner = DataCheckingRunner.from_cfg(cfg)
    with pytest.raises(FileNotFoundError, match=r"no data for the train_dataloader: there is no .*train\.txt"):
        runner.train()


def test_a_config_of_ones_own_starts_from_one_of_the_package(tmp_path: Path) -> None:
    code = "from mmengine.config import Config; print(Config.fromfile('mine.py').model.backbone.widen_factor)"
    (tmp_path / "mine.py").write_text('_base_ = "rdpnet_timm::small/faster_rcnn_rdpnet075_small.py"\n')
    command = [sys.executable, "-W", "ignore", "-c", f"from rdpnet_timm import autoload; autoload.install(); {code}"]
    path = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert result.stdout.strip() == "0.75", result.stderr


@pytest.mark.parametrize(
    ("device", "room", "processes", "expected"),
    [
        ("cpu", 4.0, 1, ["trained", "kept"]),
        ("cpu", 1.4, 1, ["trained", "goes back"]),
        ("cpu", 4.0, 3, ["trained", "goes back"]),
        ("cuda", 4.0, 1, ["trained"]),
    ],
)
def test_training_on_a_cpu_keeps_freed_memory_where_there_is_room(
    device: str, room: float, processes: int, expected: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rdpnet_timm.openmmlab import runner as module

    calls: List[str] = []
    monkeypatch.setenv("VOCDEVKIT", str(make_sample_voc(tmp_path, images=45)))
    monkeypatch.setattr(module, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(module, "peak_memory", lambda: 1000)
    monkeypatch.setattr(module, "memory", lambda: room * 1000)
    monkeypatch.setattr(module, "get_device", lambda: device)
    monkeypatch.setattr(module, "get_world_size", lambda: processes)
    monkeypatch.setattr(Runner, "train", lambda runner: calls.append("trained"))
    runner = object.__new__(DataCheckingRunner)
    runner.cfg = Config.fromfile(FOLDER / "demo/deeplabv3plus_rdpnet075_sample.py")
    runner._hooks = []
    runner.logger = SimpleNamespace(info=lambda text: calls.append(" ".join(text.split()[2:4])))
    runner.train()
    for step in range(2):
        runner.call_hook("after_train_iter", batch_idx=step)
    assert calls == expected
