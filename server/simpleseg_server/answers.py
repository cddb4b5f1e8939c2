"""Answer text -> result: parsed, put into the wanted units and representations, and scored.

Everything here computes; call ``to_result`` in a worker thread.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simpleseg.schema import FinishReason, PromptItem, Result, ResultWarning, ScoreType
from simpleseg_polygon.codec import (
    Parsed,
    ParseWarning,
    Status,
    Target,
    parse_boxes,
    parse_points,
    parse_region,
)
from simpleseg_polygon.geometry import WHOLE, Box, ImageSize, Point, Region
from simpleseg_server.engines.base import TokenLogprob, Usage
from simpleseg_server.errors import ApiError
from simpleseg_server.representations import Subject, Wanted, represent
from simpleseg_server.scores import Calibrations, score_of, scores_of
from simpleseg_server.stages import StageTimes

_PIXEL_DECIMALS = 2
_NORMALISED_DECIMALS = 6
_LATE = ParseWarning("deadline_passed", "the time was over; what was finished by then is given")


@dataclass(frozen=True)
class Answer:
    """What the engine wrote for one prompt; ``queue_ms`` is the wait before the engine got it.

    ``view`` is the part of the image, normalised, that it was shown; its coordinates lie in it.
    ``agreement`` is the mean IoU with other answers to the same prompt, where there were any.
    """

    text: str
    tokens: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    usage: Usage
    queue_ms: float
    view: Box = WHOLE
    agreement: float | None = None

    @property
    def region(self) -> Parsed[Region]:
        """The text as a region of the whole image."""
        parsed = parse_region(self.text)
        if self.view == WHOLE:
            return parsed
        parts = (tuple(map(self.view.place, ring)) for ring in parsed.value.parts)
        return replace(parsed, value=Region(tuple(parts)))


@dataclass(frozen=True)
class Judged:
    """The result of one prompt and the warnings about it. ``region`` is the result's, whichever
    outputs of it are in there; None for other tasks, and where there was no answer."""

    result: Result
    warnings: list[ResultWarning]
    region: Region | None = None


@dataclass(frozen=True)
class Frame:
    """The displayed image's size and the unit in which the client reads and writes coordinates."""

    size: ImageSize
    is_pixel: bool

    def outward(self, x: float, y: float) -> list[float]:
        """Normalised -> the client's unit.

        >>> Frame(ImageSize(100, 200), is_pixel=True).outward(0.5, 0.25)
        [100.0, 25.0]
        """
        if self.is_pixel:
            width, height = self.size.width, self.size.height
            return [round(x * width, _PIXEL_DECIMALS), round(y * height, _PIXEL_DECIMALS)]
        return [round(x, _NORMALISED_DECIMALS), round(y, _NORMALISED_DECIMALS)]

    def outward_box(self, box: Box) -> list[float]:
        return self.outward(box.x0, box.y0) + self.outward(box.x1, box.y1)

    def inward(self, x: float, y: float) -> Point:
        """The client's unit -> normalised, not clamped."""
        if self.is_pixel:
            return Point(x / self.size.width, y / self.size.height)
        return Point(x, y)


def clean_text(text: str) -> str:
    """A phrase in normal form C, with control characters and runs of white space as one space.

    >>> clean_text("  the\\tred\\x00 car ")
    'the red car'
    """
    printable = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
    return " ".join(unicodedata.normalize("NFC", printable).split())


def read_point(values: Sequence[float], frame: Frame, param: str) -> Point:
    """A client's point. Raises ApiError 422 point_outside_image."""
    point = frame.inward(values[0], values[1])
    if not (0 <= point.x <= 1 and 0 <= point.y <= 1):
        raise ApiError(422, "point_outside_image", "the point is outside the image", param=param)
    return point


def read_box(values: Sequence[float], frame: Frame, param: str) -> tuple[Box, list[ParseWarning]]:
    """A client's box, corners in order and clipped to the image, each with a warning.

    Raises ApiError 422 box_degenerate (no area) or box_outside_image.
    """
    notes = []
    a, b = frame.inward(values[0], values[1]), frame.inward(values[2], values[3])
    whole = Box(min(a.x, b.x), min(a.y, b.y), max(a.x, b.x), max(a.y, b.y))
    if whole != (*a, *b):
        notes.append(ParseWarning("box_reordered", "the corners of the box were put in order"))
    if whole.x0 == whole.x1 or whole.y0 == whole.y1:
        raise ApiError(422, "box_degenerate", "the box has no area", param=param)
    if whole.x0 >= 1 or whole.y0 >= 1 or whole.x1 <= 0 or whole.y1 <= 0:
        raise ApiError(422, "box_outside_image", "the box is outside the image", param=param)
    box = Box(max(whole.x0, 0.0), max(whole.y0, 0.0), min(whole.x1, 1.0), min(whole.y1, 1.0))
    if box != whole:
        notes.append(ParseWarning("box_clipped", "the box was clipped to the image"))
    return box, notes


