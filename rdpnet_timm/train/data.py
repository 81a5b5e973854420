"""Small images, all in memory: reading them, and making batches of them on the device they lie on."""

import hashlib
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..deploy.calibration import (
    SUFFIXES,
    Preprocessing,
    class_names_of,
    decode,
    files_in,
    image_column,
    is_picture,
    label_column,
)
from ..extras import require
from ..measure.machine import memory
from ..progress import counted
from .recipe import Recipe

__all__ = [
    "Images", "augmented_batch", "better_elsewhere", "mixed_batch", "normalized", "preparation", "read_data",
    "read_test", "require_classes",
]  # fmt: skip

_TEST_FOLDERS = ("test", "val", "validation")
_LARGE, _MANY = 96, 2**30  # pixels a side and bytes, from which on timm's train.py serves better
# without the option it finds no part of that name, and validates on the training pictures as well
_SAME_FOLDER = "takes the same folder and model (a folder test/ needs its option --val-split test)"


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


def preparation(size: Sequence[int]) -> Preprocessing:
    """How pictures are prepared for training: scaled to cover height and width, and cropped in the middle."""
    return Preprocessing((3, size[0], size[1]), min(size), "bicubic", (0.0,) * 3, (1.0,) * 3, 1.0, "center")


def read_data(
    source: str, size: Sequence[int] = (32, 32), preprocessing: Optional[Preprocessing] = None
) -> Tuple[Images, Images]:
    """Read training images and test images.

    Args:
        source: a folder that holds torchvision's ``cifar-10-batches-py`` or ``cifar-100-python``, a folder with
            ``train.parquet`` and ``test.parquet`` (columns ``image`` or ``img``, an encoded image, and ``label``; the
            Hugging Face Hub has such), a folder of pictures ``train/CLASS/*`` and ``val/CLASS/*``, or
            ``validation/`` or ``test/`` (of several, ``test/`` if it has classes), or ``digits``, the handwritten
            digits that come with scikit-learn.
        size: height and width for a folder of pictures, see :func:`preparation`.
        preprocessing: of a folder of pictures, in place of that for training.

    Raises:
        FileNotFoundError: there is none of these.
        ValueError: an image that cannot be decoded or is of another size, a label outside the classes, train and test
            images of different classes or sizes, no images at all, training images of one class, or several of these.
    """
    train, test = _read(source, ("train", "test"), preprocessing or preparation(size))
    if train.classes != test.classes:
        told = (
            f"train and test images in '{source}' have different classes: {len(train.classes)} and "
            f"{len(test.classes)}, {_differing('train', train.classes, 'test', test.classes)}"
        )
        if (Path(source) / "train.parquet").is_file():
            told += "; parquet files name theirs in the entry 'classes' of their metadata, else every label up to the "
            told += "largest is a class"
        raise ValueError(told)
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        sizes = [f"{part.pixels.shape[2]}x{part.pixels.shape[1]}" for part in (train, test)]
        raise ValueError(
            f"train and test images in '{source}' have different sizes, {sizes[0]} and {sizes[1]}: scale them to one"
        )
    if len(train.labels.unique()) == 1:
        only = train.classes[int(train.labels[0])]
        raise ValueError(f"all training images in '{source}' are of one class, '{only}': there is nothing to learn")
    return train, test


def read_test(source: str, preprocessing: Preprocessing) -> Images:
    """Read test images alone, for which a part of what :func:`read_data` takes is enough.

    Args:
        source: as for :func:`read_data`.
        preprocessing: of a folder of pictures.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_data`.
        ValueError: the images are to have other than three channels.
    """
    channels = preprocessing.input_size[0]
    if channels != 3:
        raise ValueError(f"test images are read in three colours, and the model takes {channels} channels")
    return _read(source, ("test",), preprocessing)[0]


