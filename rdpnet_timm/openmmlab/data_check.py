"""Lists, annotations, masks and pictures of a config's data, looked through before the first iteration."""

import json
import os.path
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple, TypeVar
from xml.etree import ElementTree

import numpy as np

from .config_reading import MASK_KINDS, XML_KINDS, kind_of, known_classes, leaf_datasets, type_classes

__all__ = ["Findings", "check_data"]

T = TypeVar("T")
Size = Tuple[int, int]  # width and height

SHOWN = 5  # of files of one kind, in a message
MASKS = 200  # looked through at most: their pixels have to be decoded
ORIENTATION = 0x0112  # the tag in a picture's EXIF


class Findings(NamedTuple):
    """What is wrong with the data, and what may be meant as it is; both empty where all is well."""

    errors: List[str]
    warnings: List[str]


def check_data(dataset: Any, ignored_labels: Iterable[int] = (), is_training: bool = True) -> Findings:
    """Look through what a dataset's config names: boxes in VOC's or COCO's layout, or masks; other kinds are passed by.

    Every list, every annotation and the header of every picture and mask is read, and the pixels of up to 200 masks,
    evenly spread. What the frameworks cannot read is an error, and so are data of which nothing could be learned; what
    they leave out, or take as it is, is a warning.

    Args:
        dataset: the config of a dataset, or of one made of others.
        ignored_labels: of masks, beside 255.
        is_training: the data are to be learned from; else what leaves nothing to learn is a warning.

    Raises:
        ValueError: a dataset's classes are a string, and no file, or a set.
    """
    findings = Findings([], [])
    for part in leaf_datasets(dataset):
        kind = kind_of(part)
        if "://" in str(part.get("data_root") or ""):
            continue
        if kind in XML_KINDS:
            _check_boxes(part, is_training, findings)
        elif kind == "CocoDataset":
            _check_coco(part, is_training, findings)
        elif kind in MASK_KINDS:
            _check_masks(part, {255, *ignored_labels}, is_training, findings)
    return findings


def _names(path: str, findings: Findings) -> List[str]:
    """The lines of a list, an empty or unreadable one being found wrong."""
    try:
        names = Path(path).read_text(encoding="utf-8").splitlines()  # as mmengine reads it
    except (OSError, UnicodeDecodeError) as error:
        findings.errors.append(f"the list {os.path.abspath(path)} cannot be read: {error}")
        return []
    named = [name for name in names if name.strip()]
    if not named:
        findings.errors.append(f"the list {os.path.abspath(path)} is empty: expected a picture's name a line")
    elif len(named) < len(names):  # which would be a picture without a name
        line = next(number for number, name in enumerate(names, 1) if not name.strip())
        findings.errors.append(f"line {line} of the list {os.path.abspath(path)} is empty")
    return named


def _join(part: Dict[str, Any], *parts: str) -> str:
    return os.path.join(part.get("data_root") or "", *parts)


def _collect(problems: Iterable[Optional[str]], what: str, count: int, found: List[str]) -> None:
    """Add to ``found`` what is wrong with some of ``count`` files, the first ones by name."""
    wrong = [problem for problem in problems if problem]
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        found.append(f"{len(wrong)} of {count} {what}: {'; '.join(wrong[:SHOWN])}{more}")


def _each(check: Callable[[str], T], paths: Sequence[str]) -> List[T]:
    with ThreadPoolExecutor(4) as pool:  # most of the time is the disk's
        return list(pool.map(check, paths))


def _listed(names: Iterable[str]) -> str:
    names = list(map(repr, names))
    return ", ".join([*names[:10], "..."] if len(names) > 10 else names)


class _Header(NamedTuple):
    """The size of a picture, or what is wrong with it."""

    size: Optional[Size] = None
    problem: Optional[str] = None


