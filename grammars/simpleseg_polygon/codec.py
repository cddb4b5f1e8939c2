"""Text of the polygon language <-> geometry.

The text is Python's ``str`` of nested lists of floats rounded to three decimals: separator ``", "``,
trailing zeros dropped, as the released data script writes it (songtianhui/SimpleSeg, data/data.py).
"""

from simpleseg_polygon.geometry import Box, Point, Region


def format_number(value: float) -> str:
    """A coordinate clamped to [0, 1] and rounded to three decimals, without trailing zeros.

    >>> format_number(0.5), format_number(0.12345), format_number(1.2)
    ('0.5', '0.123', '1.0')
    """
    return str(round(min(max(float(value), 0.0), 1.0), 3))


def _format_list(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(map(format_number, values)) + "]"


def format_point(point: Point) -> str:
    """
    >>> format_point(Point(0.5, 0.25))
    '[0.5, 0.25]'
    """
    return _format_list(point)


def format_box(box: Box) -> str:
    """
    >>> format_box(Box(0.1, 0.2, 0.3, 0.4))
    '[0.1, 0.2, 0.3, 0.4]'
    """
    return _format_list(box)


def format_region(region: Region) -> str:
    """
    >>> format_region(Region(((Point(0.1, 0.2), Point(0.5, 0.2), Point(0.5, 0.9)),)))
    '[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]'
    """
    rings = ("[" + ", ".join(map(format_point, ring)) + "]" for ring in region.parts)
    return "[" + ", ".join(rings) + "]"
