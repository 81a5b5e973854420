"""What stands before an OpenMMLab network, as part of the graph: resize, channel order, normalisation, padding.

So an exported network takes a picture as any decoder gives it, and answers in that picture's pixels.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config_reading import kind_of

__all__ = ["Picture", "Resize", "Unsupported", "picture_transforms", "resized", "test_dataset"]


class Unsupported(ValueError):
    """A network or a pipeline with a part that cannot be exported; the message names it."""


class Resize(NamedTuple):
    """The resize of a test pipeline.

    Attributes:
        width: of the network's picture; with ``keep_ratio`` one of the two lengths that it has to fit into.
        height: the other one.
        keep_ratio: as large as fits into the two, the longer side into the longer length.
    """

    width: int
    height: int
    keep_ratio: bool

    def __str__(self) -> str:
        kept = "at most, the proportions kept" if self.keep_ratio else "exactly"
        return f"to {self.width} x {self.height} (width x height) {kept}"


def picture_transforms(config: Any) -> Tuple[List[Dict[str, Any]], Optional[Resize]]:
    """The pipeline of a config's test pictures without their annotations, and the resize in it.

    Raises:
        Unsupported: the pipeline does something that the exported graph cannot do.
    """
    resize, kept = None, []
    for transform in test_dataset(config)["pipeline"]:
        kind = kind_of(transform)
        if kind == "LoadAnnotations":
            continue
        if kind == "Resize" and resize is None:
            resize = _resize_of(transform)
        elif kind == "LoadImageFromFile":
            _require_eight_bit_colours(transform)
        elif kind not in ("PackDetInputs", "PackSegInputs"):
            raise Unsupported(
                f"the test pipeline has a '{kind}', and the exported graph can only do what a Resize does; "
                "export with a config whose test pipeline is LoadImageFromFile, Resize, PackDetInputs or PackSegInputs"
            )
        kept.append(dict(transform))
    return kept, resize


def test_dataset(config: Any) -> Any:
    """The dataset of a config's test pictures, else of those for validation; of one made of others the first.

    Raises:
        Unsupported: there is neither, or it has no pipeline.
    """
    for name in ("test_dataloader", "val_dataloader"):
        dataset = (config.get(name) or {}).get("dataset")
        while dataset is not None and "pipeline" not in dataset:
            dataset = dataset["dataset"] if "dataset" in dataset else (dataset.get("datasets") or [None])[0]
        if dataset is not None:
            return dataset
    raise Unsupported(
        "the config has no test pipeline, which says what is done to a picture: give one with a test_dataloader or a "
        "val_dataloader whose dataset has a pipeline"
    )


# How a file becomes the uint8 RGB that the graph begins with is the caller's matter; what else it becomes is not.
_OF_THE_FILE = ("type", "backend_args", "file_client_args", "ignore_empty")
_EIGHT_BIT_COLOURS = {"to_float32": (False,), "color_type": ("color",), "imdecode_backend": ("cv2", "pillow")}


def _require_eight_bit_colours(loader: Dict[str, Any]) -> None:
    for name, value in loader.items():
        if name not in _OF_THE_FILE and value not in _EIGHT_BIT_COLOURS.get(name, ()):
            raise Unsupported(
                f"the test pipeline's LoadImageFromFile has {name}={value!r}, and the exported graph begins with a "
                "picture in colours of 8 bits: train and evaluate without it, then export"
            )


def _resize_of(transform: Dict[str, Any]) -> Resize:
    scale, others = transform.get("scale"), set(transform) - {"type", "scale", "keep_ratio"}
    if scale is None or others:
        raise Unsupported(
            f"expected a Resize with scale=(width, height) and maybe keep_ratio in the test pipeline, got {transform}"
        )
    width, height = (scale, scale) if isinstance(scale, int) else scale
    return Resize(int(width), int(height), bool(transform.get("keep_ratio", False)))


class Picture(nn.Module):
    """A picture ``(H, W, 3)``, RGB of 0 to 255, to the network's ``(1, 3, h, w)``, as the data preprocessor makes it.

    Args:
        preprocessor: of mmdet or mmseg: mean, std, channel order and padding are read from it.
        resize: that of the test pipeline, None for none.

    Raises:
        Unsupported: the preprocessor does something that this does not.
    """

    def __init__(self, preprocessor: Any, resize: Optional[Resize]) -> None:
        super().__init__()
        self.resize = resize
        # pictures are loaded as BGR: the preprocessor turns the channels round where the network takes RGB
        self.rgb = bool(
            getattr(preprocessor, "_channel_conversion", getattr(preprocessor, "channel_conversion", False))
        )
        mean, std = (getattr(preprocessor, name, None) for name in ("mean", "std"))
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1) if mean is None else mean.reshape(1, -1, 1, 1).clone())
        self.register_buffer("std", torch.ones(1, 3, 1, 1) if std is None else std.reshape(1, -1, 1, 1).clone())
        if self.mean.shape[1] != 3 or self.std.shape[1] != 3:
            raise Unsupported(f"expected mean and std of 3 channels in the data preprocessor, got {self.mean.shape[1]}")
        padding = getattr(preprocessor, "test_cfg", None) or {}
        self.divisor = int(getattr(preprocessor, "pad_size_divisor", None) or padding.get("size_divisor") or 1)
        self.least: Tuple[int, int] = tuple(padding.get("size") or (1, 1))
        self.pad_value = float(getattr(preprocessor, "pad_value", getattr(preprocessor, "pad_val", 0)))

    def forward(self, image: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """The network's picture, the size ``(H, W)`` of the one given, and its size before padding; both int64."""
        given = torch.stack([torch.as_tensor(length, dtype=torch.int64) for length in image.shape[:2]])
        size = self._resized(given)
        x = image.float() if self.resize is None else resized(image, given, size)
        x = x.permute(2, 0, 1)[None]
        if not self.rgb:
            x = x[:, [2, 1, 0]]
        x = (x - self.mean) / self.std
        if self.divisor > 1 or self.least != (1, 1):
            bottom, right = self._padded(size) - size
            x = F.pad(x, (0, right, 0, bottom), value=self.pad_value)
        return x, given, size

    def _resized(self, given: Tensor) -> Tensor:
        if self.resize is None:
            return given
        width, height, keep_ratio = self.resize
        if not keep_ratio:
            return given.new_tensor([height, width])
        long, short = given.new_tensor(max(width, height)), given.new_tensor(min(width, height))
        by_long = long * given.min() <= short * given.max()
        part, whole = torch.where(by_long, long, short), torch.where(by_long, given.max(), given.min())
        # round(given * part / whole), halves up as OpenCV's users do, in whole numbers
        return _quotient(2 * given * part + whole, 2 * whole).clamp(min=1)

    def _padded(self, size: Tensor) -> Tensor:
        padded = _quotient(size + (self.divisor - 1), size.new_tensor(self.divisor)) * self.divisor
        return torch.maximum(padded, size.new_tensor(self.least))