def _header(path: str, is_turned: bool = False) -> _Header:
    """Read a picture's header; ``is_turned`` as its camera says, which pictures are read as, and masks are not."""
    from PIL import Image

    if not os.path.isfile(path):
        others = sorted(Path(path).parent.glob(f"{Path(path).stem}.*")) if os.path.isdir(os.path.dirname(path)) else []
        hint = f" (there is {others[0].name}: the config reads {Path(path).suffix})" if others else ""
        return _Header(problem=f"{path} is missing{hint}")
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            return _Header((height, width) if is_turned and _lies(picture) else (width, height))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return _Header(problem=f"{path} is no picture ({type(error).__name__})")


def _lies(picture: Any) -> bool:
    try:
        return "exif" in picture.info and picture.getexif().get(ORIENTATION, 1) >= 5
    except Exception:  # an EXIF that cannot be read turns nothing
        return False


def _picture_headers(paths: Sequence[str], part: Dict[str, Any], findings: Findings) -> List[_Header]:
    """The headers of a dataset's pictures, what is wrong with them being told."""
    loaders = [transform for transform in part.get("pipeline") or () if kind_of(transform) == "LoadImageFromFile"]
    is_turned = all(loader.get("color_type", "color") in ("color", "grayscale") for loader in loaders)
    headers = _each(lambda path: _header(path, is_turned), paths)
    _collect((header.problem for header in headers), "pictures", len(paths), findings.errors)
    return headers


class _Annotation(NamedTuple):
    """What is said of a picture, by an XML file or in COCO's layout.

    Attributes:
        problem: why mmdet cannot read it.
        size: that of the picture.
        names: of all objects.
        boxes: left, top, right and bottom of those that are trained on, as mmdet rounds them.
    """

    problem: Optional[str] = None
    size: Optional[Size] = None
    names: Sequence[str] = ()
    boxes: Sequence[Sequence[float]] = ()


def _annotation(path: str, classes: Optional[Sequence[str]]) -> _Annotation:
    """Read an XML file as mmdet's XMLDataset does, which does not look at what is in an object of another class."""
    if not os.path.isfile(path):
        return _Annotation(f"{path} is missing")
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, UnicodeDecodeError, LookupError) as error:
        return _Annotation(f"{path} is not XML ({error})")
    size, names, boxes = None, [], []
    try:
        if root.find("size") is not None:
            size = _whole(root, "size/width"), _whole(root, "size/height")
        for thing in root.findall("object"):
            if thing.find("name") is None:
                raise ValueError("has an object without <name>")
            names.append(thing.findtext("name", ""))
            if classes is not None and names[-1] not in classes:
                continue
            is_difficult = thing.find("difficult") is not None and _whole(thing, "difficult")
            box = [_whole(thing, f"bndbox/{side}", float) for side in ("xmin", "ymin", "xmax", "ymax")]
            if not is_difficult:
                boxes.append(box)
    except ValueError as error:
        return _Annotation(f"{path} {error}")
    return _Annotation(None, size, names, boxes)


def _whole(part: ElementTree.Element, path: str, kind: Callable[[str], Any] = str) -> int:
    """A number, whole or by ``kind`` cut off to one."""
    text = part.findtext(path)
    try:
        return int(kind(text or ""))
    except (ValueError, OverflowError):
        found = "none" if text is None else f"'{text}'"
        raise ValueError(f"has {found} for <{path.split('/')[-1]}>, and mmdet reads a number there") from None


