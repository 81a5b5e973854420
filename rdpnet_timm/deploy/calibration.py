"""Images for calibration: from a folder, from a parquet file of encoded images, or random ones."""

import io
import math
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from timm.data import create_transform, resolve_model_data_config
from timm.utils import unwrap_model
from torch import Tensor, nn

from ..extras import require
from ..progress import counted

__all__ = [
    "SUFFIXES",
    "Calibration",
    "Preprocessing",
    "class_names_of",
    "decode",
    "files_in",
    "image_column",
    "is_picture",
    "label_column",
    "load_images",
    "load_pictures",
    "pictures_in",
    "random_images",
]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Preprocessing(NamedTuple):
    """What happens to an image before the network.

    Attributes:
        input_size: ``(C, H, W)``.
        resize: length of the shorter side after resizing, before the centre crop to ``(H, W)``.
        interpolation: of the resizing.
        mean: of the channels, for pixels of 0 to 1.
        std: of the channels, for pixels of 0 to 1.
        crop_pct: what of the resized image the crop keeps.
        crop_mode: timm's name of how it crops.
    """

    input_size: Tuple[int, int, int]
    resize: int
    interpolation: str
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    crop_pct: float
    crop_mode: str

    @classmethod
    def of(cls, model: nn.Module, input_size: Optional[Sequence[int]] = None) -> "Preprocessing":
        """That of a timm model, for images of another ``(C, H, W)`` where given.

        Warns where a model without a ``pretrained_cfg`` gets ImageNet's normalisation.

        Raises:
            ValueError: sizes below 1, or other channels than the model says that it takes; neither a size nor a
                ``pretrained_cfg``.
        """
        model = unwrap_model(model)
        if not getattr(model, "pretrained_cfg", None):
            untold = (
                f"this {type(model).__name__} does not say how its images are prepared: set its pretrained_cfg, as "
                "timm's models have it, to a dict of input_size=(C, H, W), mean and std"
            )
            if not input_size:
                raise ValueError(untold)
            warnings.warn(f"{untold}; without it those of ImageNet are taken", stacklevel=2)
        config: Dict[str, Any] = resolve_model_data_config(model)
        own = getattr(model, "in_chans", None)  # few of timm's models say it
        channels, height, width = input_size or (own or config["input_size"][0], *config["input_size"][1:])
        if min(channels, height, width) < 1:
            raise ValueError(f"an input size (C, H, W) must be of numbers from 1, got {(channels, height, width)}")
        if own not in (None, channels):
            raise ValueError(f"the model takes images of {own} channels, got the size {(channels, height, width)}")

        def per_channel(values: Sequence[float]) -> Tuple[float, ...]:
            return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels

        return cls(
            (channels, height, width),
            math.floor(min(height, width) / config["crop_pct"]),
            config["interpolation"],
            per_channel(config["mean"]),
            per_channel(config["std"]),
            config["crop_pct"],
            config["crop_mode"],
        )

    def pixels(self, picture: Any) -> Tensor:
        """A picture of Pillow's, resized and cropped as timm does it: ``(C, H, W)``, 0 to 1, not normalised."""
        channels = self.input_size[0]
        transform = create_transform(
            self.input_size,
            interpolation=self.interpolation,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )
        return transform(picture)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels ``(N, C, H, W)`` of 0 to 1 as the network was trained on them."""
        mean, std = (torch.tensor(each, device=pixels.device).reshape(1, -1, 1, 1) for each in (self.mean, self.std))
        return (pixels - mean) / std


class Calibration(NamedTuple):
    """Images, and what is known of them.

    Attributes:
        pixels: ``(N, C, H, W)``, 0 to 1, resized and cropped, not normalised.
        source: where they are from, where known.
    """

    pixels: Tensor
    source: Optional[str] = None


def random_images(preprocessing: Preprocessing, count: int = 64) -> Calibration:
    """Smooth random images, always the same, for want of real ones.

    Warns that ranges measured on them are not those of real images.
    """
    warnings.warn(
        "calibrating on random images: the ranges of activations on real ones will differ, so INT8 accuracy will be "
        "worse than it has to be, and how much worse cannot be told from here; give a folder or a parquet of images",
        stacklevel=2,
    )
    generator = torch.Generator().manual_seed(0)
    channels, height, width = preprocessing.input_size
    coarse = torch.rand(count, channels, 8, 8, generator=generator)
    return Calibration(
        torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    )


def load_images(source: Union[str, Path], preprocessing: Preprocessing, limit: Optional[int] = 300) -> Calibration:
    """Read images, at most ``limit`` of them, spread evenly over the source.

    Args:
        source: a folder, searched with its subfolders; or a parquet file with a column ``image`` or ``img`` of encoded
            images.
        preprocessing: how to resize and crop them.
        limit: None for all.

    Raises:
        FileNotFoundError: there is nothing at ``source``.
        ValueError: it holds no images, one of them cannot be read, or their number of channels is not 1 or 3.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"the number of calibration images must be 1 or more, got {limit}")
    source = Path(source)
    channels = preprocessing.input_size[0]
    if channels not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, and the model takes {channels}: calibrate it from arrays")
    names, images = _from(source, limit)
    mode = "L" if channels == 1 else "RGB"
    read = zip(counted(names, "reading images"), images)
    pixels = [preprocessing.pixels(decode(data, name, mode)) for name, data in read]
    return Calibration(torch.stack(pixels), str(source))


