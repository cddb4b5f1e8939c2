"""A region drawn over its picture: translucent fill, outline, label; edges antialiased."""

from math import sqrt

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simpleseg_polygon.geometry import ImageSize, Region
from simpleseg_polygon.raster import region_to_mask

Color = tuple[int, int, int]

PALETTE: tuple[Color, ...] = (
    (230, 57, 70),
    (29, 120, 214),
    (22, 148, 90),
    (240, 140, 20),
    (142, 68, 173),
    (0, 150, 167),
    (214, 51, 132),
    (120, 94, 60),
)
"""Label colours, dark enough to carry white text; the n-th prompt takes the n-th, cyclically."""

_MAX_SAMPLES = 16_000_000  # what antialiasing may rasterise: 16 MB at one byte a sample
_FILL_OPACITY = 0.38
_LONGEST_LABEL = 200  # characters; more never fit


def enlarged(image: Image.Image, min_side_px: int) -> Image.Image:
    """``image`` as RGB, enlarged by a whole factor where its shorter side is under ``min_side_px``.

    Transparent pixels become white, as they do for the model.

    >>> enlarged(Image.new("L", (100, 50)), 120).size
    (300, 150)
    """
    factor = max(1, -(-min_side_px // min(image.size)))
    size = (image.width * factor, image.height * factor)
    rgb = _opaque(image)
    return rgb if factor == 1 else rgb.resize(size, Image.Resampling.BICUBIC)


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layer).convert("RGB")


def _samples_per_side(size: ImageSize) -> int:
    return max(1, min(4, int(sqrt(_MAX_SAMPLES / (size.width * size.height)))))


def _coverage(region: Region, size: ImageSize) -> Image.Image:
    """The share of every pixel that the region covers, as an 8-bit picture."""
    k = _samples_per_side(size)
    fine = region_to_mask(region, ImageSize(size.height * k, size.width * k))
    picture = Image.fromarray(fine.astype(np.uint8) * 255)
    return picture if k == 1 else picture.reduce(k)


def _outline(region: Region, size: ImageSize, width_px: int) -> Image.Image:
    """The region's rings as antialiased lines, as an 8-bit picture."""
    k = _samples_per_side(size)
    picture = Image.new("L", (size.width * k, size.height * k), 0)
    pen = ImageDraw.Draw(picture)
    for ring in region.parts:
        # The first two vertices are repeated so that the first corner is joined as well.
        corners = [
            (point.x * size.width * k, point.y * size.height * k) for point in ring + ring[:2]
        ]
        pen.line(corners, fill=255, width=width_px * k, joint="curve")
    return picture if k == 1 else picture.reduce(k)


def _dimmed(picture: Image.Image, share: float) -> Image.Image:
    return picture.point([round(value * share) for value in range(256)])


def draw_region(image: Image.Image, region: Region, color: Color) -> Image.Image:
    """``image`` (RGB) with the region filled in ``color`` and outlined in white and ``color``.

    The white line under the coloured one keeps the outline visible on any background.
    """
    size = ImageSize(image.height, image.width)
    width_px = max(2, round(min(size) / 180))
    paint = Image.new("RGB", image.size, color)
    fill = _dimmed(_coverage(region, size), _FILL_OPACITY)
    drawn = Image.composite(paint, image, fill)
    halo = _dimmed(_outline(region, size, width_px + 2), 0.75)
    drawn = Image.composite(Image.new("RGB", image.size, (255, 255, 255)), drawn, halo)
    return Image.composite(paint, drawn, _outline(region, size, width_px))


def draw_label(
    image: Image.Image, text: str, corner_xy_px: tuple[float, float], color: Color
) -> None:
    """Write ``text`` on a plate whose lower left corner is ``corner_xy_px``, moved to fit inside.

    Draws on ``image`` itself. Text that is wider than the picture ends with an ellipsis.
    """
    font = ImageFont.load_default(size=max(13, round(min(image.size) / 28)))
    pad = max(4, round(min(image.size) / 110))
    text = _shortened(text, font, image.width - 4 * pad)
    ascent = font.getbbox("Ag")
    width, height = font.getlength(text) + 2 * pad, ascent[3] - ascent[1] + 2 * pad
    x = min(max(corner_xy_px[0], pad), image.width - width - pad)
    y = min(max(corner_xy_px[1] - height - pad, pad), image.height - height - pad)
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((x, y, x + width, y + height), radius=pad, fill=color)
    pen.text((x + pad, y + pad - ascent[1]), text, font=font, fill=(255, 255, 255))


def _shortened(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: float
) -> str:
    line = " ".join(text.split())[:_LONGEST_LABEL]
    if font.getlength(line) <= width_px:
        return line
    while line and font.getlength(line + "...") > width_px:
        line = line[:-1]
    return line + "..."