def _check_boxes(part: Dict[str, Any], is_training: bool, findings: Findings) -> None:
    classes, prefix = known_classes(part), part.get("data_prefix") or {}
    img_subdir, ann_subdir = part.get("img_subdir", "JPEGImages"), part.get("ann_subdir", "Annotations")
    folder = _join(part, prefix["sub_data_root"]) if "sub_data_root" in prefix else ""
    if not folder and part.get("data_root") and not os.path.isdir(ann_subdir):
        findings.errors.append(
            f"data_prefix has no sub_data_root, without which mmdet looks for {ann_subdir} in the folder that it runs "
            "in, and not in data_root: set data_prefix=dict(sub_data_root='')"
        )
        return
    ann_file = _join(part, part.get("ann_file", ""))
    names = _names(ann_file, findings)
    pictures = [os.path.join(folder, img_subdir, f"{name}.jpg") for name in names]
    paths = [os.path.join(folder, ann_subdir, f"{name}.xml") for name in names]
    headers = _picture_headers(pictures, part, findings)
    annotations = [_annotation(path, classes) for path in paths]
    objects = Counter(name for annotation in annotations for name in annotation.names)
    if classes is not None and objects:
        unknown, absent = _unknown(objects, classes), [name for name in classes if not objects[name]]
        if unknown and absent:  # most likely it is one thing under two names
            told = f"objects in {ann_file} are called {unknown}; of its classes {_listed(absent)} there is no object"
            findings.errors.append(told)
        else:
            _tell_classes(unknown, absent, ann_file, findings)
    if classes is not None and _filter(part, "filter_empty_gt") and any(annotation.boxes for annotation in annotations):
        pairs = zip(paths, annotations)
        empty = [path for path, each in pairs if not each.problem and set(classes).isdisjoint(each.names)]
        told = "annotations have no object of the classes, and their pictures are left out (filter_cfg.filter_empty_gt)"
        _collect(empty, told, len(paths), findings.warnings)
    _judge(annotations, paths, headers, ann_file, is_training, findings, **_filter(part, "bbox_min_size", "min_size"))


def _filter(part: Dict[str, Any], *names: str) -> Dict[str, int]:
    """Those of mmdet's filters that a dataset has; one to test on has none."""
    limits = {} if part.get("test_mode") else part.get("filter_cfg") or {}
    return {name: limits[name] for name in names if limits.get(name)}


def _judge(
    annotations: Sequence[_Annotation],
    paths: Sequence[str],
    headers: Sequence[_Header],
    ann_file: str,
    is_training: bool,
    findings: Findings,
    bbox_min_size: int = 0,
    min_size: int = 0,
) -> None:
    """Tell what is wrong with annotations, each that of a picture, and what mmdet takes as it is or leaves out.

    It leaves out boxes and pictures with a side below two limits, and goes by the size that an annotation gives.
    """
    _collect((each.problem for each in annotations), "annotations", len(paths), findings.errors)
    usable = 0
    doubts: Dict[str, List[str]] = {"size": [], "empty": [], "outside": [], "small box": [], "small": []}
    for path, annotation, header in zip(paths, annotations, headers):
        shortest = [min(box[2] - box[0], box[3] - box[1]) for box in annotation.boxes]
        whole = [box for box, side in zip(annotation.boxes, shortest) if side >= 1]
        if len(whole) < len(annotation.boxes):
            doubts["empty"].append(path)
        if any(1 <= side < bbox_min_size for side in shortest):
            doubts["small box"].append(path)
        if min(annotation.size or header.size or (min_size,)) < min_size:
            doubts["small"].append(path)
        else:
            usable += sum(side >= max(1, bbox_min_size) for side in shortest)
        if header.size is None:
            continue
        width, height = header.size
        if annotation.size not in (None, header.size):
            doubts["size"].append(f"{path} says {_by(annotation.size)}, the picture has {_by(header.size)}")
        # VOC counts from 1, others from 0
        if any(min(box[:2]) < 0 or box[2] > width + 1 or box[3] > height + 1 for box in whole):
            doubts["outside"].append(path)
    for kind, told in (
        ("size", "annotations give another size than the picture has, as it is read"),
        ("empty", "annotations have boxes of no size, or with their corners the wrong way round"),
        ("outside", "annotations have boxes that reach beyond their picture"),
        (
            "small box",
            f"annotations have boxes with a side below filter_cfg.bbox_min_size={bbox_min_size}, which are left out",
        ),
        ("small", f"annotations give a picture a side below filter_cfg.min_size={min_size}, and it is left out"),
    ):
        _collect(doubts[kind], told, len(paths), findings.warnings)
    if paths and not usable and not any(each.problem for each in annotations):
        told = (
            f"there is no object in {ann_file} to train on: of a class of the config, with a whole box, not difficult, "
            "no crowd and not left out"
        )
        (findings.errors if is_training else findings.warnings).append(told)


def _by(size: Optional[Size]) -> str:
    return " x ".join(map(str, size or ()))


