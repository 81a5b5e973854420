"""Small images, all in memory: reading them, and making batches of them on the device they lie on."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..deploy.calibration import SUFFIXES, class_names_of, decode
from ..extras import require
from ..measure.machine import memory
from ..progress import counted
from .recipe import Recipe

__all__ = [
    "Images", "augmented_batch", "better_elsewhere", "mixed_batch", "normalized", "read_data", "require_classes",
]  # fmt: skip

_TEST_FOLDERS = ("test", "val")
_LARGE, _MANY = 96, 2**30  # pixels a side and bytes, from which on timm's train.py serves better


@dataclass(frozen=True)
class Images:
    """Labelled images of one size.

    Attributes:
        pixels: uint8 ``(N, H, W, 3)``; colours last, so that batches come out in channels_last.
        labels: int64 ``(N,)``.
        classes: the names of the classes.
    """

    pixels: Tensor
    labels: Tensor
    classes: Tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: Union[str, torch.device]) -> "Images":
        """The same images on ``device``."""
        return Images(self.pixels.to(device), self.labels.to(device), self.classes)

    def digest(self) -> str:
        """SHA-256 sum of shape, pixels, labels and number of classes, in hexadecimal: equal for the same data."""
        found = hashlib.sha256(f"{tuple(self.pixels.shape)} {len(self.classes)}".encode())
        for tensor in (self.pixels, self.labels):
            found.update(tensor.cpu().contiguous().numpy().data)
        return found.hexdigest()


def read_data(source: str, size: Sequence[int] = (32, 32)) -> Tuple[Images, Images]:
    """Read training images and test images.

    Args:
        source: a folder that holds torchvision's ``cifar-10-batches-py`` or ``cifar-100-python``, a folder with
            ``train.parquet`` and ``test.parquet`` (columns ``image``, an encoded image, and ``label``), a folder of
            pictures ``train/CLASS/*`` and ``test/CLASS/*`` or ``val/CLASS/*``, or ``digits``, the handwritten digits
            that come with scikit-learn.
        size: height and width for a folder of pictures, which are scaled to cover it and cropped in the middle.

    Raises:
        FileNotFoundError: there is none of these.
        ValueError: an image that cannot be decoded or is of another size, a label outside the classes, train and test
            images of different classes or sizes, no images at all.
    """
    folder = Path(source)
    if source == "digits":
        train, test = _read_digits()
    elif (folder / "train.parquet").is_file() and (folder / "test.parquet").is_file():
        train, test = (_read_parquet(folder / f"{part}.parquet") for part in ("train", "test"))
    elif (folder / "cifar-10-batches-py").is_dir():
        train, test = (_read_torchvision("CIFAR10", folder, part) for part in (True, False))
    elif (folder / "cifar-100-python").is_dir():
        train, test = (_read_torchvision("CIFAR100", folder, part) for part in (True, False))
    elif (folder / "train").is_dir() and any((folder / part).is_dir() for part in _TEST_FOLDERS):
        part = next(part for part in _TEST_FOLDERS if (folder / part).is_dir())
        train, test = (_read_pictures(folder / each, (size[0], size[1])) for each in ("train", part))
    else:
        raise FileNotFoundError(
            f"no data in '{source}': expected a folder with cifar-10-batches-py or cifar-100-python in it "
            "(python -c \"import torchvision; torchvision.datasets.CIFAR10('FOLDER', download=True)\" makes one), a "
            "folder with train.parquet and test.parquet, one of pictures (train/CLASS/* and test/CLASS/* or val/), or "
            "the word 'digits'"
        )
    if train.classes != test.classes:
        raise ValueError(
            f"train and test images in '{source}' have different classes: {len(train.classes)} and "
            f"{len(test.classes)}, {', '.join(train.classes[:5])}... and {', '.join(test.classes[:5])}...; parquet "
            "files name theirs in the entry 'classes' of their metadata, else every label up to the largest is a class"
        )
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        sizes = [f"{part.pixels.shape[2]}x{part.pixels.shape[1]}" for part in (train, test)]
        raise ValueError(
            f"train and test images in '{source}' have different sizes, {sizes[0]} and {sizes[1]}: scale them to one"
        )
    return train, test


def better_elsewhere(images: Images) -> List[str]:
    """Why timm's train.py would serve these training images better, a sentence a reason; nothing where it would not."""
    height, width = images.pixels.shape[1:3]
    reasons = []
    if height * width > _LARGE**2:
        reasons.append(f"pictures of {width}x{height} are trained on with more than flips and crops")
    if images.pixels.numel() > _MANY:
        reasons.append(f"{len(images)} of {width}x{height} take {images.pixels.numel() / 2**30:.1f} GiB of memory")
    advice = "timm's train.py reads pictures as it goes, with all its augmentation, and takes the same folder and model"
    return [f"{'; '.join(reasons)}: {advice}"] if reasons else []


def require_classes(images: Images, names: Optional[Sequence[str]], source: str) -> None:
    """Refuse images of other classes than weights tell apart; ``names`` are None where that is not known.

    Raises:
        ValueError: the names differ.
    """
    if names is not None and tuple(names) != images.classes:
        raise ValueError(
            f"'{source}' tells {_listed(names)} apart, the images are of {_listed(images.classes)}: an accuracy would "
            "say nothing. Take weights of these classes; if they are the same, name them alike (a parquet file: in "
            "the entry 'classes' of its metadata)"
        )


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _images(pixels: np.ndarray, labels: Any, classes: Tuple[str, ...], source: str) -> Images:
    labels = torch.tensor(labels, dtype=torch.int64)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"{source} has labels from {int(labels.min())} to {int(labels.max())}, expected 0 to {len(classes) - 1} "
            f"for its {len(classes)} classes"
        )
    return Images(torch.from_numpy(pixels), labels, classes)


def _read_torchvision(name: str, folder: Path, is_train: bool) -> Images:
    from torchvision import datasets

    try:
        dataset = getattr(datasets, name)(str(folder), train=is_train, download=False)
    except RuntimeError as error:  # torchvision checks the files' MD5 sums
        raise ValueError(f"the {name} files in '{folder}' are incomplete or corrupt: {error}") from None
    return _images(dataset.data, dataset.targets, tuple(dataset.classes), f"'{folder}'")


def _read_parquet(path: Path) -> Images:
    parquet = require("pyarrow.parquet", "reading parquet files")
    try:
        table = parquet.read_table(path, columns=["image", "label"])
    except Exception as error:  # pyarrow raises its own kinds, and which one depends on what is broken
        raise ValueError(
            f"cannot read '{path}', expected a parquet file with columns image and label: {error}"
        ) from None
    if not len(table):
        raise ValueError(f"there are no images in '{path}'")
    labels = table["label"].to_numpy()
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"the labels in '{path}' must be whole numbers in every row, got {labels.dtype}")
    classes = tuple(class_names_of(table) or map(str, range(int(labels.max()) + 1)))
    pixels = []
    for row, encoded in enumerate(table["image"]):
        content = encoded.as_py()
        content = content.get("bytes") if isinstance(content, dict) else content
        if not isinstance(content, bytes):
            raise ValueError(f"the image in row {row} of '{path}' must be an encoded one, got {type(content).__name__}")
        pixels.append(np.asarray(decode(content, f"in row {row} of '{path}'")))
        if pixels[-1].shape != pixels[0].shape:
            raise ValueError(
                f"the image in row {row} of '{path}' is {pixels[-1].shape[1]}x{pixels[-1].shape[0]}, expected "
                f"{pixels[0].shape[1]}x{pixels[0].shape[0]} as the first one"
            )
    return _images(np.stack(pixels), labels, classes, f"'{path}'")


def _read_pictures(folder: Path, size: Tuple[int, int]) -> Images:
    from PIL import Image, ImageOps

    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    paths = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    if not paths:
        raise ValueError(f"no pictures in '{folder}': expected CLASS/NAME with one of {', '.join(SUFFIXES)}")
    needed, there = len(paths) * size[0] * size[1] * 3, memory()
    if needed > there / 2:
        raise ValueError(
            f"{len(paths)} pictures of {size[1]}x{size[0]} in '{folder}' need {needed / 2**30:.1f} GiB of this "
            f"machine's {there / 2**30:.1f}, and this trainer keeps all in memory: timm's train.py takes the same "
            "folder and model"
        )
    pixels = np.empty((len(paths), *size, 3), np.uint8)
    for row, (path, _) in enumerate(counted(paths, f"reading {folder.name}")):
        picture = decode(path.read_bytes(), f"'{path}'")
        pixels[row] = np.asarray(ImageOps.fit(picture, size[::-1], Image.Resampling.BICUBIC))
    return _images(pixels, [label for _, label in paths], tuple(classes), f"'{folder}'")


def _read_digits() -> Tuple[Images, Images]:
    """1437 training and 360 test digits, 8x8 in 17 shades of grey, enlarged to 32x32 in colour.

    The test digits are the last fifth of the file.
    """
    digits = require("sklearn.datasets", "reading the digits").load_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    large = F.interpolate(grey, size=32, mode="bilinear", align_corners=False).round().to(torch.uint8)
    pixels = large.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
    classes = tuple(str(digit) for digit in range(10))
    split = len(pixels) * 4 // 5
    return (
        _images(pixels[:split], digits.target[:split], classes, "digits"),
        _images(pixels[split:], digits.target[split:], classes, "digits"),
    )


def augmented_batch(images: Images, indices: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """The images ``indices``, flipped and cropped at random: uint8 ``(len(indices), 3, H, W)`` in channels_last.

    Flip, crop and choice are one gather from the whole set. ``generator`` is one of the device of the images.
    """
    device, count = images.pixels.device, len(indices)
    height, width = images.pixels.shape[1:3]

    def positions(size: int) -> Tensor:
        shift = torch.randint(
            -recipe.crop_padding, recipe.crop_padding + 1, (count, 1), generator=generator, device=device
        )
        position = (torch.arange(size, device=device) + shift).abs()
        return (size - 1) - ((size - 1) - position).abs()  # reflected at both borders

    rows, columns = positions(height), positions(width)
    if recipe.flip:
        flips = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(flips, columns.flip(1), columns)
    return images.pixels[indices[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def normalized(pixels: Tensor, mean: Tuple[float, ...], std: Tuple[float, ...]) -> Tensor:
    """uint8 ``(N, 3, H, W)`` to float32 of mean 0 and deviation 1 a colour."""
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), pixels.device)
    return pixels.float() * scale - shift


@cache
def _scale_and_shift(mean: Tuple[float, ...], std: Tuple[float, ...], device: torch.device) -> Tuple[Tensor, Tensor]:
    """Kept, since a step that is being recorded on a GPU must not bring numbers from the host."""
    deviation = torch.tensor(std, device=device)
    scale, shift = deviation.mul(255).reciprocal(), torch.tensor(mean, device=device).div(deviation)
    return scale.reshape(1, -1, 1, 1), shift.reshape(1, -1, 1, 1)


def mixed_batch(
    x: Tensor, labels: Tensor, classes: int, recipe: Recipe, generator: torch.Generator
) -> Tuple[Tensor, Tensor]:
    """Cutout and mixup, as far as the recipe has them, on normalised images ``(N, 3, H, W)``.

    Returns:
        The images, and their labels, as probabilities ``(N, classes)`` where they were mixed.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017; Zhang et
    al., "mixup: Beyond Empirical Risk Minimization", 2018.
    """
    if recipe.cutout:
        centre = torch.rand(2, len(x), 1, generator=generator, device=x.device)
        inside = [
            (torch.arange(size, device=x.device) - centre[axis] * size).abs() < recipe.cutout / 2
            for axis, size in enumerate(x.shape[2:])
        ]
        x = x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
    if recipe.mixup:
        # a beta variate as a ratio of gammas; torch's own sampler of these takes no generator
        uniform = torch.rand((), generator=generator, device=x.device).item()
        share = float(np.random.default_rng(int(uniform * 2**32)).beta(recipe.mixup, recipe.mixup))
        order = torch.randperm(len(x), generator=generator, device=x.device)
        targets = F.one_hot(labels, classes).float()
        return torch.lerp(x[order], x, share), torch.lerp(targets[order], targets, share)
    return x, labels
