"""Corpora, laws and the cost of reading and writing the polygon language."""

import doctest
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simpleseg_polygon import codec, scanner
from simpleseg_polygon.codec import (
    TARGETS,
    Parsed,
    Target,
    format_box,
    format_number,
    format_point,
    format_region,
    parse,
    parse_boxes,
    parse_points,
    parse_region,
)
from simpleseg_polygon.geometry import Box, Point, Region, Ring

CORPORA = Path(__file__).parents[1] / "golden" / "codec"
WRAPPERS = (
    "{}",
    "{}.",
    "It is at {}.",
    "It is found at {}.",
    "Sure, you can find it at {}.",
)
MUTATION_ALPHABET = "[]0123456789., -+e\nnaif(){}\"'x\u0661\ud800"

coordinates = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
points = st.builds(Point, coordinates, coordinates)


def _is_usable(ring: Ring) -> bool:
    return len(set(ring)) >= 3 and ring[0] != ring[-1]


rings = st.lists(points, min_size=3, max_size=12).map(tuple).filter(_is_usable)
regions = st.lists(rings, min_size=1, max_size=4).map(lambda parts: Region(tuple(parts)))
answers = st.builds(str.format, st.sampled_from(WRAPPERS), regions.map(format_region))


@st.composite
def mutated_answers(draw: st.DrawFn) -> str:
    """An answer with up to eight characters replaced, inserted, deleted or pieces repeated."""
    text = draw(answers)
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 6)))
        piece = draw(st.text(MUTATION_ALPHABET, max_size=4) | st.just(text[start:end] * 2))
        text = text[:start] + piece + text[end:]
    return text


def _corpus(name: str) -> list[Any]:
    lines = (CORPORA / f"{name}.jsonl").read_text().splitlines()
    return [pytest.param(case, id=case["name"]) for case in map(json.loads, lines)]


def _nested_lists(value: object) -> object:
    if isinstance(value, Region):
        return _nested_lists(value.parts)
    return [_nested_lists(item) for item in value] if isinstance(value, tuple) else value


def _check(case: dict[str, Any]) -> None:
    parsed = parse(case["text"], case["target"])
    assert parsed.status == case["status"]
    assert _nested_lists(parsed.value) == case["value"]
    assert [warning.code for warning in parsed.warnings] == case["warnings"]


@pytest.mark.parametrize("case", _corpus("accept"))
def test_accepted(case: dict[str, Any]) -> None:
    assert case["status"] in {"ok", "empty"}
    _check(case)


@pytest.mark.parametrize("case", _corpus("reject"))
def test_rejected(case: dict[str, Any]) -> None:
    assert case["status"] == "invalid"
    _check(case)


@pytest.mark.parametrize("case", _corpus("incomplete"))
def test_incomplete(case: dict[str, Any]) -> None:
    assert case["status"] == "truncated"
    _check(case)


def test_corpora_cover_every_warning() -> None:
    cases = [
        param.values[0] for name in ("accept", "reject", "incomplete") for param in _corpus(name)
    ]
    seen = {code for case in cases for code in case["warnings"]}
    assert seen == set(get_args(codec.WarningCode)) - {"too_long"}


@settings(max_examples=60, deadline=None)
@given(regions, st.sampled_from(WRAPPERS))
def test_parsing_undoes_formatting(region: Region, wrapper: str) -> None:
    parsed = parse_region(wrapper.format(format_region(region)))
    assert parsed == Parsed(region, "ok")


@settings(max_examples=40, deadline=None)
@given(st.lists(points, min_size=1, max_size=6), st.sampled_from(WRAPPERS))
def test_parsing_undoes_formatting_of_points(where: list[Point], wrapper: str) -> None:
    assert parse_points(wrapper.format(format_point(where[0]))) == Parsed((where[0],), "ok")
    several = "[" + ", ".join(map(format_point, where)) + "]"
    assert parse_points(wrapper.format(several)) == Parsed(tuple(where), "ok")


