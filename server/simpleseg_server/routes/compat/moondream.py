"""Moondream's API: ``POST /v1/segment``, ``/v1/detect`` and ``/v1/point``, for its clients.

``/v1/segment`` is ours too. Moondream's bodies have ``image_url`` and ``object``, which ours never
have. A ``path`` is in shares of its ``bbox``, which is in shares of the image, as its own engine
writes them.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from simpleseg.formats.rings import PARTS_PER_SIDE, polygons_norm
from simpleseg.results import region_of
from simpleseg.schema import Completed, PointsDelta, PolygonDone, RequestModel, Result, StreamEvent
from simpleseg_polygon.geometry import WHOLE, Box, Region
from simpleseg_polygon.unite import TooComplexError
from simpleseg_server.errors import ApiError
from simpleseg_server.routes import segment as own
from simpleseg_server.routes.compat.asking import (
    Question,
    admitted,
    answered,
    checked,
    prepared,
    unsupported,
)
from simpleseg_server.services import owner_of, services_of
from simpleseg_server.sse import encode

router = APIRouter(include_in_schema=False)
_NAMES = {
    "image": "image_url",
    "prompt": "object",
    "prompt.point": "spatial_refs",
    "prompt.box": "spatial_refs",
    "temperature": "settings.temperature",
    "max_tokens": "settings.max_tokens",
}


class Sampling(RequestModel):
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None


class Ask(RequestModel):
    """What ``/v1/detect`` and ``/v1/point`` take."""

    image_url: str
    object: str
    model: str | None = None
    settings: Sampling = Sampling()
    spatial_refs: list[Annotated[list[float], Field(min_length=2, max_length=4)]] | None = None

    def question(self, task: str) -> Question:
        """Raises ApiError for what is not served."""
        if self.settings.top_p != 1 and self.settings.temperature > 0:
            raise unsupported("only 1 is served", "settings.top_p")
        prompt = {"text": self.object, **_places(self.spatial_refs or [])}
        fields: dict[str, Any] = {
            "image": {"url": self.image_url},
            "prompt": prompt,
            "task": task,
            "temperature": self.settings.temperature,
        }
        optional = {"model": self.model, "max_tokens": self.settings.max_tokens}
        fields |= {name: value for name, value in optional.items() if value is not None}
        return Question(fields, _NAMES)


class AskSegment(Ask):
    stream: bool = False


class Corners(BaseModel):
    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @classmethod
    def of(cls, x_min: float, y_min: float, x_max: float, y_max: float) -> "Corners":
        return cls(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max)


class Segment(BaseModel):
    """``path`` is "" and ``bbox`` absent where there is no such object; ``status`` and ``score``
    are those of a result of ``POST /segment``."""

    path: str
    bbox: Corners | None = None
    status: str
    score: float | None


class Update(BaseModel):
    """An event of a stream."""

    type: str
    bbox: Corners | None = None
    chunk: str | None = None
    path: str | None = None
    completed: bool = False


def _places(refs: list[list[float]]) -> dict[str, list[float]]:
    """At most one point and one box, as the fields of a prompt. Raises ApiError."""
    if any(len(ref) == 3 for ref in refs):
        message = "a reference is [x, y] or [x1, y1, x2, y2]"
        raise ApiError(422, "wrong_length", message, param="spatial_refs")
    places = {"point" if len(ref) == 2 else "box": ref for ref in refs}
    if len(places) < len(refs):
        raise unsupported("at most one point and one box are served", "spatial_refs")
    return places


@router.post("/v1/segment")
async def segment(request: Request) -> Response:
    """Moondream's segment, where the body is of that kind; else ours."""
    services = services_of(request)
    services.keeper.require_ready()
    with services.segmenter.admission.enter(owner_of(request)):
        body = await own.read_request_body(request, services.settings.body_timeout_s)
    return await (_segment(request) if _is_moondreams(body) else own.segment(request))


def _is_moondreams(body: bytes) -> bool:
    """Within a JSON string a quotation mark has a backslash before it: these are whole strings."""
    return b'"image_url"' in body and b'"object"' in body