def _unknown(objects: Counter[str], classes: Sequence[str]) -> str:
    """The names of objects that are none of the classes, as part of a sentence; empty where there are none."""
    unknown = [f"'{name}' ({count})" for name, count in objects.most_common() if name not in classes]
    return f"{', '.join(unknown[:10])}, which the classes of the config do not name" if unknown else ""


def _tell_classes(unknown: str, absent: Sequence[str], ann_file: str, findings: Findings) -> None:
    if unknown:
        findings.warnings.append(f"objects in {ann_file} are called {unknown}: they are left out")
    if absent:
        findings.warnings.append(f"in {ann_file} there is no object of the classes {_listed(absent)}")


def _check_coco(part: Dict[str, Any], is_training: bool, findings: Findings) -> None:
    classes, path = known_classes(part) or (), _join(part, part.get("ann_file", ""))
    things: Dict[Any, List[Dict[str, Any]]] = {}
    try:
        content = json.loads(Path(path).read_bytes())
        categories = {each["id"]: each["name"] for each in content["categories"]}
        images = {each["id"]: (each["file_name"], (each["width"], each["height"])) for each in content["images"]}
        for thing in content.get("annotations", ()):
            things.setdefault(thing["image_id"], []).append(thing)
            thing["name"] = categories.get(thing["category_id"], f"number {thing['category_id']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        findings.errors.append(
            f"{os.path.abspath(path)} is no annotation of COCO's kind ({type(error).__name__}: {error})"
        )
        return
    files = [name for name, _ in images.values()]
    folder = (part.get("data_prefix") or {}).get("img")
    if folder is None:
        findings.errors.append("data_prefix has no img, where mmdet looks for pictures: set dict(img='FOLDER')")
        return
    headers = _picture_headers([_join(part, folder, name) for name in files], part, findings)
    annotations = [_of_coco(things.get(id_, ()), *image, classes) for id_, image in images.items()]
    strangers = [f"image_id {id_}" for id_ in things if id_ not in images]
    _collect(strangers, f"ids in the annotations of {path} are of no image there", len(things), findings.warnings)
    named = [name for name in categories.values() if name in classes]
    absent = [name for name in classes if name not in named]
    objects = Counter(name for annotation in annotations for name in annotation.names)
    if absent:
        others = _listed(name for name in categories.values() if name not in classes) or "none"
        findings.errors.append(
            f"{path} has no category {_listed(absent)}, which the classes of the config name; its others are {others}"
        )
    elif objects:
        _tell_classes(_unknown(objects, classes), [name for name in classes if not objects[name]], path, findings)
    if not absent and named != list(classes):
        findings.warnings.append(
            f"the categories of {path} come as {_listed(named)}, and the classes of the config in another order: mmdet "
            "numbers them as the file does, and would call one by the name of another"
        )
    _judge(annotations, files, headers, path, is_training, findings, **_filter(part, "min_size"))


def _of_coco(things: Iterable[Dict[str, Any]], file: str, size: Size, classes: Sequence[str]) -> _Annotation:
    """What COCO's annotations say of a picture, as mmdet reads them: a box without an area is left out."""
    boxes = []
    for thing in things:
        try:
            left, top, width, height = map(float, thing["bbox"])
            has_area = thing["area"] > 0
        except (KeyError, TypeError, ValueError):
            found = f"the bbox {thing.get('bbox')} and the area {thing.get('area')}"
            return _Annotation(f"{file} has an object with {found}, and mmdet reads four numbers and one there")
        if thing["name"] in classes and not thing.get("ignore") and not thing.get("iscrowd"):
            boxes.append([left, top, left + has_area * width, top + has_area * height])
    return _Annotation(None, size, [thing["name"] for thing in things], boxes)


