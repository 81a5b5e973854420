"""A runner whose first step is to look for the data."""

import logging
from typing import Any, Dict, List

from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from ..allocator import keep_freed_memory, peak_memory
from ..measure.machine import memory
from .config_reading import class_counts, kind_of, known_classes, leaf_datasets, missing_data, named_classes
from .data_check import Findings, check_data

__all__ = ["DataCheckingRunner"]

VOC = """\
The official layout, as the archives of http://host.robots.ox.ac.uk/pascal/VOC/ unpack:
    VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}
    VOCdevkit/VOC2012/{JPEGImages,Annotations,ImageSets/Main,ImageSets/Segmentation,SegmentationClass}
(the augmented set adds VOC2012/SegmentationClassAug and ImageSets/Segmentation/aug.txt, see mmsegmentation's
tools/dataset_converters/voc_aug.py). Put it under ./data, or name the folder in the environment:
    VOCDEVKIT=/path/to/VOCdevkit
To try the configs without it, make a small drawn data set of the same layout:
    rdpnet sample-voc data"""

OWN = """\
The layout that is expected in data_root:
    JPEGImages/NAME.jpg, Annotations/NAME.xml, ImageSets/Main/{train,val}.txt                 for boxes
    JPEGImages/NAME.jpg, SegmentationClass/NAME.png, ImageSets/Segmentation/{train,val}.txt   for masks
docs/own_data.md has a config for either."""

LAST = "This is the error. A CalledProcessError of mim's below only says that there was one."


@RUNNERS.register_module()
class DataCheckingRunner(Runner):
    """mmengine's runner, which says what is wrong with the data before it builds anything (a config's ``runner_type``).

    Beside that, classes of one's own stay one's own: a segmentation config whose classes are not among VOC's reads
    masks that hold their numbers, and of other boxes than VOC's the table of average precisions has their names. On a
    CPU freed memory is kept for the next tensor where there is room, see
    :func:`rdpnet_timm.allocator.keep_freed_memory`.
    """

    @classmethod
    def from_cfg(cls, cfg: Any) -> "DataCheckingRunner":
        """Build from a config.

        Raises:
            FileNotFoundError: the data to evaluate on is missing, where it is the same in training and testing.
            ValueError: they are there and cannot be used, or the model has other classes.
        """
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            for dataset in leaf_datasets((cfg.get(name) or {}).get("dataset")):
                _take_own_classes(dataset)
        if _is_evaluated_on_the_same(cfg):
            _require_data(cfg, "test_dataloader")
        return super().from_cfg(cfg)

    def train(self) -> nn.Module:
        """Train.

        Raises:
            FileNotFoundError: data to train or validate on is missing.
            ValueError: they are there and cannot be used, or the model has other classes.
        """
        others = [] if _is_evaluated_on_the_same(self.cfg) else ["val_dataloader"]
        _require_data(self.cfg, "train_dataloader", *others)
        if get_device() == "cpu":
            self.register_hook(_KeepFreedMemory(), priority="LOWEST")
        return super().train()

    def test(self) -> Dict[str, float]:
        """Test.

        Raises:
            FileNotFoundError: data to test on is missing.
            ValueError: they are there and cannot be used, or the model has other classes.
        """
        if not _is_evaluated_on_the_same(self.cfg):
            _require_data(self.cfg, "test_dataloader")
        return super().test()

    def build_train_loop(self, loop: Any) -> Any:
        """Build the training's loop.

        Raises:
            ValueError: an epoch has no batch.
        """
        loop = super().build_train_loop(loop)
        if isinstance(loop, EpochBasedTrainLoop) and not len(loop.dataloader):
            raise ValueError(
                f"{len(loop.dataloader.dataset)} pictures to train on do not fill a batch of "
                f"{self.cfg.train_dataloader.batch_size}, and what does not fill one is left out (drop_last): set "
                f"train_dataloader.batch_size. {LAST}"
            )
        return loop


