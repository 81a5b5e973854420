"""A small drawn data set in the layout of PASCAL VOC, to run the VOC configs without VOC."""

import colorsys
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["LOOKS", "VOC_CLASSES", "make_sample_voc", "voc_palette"]

VOC_CLASSES = (  # noqa: SIM905
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()
# what is drawn in each class's place: a hue, a texture and a shape of its own
_HUES = (  # noqa: SIM905
    "red orange orange yellow yellow lime green green mint teal cyan blue blue indigo indigo purple purple magenta "
    "pink crimson"
).split()
_SHAPES = ("disc", "square", "triangle", "star", "bar")
LOOKS = {
    name: f"{hue} {'striped ' * (label % 2)}{_SHAPES[label % 5]}"
    for label, (name, hue) in enumerate(zip(VOC_CLASSES, _HUES))
}
WIDTH, HEIGHT = 256, 192
IGNORE = 255  # VOC's label of an object's border


@dataclass(frozen=True)
class _Drawn:
    """An object in a picture: its class and its box, whose corners are 1-based pixels that belong to it."""

    name: str
    box: Tuple[int, int, int, int]


def make_sample_voc(folder: Path, images: int = 180, seed: int = 0) -> Path:
    """Draw ``folder/VOCdevkit`` with VOC2007 and VOC2012 in the official layout, and return its path.

    For each class stands a shape with a hue and a texture of its own (``LOOKS``); pictures are 256x192 with two to
    four objects, and masks have VOC's palette and border label. The same arguments draw the same pictures. VOC2007 has
    train, val, trainval and test (1/2, 1/6, 2/3 and 1/3 of the pictures), VOC2012 train, val and trainval (2/3, 1/3,
    all).

    Args:
        folder: where ``VOCdevkit`` is made; created if need be.
        images: pictures in each of the two years, at least 45, with which train and test have every class.
        seed: seed of the drawing.

    Raises:
        FileExistsError: ``folder/VOCdevkit`` exists; it is left alone.
        ValueError: fewer images than 45, or a negative seed.
    """
    if images < 45 or seed < 0:
        raise ValueError(f"images must be at least 45 and seed at least 0, got {images} and {seed}")
    devkit = Path(folder) / "VOCdevkit"
    if devkit.exists() or devkit.is_symlink():
        raise FileExistsError(f"{devkit} exists, and is never overwritten: name another folder, or move it away")
    devkit.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".VOCdevkit-", dir=devkit.parent))
    try:
        half, two_thirds = images // 2, images * 2 // 3
        _draw_year(
            unfinished / "VOC2007",
            "{:06d}",
            images,
            np.random.default_rng([seed, 2007]),
            {"train": (0, half), "val": (half, two_thirds), "trainval": (0, two_thirds), "test": (two_thirds, images)},
        )
        _draw_year(
            unfinished / "VOC2012",
            "2012_{:06d}",
            images,
            np.random.default_rng([seed, 2012]),
            {"train": (0, two_thirds), "val": (two_thirds, images), "trainval": (0, images)},
        )
        unfinished.chmod(0o755)
        os.rename(unfinished, devkit)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return devkit


def voc_palette() -> List[int]:
    """VOC's 256 colours, flat ``[r, g, b, r, ...]``: the bits of a label, spread from the top of the three channels."""
    colours = []
    for label in range(256):
        for channel in range(3):
            bits = [label >> (3 * group + channel) & 1 for group in range(3) if 3 * group + channel < 8]
            colours.append(sum(bit << (7 - group) for group, bit in enumerate(bits)))
    return colours


def _draw_year(
    year: Path, name: str, images: int, rng: np.random.Generator, splits: Dict[str, Tuple[int, int]]
) -> None:
    for part in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (year / part).mkdir(parents=True)
    classes: List[int] = []
    names, contents = [], []
    for number in range(1, images + 1):
        if number - 1 in {start for start, _ in splits.values()}:
            classes = []  # each split begins with all classes anew
        count = int(rng.integers(2, 5))
        while len(classes) < count:  # every class once before any comes again
            classes += rng.permutation(len(VOC_CLASSES)).tolist()
        picture, mask, objects = _draw_picture(classes[:count], rng)
        # what found no room comes first in the next picture
        drawn = [VOC_CLASSES.index(thing.name) for thing in objects]
        classes = [label for label in classes[:count] if label not in drawn] + classes[count:]
        names.append(name.format(number))
        contents.append({thing.name for thing in objects})
        picture.save(year / "JPEGImages" / f"{names[-1]}.jpg", quality=92)
        mask.save(year / "SegmentationClass" / f"{names[-1]}.png")
        _write_annotation(year, names[-1], objects)
    for split, (start, end) in splits.items():
        chosen = "".join(f"{name}\n" for name in names[start:end])
        (year / "ImageSets/Main" / f"{split}.txt").write_text(chosen)
        (year / "ImageSets/Segmentation" / f"{split}.txt").write_text(chosen)
        for label in VOC_CLASSES:
            lines = [f"{name} {1 if label in there else -1:2d}\n" for name, there in zip(names, contents)]
            (year / "ImageSets/Main" / f"{label}_{split}.txt").write_text("".join(lines[start:end]))