@settings(max_examples=40, deadline=None)
@given(points, points, st.sampled_from(WRAPPERS))
def test_parsing_undoes_formatting_of_boxes(a: Point, b: Point, wrapper: str) -> None:
    box = Box(min(a.x, b.x), min(a.y, b.y), max(a.x, b.x), max(a.y, b.y))
    assert parse_boxes(wrapper.format(format_box(box))) == Parsed((box,), "ok")


def test_every_number_of_the_grid_survives() -> None:
    for thousandths in range(1001):
        text = format_number(thousandths / 1000)
        assert float(text) == thousandths / 1000
        assert text == "0.0" or not text.endswith("0") or text == "1.0"


@settings(max_examples=60, deadline=None)
@given(st.floats(allow_nan=False))
def test_a_number_is_written_within_the_language(value: float) -> None:
    text = format_number(value)
    assert text == "1.0" or (text.startswith("0.") and 3 <= len(text) <= 5)
    assert abs(float(text) - min(max(value, 0.0), 1.0)) <= 0.0005 + 1e-12


def test_nan_is_not_written() -> None:
    with pytest.raises(ValueError, match="not a number"):
        format_point(Point(0.5, math.nan))


def _check_invariants(text: str, target: Target) -> None:
    """What every result keeps to, whatever the text."""
    parsed = parse(text, target)
    codes = [warning.code for warning in parsed.warnings]
    assert parsed.status in get_args(codec.Status)
    assert codes == sorted(set(codes))
    assert set(codes) <= set(get_args(codec.WarningCode))
    value = parsed.value.parts if isinstance(parsed.value, Region) else parsed.value
    if parsed.status != "truncated":
        assert bool(value) == (parsed.status == "ok")
    if isinstance(parsed.value, Region):
        assert all(_is_usable(ring) for ring in parsed.value.parts)
        assert parse_region(format_region(parsed.value)).status != "truncated"
    if not isinstance(parsed.value, str):
        assert all(0 <= number <= 1 for number in _numbers(parsed.value))


def _numbers(value: object) -> list[float]:
    nested = _nested_lists(value)
    if isinstance(nested, list):
        return [number for item in nested for number in _numbers(item)]
    assert isinstance(nested, float)
    assert str(nested) != "-0.0"
    return [nested]


@settings(max_examples=120, deadline=None)
@given(st.text() | st.text("[]0123456789., -+eE") | st.text("[]1, "), st.sampled_from(TARGETS))
@example("[[[\ud800", "region")
@example("\x00[[[0.1,\x1c0.2]", "region")
@pytest.mark.catalogue("G7")
def test_any_text_is_read(text: str, target: Target) -> None:
    _check_invariants(text, target)


@settings(max_examples=120, deadline=None)
@given(mutated_answers(), st.sampled_from(TARGETS))
def test_mutated_answers_are_read(text: str, target: Target) -> None:
    _check_invariants(text, target)


@settings(max_examples=15, deadline=None)
@given(regions, st.sampled_from(WRAPPERS))
@pytest.mark.catalogue("G8")
def test_truncation_keeps_whole_parts(region: Region, wrapper: str) -> None:
    """At every index: the parts written so far, then at most the beginning of the next one."""
    text = wrapper.format(format_region(region))
    start, closed_at = text.index("["), _part_ends(text)
    assert len(closed_at) == len(region.parts)
    for end in range(len(text) + 1):
        parsed = parse_region(text[:end])
        whole = sum(part_end <= end for part_end in closed_at)
        parts = parsed.value.parts
        assert parts[:whole] == region.parts[:whole]
        assert len(parts) <= whole + 1
        if len(parts) > whole:
            assert parts[whole] == region.parts[whole][: len(parts[whole])]
        expected = "invalid" if end <= start else "truncated" if end < closed_at[-1] + 1 else "ok"
        assert parsed.status == expected


