"""A request that is ready for the engine, and what becomes of each of its prompts."""

from dataclasses import dataclass

from simpleseg.schema import ImageInfo, Result, ResultWarning
from simpleseg_server.answers import Frame, Judged, result_warnings
from simpleseg_server.calls import Call, Named
from simpleseg_server.images import DecodedImage
from simpleseg_server.several import Answers
from simpleseg_server.stages import StageTimes


@dataclass(frozen=True)
class Job:
    """A request that nothing is wrong with: decoded, worded, ready for the engine.

    ``named`` says for each of the call's items what it means; ``warnings`` are about what came
    in. ``request_id`` also begins the names of the engine's requests. At ``deadline``, on the event
    loop's clock, what is not finished stays so. ``prompt_times`` has the times of each prompt:
    those of the request itself where it is the only one, else parts of them.
    """

    id: str
    created: int
    request_id: str
    call: Call
    image: DecodedImage
    frame: Frame
    named: tuple[Named, ...]
    warnings: tuple[ResultWarning, ...]
    times: StageTimes
    prompt_times: tuple[StageTimes, ...]
    deadline: float

    @property
    def image_info(self) -> ImageInfo:
        size = self.image.size
        known = {} if self.call.image_id is None else {"id": self.call.image_id}
        return ImageInfo(
            width=size.width, height=size.height, exif_applied=self.image.exif_applied, **known
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one prompt."""

    answers: Answers
    judged: Judged

    @property
    def result(self) -> Result:
        return self.judged.result

    @property
    def warnings(self) -> list[ResultWarning]:
        return [
            *self.judged.warnings,
            *result_warnings(self.answers.notes, self.judged.result.index),
        ]


def times_of_prompts(times: StageTimes, count: int) -> tuple[StageTimes, ...]:
    """The times of each of a request's prompts, which are its own where there is but one."""
    if count == 1:
        return (times,)
    return tuple(times.part("prompt", index) for index in range(count))
