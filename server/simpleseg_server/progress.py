"""What is told of an answer while the engine writes it."""

from collections.abc import Callable
from typing import Protocol

from simpleseg.schema import PointsDelta, PolygonDone, ResultDone, StreamEvent, Task
from simpleseg_polygon.geometry import Region
from simpleseg_polygon.progress import NewPoints, RegionReader
from simpleseg_server.answers import Answer, Frame, Judged
from simpleseg_server.engines.base import Delta
from simpleseg_server.stages import StageTimes

Listener = Callable[[StreamEvent], None]


class Follower(Protocol):
    """Follows one answer: ``read`` every piece, ``finish`` after the last, ``done`` when parsed.

    An answer that was chosen from several, or is changed in the result, is told to ``done`` alone.
    """

    def read(self, delta: Delta) -> None: ...
    def finish(self) -> None: ...
    def done(self, answer: Answer, judged: Judged) -> None: ...


class Progress:
    """Follows the text of one prompt's answer.

    ``listen``, where given, hears every vertex of a region once, as soon as it is certain to be in
    the result, whichever outputs the result shows. The first piece of text and the first vertex are
    marked in ``times``.
    """

    def __init__(
        self, task: Task, index: int, frame: Frame, times: StageTimes, listen: Listener | None
    ) -> None:
        self._reader = RegionReader() if task == "region" else None
        self._index = index
        self._frame = frame
        self._times = times
        self._listen = listen
        self._points: list[int] = []
        self._is_read = False

    def read(self, delta: Delta) -> None:
        self._times.mark("first_token")
        self._is_read = True
        if self._reader is not None:
            self._tell(self._reader.feed(delta.text))
            if self._points and self._listen is None:
                self._reader = None  # nobody hears more than that there is a first point

    def finish(self) -> None:
        if self._reader is not None:
            self._tell(self._reader.finish())
            self._done(len(self._points))

    def done(self, _: Answer, judged: Judged) -> None:
        if self._listen is None:
            return
        if not self._is_read and judged.region is not None:
            self._tell_whole(judged.region)
        self._send(ResultDone(result=judged.result))

    def _tell_whole(self, region: Region) -> None:
        for polygon, ring in enumerate(region.parts):
            points = [self._frame.outward(*point) for point in ring]
            self._send(PointsDelta(result=self._index, polygon=polygon, points=points))
            self._send(PolygonDone(result=self._index, polygon=polygon, n_points=len(ring)))

    def _tell(self, news: tuple[NewPoints, ...]) -> None:
        for new in news:
            self._times.mark("first_point")
            self._done(new.part)
            if new.part == len(self._points):
                self._points.append(0)
            self._points[new.part] += len(new.points)
            self._send(
                PointsDelta(
                    result=self._index,
                    polygon=new.part,
                    points=[self._frame.outward(*point) for point in new.points],
                )
            )

    def _done(self, before: int) -> None:
        """Tell that the last polygon is whole, once another one has begun (or the text ended)."""
        if self._points and before == len(self._points):
            polygon = len(self._points) - 1
            self._send(
                PolygonDone(result=self._index, polygon=polygon, n_points=self._points[polygon])
            )

    def _send(self, event: StreamEvent) -> None:
        if self._listen is not None:
            self._listen(event)