def read_region(polygons: Sequence[Sequence[Sequence[float]]], frame: Frame, param: str) -> Region:
    """A client's polygons. Raises ApiError 422 point_outside_image."""
    rings = (
        tuple(read_point(xy, frame, f"{param}[{part}][{index}]") for index, xy in enumerate(ring))
        for part, ring in enumerate(polygons)
    )
    return Region(tuple(rings))


def to_result(
    index: int,
    item: PromptItem,
    target: Target,
    answer: Answer,
    wanted: Wanted,
    frame: Frame,
    times: StageTimes,
    calibrations: Calibrations,
) -> Judged:
    """What one prompt's answer comes to; never raises on any answer text."""
    with times.measure("parse"):
        parsed, fields = _PARSERS[target](answer, frame)
    status = _status(parsed.status, answer.finish_reason)
    has_value = bool(parsed.value.parts if target == "region" else parsed.value)
    score, score_type = _score(answer, target, calibrations) if has_value else (None, None)
    notes: list[ParseWarning] = []
    region: Region | None = None
    if target == "region":
        with times.measure("rasterize"):
            region = wanted.simplified(parsed.value, frame.size)
            fields = _own_outputs(region, frame)
            if status != "invalid":
                shown, notes = represent(Subject(region, frame.size, index, score), wanted)
                fields |= shown
        fields = {name: fields.get(name) for name in ("area", *wanted.outputs)}
    result = Result(
        index=index,
        prompt=item.text,
        status=status,
        finish_reason=answer.finish_reason,
        score=score,
        score_type=score_type,
        **fields,
        **_extras(answer, wanted),
    )
    late = (_LATE,) if answer.finish_reason == "deadline" else ()
    return Judged(result, result_warnings((*parsed.warnings, *notes, *late), index), region)


def failed_result(index: int, item: PromptItem) -> Judged:
    """The result of a prompt for which the engine gave no answer."""
    result = Result(
        index=index, prompt=item.text, status="invalid", finish_reason="error", score=None
    )
    message = "the engine failed on this prompt; it may be tried again"
    return Judged(result, result_warnings([ParseWarning("engine_error", message)], index))


def result_warnings(notes: Iterable[ParseWarning], index: int | None) -> list[ResultWarning]:
    return [ResultWarning(code=n.code, message=n.message, result=index) for n in notes]


def _score(
    answer: Answer, target: Target, calibrations: Calibrations
) -> tuple[float, ScoreType] | tuple[None, None]:
    if answer.agreement is not None:
        return round(answer.agreement, 6), "sample_agreement"
    return score_of(answer.tokens, target, calibrations) or (None, None)


def _extras(answer: Answer, wanted: Wanted) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "raw_text" in wanted.include:
        fields["raw_text"] = answer.text
    if "scores" in wanted.include:
        fields["scores"] = scores_of(answer.tokens)
    return fields


def _status(parsed: Status, finish_reason: FinishReason) -> Status:
    """An answer that ran out of tokens is not whole, even where its lists happen to close, and one
    that ran out of time is neither empty nor wrong."""
    if finish_reason == "deadline":
        return "truncated"
    return "truncated" if parsed == "ok" and finish_reason == "length" else parsed


def _region_fields(answer: Answer, frame: Frame) -> tuple[Parsed[Any], dict[str, Any]]:
    return answer.region, {}  # shown once it is simplified


def _own_outputs(region: Region, frame: Frame) -> dict[str, Any]:
    """The outputs in the unit in which the client reads coordinates."""
    box = region.bounding_box()
    return {
        "polygons": [[frame.outward(*point) for point in ring] for ring in region.parts],
        "bbox": None if box is None else frame.outward_box(box),
    }


def _box_fields(answer: Answer, frame: Frame) -> tuple[Parsed[Any], dict[str, Any]]:
    parsed = parse_boxes(answer.text)
    return parsed, {"boxes": list(map(frame.outward_box, parsed.value))}


def _point_fields(answer: Answer, frame: Frame) -> tuple[Parsed[Any], dict[str, Any]]:
    parsed = parse_points(answer.text)
    return parsed, {"points": [frame.outward(*point) for point in parsed.value]}


def _text_fields(answer: Answer, frame: Frame) -> tuple[Parsed[Any], dict[str, Any]]:
    description = answer.text.strip()
    return Parsed(description, "ok" if description else "empty"), {"text": description}


_PARSERS = {
    "region": _region_fields,
    "box": _box_fields,
    "point": _point_fields,
    "text": _text_fields,
}