def _part_ends(text: str) -> list[int]:
    """The index after every bracket that closes a part of a three-level list."""
    depth, ends = 0, []
    for index, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == "]" and depth == 1:
            ends.append(index + 1)
    return ends


@settings(max_examples=15, deadline=None)
@given(regions)
def test_unfinished_parts_keep_every_whole_point(region: Region) -> None:
    """A ring cut at any index has its whole points if three are distinct, else it is named."""
    ring = region.parts[0]
    text = format_region(Region((ring,)))[:-2]  # without the brackets that close the ring
    for end in range(len(text) + 1):
        whole = ring[: text[:end].count("]")]
        while len(whole) > 1 and whole[-1] == whole[0]:
            whole = whole[:-1]
        parsed = parse_region(text[:end])
        if len(set(whole)) >= 3:
            assert parsed.value == Region((whole,))
            assert [warning.code for warning in parsed.warnings] == ["part_unfinished"]
        else:
            assert parsed.value.is_empty
            has_begun = any(character.isdigit() for character in text[:end])
            assert [w.code for w in parsed.warnings] == ["unfinished_dropped"] * has_begun


@settings(max_examples=40, deadline=None)
@given(answers, st.data())
def test_more_text_never_takes_points_away(text: str, data: st.DataObject) -> None:
    shorter = data.draw(st.integers(0, len(text)))
    longer = data.draw(st.integers(shorter, len(text)))
    few, many = parse_region(text[:shorter]).value, parse_region(text[:longer]).value
    assert len(few.parts) <= len(many.parts)
    for ring, longer_ring in zip(few.parts, many.parts, strict=False):
        assert ring == longer_ring[: len(ring)]


@settings(max_examples=40, deadline=None)
@given(regions, st.text(" \n\t", max_size=3))
def test_white_space_and_compact_json_change_nothing(region: Region, blank: str) -> None:
    text = format_region(region)
    assert parse_region(text.replace(" ", "")) == Parsed(region, "ok")
    spaced = "".join(blank + c + blank if c in "[]," else c for c in text)
    assert parse_region(spaced) == Parsed(region, "ok")


@settings(max_examples=30, deadline=None)
@given(rings)
def test_two_levels_are_one_part(ring: Ring) -> None:
    three_levels = format_region(Region((ring,)))
    assert parse_region(three_levels[1:-1]) == parse_region(three_levels)


def test_reading_stops_after_256_parts() -> None:
    ring = (Point(0.1, 0.2), Point(0.5, 0.2), Point(0.5, 0.9))
    most = Region((ring,) * scanner.MAX_PARTS)
    assert parse_region(format_region(most)) == Parsed(most, "ok")
    parsed = parse_region(format_region(Region((ring,) * (scanner.MAX_PARTS + 1))))
    assert parsed.value == most
    assert parsed.status == "truncated"
    assert [warning.code for warning in parsed.warnings] == ["too_long"]


