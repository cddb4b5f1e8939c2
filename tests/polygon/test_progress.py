"""Vertices told while an answer is written, against the parse of the whole answer."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import Point, Ring
from simpleseg_polygon.progress import NewPoints, RegionReader
from simpleseg_polygon.scanner import MAX_LISTS, MAX_PARTS

PIECES = st.sampled_from(
    [
        "[",
        "[[",
        "]",
        "]]",
        "], [",
        ", ",
        "0.1",
        "0.25",
        "0.9",
        "1.0",
        "7",
        " nan",
        " It is at ",
        ".",
    ]
)
POINTS = st.sampled_from(["[0.1, 0.2]", "[0.5, 0.2]", "[0.5, 0.9]", "[0.1, 0.9]", "[3, -1]"])
TEXTS = st.lists(PIECES | POINTS.map(lambda point: point + ", "), max_size=40).map("".join)


def told(pieces: Sequence[str]) -> tuple[Ring, ...]:
    reader = RegionReader()
    news = [new for piece in pieces for new in reader.feed(piece)]
    return joined([*news, *reader.finish()])


def joined(news: Sequence[NewPoints]) -> tuple[Ring, ...]:
    parts: list[tuple[Point, ...]] = []
    for new in news:
        assert new.part <= len(parts), "parts are told in order"
        if new.part == len(parts):
            parts.append(())
        parts[new.part] += new.points
    return tuple(parts)


@given(TEXTS, st.lists(st.integers(0, 400), max_size=12))
def test_what_was_told_is_what_the_whole_text_says(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert told(pieces) == parse_region(text).value.parts


@given(TEXTS)
def test_character_by_character(text: str) -> None:
    assert told(list(text)) == parse_region(text).value.parts


def test_a_vertex_is_told_as_soon_as_it_is_whole() -> None:
    reader = RegionReader()
    assert reader.feed("[[[0.1, 0.2], [0.5, 0.2], ") == ()
    [first] = reader.feed("[0.5, 0.9], ")
    assert len(first.points) == 3
    [second] = reader.feed("[0.1, 0.9]")
    assert second == NewPoints(0, (Point(0.1, 0.9),))


def test_a_vertex_like_the_first_waits_for_another() -> None:
    reader = RegionReader()
    reader.feed("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]")
    assert reader.feed(", [0.1, 0.2]") == ()
    [new] = reader.feed(", [0.3, 0.3]")
    assert new.points == (Point(0.1, 0.2), Point(0.3, 0.3))


def test_beyond_the_limits_nothing_is_told() -> None:
    part = "[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]], "
    assert len(told(["[" + part * MAX_PARTS, part, part])) == MAX_PARTS
    ring = ["[["] + ["[0.1, 0.2], [0.5, 0.2], [0.5, 0.9], " * 1024] * 3
    [points] = told(ring)
    assert len(points) == MAX_LISTS
