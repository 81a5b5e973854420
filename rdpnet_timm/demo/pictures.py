"""Rows of pictures with captions, and boxes whose labels do not touch."""

from pathlib import Path
from typing import List, Sequence, Tuple

from PIL import Image, ImageDraw, ImageFont

from ..files import atomic_path

__all__ = ["BLACK", "CAPTION", "GAP", "RED", "Box", "save_rows", "with_boxes"]

GAP, CAPTION = 8, 26  # pixels between pictures, and for the caption above each row
BLACK, RED, WHITE = (0, 0, 0), (200, 30, 30), (255, 255, 255)
Box = Tuple[str, Sequence[float], Tuple[int, int, int]]  # a label, (left, top, right, bottom), a colour


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(size)


def with_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of ``picture`` with boxes, each label where it touches neither the frame nor another label."""
    picture = picture.copy()
    draw, font = ImageDraw.Draw(picture), _font(12)
    for _, box, colour in boxes:
        draw.rectangle(tuple(box), outline=WHITE if colour == BLACK else colour, width=2)
    taken: List[Tuple[float, float, float, float]] = []
    for text, box, colour in boxes:
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 6, bottom - top + 6
        places = [
            (x, y)
            for y in (box[1] - height, box[3], box[1], box[3] - height, box[1] - 2 * height, box[3] + height)
            for x in (box[0], box[2] - width, (box[0] + box[2] - width) / 2, box[2], box[0] - width)
        ]
        rooms = []
        for x, y in places:  # moved into the frame where they stick out of it
            x = min(max(x, 0), picture.width - width)
            y = min(max(y, 0), picture.height - height)
            rooms.append((x, y, x + width, y + height))
        room = min(rooms, key=lambda room: sum(_overlap(room, other) for other in taken))
        taken.append(room)
        draw.rectangle(room, fill=colour)
        draw.text((room[0] + 3 - left, room[1] + 3 - top), text, fill=WHITE, font=font)
    return picture


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def save_rows(rows: Sequence[Tuple[str, Sequence[Image.Image]]], file: Path) -> None:
    """Save rows of pictures of one size, each under its caption, as one PNG file of few colours."""
    width, height = rows[0][1][0].size
    columns = max(len(pictures) for _, pictures in rows)
    grid = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (CAPTION + height)), "white")
    draw = ImageDraw.Draw(grid)
    for i, (caption, pictures) in enumerate(rows):
        top = i * (CAPTION + height)
        draw.text((2, top + 4), caption, fill=BLACK, font=_font(15))
        for j, picture in enumerate(pictures):
            grid.paste(picture, (j * (width + GAP), top + CAPTION))
    with atomic_path(file) as path:
        grid.quantize(256, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)