async def _segment(request: Request) -> Response:
    services = services_of(request)
    async with AsyncExitStack() as held:
        fields = await held.enter_async_context(admitted(request))
        ask = checked(AskSegment, fields)
        if ask.stream:
            job = await own.unless_disconnected(request, prepared(request, ask.question("region")))
            events = services.segmenter.stream(job)
            held.push_async_callback(events.aclose)
            # Whatever fails before the first point still has a status of its own.
            first = [await own.unless_disconnected(request, anext(events)) for _ in range(2)]
            chunks = _updates(request, first, events)
            return own.event_stream_of(request, chunks, held.pop_all())
        response = await answered(request, ask.question("region"))
    (result,) = response.results
    answer = await services.segmenter.work(_outlined, result)
    return JSONResponse(answer.model_dump(exclude_unset=True))


@router.post("/v1/detect")
async def detect(request: Request) -> dict[str, Any]:
    async with admitted(request) as fields:
        response = await answered(request, checked(Ask, fields).question("box"))
    (result,) = response.results
    return {"objects": [Corners.of(*box).model_dump() for box in result.boxes or []]}


@router.post("/v1/point")
async def point(request: Request) -> dict[str, Any]:
    async with admitted(request) as fields:
        response = await answered(request, checked(Ask, fields).question("point"))
    (result,) = response.results
    return {"points": [{"x": x, "y": y} for x, y in result.points or []]}


async def _updates(
    request: Request, first: list[StreamEvent], rest: AsyncIterator[StreamEvent]
) -> AsyncGenerator[bytes, None]:
    """The stream as bytes. Its first box is the whole image, in whose shares the chunks are: the
    object's own is known only when it is drawn."""
    services = services_of(request)
    pen = _Pen()
    yield encode(Update(type="bbox", bbox=Corners.of(*WHOLE)))
    try:
        for event in first:
            for chunk in pen.drawn(event):
                yield encode(chunk)
        async for event in rest:
            for chunk in pen.drawn(event):
                yield encode(chunk)
            if isinstance(event, Completed):
                whole = await services.segmenter.work(_outlined, event.response.results[0])
                yield encode(Update(type="final", path=whole.path, bbox=whole.bbox, completed=True))
    except own.ENDS as error:
        yield encode(own.last_words(request, error), "error")


class _Pen:
    """Writes the events of a stream as pieces of one path."""

    def __init__(self) -> None:
        self._is_down = False

    def drawn(self, event: StreamEvent) -> list[Update]:
        if isinstance(event, PolygonDone):
            self._is_down = False
            return [_piece(" Z ")]
        if not isinstance(event, PointsDelta):
            return []
        chunk = ""
        for x, y in event.points:
            chunk += f" {'L' if self._is_down else 'M'} {_number(x)} {_number(y)}"
            self._is_down = True
        return [_piece(chunk)]


def _piece(chunk: str) -> Update:
    return Update(type="path_delta", chunk=chunk, completed=False)


def _outlined(result: Result) -> Segment:
    """A result with its region's area as one path, filled alike by both of SVG's rules."""
    rings = _rings(region_of(result))
    if not rings:
        return Segment(path="", status=result.status, score=result.score)
    xs, ys = zip(*(point for ring in rings for point in ring), strict=True)
    box = Box(min(xs), min(ys), max(xs), max(ys))
    return Segment(
        path=" ".join(_closed(ring, box) for ring in rings),
        bbox=Corners.of(*box),
        status=result.status,
        score=result.score,
    )


def _rings(region: Region) -> list[list[tuple[float, float]]]:
    try:
        polygons = polygons_norm(region)
    except TooComplexError:
        return [list(ring) for ring in region.parts]
    rings = [ring for polygon in polygons for ring in (polygon.outline, *polygon.holes)]
    return [[(x / PARTS_PER_SIDE, y / PARTS_PER_SIDE) for x, y in ring] for ring in rings]


def _closed(ring: list[tuple[float, float]], box: Box) -> str:
    """A ring as a path in shares of ``box``."""
    width, height = box.x1 - box.x0, box.y1 - box.y0
    points = [f"{_number((x - box.x0) / width)} {_number((y - box.y0) / height)}" for x, y in ring]
    return f"M {' L '.join(points)} Z"


def _number(value: float) -> str:
    return f"{value:.5f}".rstrip("0").rstrip(".")
