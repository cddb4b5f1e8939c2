"""A style of drawing that training never saw: glyphs of a colour emoji font over photographs.

The words are those of the demo world, so that it is the looks that are tested, not the vocabulary.
``FOLDER`` holds photographs and ``NotoColorEmoji.ttf`` (Debian's fonts-noto-color-emoji).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from simpleseg_training.case import Case

STRESS = "demo-stress"
FONT = "NotoColorEmoji.ttf"
_STRIKE_PX = 109  # the one size that the font's bitmaps have
_SIDE_PX = 256
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_MOST_OBJECTS = 3

GLYPHS: dict[str, str] = {
    "red heart": "\u2764",
    "orange heart": "\U0001f9e1",
    "yellow heart": "\U0001f49b",
    "green heart": "\U0001f49a",
    "blue heart": "\U0001f499",
    "purple heart": "\U0001f49c",
    "brown heart": "\U0001f90e",
    "black heart": "\U0001f5a4",
    "white heart": "\U0001f90d",
    "yellow star": "\u2b50",
    "red circle": "\U0001f534",
    "orange circle": "\U0001f7e0",
    "yellow circle": "\U0001f7e1",
    "green circle": "\U0001f7e2",
    "blue circle": "\U0001f535",
    "purple circle": "\U0001f7e3",
    "brown circle": "\U0001f7e4",
    "red square": "\U0001f7e5",
    "orange square": "\U0001f7e7",
    "yellow square": "\U0001f7e8",
    "green square": "\U0001f7e9",
    "blue square": "\U0001f7e6",
    "purple square": "\U0001f7ea",
    "brown square": "\U0001f7eb",
    "orange diamond": "\U0001f536",
    "blue diamond": "\U0001f537",
    "red triangle": "\U0001f53a",
    "red ring": "\u2b55",
    "yellow crescent": "\U0001f319",
    "red cross": "\u274c",
}
"""What the demo world calls a glyph -> the glyph."""


def stress_cases(folder: Path) -> Iterator[Case]:
    """Without end: one to three glyphs on a part of a photograph, and the name of one of them.
    The same folder gives the same cases. Raises ValueError where the folder lacks something."""
    font_file = folder / FONT
    photographs = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not font_file.is_file() or not photographs:
        raise ValueError(
            f"{folder} must hold photographs and {FONT}, of Debian's fonts-noto-color-emoji"
        )
    font = ImageFont.truetype(str(font_file), _STRIKE_PX)
    return (_case(np.random.default_rng((7, i)), photographs, font) for i in _numbers())


def _numbers() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def _case(rng: Generator, photographs: list[Path], font: ImageFont.FreeTypeFont) -> Case:
    canvas = _backdrop(rng, photographs[int(rng.integers(len(photographs)))])
    names = rng.permutation(list(GLYPHS))[: int(rng.integers(1, _MOST_OBJECTS + 1))]
    places: list[tuple[int, int, int]] = []
    masks = []
    for name in names.tolist():
        place = _place(rng, places)
        if place is not None:
            places.append(place)
            masks.append((name, _draw(rng, canvas, GLYPHS[name], place, font)))
    name, mask = masks[int(rng.integers(len(masks)))]
    return Case(np.asarray(canvas), f"the {name}", mask)


def _backdrop(rng: Generator, path: Path) -> Image.Image:
    """A random square of a photograph."""
    with Image.open(path) as picture:
        photograph = picture.convert("RGB")
    side = int(min(photograph.size) * rng.uniform(0.5, 1.0))
    left = int(rng.integers(photograph.width - side + 1))
    top = int(rng.integers(photograph.height - side + 1))
    return photograph.resize((_SIDE_PX, _SIDE_PX), box=(left, top, left + side, top + side))


def _place(rng: Generator, others: list[tuple[int, int, int]]) -> tuple[int, int, int] | None:
    """Left, top and side of a square that meets none of the others; None where none was found."""
    for _ in range(30):
        side = int(_SIDE_PX * rng.uniform(0.2, 0.5))
        left, top = (int(v) for v in rng.integers(0, _SIDE_PX - side, 2))
        if all(
            left + side < x or x + s < left or top + side < y or y + s < top for x, y, s in others
        ):
            return left, top, side
    return None


def _draw(
    rng: Generator,
    canvas: Image.Image,
    glyph: str,
    place: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Paste the glyph, turned a little, and tell which pixels it covers by half or more."""
    left, top, side = place
    tile = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(tile).text((80, 80), glyph, font=font, anchor="mm", embedded_color=True)
    tile = tile.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC)
    tile = tile.crop(tile.getbbox()).resize((side, side), Image.Resampling.LANCZOS)
    canvas.paste(tile, (left, top), tile)
    mask = np.zeros((_SIDE_PX, _SIDE_PX), np.bool_)
    mask[top : top + side, left : left + side] = np.asarray(tile.getchannel("A")) > 127
    return mask
