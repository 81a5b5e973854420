"""Lists, annotations, masks and pictures of a config's data, looked through before the first iteration."""

import os.path
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set
from xml.etree import ElementTree

import numpy as np
from mmengine.config import Config, ConfigDict

__all__ = ["Findings", "check_data", "class_counts", "leaf_datasets", "missing_data"]

SHOWN = 5  # of files of one kind, in a message
MASKS = 200  # looked through at most: their pixels have to be decoded


class Findings(NamedTuple):
    """What is wrong with the data, and what may be meant as it is; both empty where all is well."""

    errors: List[str]
    warnings: List[str]


def missing_data(dataset: Any) -> List[str]:
    """Absolute paths that a dataset's config names and that do not exist; datasets in datasets included."""
    missing: List[str] = []
    for part in leaf_datasets(dataset):
        root = part.get("data_root") or ""
        names = [part.get("ann_file", ""), *(part.get("data_prefix") or {}).values()]
        paths = [os.path.join(root, name) for name in names if isinstance(name, str) and name] or [root]
        missing += [os.path.abspath(path) for path in paths if path and "://" not in path and not os.path.exists(path)]
    return list(dict.fromkeys(missing))


def leaf_datasets(dataset: Any) -> Iterator[Dict[str, Any]]:
    """The datasets of a config that are not made of others."""
    if not isinstance(dataset, (dict, Config, ConfigDict)):
        return
    inner = [dataset["dataset"]] if "dataset" in dataset else dataset.get("datasets")
    if inner is None:
        yield dataset
    for part in inner or []:
        yield from leaf_datasets(part)


def check_data(dataset: Any, ignored_labels: Iterable[int] = ()) -> Findings:
    """Look through what a dataset's config names: boxes in VOC's layout, or masks; other kinds are not looked into.

    Every list, every XML file and the header of every picture is read, and the pixels of up to 200 masks, evenly
    spread.

    Args:
        dataset: the config of a dataset, or of one made of others.
        ignored_labels: of masks, beside 255.
    """
    findings = Findings([], [])
    for part in leaf_datasets(dataset):
        kind = str(part.get("type", "")).split(".")[-1]
        if "://" in str(part.get("data_root") or ""):
            continue
        if kind in ("VOCDataset", "XMLDataset"):
            _check_boxes(part, findings)
        elif kind in ("PascalVOCDataset", "BaseSegDataset"):
            _check_masks(part, {255, *ignored_labels}, findings)
    return findings


def class_counts(model: Any, heads: Sequence[str] = ("bbox_head", "decode_head", "auxiliary_head")) -> Dict[str, int]:
    """The ``num_classes`` of the heads in a model's config, by where they stand."""
    found: Dict[str, int] = {}

    def walk(part: Any, path: str) -> None:
        if isinstance(part, (list, tuple)):
            for index, item in enumerate(part):
                walk(item, f"{path}[{index}]")
        elif isinstance(part, dict):
            if path.split(".")[-1].split("[")[0] in heads and isinstance(part.get("num_classes"), int):
                found[path] = part["num_classes"]
            for name, item in part.items():
                walk(item, f"{path}.{name}")

    walk(model, "model")
    return found


def _classes(part: Dict[str, Any]) -> Optional[Sequence[str]]:
    named = (part.get("metainfo") or {}).get("classes")
    if named is not None:
        return tuple(named) if not isinstance(named, str) else (named,)
    if str(part.get("type", "")).endswith("PascalVOCDataset"):
        from mmseg.datasets import PascalVOCDataset

        return PascalVOCDataset.METAINFO["classes"]
    if str(part.get("type", "")).endswith("VOCDataset"):
        from mmdet.datasets import VOCDataset

        return VOCDataset.METAINFO["classes"]
    return None


def _names(path: str, findings: Findings) -> List[str]:
    """The names in a list, an empty or unreadable one being found wrong."""
    try:
        names = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        findings.errors.append(f"the list {os.path.abspath(path)} cannot be read: {error}")
        return []
    if not names:
        findings.errors.append(f"the list {os.path.abspath(path)} is empty: expected a picture's name a line")
    return names


def _join(part: Dict[str, Any], *parts: str) -> str:
    return os.path.join(part.get("data_root") or "", *parts)


def _collect(problems: Iterable[Optional[str]], what: str, count: int, findings: Findings) -> None:
    """Sum up what is wrong with some of ``count`` files, the first ones by name."""
    found = [problem for problem in problems if problem]
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        findings.errors.append(f"{len(found)} of {count} {what}: {'; '.join(found[:SHOWN])}{more}")


def _each(check: Callable[[str], Optional[str]], paths: Sequence[str]) -> List[Optional[str]]:
    with ThreadPoolExecutor(4) as pool:  # most of the time is the disk's
        return list(pool.map(check, paths))


