"""A runner whose first step is to look for the data."""

import os.path
from typing import Any, Dict, Iterator, List

from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

__all__ = ["DataCheckingRunner", "missing_data"]

LAYOUT = """\
The official layout, as the archives of http://host.robots.ox.ac.uk/pascal/VOC/ unpack:
    VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}
    VOCdevkit/VOC2012/{JPEGImages,Annotations,ImageSets/Main,ImageSets/Segmentation,SegmentationClass}
(the augmented set adds VOC2012/SegmentationClassAug and ImageSets/Segmentation/aug.txt, see mmsegmentation's
tools/dataset_converters/voc_aug.py). Put it under ./data, or name the folder in the environment:
    VOCDEVKIT=/path/to/VOCdevkit
To try the configs without it, make a small drawn data set of the same layout:
    rdpnet sample-voc data"""


@RUNNERS.register_module()
class DataCheckingRunner(Runner):
    """mmengine's runner, which says what is missing before it builds anything (``runner_type`` in a config)."""

    @classmethod
    def from_cfg(cls, cfg: Any) -> "DataCheckingRunner":
        """Build from a config.

        Raises:
            FileNotFoundError: the data to evaluate on is missing, which training and testing both need.
        """
        _require_data(cfg, "test_dataloader")
        return super().from_cfg(cfg)

    def train(self) -> nn.Module:
        """Train.

        Raises:
            FileNotFoundError: data to train or validate on is missing.
        """
        _require_data(self.cfg, "train_dataloader", "val_dataloader")
        return super().train()


def missing_data(dataset: Dict[str, Any]) -> List[str]:
    """Absolute paths that a dataset's config names and that do not exist; datasets in datasets included."""
    missing: List[str] = []
    for part in _leaf_datasets(dataset):
        root = part.get("data_root") or ""
        names = [part.get("ann_file", ""), *(part.get("data_prefix") or {}).values()]
        paths = [os.path.join(root, name) for name in names if isinstance(name, str) and name] or [root]
        missing += [os.path.abspath(path) for path in paths if path and "://" not in path and not os.path.exists(path)]
    return list(dict.fromkeys(missing))


def _leaf_datasets(dataset: Any) -> Iterator[Dict[str, Any]]:
    inner = [dataset["dataset"]] if "dataset" in dataset else dataset.get("datasets")
    if inner is None:
        yield dataset
    for part in inner or []:
        yield from _leaf_datasets(part)


def _require_data(cfg: Any, *dataloaders: str) -> None:
    for name in dataloaders:
        dataset = (cfg.get(name) or {}).get("dataset")
        missing = missing_data(dataset) if isinstance(dataset, (dict, Config, ConfigDict)) else []
        if missing:
            raise FileNotFoundError(f"no data for the {name}: there is no {', '.join(missing)}.\n{LAYOUT}")
