"""One segmentation request: image -> prompts -> engine -> parse -> raster -> response."""

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from simpleseg.schema import (
    DEFAULT_OUTPUTS,
    ImageInfo,
    ImageInput,
    PromptItem,
    Result,
    ResultWarning,
    SegmentRequest,
    SegmentResponse,
    Usage,
)
from simpleseg_polygon.codec import ParseWarning
from simpleseg_polygon.prompts import instruction, phrase
from simpleseg_server.admission import Admission
from simpleseg_server.answers import (
    Answer,
    Frame,
    clean_text,
    failed_result,
    read_box,
    read_point,
    result_warnings,
    to_result,
)
from simpleseg_server.body import Body, read_body
from simpleseg_server.config import Settings
from simpleseg_server.engines.base import (
    Delta,
    Engine,
    EngineDeadError,
    EngineError,
    GenerationRequest,
    TokenLogprob,
)
from simpleseg_server.errors import ApiError, engine_unavailable, from_validation_error
from simpleseg_server.images import (
    DecodedImage,
    EngineSize,
    decode,
    decode_base64,
    decode_data_url,
    is_mismatch,
)
from simpleseg_server.telemetry import StageTimes, logger

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A request that has passed the schema, with its image file as bytes.

    ``item_params`` and ``image_param`` are the fields the prompts and the image came from;
    ``declared_type`` is the media type sent with the image.
    """

    request: SegmentRequest
    items: tuple[PromptItem, ...]
    item_params: tuple[str, ...]
    image_bytes: bytes
    image_param: str
    declared_type: str | None


@dataclass(frozen=True)
class Segmenter:
    """Answers segmentation requests; all that it needs, each thing once for a server."""

    engine: Engine
    settings: Settings
    admission: Admission
    workers: ThreadPoolExecutor

    async def segment(
        self, body: bytes, content_type: str, request_id: str, times: StageTimes
    ) -> SegmentResponse:
        """The response to a request body. Raises ApiError; cancelling it cancels the engine."""
        with times.measure("read_body"):
            call = await self._work(read_call, body, content_type, self.settings)
        self._check_limits(call)
        with times.measure("decode_image"):
            image = await self._work(
                decode, call.image_bytes, self._engine_size(), self.settings, call.image_param
            )
        frame = Frame(image.size, call.request.coordinates == "pixel")
        phrases, warnings = _phrases(call, frame)
        with times.measure("generate"):
            answers = await self._answers(call.request, phrases, image, request_id, times)
        results, result_notes = await self._work(_results, call, answers, frame, times)
        times.add("total", times.elapsed_ms())
        return SegmentResponse(
            object="segmentation",
            id=f"seg_{secrets.token_hex(8)}",
            created=int(time.time()),
            model=self.engine.capabilities.model,
            image=ImageInfo(
                width=image.size.width, height=image.size.height, exif_applied=image.exif_applied
            ),
            results=results,
            usage=_usage(answers),
            timings_ms=times.to_dict(),
            warnings=_image_warnings(image, call.declared_type) + warnings + result_notes,
        )

    async def _work(self, function: Callable[..., T], *args: Any) -> T:
        """Run blocking work in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, function, *args)

    def _engine_size(self) -> EngineSize:
        capabilities = self.engine.capabilities
        return EngineSize(capabilities.max_pixels, capabilities.input_hw)

    def _check_limits(self, call: Call) -> None:
        """Refuse what this server or its model does not serve, before any costly work."""
        request, settings, capabilities = call.request, self.settings, self.engine.capabilities
        if request.model not in (None, capabilities.model):
            raise ApiError(404, "model_not_found", "no such model is served", param="model")
        if request.task not in capabilities.targets:
            raise ApiError(422, "task_unsupported", "the model has no such task", param="task")
        if len(call.items) > settings.max_prompts:
            message = f"at most {settings.max_prompts} prompts in a request"
            raise ApiError(422, "too_many_prompts", message, param="prompts")
        _check_at_most(request.max_points, settings.max_points, "max_points")
        most_tokens = min(settings.max_tokens, capabilities.max_tokens)
        _check_at_most(request.max_tokens, most_tokens, "max_tokens")

    async def _answers(
        self,
        request: SegmentRequest,
        phrases: Sequence[str],
        image: DecodedImage,
        request_id: str,
        times: StageTimes,
    ) -> list[Answer | None]:
        """The engine's answer to each phrase, all at once; None where it failed.

        Raises ApiError 503 where all of them failed.
        """
        generations = [
            self._generation(request, text, image, f"{request_id}-{index}")
            for index, text in enumerate(phrases)
        ]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._answer(generation)) for generation in generations]
        answers = [task.result() for task in tasks]
        for answer in filter(None, answers):
            times.at_least("queue", answer.queue_ms + answer.usage.queue_ms)
            times.at_least("prefill", answer.usage.prefill_ms)
            times.at_least("decode", answer.usage.decode_ms)
        if not any(answers):
            raise engine_unavailable(self.settings.retry_after_s, "the engine could not answer")
        return answers

    def _generation(
        self, request: SegmentRequest, text: str, image: DecodedImage, request_id: str
    ) -> GenerationRequest:
        settings, capabilities = self.settings, self.engine.capabilities
        default = min(settings.default_max_tokens, settings.max_tokens, capabilities.max_tokens)
        return GenerationRequest(
            request_id=request_id,
            image_hw3=image.pixels_hw3,
            image_key=image.key,
            instruction=instruction(request.task, text),
            target=request.task,
            max_tokens=request.max_tokens or default,
            max_points=request.max_points or settings.default_max_points,
            temperature=request.temperature,
            seed=request.seed,
            constrained=request.task != "text",
        )

    async def _answer(self, generation: GenerationRequest) -> Answer | None:
        try:
            async with self.admission.slot() as queue_ms:
                return await _collect(self.engine, generation, queue_ms)
        except EngineDeadError:
            logger.error("engine is dead request_id=%s", generation.request_id)
        except EngineError:
            logger.exception("engine failed request_id=%s", generation.request_id)
        return None