def load_pictures(source: Union[str, Path], limit: Optional[int] = 300) -> List[np.ndarray]:
    """Read pictures as they are, ``(H, W, 3)`` uint8 RGB, at most ``limit`` of them, spread evenly over the source.

    They are turned as their camera says (EXIF), as OpenMMLab's loader does.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_images`.
    """
    names, images = _from(Path(source), limit)
    return [np.array(decode(data, name)) for name, data in zip(names, images)]


def _from(source: Path, limit: Optional[int]) -> "_Source":
    if source.is_dir():
        return _from_folder(source, limit)
    if source.suffix.lower() in SUFFIXES:
        raise ValueError(f"'{source}' is one picture, and ranges are measured on many: give the folder it lies in")
    if source.is_file():
        return _from_parquet(source, limit)
    raise FileNotFoundError(f"no calibration images at '{source}': expected a folder of images or a parquet file")


def decode(data: bytes, name: str, mode: str = "RGB") -> Any:
    """A picture of Pillow's, turned as its camera says (EXIF), of 8 bits, in Pillow's ``mode``.

    Raises:
        ValueError: it cannot be decoded, or its numbers do not say what is white; the message says ``name``.
    """
    require("PIL", "reading images")
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return _eight_bits(ImageOps.exif_transpose(image), image.format).convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # of what it does not know, Pillow names the buffer
        reason = "its bytes are those of no picture" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"cannot read the image {name} ({reason}): mend or remove it") from None


def _eight_bits(image: Any, stored_as: Optional[str]) -> Any:
    """Grey of 16 bits as 8, which Pillow's own conversion would cut off at 255."""
    from PIL import Image

    # mode I holds the 16 bits of a PGM, and in older versions of Pillow those of a PNG
    if image.mode.startswith("I;16") or (image.mode == "I" and stored_as in ("PNG", "PPM")):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit" if image.mode == "I" else "floating-point"
        raise ValueError(f"its {kind} numbers do not say what is white; save it with 8 or 16 bits")
    return image


_Source = Tuple[List[str], Iterator[bytes]]


def _spread(count: int, limit: Optional[int]) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, limit or count)).round().astype(int))


def pictures_in(folder: Path) -> List[Path]:
    """The pictures among the files in a folder, see :func:`files_in`."""
    return [path for path in files_in(folder) if is_picture(path)]


def is_picture(path: Path) -> bool:
    """Whether a file is one by its suffix."""
    return path.suffix.lower() in SUFFIXES


def files_in(folder: Path) -> List[Path]:
    """The files in a folder and its subfolders, sorted; what is hidden, such as thumbnails, is left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file()
    )


def _from_folder(folder: Path, limit: Optional[int]) -> _Source:
    paths = pictures_in(folder)
    if not paths:
        raise ValueError(f"no images in the folder '{folder}': expected files ending in {', '.join(SUFFIXES)}")
    paths = [paths[index] for index in _spread(len(paths), limit)]
    return [f"'{path}'" for path in paths], (path.read_bytes() for path in paths)


def _from_parquet(path: Path, limit: Optional[int]) -> _Source:
    parquet = require("pyarrow.parquet", "reading parquet files", "int8")
    arrow = require("pyarrow", "reading parquet files", "int8")
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"'{path}' is not a whole parquet file ({str(error).splitlines()[0]})") from None
    column = image_column(table.column_names)
    if column not in table.column_names or not len(table):
        raise ValueError(f"expected encoded images in a column 'image' or 'img' of '{path}', got {table.column_names}")
    table = table.take(_spread(len(table), limit))
    cells: List[Any] = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in table[column].to_pylist()]
    if not all(cell is None or isinstance(cell, bytes) for cell in cells):  # but paths, for example
        raise ValueError(f"expected encoded images in the column '{column}' of '{path}', got {table[column].type}")
    return [f"{i} of '{path}'" for i in range(len(table))], iter(cells)


def image_column(names: Sequence[str]) -> str:
    """The column of a parquet file with its images: ``image``, or ``img``, as CIFAR's on the Hugging Face Hub."""
    return "img" if "img" in names and "image" not in names else "image"


def label_column(names: Sequence[str]) -> str:
    """The column of a parquet file with its labels: ``label``, or ``fine_label``, as CIFAR-100's on the Hub."""
    return "fine_label" if "fine_label" in names and "label" not in names else "label"


def class_names_of(table: Any) -> Optional[List[str]]:
    """Class names from its metadata, under a key that speaks of names or classes, or as the Hub writes them."""
    import json

    metadata = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
    try:
        features = json.loads(metadata["huggingface"])["info"]["features"]
        return [str(name) for name in features[label_column(table.column_names)]["names"]]
    except (KeyError, TypeError, ValueError):
        pass
    for key in ("classes", "class_names", "names", "label_names"):
        if key in metadata:
            try:
                return [str(name) for name in json.loads(metadata[key])]
            except (ValueError, TypeError):
                return metadata[key].decode().split(",")
    return None
