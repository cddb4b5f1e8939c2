"""SVG: a drawing that lies exactly over the image."""

import re
from xml.sax.saxutils import escape

from simpleseg_polygon.geometry import ImageSize, Region, Ring

_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def svg_document(
    region: Region, size: ImageSize, label: str | None = None, *, color: str = "#e6194b"
) -> str:
    """An SVG document with one path for each part, as large as the image, in its pixels.

    Paths are filled by the non-zero rule and drawn into one half-transparent group, so that overlap
    does not show: what is painted is the region. Coordinates have two decimals. ``label`` becomes
    the title that browsers show on hover; ``color`` is any SVG colour.

    >>> from simpleseg_polygon.geometry import Box
    >>> drawing = svg_document(Region((Box(0, 0, 0.5, 1).ring(),)), ImageSize(10, 20))
    >>> drawing[drawing.index("<path") : drawing.index("</g>")]
    '<path d="M0 0L10 0L10 10L0 10Z"/>'
    """
    width, height = size.width, size.height
    title = f"<title>{escape(_NOT_XML.sub('', label))}</title>" if label else ""
    paint = escape(_NOT_XML.sub("", color), {'"': "&quot;"})
    paths = "".join(f'<path d="{_path(ring, size)}"/>' for ring in region.parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">'
        f'<g fill="{paint}" fill-rule="nonzero" opacity="0.5">{title}{paths}</g></svg>'
    )


def _path(ring: Ring, size: ImageSize) -> str:
    points = (f"{_number(x * size.width)} {_number(y * size.height)}" for x, y in ring)
    return f"M{'L'.join(points)}Z"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