async def _collect(engine: Engine, generation: GenerationRequest, queue_ms: float) -> Answer:
    """The whole answer. Closes the stream on every way out, which frees the engine's slot."""
    pieces: list[str] = []
    tokens: list[TokenLogprob] = []
    last: Delta | None = None
    async with aclosing(engine.generate(generation)) as deltas:
        async for last in deltas:
            pieces.append(last.text)
            tokens += last.tokens
    if last is None or last.finish_reason is None or last.usage is None:
        raise EngineError("the stream ended without a finish reason and usage")
    return Answer("".join(pieces), tuple(tokens), last.finish_reason, last.usage, queue_ms)


def read_call(data: bytes, content_type: str, settings: Settings) -> Call:
    """A request body as a Call. Raises ApiError with the field at fault."""
    body = read_body(data, content_type)
    try:
        request = SegmentRequest.model_validate(body.fields)
    except ValidationError as error:
        raise from_validation_error(error) from None
    items = request.items()
    params = (
        ("prompt",)
        if request.prompts is None
        else tuple(f"prompts[{index}]" for index in range(len(items)))
    )
    checked = tuple(
        _checked_item(item, param, settings) for item, param in zip(items, params, strict=True)
    )
    image_bytes, image_param, declared = _image_bytes(request, body, settings)
    return Call(request, checked, params, image_bytes, image_param, declared)


def _checked_item(item: PromptItem, param: str, settings: Settings) -> PromptItem:
    """The prompt with its text cleaned. Raises ApiError 422 prompt_empty or prompt_too_long."""
    if item.text is None:
        return item
    if len(item.text.encode()) > settings.max_prompt_bytes:
        message = f"a prompt may have at most {settings.max_prompt_bytes} bytes"
        raise ApiError(422, "prompt_too_long", message, param=param)
    text = clean_text(item.text)
    if not text:
        raise ApiError(422, "prompt_empty", "the prompt is empty", param=param)
    return item.model_copy(update={"text": text})


def _image_bytes(
    request: SegmentRequest, body: Body, settings: Settings
) -> tuple[bytes, str, str | None]:
    """The image file, the field it came from, and the media type declared with it."""
    if body.file is not None:
        return body.file.data, "image", body.file.declared_type
    image = request.image
    if image is None:
        raise ApiError(400, "image_missing", "give an image", param="image")
    if isinstance(image, ImageInput):
        if image.base64 is not None:
            param = "image.base64"
            return decode_base64(image.base64, settings, param), param, None
        data, declared = decode_data_url(image.url or "", settings, "image.url")
        return data, "image.url", declared
    if ":" in image[:16]:  # not in the alphabet of base64, and in every URL
        data, declared = decode_data_url(image, settings, "image")
        return data, "image", declared
    return decode_base64(image, settings, "image"), "image", None


def _check_at_most(value: int | None, limit: int, param: str) -> None:
    if value is not None and value > limit:
        raise ApiError(422, "value_out_of_range", f"must be at most {limit}", param=param)


def _phrases(call: Call, frame: Frame) -> tuple[list[str], list[ResultWarning]]:
    """The noun phrase of each prompt, and warnings about boxes that were changed."""
    phrases: list[str] = []
    warnings: list[ResultWarning] = []
    for index, (item, param) in enumerate(zip(call.items, call.item_params, strict=True)):
        notes: list[ParseWarning] = []
        point = None if item.point is None else read_point(item.point, frame, f"{param}.point")
        box = None
        if item.box is not None:
            box, notes = read_box(item.box, frame, f"{param}.box")
        phrases.append(phrase(text=item.text, point=point, box=box))
        warnings += result_warnings(notes, index)
    return phrases, warnings


def _results(
    call: Call, answers: Sequence[Answer | None], frame: Frame, times: StageTimes
) -> tuple[list[Result], list[ResultWarning]]:
    outputs = tuple(dict.fromkeys(call.request.outputs or DEFAULT_OUTPUTS))
    results: list[Result] = []
    warnings: list[ResultWarning] = []
    for index, (item, answer) in enumerate(zip(call.items, answers, strict=True)):
        if answer is None:
            result, notes = failed_result(index, item)
        else:
            target = call.request.task
            result, notes = to_result(index, item, target, answer, outputs, frame, times)
        results.append(result)
        warnings += notes
    return results, warnings


def _image_warnings(image: DecodedImage, declared_type: str | None) -> list[ResultWarning]:
    notes = []
    if image.is_animated:
        notes.append(ParseWarning("animated_first_frame", "only the first frame was used"))
    if is_mismatch(declared_type, image.format):
        message = "the image's bytes are of another type than declared; the bytes decided"
        notes.append(ParseWarning("mime_mismatch", message))
    return result_warnings(notes, None)


def _usage(answers: Sequence[Answer | None]) -> Usage:
    usages = [answer.usage for answer in answers if answer is not None]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        forward_passes=sum(usage.forward_passes for usage in usages),
    )