class _KeepFreedMemory(Hook):
    """Keep freed memory, once a step has shown how much that is, and if half as much again fits the machine.

    What is kept lies in pieces: a DeepLabV3+ at 512 pixels took 1.3 times the memory, and with a batch of 16, on 23 GB,
    the whole machine's.
    """

    def __init__(self) -> None:
        self.is_done = False

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Decide, after the first step."""
        if self.is_done:
            return
        self.is_done = True
        needed, there = 1.5 * peak_memory() * get_world_size(), memory()  # every process keeps as much
        if needed <= there:
            keep_freed_memory()
        else:
            runner.logger.info(
                f"freed memory goes back to the kernel: to keep it might take {needed / 2**30:.0f} GiB of "
                f"{there / 2**30:.0f}, and every step faults it in again (a smaller batch would not)"
            )


def _is_evaluated_on_the_same(cfg: Any) -> bool:
    """Whether validation and test have one dataset: then both need it, and it can be looked through at the start."""
    datasets = [(cfg.get(f"{name}_dataloader") or {}).get("dataset") for name in ("val", "test")]
    return datasets[0] == datasets[1]


def _take_own_classes(dataset: Dict[str, Any]) -> None:
    """Of VOC's data sets with other classes than VOC's: take them as boxes or masks of these."""
    classes, kind = named_classes(dataset), kind_of(dataset)
    if classes is None:
        return
    if kind == "VOCDataset" and classes != known_classes({"type": kind}):
        dataset["type"] = "mmdet.XMLDataset"  # of a folder called VOC2007 mmdet's table has VOC's names otherwise
    if kind == "PascalVOCDataset" and not set(classes) <= set(known_classes({"type": kind}) or ()):
        dataset["type"] = "mmseg.BaseSegDataset"
        dataset.setdefault("img_suffix", ".jpg")
        dataset.setdefault("seg_map_suffix", ".png")


def _require_data(cfg: Any, *dataloaders: str) -> None:
    for name in dataloaders:
        dataset = (cfg.get(name) or {}).get("dataset")
        parts = list(leaf_datasets(dataset))
        missing = missing_data(dataset)
        if missing:
            raise FileNotFoundError(
                f"no data for the {name}: there is no {', '.join(missing)}.\n{_advice(parts)}\n{LAST}"
            )
        ignored = {label for label in _values(cfg.get("model"), "ignore_index") if isinstance(label, int)}
        findings = check_data(dataset, ignored, name == "train_dataloader")
        _check_model(cfg, parts, findings)
        for warning in findings.warnings:
            print_log(f"{name}: {warning}", logger="current", level=logging.WARNING)
        if findings.errors:
            lines = "\n".join(f"- {error}" for error in findings.errors)
            raise ValueError(f"the data for the {name} cannot be used:\n{lines}\n{_advice(parts)}\n{LAST}")


def _check_model(cfg: Any, parts: List[Dict[str, Any]], findings: Findings) -> None:
    training = map(known_classes, leaf_datasets((cfg.get("train_dataloader") or {}).get("dataset")))
    learned = next((classes for classes in training if classes is not None), None)
    for dataset in parts:
        classes = known_classes(dataset)
        if classes is None:
            continue
        for head, count in class_counts(cfg.get("model")).items():
            if count != len(classes):
                found = f"{head}.num_classes is {count}, the data have {len(classes)} classes ({', '.join(classes)})"
                if named_classes(dataset) is None:
                    found += f", those of a {kind_of(dataset)} without metainfo=dict(classes=...)"
                findings.errors.append(found)
        if learned is not None and list(classes) != list(learned) and set(classes) == set(learned):
            findings.errors.append(
                f"the classes come as {', '.join(classes)}, and in the train_dataloader as {', '.join(learned)}: one "
                "would be taken for another"
            )
        return  # one message is enough


def _values(part: Any, key: str) -> List[Any]:
    if isinstance(part, (list, tuple)):
        return [value for item in part for value in _values(item, key)]
    if not isinstance(part, dict):
        return []
    return [*([part[key]] if key in part else []), *(value for item in part.values() for value in _values(item, key))]


def _advice(parts: List[Dict[str, Any]]) -> str:
    """How to get the data: VOC's archives where the config is VOC's, else the layout."""
    named = [f"{part.get('data_root')}{part.get('data_prefix')}{part.get('ann_file')}" for part in parts]
    own = any((part.get("metainfo") or {}).get("classes") is not None for part in parts)
    is_voc = any("VOC2007" in name or "VOC2012" in name for name in named) and not own
    return VOC if is_voc else OWN
