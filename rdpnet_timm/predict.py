"""Pictures to classes: what a trained model says of them, in words and drawn."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Callable, List, NamedTuple, Sequence, Tuple, Union

import torch
from timm.utils import unwrap_model
from torch import nn

from .convert import reparameterize
from .deploy.calibration import Preprocessing, decode
from .files import atomic_path

__all__ = ["Prediction", "classifier", "draw", "require_drawable"]

_SIDE, _LINE, _GAP, _COLUMNS = 224, 16, 8, 4  # pixels, and pictures in a row at least, where there are as many


class Prediction(NamedTuple):
    """What a model says of a picture.

    Attributes:
        path: the picture.
        chances: the most probable classes, by name, and their probabilities, the best first.
    """

    path: Path
    chances: List[Tuple[str, float]]

    def __str__(self) -> str:
        return f"{self.path}: " + ", ".join(f"{name} {chance:.1%}" for name, chance in self.chances)


def classifier(model: nn.Module, top: int = 5) -> Callable[[Union[str, Path]], Prediction]:
    """Make a function that classifies a picture of any size, prepared as timm prepares it for this model.

    The function raises FileNotFoundError where there is no picture, and ValueError where it cannot be decoded.

    Args:
        model: a classifier of timm, averaged, parallel or compiled ones included; it is asked in its deploy form, its
            classes are named after ``label_names`` of its ``pretrained_cfg``, else by number.
        top: how many classes to name.

    Raises:
        ValueError: the model takes other channels than a picture has, is no classifier, or has no ``pretrained_cfg``.
    """
    model = unwrap_model(model)
    if not getattr(model, "num_classes", 0):
        raise ValueError(f"expected a classifier, got a {type(model).__name__} without classes: it returns features")
    preprocessing = Preprocessing.of(model)
    channels = preprocessing.input_size[0]
    if channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, and the model takes {channels}")
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ()
    form = reparameterize(deepcopy(model).float(), inplace=True).eval()  # float32, as pictures are prepared
    device = next(form.parameters()).device

    def classify(path: Union[str, Path]) -> Prediction:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no picture at '{path}'")
        picture = decode(path.read_bytes(), f"'{path}'", "L" if channels == 1 else "RGB")
        with torch.no_grad():
            logits = form(preprocessing.normalize(preprocessing.pixels(picture)[None]).to(device))[0]
        chances, classes = logits.cpu().double().softmax(0).topk(min(top, len(logits)))
        named = [names[index] if len(names) == len(logits) else f"class {index}" for index in classes.tolist()]
        return Prediction(path, list(zip(named, chances.tolist())))

    return classify


def require_drawable(file: Union[str, Path], pictures: Sequence[Path]) -> None:
    """Refuse a file that :func:`draw` could not write, or that is one of the ``pictures``.

    Raises:
        ValueError: Pillow writes no format of this suffix, or a picture would be overwritten.
        FileNotFoundError: its folder does not exist.
    """
    from PIL import Image

    path = Path(file)
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"cannot save a picture as '{path}': expected a suffix such as .png or .jpg")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save '{path}': there is no folder '{path.parent}'")
    if path.resolve() in {picture.resolve() for picture in pictures}:
        raise ValueError(f"'{path}' is one of the pictures, and would be overwritten: choose another name")


def draw(predictions: Sequence[Prediction], file: Union[str, Path], lines: int = 3) -> None:
    """Draw the pictures with their most probable classes below them.

    Args:
        predictions: at least one.
        file: where to; the suffix says the format.
        lines: classes below a picture.

    Raises:
        ValueError, FileNotFoundError: as :func:`require_drawable`.
        OSError: the folder cannot be written.
    """
    from PIL import Image, ImageDraw, ImageOps

    require_drawable(file, [prediction.path for prediction in predictions])
    # of many pictures a sheet about as wide as high: JPEG and WebP have a greatest height
    columns = min(max(_COLUMNS, math.isqrt(len(predictions))), len(predictions))
    rows = -(-len(predictions) // columns)
    width, height = _SIDE + _GAP, _SIDE + lines * _LINE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (path, chances) in enumerate(predictions):
        picture = decode(path.read_bytes(), f"'{path}'")
        method = Image.Resampling.NEAREST if max(picture.size) < _SIDE else Image.Resampling.BICUBIC
        left, upper = _GAP + index % columns * width, _GAP + index // columns * height
        fitted = ImageOps.contain(picture, (_SIDE, _SIDE), method)
        sheet.paste(fitted, (left + (_SIDE - fitted.width) // 2, upper + (_SIDE - fitted.height) // 2))
        for line, (name, chance) in enumerate(chances[:lines]):
            ink = "black" if line == 0 else "gray"
            words = _shortened(f"{name} {chance:.0%}", pen)
            pen.text((left, upper + _SIDE + 2 + line * _LINE), words, fill=ink, font_size=13)
    with atomic_path(file) as temporary:
        sheet.save(temporary)


def _shortened(words: str, pen: "ImageDraw.ImageDraw") -> str:  # type: ignore[name-defined]  # noqa: F821
    while len(words) > 1 and pen.textlength(words, font_size=13) > _SIDE:
        name, _, chance = words.rpartition(" ")
        words = f"{name[:-4].rstrip()}... {chance}"
    return words