def _read(source: str, parts: Sequence[str], preprocessing: Preprocessing) -> List[Images]:
    folder = Path(source)
    tests = [folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()] or [folder / "test"]
    # test/ is often one of pictures whose classes nobody tells, beside a val/
    pictures = {"train": folder / "train", "test": next((path for path in tests if _classes_in(path)), tests[0])}
    readers: Dict[str, Callable[[str], Images]] = {}
    if source == "digits":
        readers["the digits of scikit-learn"] = lambda part: _read_digits()[part]
    if all((folder / f"{part}.parquet").is_file() for part in parts):
        readers["parquet files"] = lambda part: _read_parquet(folder / f"{part}.parquet")
    for name, dataset in (("cifar-10-batches-py", "CIFAR10"), ("cifar-100-python", "CIFAR100")):
        if (folder / name).is_dir():
            readers[name] = partial(_read_torchvision, dataset, folder)
    if all(pictures[part].is_dir() for part in parts):
        readers["folders of pictures"] = lambda part: _read_pictures(pictures[part], preprocessing, part == "train")
    if len(readers) > 1:
        raise ValueError(
            f"'{source}' stands for {' and '.join(readers)}: give a folder with one of them alone, such as one with a "
            "link to it" + ("; the folder of this name is './digits'" if source == "digits" else "")
        )
    if readers:
        (read,) = readers.values()
        return [read(part) for part in parts]
    raise FileNotFoundError(
        f"no data in '{source}': expected a folder with cifar-10-batches-py or cifar-100-python in it "
        "(python -c \"import torchvision; torchvision.datasets.CIFAR10('FOLDER', download=True)\" makes one), a "
        "folder with train.parquet and test.parquet, one of pictures (train/CLASS/* and val/CLASS/*, validation/ "
        "or test/), or the word 'digits'; for an evaluation the test part is enough"
    )


def better_elsewhere(images: Images) -> List[str]:
    """Why timm's train.py would serve these training images better, a sentence a reason; nothing where it would not."""
    height, width = images.pixels.shape[1:3]
    reasons = []
    if height * width > _LARGE**2:
        reasons.append(f"pictures of {width}x{height} are trained on with more than flips and crops")
    if images.pixels.numel() > _MANY:
        reasons.append(f"{len(images)} of {width}x{height} take {images.pixels.numel() / 2**30:.1f} GiB of memory")
    advice = f"timm's train.py reads pictures as it goes, with all its augmentation, and {_SAME_FOLDER}"
    return [f"{'; '.join(reasons)}: {advice}"] if reasons else []


def require_classes(images: Images, names: Optional[Sequence[str]], source: str) -> None:
    """Refuse images of other classes than weights tell apart; ``names`` are None where that is not known.

    Raises:
        ValueError: the names differ.
    """
    if names is not None and tuple(names) != images.classes:
        raise ValueError(
            f"'{source}' tells {len(names)} classes apart, the images are of {len(images.classes)}, "
            f"{_differing('weights', names, 'images', images.classes)}: an accuracy would say nothing. Take weights of "
            "these classes; if they are the same, name them alike (a parquet file: in the entry 'classes' of its "
            "metadata)"
        )


def _differing(one: str, names: Sequence[str], other: str, others: Sequence[str]) -> str:
    """In what two lists of class names differ."""

    def listed(names: Sequence[str]) -> str:
        return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

    lone = {
        one: [name for name in names if name not in others],
        other: [name for name in others if name not in names],
    }
    told = [f"only in {where}: {listed(alone)}" for where, alone in lone.items() if alone]
    return "; ".join(told) or f"in another order: {listed(names)} and {listed(others)}"


def _images(pixels: np.ndarray, labels: Any, classes: Tuple[str, ...], source: str) -> Images:
    labels = torch.tensor(labels, dtype=torch.int64)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"{source} has labels from {int(labels.min())} to {int(labels.max())}, expected 0 to {len(classes) - 1} "
            f"for its {len(classes)} classes"
        )
    return Images(torch.from_numpy(pixels), labels, classes)