def _draw_picture(labels: Sequence[int], rng: np.random.Generator) -> Tuple[Image.Image, Image.Image, List[_Drawn]]:
    """A picture ``(HEIGHT, WIDTH)``, its mask, and the objects that found room beside one another."""
    corners = rng.uniform(90, 190, (2, 2))
    y, x = np.linspace(0, 1, HEIGHT)[:, None], np.linspace(0, 1, WIDTH)[None]
    grey = (corners[0, 0] * (1 - x) + corners[0, 1] * x) * (1 - y) + (corners[1, 0] * (1 - x) + corners[1, 1] * x) * y
    picture = Image.fromarray(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8))
    mask = Image.new("P", (WIDTH, HEIGHT), 0)
    mask.putpalette(voc_palette())
    draw = ImageDraw.Draw(picture)
    for _ in range(4):  # clutter that is no object
        level = int(rng.integers(60, 220))
        draw.line(rng.uniform(0, WIDTH, 4).tolist(), fill=(level, level, level), width=int(rng.integers(1, 4)))
    objects: List[_Drawn] = []
    for label in labels:
        if VOC_CLASSES[label] in {thing.name for thing in objects}:
            continue
        for _ in range(40):
            radius = rng.uniform(22, 42)
            centre = rng.uniform([radius, radius], [WIDTH - radius, HEIGHT - radius])
            box = _bounds(_outline(label, centre, radius, 0.0))
            if all(_apart(box, thing.box) for thing in objects):
                objects.append(_draw_object(picture, mask, label, centre, radius, rng))
                break
    noise = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    return picture, mask, objects


def _draw_object(
    picture: Image.Image, mask: Image.Image, label: int, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> _Drawn:
    """Draw one object into the picture and its mask; the border in the mask is three pixels wide."""
    outline = _outline(label, centre, radius, rng.uniform(-0.2, 0.2))
    points = [tuple(point) for point in outline]
    hue = label / len(VOC_CLASSES) + rng.uniform(-0.01, 0.01)
    value = rng.uniform(0.75, 1.0)
    light, dark = (
        tuple(int(255 * channel) for channel in colorsys.hsv_to_rgb(hue % 1, 0.9, value * share)) for share in (1, 0.45)
    )
    stencil = Image.new("L", picture.size, 0)
    ImageDraw.Draw(stencil).polygon(points, fill=255)
    texture = Image.new("RGB", picture.size, light)
    if label % 2:
        draw = ImageDraw.Draw(texture)
        for x in range(int(rng.integers(0, 10)), WIDTH, 10):
            draw.line([x, 0, x, HEIGHT], fill=dark, width=4)
    picture.paste(texture, mask=stencil)
    ImageDraw.Draw(picture).polygon(points, outline=dark)
    draw = ImageDraw.Draw(mask)
    draw.polygon(points, fill=label + 1)
    draw.line([*points, points[0]], fill=IGNORE, width=3)
    rows, columns = np.nonzero(np.asarray(stencil))
    box = (int(columns.min()) + 1, int(rows.min()) + 1, int(columns.max()) + 1, int(rows.max()) + 1)
    return _Drawn(VOC_CLASSES[label], box)


def _outline(label: int, centre: np.ndarray, radius: float, turn: float) -> np.ndarray:
    """Corners ``(n, 2)`` of the class's shape, see ``_SHAPES``."""
    shape = label % 5
    corners = [24, 4, 3, 10, 4][shape]
    angles = np.arange(corners) / corners * 2 * np.pi + turn + (np.pi / 4 if corners == 4 else -np.pi / 2)
    radii = np.full(corners, radius)
    if shape == 3:
        radii[1::2] *= 0.5
    scale = np.array([1.0, 0.6]) if shape == 4 else np.ones(2)
    points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] * scale
    return points.clip(0, [WIDTH - 1, HEIGHT - 1])


def _bounds(points: np.ndarray) -> Tuple[int, int, int, int]:
    return (*points.min(0).astype(int).tolist(), *points.max(0).astype(int).tolist())


def _apart(a: Sequence[int], b: Sequence[int], margin: int = 8) -> bool:
    return a[2] + margin < b[0] or b[2] + margin < a[0] or a[3] + margin < b[1] or b[3] + margin < a[1]


def _write_annotation(year: Path, name: str, objects: Sequence[_Drawn]) -> None:
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, **fields: object) -> None:
        for tag, text in fields.items():
            ElementTree.SubElement(parent, tag).text = str(text)

    add(root, folder=year.name, filename=f"{name}.jpg")
    add(ElementTree.SubElement(root, "source"), database="drawn by rdpnet sample-voc")
    add(ElementTree.SubElement(root, "size"), width=WIDTH, height=HEIGHT, depth=3)
    add(root, segmented=1)
    for thing in objects:
        node = ElementTree.SubElement(root, "object")
        add(node, name=thing.name, pose="Unspecified", truncated=0, difficult=0)
        add(ElementTree.SubElement(node, "bndbox"), **dict(zip(("xmin", "ymin", "xmax", "ymax"), thing.box)))
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(year / "Annotations" / f"{name}.xml")