def _check_masks(part: Dict[str, Any], ignored: Set[int], is_training: bool, findings: Findings) -> None:
    prefix = part.get("data_prefix", {"img_path": "", "seg_map_path": ""})
    suffixes = part.get("img_suffix", ".jpg"), part.get("seg_map_suffix", ".png")
    pictures_in = _join(part, prefix.get("img_path") or "")
    if part.get("ann_file"):
        names = [name.strip() for name in _names(_join(part, part["ann_file"]), findings)]
    else:
        found = Path(pictures_in).rglob(f"*{suffixes[0]}")
        names = sorted(str(path.relative_to(pictures_in)).removesuffix(suffixes[0]) for path in found)
        if not names:
            findings.errors.append(f"there is no picture *{suffixes[0]} in {os.path.abspath(pictures_in)}")
    headers = _picture_headers([os.path.join(pictures_in, name + suffixes[0]) for name in names], part, findings)
    if prefix.get("seg_map_path") is None:  # pictures to be tried on alone
        if any(kind_of(transform) == "LoadAnnotations" for transform in part.get("pipeline") or ()):
            findings.errors.append("the pipeline loads masks (LoadAnnotations), and data_prefix has no seg_map_path")
        return
    masks = [_join(part, prefix["seg_map_path"], name + suffixes[1]) for name in names]
    mask_headers = _each(_header, masks)
    _collect((header.problem for header in mask_headers), "masks", len(masks), findings.errors)
    sizes = [
        f"{mask} has {_by(own.size)}, the picture {_by(header.size)}"
        for mask, own, header in zip(masks, mask_headers, headers)
        if own.size and header.size and own.size != header.size
    ]
    _collect(sizes, "masks have another size than their picture, as it is read", len(masks), findings.errors)
    classes = known_classes(part)
    if classes is None or not masks:
        return
    known: Sequence[str] = classes
    if set(classes) <= set(type_classes(part)):
        known = type_classes(part)  # a part of VOC's classes is picked out of masks that have them all
    least = int(bool(part.get("reduce_zero_label")))
    spread = np.unique(np.linspace(0, len(masks) - 1, min(MASKS, len(masks))).astype(int))
    chosen = [masks[index] for index in spread if not mask_headers[index].problem]
    looked = _each(lambda path: _mask(path, {*range(least + len(known)), *ignored}, len(known)), chosen)
    _collect((mask.problem for mask in looked), "masks looked through", len(chosen), findings.errors)
    if any(mask.problem for mask in looked):
        return
    labels = {label for mask in looked for label in mask.labels}
    numbers = {name: known.index(name) + least for name in classes}
    absent = [f"'{name}' ({number})" for name, number in numbers.items() if number not in labels | ignored]
    is_one = len(labels & set(numbers.values()) - ignored) < 2
    if not absent and not (is_one and is_training):
        return
    more = ", ..." if len(absent) > 10 else ""
    lacking = f"no pixel is {', '.join(absent[:10])}{more}" if absent else "there is no second class"
    told = f"in the {len(looked)} masks looked through {lacking}; their labels are {sorted(labels)}"
    if absent and known is not classes and len(classes) < len(known):
        told += ", read as VOC's numbers: masks that have numbers of their own are a BaseSegDataset"
    elif labels == {0, 255}:
        told += ", and 255 is no class, it is left out: a mask of 0 and 255 needs another number for 255"
    # of more masks than were looked through the others may have the rest
    if is_training and is_one and (len(classes) < 2 or len(looked) == len(masks) or 255 in labels):
        findings.errors.append(f"there is nothing to tell apart: {told}")
    else:
        findings.warnings.append(told)


class _Mask(NamedTuple):
    """The labels that a mask has, or what is wrong with it."""

    labels: Sequence[int] = ()
    problem: Optional[str] = None


def _mask(path: str, labels: Set[int], count: int) -> _Mask:
    from PIL import Image

    try:
        with Image.open(path) as mask:
            if mask.mode not in ("P", "L", "1", "I", "I;16"):
                return _Mask(
                    problem=f"{path} is a picture in colours ({mask.mode}): expected one channel, the numbers of the "
                    "classes"
                )
            values = {int(value) for value in np.unique(np.asarray(mask))}
    except (OSError, SyntaxError, ValueError):
        return _Mask(problem=f"{path} is cut off")
    outside = sorted(values - labels)
    if outside:
        return _Mask(problem=f"{path} has the labels {outside[:10]}, beside the {count} classes (0 to {count - 1})")
    return _Mask(sorted(values))