def _picture_problem(path: str) -> Optional[str]:
    from PIL import Image

    if not os.path.isfile(path):
        others = sorted(Path(path).parent.glob(f"{Path(path).stem}.*")) if os.path.isdir(os.path.dirname(path)) else []
        hint = f" (there is {others[0].name}: the config reads {Path(path).suffix})" if others else ""
        return f"{path} is missing{hint}"
    try:
        with Image.open(path) as picture:
            return None if min(picture.size) > 0 else f"{path} has no pixels"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"{path} is no picture ({type(error).__name__})"


def _check_boxes(part: Dict[str, Any], findings: Findings) -> None:
    classes, prefix = _classes(part), (part.get("data_prefix") or {}).get("sub_data_root", "")
    ann_file = _join(part, part.get("ann_file", ""))
    names = _names(ann_file, findings)
    pictures = [_join(part, prefix, part.get("img_subdir", "JPEGImages"), f"{name}.jpg") for name in names]
    annotations = [_join(part, prefix, part.get("ann_subdir", "Annotations"), f"{name}.xml") for name in names]
    _collect(_each(_picture_problem, pictures), "pictures", len(pictures), findings)
    objects: Counter[str] = Counter()
    _collect([_annotation_problem(path, objects) for path in annotations], "annotations", len(names), findings)
    if classes is None or not names:
        return
    unknown = {name: count for name, count in objects.items() if name not in classes}
    absent = [name for name in classes if not objects[name]]
    if not unknown:
        return
    listed = ", ".join(f"'{name}' ({count})" for name, count in sorted(unknown.items(), key=lambda item: -item[1])[:10])
    told = f"objects in {ann_file} are called {listed}, which the classes of the config do not name"
    if absent:  # most likely the same things under two names
        findings.errors.append(f"{told}; of its classes {', '.join(map(repr, absent[:10]))} there is no object")
    else:
        findings.warnings.append(f"{told}: they are left out")


def _annotation_problem(path: str, objects: Counter[str]) -> Optional[str]:
    """What is wrong with a file of boxes; its objects are counted."""
    if not os.path.isfile(path):
        return f"{path} is missing"
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, UnicodeDecodeError) as error:
        return f"{path} is not XML ({error})"
    try:
        size = root.find("size")
        if size is not None and min(int(size.findtext(side, "")) for side in ("width", "height")) < 1:
            return f"{path} gives a picture's size of 0"
        for thing in root.findall("object"):
            for corner in ("xmin", "ymin", "xmax", "ymax"):
                float(thing.findtext(f"bndbox/{corner}", ""))
            objects[thing.findtext("name", "")] += 1
    except ValueError:
        return f"{path} has an object without name or box, or a size, in numbers"
    return None


def _check_masks(part: Dict[str, Any], ignored: Set[int], findings: Findings) -> None:
    prefix = part.get("data_prefix") or {}
    suffixes = part.get("img_suffix", ".jpg"), part.get("seg_map_suffix", ".png")
    pictures_in, masks_in = (_join(part, prefix.get(name, "")) for name in ("img_path", "seg_map_path"))
    if part.get("ann_file"):
        names = _names(_join(part, part["ann_file"]), findings)
    else:
        found = Path(pictures_in).rglob(f"*{suffixes[0]}")
        names = sorted(str(path.relative_to(pictures_in)).removesuffix(suffixes[0]) for path in found)
        if not names:
            findings.errors.append(f"there is no picture *{suffixes[0]} in {os.path.abspath(pictures_in)}")
    pictures = [os.path.join(pictures_in, name + suffixes[0]) for name in names]
    masks = [os.path.join(masks_in, name + suffixes[1]) for name in names]
    _collect(_each(_picture_problem, pictures), "pictures", len(pictures), findings)
    _collect(_each(_picture_problem, masks), "masks", len(masks), findings)
    classes = _classes(part)
    if classes is None or not masks:
        return
    count = len(classes)
    if str(part.get("type", "")).endswith("PascalVOCDataset"):
        count = max(count, 21)  # a part of VOC's classes is picked out of masks that have them all
    labels = set(range(1, count + 1) if part.get("reduce_zero_label") else range(count)) | ignored
    if part.get("reduce_zero_label"):
        labels.add(0)
    chosen = [masks[index] for index in np.unique(np.linspace(0, len(masks) - 1, min(MASKS, len(masks))).astype(int))]
    problems = _each(lambda path: _mask_problem(path, labels, count), chosen)
    _collect(problems, "masks looked through", len(chosen), findings)


def _mask_problem(path: str, labels: Set[int], count: int) -> Optional[str]:
    from PIL import Image

    try:
        with Image.open(path) as mask:
            if mask.mode not in ("P", "L", "1", "I", "I;16"):
                return f"{path} is a picture in colours ({mask.mode}): expected one channel, the numbers of the classes"
            values = {int(value) for value in np.unique(np.asarray(mask))}
    except (OSError, SyntaxError, ValueError):
        return None if _picture_problem(path) else f"{path} is cut off"
    outside = sorted(values - labels)
    if outside:
        return f"{path} has the labels {outside[:10]}, beside the {count} classes (0 to {count - 1})"
    return None
