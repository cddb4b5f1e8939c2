"""The vertices of an answer as they are being written."""

from dataclasses import dataclass

from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import Point


@dataclass(frozen=True)
class NewPoints:
    """Whole vertices that follow those already told of a part; normalised, in written order."""

    part: int
    points: tuple[Point, ...]


class RegionReader:
    """Reads a region while its text arrives, and tells every vertex once.

    Law: however a text is cut into pieces, the points told of each part, one after the other, are
    ``parse_region(text).value`` once ``finish`` has been called. Therefore a part is told from its
    third distinct vertex on, and a vertex that repeats the first is held back until another
    follows: what might still be dropped is not told.

    >>> reader = RegionReader()
    >>> reader.feed("[[[0.1, 0.2], [0.5, 0.2], [0.5")
    ()
    >>> [(new.part, len(new.points)) for new in reader.feed(", 0.9], [0.1, 0.2]]]")]
    [(0, 3)]
    >>> reader.finish()
    ()
    """

    def __init__(self) -> None:
        self._text = ""
        self._told: list[int] = []

    def feed(self, piece: str) -> tuple[NewPoints, ...]:
        """The vertices that this piece of text completes."""
        self._text += piece
        # A vertex ends with a bracket, and before the third none is told. Reading again costs the
        # length of the text.
        may_tell = "]" in piece and self._text.count("]") > 2
        return self._news() if may_tell else ()

    def finish(self) -> tuple[NewPoints, ...]:
        """The vertices that only the end of the text settles."""
        return self._news()

    def _news(self) -> tuple[NewPoints, ...]:
        parts = parse_region(self._text).value.parts
        self._told += [0] * (len(parts) - len(self._told))
        news = tuple(
            NewPoints(index, ring[told:])
            for index, (ring, told) in enumerate(zip(parts, self._told, strict=True))
            if told < len(ring)
        )
        self._told = list(map(len, parts))
        return news