def test_reading_stops_after_8192_vertices() -> None:
    ring = tuple(Point(i % 1001 / 1000, i // 1001 / 1000) for i in range(scanner.MAX_LISTS))
    assert parse_region(format_region(Region((ring,)))) == Parsed(Region((ring,)), "ok")
    for rest in ("", "]", "]]"):
        text = format_region(Region((ring,)))[:-2] + ", [0.5, 0.5]" + rest
        parsed = parse_region(text)
        assert parsed.value == Region((ring,))
        assert parsed.status == "truncated"
        assert "too_long" in [warning.code for warning in parsed.warnings]


def test_the_limit_holds_for_all_parts_together() -> None:
    half = tuple(Point(i % 1001 / 1000, i // 1001 / 1000) for i in range(scanner.MAX_LISTS // 2))
    parsed = parse_region(format_region(Region((half, half[1:], half))))
    assert [len(part) for part in parsed.value.parts[:2]] == [len(half), len(half) - 1]
    assert parsed.value.vertex_count == scanner.MAX_LISTS - 1  # one vertex is no part
    assert parsed.status == "truncated"
    with_more_behind = parse_region(format_region(Region((half, half[1:], half, half))))
    assert with_more_behind == parsed


@pytest.mark.parametrize(("target", "item"), [("point", "[0.1, 0.2]"), ("box", "[0, 0, 1, 1]")])
def test_reading_stops_after_8192_boxes_or_points(target: Target, item: str) -> None:
    most = parse(", ".join([item] * scanner.MAX_LISTS), target)
    assert (most.status, most.warnings) == ("ok", ())
    parsed = parse(", ".join([item] * (scanner.MAX_LISTS + 1)), target)
    assert (parsed.value, parsed.status) == (most.value, "truncated")
    assert [warning.code for warning in parsed.warnings] == ["too_long"]


def test_warnings_count_and_repeat_nothing() -> None:
    parsed = parse_region("[[[-7, 0.2], [8, 0.2], [0.5, 0.9]], [[0.25, 0.75]], [[0.35, 0.75]]]")
    messages = {warning.code: warning.message for warning in parsed.warnings}
    assert messages == {
        "coordinate_clamped": "coordinates outside [0, 1] were clamped: 2",
        "part_too_small": "parts with fewer than three distinct vertices were left out: 2",
    }


def test_parse_names_the_targets() -> None:
    with pytest.raises(ValueError, match="region, box, point, text"):
        parse("[]", "mask")  # type: ignore[call-overload]


PIECES = (
    *("[", "]", "][", "[ ", " ", "[[ ", "7", "0.", "1e", "+", "[1", "[1,", "[0.1, ", "[]", "[[]]"),
    *("[[]], ", "[[1] ", "[a]", "[[a]", "[[0,0]", "[[0,0]], x", "[0,0,1,1]", "[\u00e9", "],", ","),
    *("[0.123, 0.456], ", "[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]. "),
)
BEGINNINGS = ("", "[[[", "[[[0.", "[[0.1, 0.2], [0.3, 0.4], ")
READERS: tuple[Callable[[str], object], ...] = (parse_region, parse_boxes, parse_points)


def _cpu_seconds(read: Callable[[str], object], text: str) -> float:
    begin = time.process_time()
    read(text)
    return time.process_time() - begin


def _is_linear(read: Callable[[str], object], beginning: str, piece: str, size: int) -> bool:
    """Whether four times the text costs at most eight times as much, where 16 would be quadratic.

    Compares the least CPU times of alternating runs: on a busy machine wall time also counts the
    slices of other processes, which are longer than a reading. Reading at 20 ns a character or less
    is taken as linear.
    """
    short, long = (beginning + piece * (n * size // len(piece)) for n in (1, 4))
    short_s, long_s = [], []
    for _ in range(4):
        long_s.append(_cpu_seconds(read, long))
        if long_s[-1] < 20e-9 * len(long):
            return True
        short_s.append(_cpu_seconds(read, short))
    return min(long_s) < 8 * min(short_s)


@pytest.mark.parametrize("beginning", BEGINNINGS)
@pytest.mark.parametrize("piece", PIECES)
def test_reading_takes_linear_time(beginning: str, piece: str) -> None:
    assert all(_is_linear(read, beginning, piece, size=1 << 17) for read in READERS)


@pytest.mark.parametrize("piece", ["[", "[0.1, ", "0.", "7", "][", "[[0.123, 0.456], "])
@pytest.mark.catalogue("G7")
def test_reading_four_megabytes_takes_linear_time(piece: str) -> None:
    assert all(_is_linear(read, "[[[0.", piece, size=1 << 20) for read in READERS)


def test_the_linear_time_test_finds_a_quadratic_reader() -> None:
    """This pattern reads the rest of the digits again from every digit."""
    backtracking = re.compile("[0-9]+x")
    assert not _is_linear(backtracking.search, "", "7", size=1 << 11)


@pytest.mark.parametrize("module", [codec, scanner])
def test_examples(module: Any) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0