def resized(image: Tensor, given: Tensor, size: Tensor) -> Tensor:
    """A picture ``(H, W, C)`` of whole values at another size, as OpenCV's ``resize`` computes it for uint8, float.

    Bilinear, centres at halves, no antialiasing; the weights are whole 2048ths, and the sums are cut off where OpenCV
    cuts them off: a detector near its threshold sees the difference of one grey level that rounding otherwise makes.
    Every intermediate value is whole, and all but one product are below 2^24, so float32 holds them; that one costs a
    grey level in half a million values.
    """
    (top, bottom, upper, lower), (left, right, nearer, farther) = (_taps(given[i], size[i]) for i in range(2))
    nearer, farther = nearer[:, None], farther[:, None]

    def across(row: Tensor) -> Tensor:
        lines = image[row]
        return torch.floor((lines[:, left].float() * nearer + lines[:, right].float() * farther) / 16)

    above = torch.floor(across(top) * upper[:, None, None] / 65536)
    below = torch.floor(across(bottom) * lower[:, None, None] / 65536)
    return torch.floor((above + below + 2) / 4)


def _taps(given: Tensor, size: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each of ``size`` pixels in a row the two of ``given`` that it lies between, and their weights in 2048ths.

    Pixel i lies at ``(i + 1/2) given / size - 1/2``, rounded to float32 as OpenCV has it. There is no float64 on the
    way: where a picture's size is fixed these are constants, and on such ones OpenVINO (2026.4) computes for ever.
    """
    count = size if torch.jit.is_tracing() else int(size)
    place = ((2 * torch.arange(count) + 1) * given - size).float() / (2 * size).float()
    first = place.floor()
    share = place - first
    last = (given - 1).float()
    before, after = (torch.minimum(each.clamp(min=0), last).long() for each in (first, first + 1))
    return before, after, torch.round((1 - share) * 2048), torch.round(share * 2048)


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.div(numerator, denominator, rounding_mode="trunc")
