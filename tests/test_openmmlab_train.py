"""`mim train`, `mim test`, `--resume` and two processes, as a user calls them, on a drawn sample."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("mim")

from rdpnet_timm.demo.sample_voc import make_sample_voc

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("openmmlab_train")]

CONFIGS = Path(__file__).parent.parent / "mm_configs" / "demo"
DETECTOR, SEGMENTOR = CONFIGS / "faster_rcnn_rdpnet075_sample.py", CONFIGS / "deeplabv3plus_rdpnet075_sample.py"
SMALL_DETECTOR = [
    "model.backbone.widen_factor=0.25",
    "model.neck.in_channels=[16,32,64,320]",
    "train_dataloader.dataset.dataset.indices=8",
    "val_dataloader.dataset.indices=4",
    "test_dataloader.dataset.indices=4",
    "default_hooks.checkpoint.interval=1",
    "train_cfg.val_interval=1",
]


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample_voc(tmp_path_factory.mktemp("sample"), images=45)


def mim(devkit: Path, command: str, *arguments: object, options: List[str]) -> str:
    """The output of a `mim` command on the sample; the run must succeed."""
    env = {**os.environ, "VOCDEVKIT": str(devkit), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "mim", command, *map(str, arguments), "--cfg-options", *options]
    done = subprocess.run(call, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def scalars(work: Path, key: str) -> List[float]:
    """All values that the runs in a work folder logged under ``key``, in their order."""
    lines = [line for log in sorted(work.glob("*/vis_data/scalars.json")) for line in log.read_text().splitlines()]
    return [entry[key] for entry in map(json.loads, lines) if key in entry]


def weights(checkpoint: Path) -> Dict[str, torch.Tensor]:
    import rdpnet_timm.openmmlab  # noqa: F401, the checkpoint's types

    return torch.load(checkpoint, weights_only=True)["state_dict"]


def test_a_detector_trains_resumes_and_is_tested(devkit: Path, tmp_path: Path) -> None:
    options = [*SMALL_DETECTOR, "train_cfg.max_epochs=1"]
    output = mim(devkit, "train", "mmdet", DETECTOR, "--work-dir", tmp_path, options=options)
    assert output.count("torchvision") == 1, "the stand-in announces itself once"
    found = re.search(r"backbone: ([\d.]+) M MACs before, ([\d.]+) M after, at 160x192; outputs differ", output)
    assert found and float(found[1]) > float(found[2])
    assert any("branches" in name for name in weights(tmp_path / "epoch_1.pth"))

    options = [*SMALL_DETECTOR, "train_cfg.max_epochs=2"]
    output = mim(devkit, "train", "mmdet", DETECTOR, "--work-dir", tmp_path, "--resume", options=options)
    assert "Epoch(train) [2]" in re.sub(" +", " ", output) and "Epoch(train) [1]" not in re.sub(" +", " ", output)
    assert len(scalars(tmp_path, "pascal_voc/mAP")) == 2

    checkpoint, work = tmp_path / "epoch_2.pth", tmp_path / "test"
    mim(devkit, "test", "mmdet", DETECTOR, "--checkpoint", checkpoint, "--work-dir", work, options=options)
    tested = [json.loads(log.read_text())["pascal_voc/mAP"] for log in work.glob("*/*.json")]
    assert tested == [pytest.approx(scalars(tmp_path, "pascal_voc/mAP")[-1], abs=1e-6)]


def test_a_detector_trains_on_two_processes(devkit: Path, tmp_path: Path) -> None:
    options = [*SMALL_DETECTOR, "train_cfg.max_epochs=1", "model.backbone.norm_cfg.type=SyncBN"]
    arguments = ("--work-dir", tmp_path, "--launcher", "pytorch", "--gpus", 2)
    output = mim(devkit, "train", "mmdet", DETECTOR, *arguments, options=options)
    assert "MMDistributedDataParallel" in output or "Distributed training: True" in output
    assert len(scalars(tmp_path, "pascal_voc/mAP")) == 1
    assert any("branches" in name for name in weights(tmp_path / "epoch_1.pth"))


def test_a_segmentor_trains(devkit: Path, tmp_path: Path) -> None:
    options = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2"]
    options += ["param_scheduler.0.end=1", "param_scheduler.1.begin=1"]  # the demo's warm-up alone is longer
    options += ["val_dataloader.dataset.indices=3", "default_hooks.checkpoint.interval=2"]
    output = mim(devkit, "train", "mmsegmentation", SEGMENTOR, "--work-dir", tmp_path, options=options)
    assert re.search(r"backbone: [\d.]+ M MACs before, [\d.]+ M after, at 96x128; outputs differ", output)
    assert len(scalars(tmp_path, "mIoU")) == 1
    assert any("branches" in name for name in weights(tmp_path / "iter_2.pth"))