def _read_torchvision(name: str, folder: Path, part: str) -> Images:
    from torchvision import datasets

    try:
        dataset = getattr(datasets, name)(str(folder), train=part == "train", download=False)
    except RuntimeError as error:  # torchvision checks the files' MD5 sums
        raise ValueError(f"the {name} files in '{folder}' are incomplete or corrupt: {error}") from None
    return _images(dataset.data, dataset.targets, tuple(dataset.classes), f"'{folder}'")


def _read_parquet(path: Path) -> Images:
    parquet = require("pyarrow.parquet", "reading parquet files")
    try:
        names = parquet.read_schema(path).names
        column, label = image_column(names), label_column(names)
        table = parquet.read_table(path, columns=[column, label])
    except Exception as error:  # pyarrow raises its own kinds, and which one depends on what is broken
        raise ValueError(
            f"cannot read '{path}', expected a parquet file with columns image and label: {error}"
        ) from None
    if not len(table):
        raise ValueError(f"there are no images in '{path}'")
    labels = table[label].to_numpy()
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"the labels in '{path}' must be whole numbers in every row, got {labels.dtype}")
    classes = tuple(class_names_of(table) or map(str, range(int(labels.max()) + 1)))
    pixels = []
    for row, encoded in enumerate(table[column]):
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


def _classes_in(folder: Path) -> List[str]:
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_pictures(folder: Path, preprocessing: Preprocessing, needs_all_classes: bool) -> Images:
    height, width = preprocessing.input_size[1:]
    preprocessing = preprocessing._replace(input_size=(3, height, width))
    classes = _classes_in(folder)
    files = [(path, label) for label, name in enumerate(classes) for path in files_in(folder / name)]
    paths = [(path, label) for path, label in files if is_picture(path)]
    if not paths:
        raise ValueError(f"no pictures in '{folder}': expected CLASS/NAME with one of {', '.join(SUFFIXES)}")
    found = {label for _, label in paths}
    empty = [name for label, name in enumerate(classes) if label not in found]
    if empty and needs_all_classes:
        raise ValueError(
            f"no pictures of {', '.join(empty)} in '{folder}', and every folder in it is a class: put some with one of "
            f"{', '.join(SUFFIXES)} there, or remove the folder"
        )
    others = Counter(path.suffix.lower() or path.name for path, _ in files if not is_picture(path))
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        warnings.warn(f"{sum(others.values())} files in '{folder}' are not read as pictures: {kinds}", stacklevel=2)
    needed, there = len(paths) * height * width * 3, memory()
    if needed > there / 2:
        raise ValueError(
            f"{len(paths)} pictures of {width}x{height} in '{folder}' need {needed / 2**30:.1f} GiB of this "
            f"machine's {there / 2**30:.1f}, and this trainer keeps all in memory: timm's train.py {_SAME_FOLDER}"
        )
    pixels = torch.empty(len(paths), height, width, 3, dtype=torch.uint8)
    for row, (path, _) in enumerate(counted(paths, f"reading {folder.name}")):
        picture = preprocessing.pixels(decode(path.read_bytes(), f"'{path}'"))
        pixels[row] = picture.permute(1, 2, 0).mul(255).round()  # which were bytes before
    return _images(pixels.numpy(), [label for _, label in paths], tuple(classes), f"'{folder}'")


def _read_digits() -> Dict[str, Images]:
    """1437 training and 360 test digits, 8x8 in 17 shades of grey, enlarged to 32x32 in colour.

    The test digits are the last fifth of the file.
    """
    digits = require("sklearn.datasets", "reading the digits").load_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    large = F.interpolate(grey, size=32, mode="bilinear", align_corners=False).round().to(torch.uint8)
    pixels = large.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
    classes = tuple(str(digit) for digit in range(10))
    split = len(pixels) * 4 // 5
    return {
        "train": _images(pixels[:split], digits.target[:split], classes, "digits"),
        "test": _images(pixels[split:], digits.target[split:], classes, "digits"),
    }


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
