"""What a config says of its datasets, their classes, and the classes of its heads."""

import importlib
import os.path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file

__all__ = [
    "MASK_KINDS",
    "XML_KINDS",
    "class_counts",
    "kind_of",
    "known_classes",
    "leaf_datasets",
    "missing_data",
    "named_classes",
    "type_classes",
]

XML_KINDS = ("VOCDataset", "XMLDataset")
MASK_KINDS = ("PascalVOCDataset", "BaseSegDataset")


def leaf_datasets(dataset: Any) -> Iterator[Dict[str, Any]]:
    """The datasets of a config that are not made of others."""
    if not isinstance(dataset, (dict, Config, ConfigDict)):
        return
    inner = [dataset["dataset"]] if "dataset" in dataset else dataset.get("datasets")
    if inner is None:
        yield dataset
    for part in inner or []:
        yield from leaf_datasets(part)


def missing_data(dataset: Any) -> List[str]:
    """Absolute paths that a dataset's config names and that do not exist; datasets in datasets included."""
    missing: List[str] = []
    for part in leaf_datasets(dataset):
        root = part.get("data_root") or ""
        names = [part.get("ann_file", ""), *(part.get("data_prefix") or {}).values()]
        paths = [os.path.join(root, name) for name in names if isinstance(name, str) and name] or [root]
        missing += [os.path.abspath(path) for path in paths if path and "://" not in path and not os.path.exists(path)]
    return list(dict.fromkeys(missing))


def kind_of(part: Dict[str, Any]) -> str:
    """The name of a config's ``type`` without its scope; in mmengine's new style that is a class or a function."""
    kind = part.get("type", "")
    return str(getattr(kind, "__name__", kind)).rsplit(".", 1)[-1]


def named_classes(dataset: Dict[str, Any]) -> Optional[Tuple[str, ...]]:
    """The classes that a dataset's ``metainfo`` names; a string is the name of a file of them, as mmengine reads it.

    Raises:
        ValueError: there is no such file, or the classes are a set.
    """
    named = (dataset.get("metainfo") or {}).get("classes")
    if isinstance(named, (set, frozenset)):  # the training and the test would number them each in its own way
        raise ValueError(f"metainfo.classes is {named}, and a set has another order in each run: give a tuple of names")
    if not isinstance(named, str):
        return None if named is None else tuple(named)
    try:
        return tuple(list_from_file(named))
    except FileNotFoundError:
        raise ValueError(
            f"metainfo.classes is the string '{named}', and there is no file of this name: give a file with a class a "
            f"line, or a tuple of names; one class is ('{named}',)"
        ) from None


def known_classes(part: Dict[str, Any]) -> Optional[Sequence[str]]:
    """The classes that a dataset's ``metainfo`` names, else those that its type has; None where they are not known."""
    named = named_classes(part)
    return (type_classes(part) or None) if named is None else named


def type_classes(part: Dict[str, Any]) -> Sequence[str]:
    """The classes that a type of dataset has by itself, of the types that are looked through here."""
    kind = kind_of(part)
    if kind not in (*XML_KINDS, "CocoDataset", *MASK_KINDS):
        return ()
    package = "mmseg" if kind in MASK_KINDS else "mmdet"
    return getattr(importlib.import_module(f"{package}.datasets"), kind).METAINFO.get("classes", ())


def class_counts(model: Any, heads: Sequence[str] = ("bbox_head", "decode_head", "auxiliary_head")) -> Dict[str, int]:
    """The ``num_classes`` of the heads in a model's config, by where they stand; without mmseg's for borders."""
    found: Dict[str, int] = {}

    def walk(part: Any, path: str) -> None:
        if isinstance(part, (list, tuple)):
            for index, item in enumerate(part):
                walk(item, f"{path}[{index}]")
        elif isinstance(part, dict):
            if (
                path.split(".")[-1].split("[")[0] in heads
                and kind_of(part) != "STDCHead"
                and isinstance(part.get("num_classes"), int)
            ):
                found[path] = part["num_classes"]
            for name, item in part.items():
                walk(item, f"{path}.{name}")

    walk(model, "model")
    return found
