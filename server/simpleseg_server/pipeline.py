"""One segmentation request: image -> prompts -> engine -> parse -> raster -> response."""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from simpleseg.schema import (
    Completed,
    Created,
    ResultWarning,
    SegmentResponse,
    StreamEvent,
)
from simpleseg_polygon.codec import ParseWarning, parse_region
from simpleseg_polygon.geometry import WHOLE, Box
from simpleseg_server.admission import Admission, WaitedTooLongError
from simpleseg_server.answers import (
    Answer,
    Frame,
    Judged,
    failed_result,
    result_warnings,
    to_result,
)
from simpleseg_server.asking import ask
from simpleseg_server.calls import Call, named_by, read_call, read_upload
from simpleseg_server.config import Settings
from simpleseg_server.data_urls import is_mismatch
from simpleseg_server.engines.base import (
    Engine,
    EngineError,
    EngineOverloadedError,
    GenerationRequest,
    PromptFault,
    PromptRefusedError,
)
from simpleseg_server.errors import (
    ApiError,
    engine_unavailable,
    overloaded,
    queue_timeout,
)
from simpleseg_server.fetch import Fetcher
from simpleseg_server.fingerprint import system_fingerprint
from simpleseg_server.image_intake import ImageIntake
from simpleseg_server.image_store import ImageStore, StoredImage
from simpleseg_server.images import DecodedImage
from simpleseg_server.jobs import Job, Outcome, times_of_prompts
from simpleseg_server.limits import check_limits
from simpleseg_server.pixels import EngineSize
from simpleseg_server.progress import Follower, Listener, Progress
from simpleseg_server.representations import Wanted
from simpleseg_server.scores import Calibrations
from simpleseg_server.several import (
    NOT_REFINED,
    Answers,
    consensus,
    is_refinement,
    view_around,
)
from simpleseg_server.stages import StageTimes
from simpleseg_server.telemetry import Metrics
from simpleseg_server.telling import told_by
from simpleseg_server.usage import usage_of

T = TypeVar("T")

_REFUSALS: dict[PromptFault, str] = {
    "context_length_exceeded": "the texts and the answer are too long for the model",
    "conversation_unsupported": "the model reads no conversation of this form",
    "grammar_rejected": "the grammar is not one that the engine can follow",
    "prompt_refused": "the server that runs the model does not take this prompt",
    "request_poisoned": "the engine stopped twice while it worked on this request",
}


@dataclass(frozen=True)
class Segmenter:
    """Answers segmentation requests; all that it needs, each thing once for a server."""

    engine: Engine
    settings: Settings
    admission: Admission
    workers: ThreadPoolExecutor
    images: ImageStore
    fetcher: Fetcher
    intake: ImageIntake
    metrics: Metrics

    async def prepare(
        self, body: bytes, content_type: str, request_id: str, times: StageTimes, owner: str = ""
    ) -> Job:
        """Everything that can be refused, before the engine has work. ``owner`` is the name of the
        client's key, which its kept images belong to. Raises ApiError."""
        with times.measure("read_body"):
            call = await self.work(read_call, body, content_type, self.settings)
        return await self.job(call, request_id, times, owner)

    async def job(
        self,
        call: Call,
        request_id: str,
        times: StageTimes,
        owner: str = "",
        turns: AbstractAsyncContextManager[None] | None = None,
    ) -> Job:
        """A call that nothing is wrong with, its image fetched, if need be in one of ``turns``, and
        decoded. Raises ApiError."""
        check_limits(call, self.settings, self.engine.capabilities)
        deadline = self._deadline(call.request.deadline_ms, times)
        if call.request.deadline_ms is not None:
            self.admission.require_time(deadline - asyncio.get_running_loop().time())
        if call.image_url is not None:
            async with turns or nullcontext():
                with times.measure("fetch"):
                    data = await self.fetcher.fetch(
                        call.image_url, call.image_param, deadline, call.image_authorization
                    )
            call = replace(call, image_bytes=data)
        if call.image_id is not None:
            stored = self.images.find(call.image_id, owner, call.image_param)
            call, image = replace(call, image_bytes=stored.data), stored.image
        else:
            image = await self._decoded(call.image_bytes, call.image_param, times)
        frame = Frame(image.size, call.request.coordinates == "pixel")
        named, warnings = named_by(call, frame)
        return Job(
            id=f"seg_{secrets.token_hex(8)}",
            created=int(time.time()),
            request_id=request_id,
            call=call,
            image=image,
            frame=frame,
            named=tuple(named),
            warnings=(*_image_warnings(image, call.declared_type), *warnings),
            times=times,
            prompt_times=times_of_prompts(times, len(named)),
            deadline=deadline,
        )

    async def keep(
        self, body: bytes, content_type: str, owner: str, times: StageTimes
    ) -> StoredImage:
        """Decode the image of an upload and keep it. Raises ApiError."""
        with times.measure("read_body"):
            source = await self.work(read_upload, body, content_type, self.settings)
        data = source.data
        if source.url is not None:
            with times.measure("fetch"):
                data = await self.fetcher.fetch(source.url, source.param, math.inf)
        image = await self._decoded(data, source.param, times)
        return self.images.add(data, image, owner)

    async def _decoded(
        self, data: bytes, param: str, times: StageTimes, view: Box = WHOLE
    ) -> DecodedImage:
        with times.measure("decode_image"):
            return await self.intake.decode(data, self._engine_size(), param, view)

    def _deadline(self, asked_ms: int | None, times: StageTimes) -> float:
        left_ms = (asked_ms or self.settings.max_deadline_ms) - times.elapsed_ms()
        return asyncio.get_running_loop().time() + left_ms / 1000

    async def run(self, job: Job, listen: Listener | None = None) -> SegmentResponse:
        """Answer all prompts; ``listen`` hears of points and results as they come. Raises what
        ``outcomes`` raises."""

        def follow(index: int) -> Progress:
            return self.progress(job, index, listen)

        return self.conclude(job, await self.outcomes(job, follow))

    def progress(self, job: Job, index: int, listen: Listener | None = None) -> Progress:
        return Progress(job.call.request.task, index, job.frame, job.prompt_times[index], listen)

    async def outcomes(self, job: Job, follow: Callable[[int], Follower]) -> list[Outcome]:
        """Answer all prompts side by side, each followed as it is written.

        Raises ApiError 503 where the engine failed on all of them: ``overloaded`` where it had too
        much to do, else ``engine_unavailable``; ``queue_timeout`` where the server's own time limit
        passed before it wrote anything, or the time for which prompts may wait.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._outcome(job, index, follow(index)))
                for index in range(len(job.named))
            ]
        outcomes = [task.result() for task in tasks]
        if not any(isinstance(outcome.answers.chosen, Answer) for outcome in outcomes):
            raise self.failure(outcomes)
        if job.call.request.deadline_ms is None and not any(map(_has_begun, outcomes)):
            raise queue_timeout(self.settings.retry_after_s)
        return outcomes

    def conclude(self, job: Job, outcomes: Sequence[Outcome]) -> SegmentResponse:
        """The response, which the metrics count."""
        job.times.add("total", job.times.elapsed_ms())
        is_timed = "timings" in job.call.request.include
        timings = {"timings_ms": job.times.to_dict()} if is_timed else {}
        response = SegmentResponse(
            object="segmentation",
            id=job.id,
            created=job.created,
            model=self.model_of(job),
            system_fingerprint=system_fingerprint(self.engine.capabilities),
            image=job.image_info,
            results=[outcome.result for outcome in outcomes],
            usage=usage_of(answer for outcome in outcomes for answer in outcome.answers.given),
            **timings,
            warnings=[*job.warnings, *(w for outcome in outcomes for w in outcome.warnings)],
        )
        self.metrics.observe_response(response, [outcome.judged.region for outcome in outcomes])
        return response

    async def stream(self, job: Job) -> AsyncGenerator[StreamEvent, None]:
        """The events of a run, ``Completed`` last. Raises what ``run`` raises; closing it cancels
        the engine."""

        async def run(listen: Listener) -> None:
            response = await self.run(job, listen)
            listen(Completed(response=response))

        model = self.model_of(job)
        yield Created(id=job.id, created=job.created, model=model, image=job.image_info)
        async with aclosing(told_by(run)) as events:
            async for event in events:
                yield event

    async def work(self, function: Callable[..., T], *args: Any) -> T:
        """Run blocking work in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, function, *args)

    def model_of(self, job: Job) -> str:
        """The name of the model that a job asks."""
        return job.call.request.model or self.engine.capabilities.model

    def _engine_size(self) -> EngineSize:
        capabilities = self.engine.capabilities
        return EngineSize(capabilities.max_pixels, capabilities.input_hw)

    async def _outcome(self, job: Job, index: int, follower: Follower) -> Outcome:
        times = job.prompt_times[index]
        began_ms = times.elapsed_ms()
        answers = await self._answers(job, index, follower)
        answer = answers.chosen
        if isinstance(answer, EngineError):
            return Outcome(answers, failed_result(index, job.call.items[index]))
        for one in answers.given:
            times.at_least("queue", one.queue_ms + one.usage.queue_ms)
            times.at_least("preprocess", one.usage.preprocess_ms)
            times.at_least("prefill", one.usage.prefill_ms)
            times.at_least("decode", one.usage.decode_ms)
        times.at_least("generate", times.elapsed_ms() - began_ms)
        calibrations = self.engine.capabilities.calibrations_of(job.call.request.model)
        judged = await self.work(_judged, job, index, answer, calibrations)
        follower.done(answer, judged)
        return Outcome(answers, judged)

    async def _answers(self, job: Job, index: int, follower: Follower) -> Answers:
        """The answer to one prompt. It is followed as it is written only where that is what will be
        in the result."""
        request = job.call.request
        is_only = request.samples == 1 and not request.refine
        if is_only and not request.simplify:
            return Answers.only(await self._ask(job, job.image, index, follower))
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(
                    self._ask(job, job.image, index, self.progress(job, index), sample)
                )
                for sample in range(request.samples)
            ]
        samples = [task.result() for task in asked]
        if is_only:
            return Answers.only(*samples)
        answers = await self.work(consensus, samples)
        if request.refine and isinstance(answers.chosen, Answer):
            answers = await self._refined(job, index, answers, answers.chosen)
        return answers

    async def _refined(self, job: Job, index: int, first: Answers, answer: Answer) -> Answers:
        """The answer to the same prompt on a part of the image around the first answer, if it means
        the same object and is no less whole."""
        view = view_around(answer.region.value)
        if view is None or answer.finish_reason == "deadline":
            return first
        times = job.prompt_times[index]
        part = await self._decoded(job.call.image_bytes, job.call.image_param, times, view)
        second = await self._ask(job, part, index, self.progress(job, index))
        if isinstance(second, EngineError):
            return replace(first, notes=(*first.notes, NOT_REFINED))
        second = replace(second, view=part.view, agreement=answer.agreement)
        given = (*first.given, second)
        is_whole = second.finish_reason == "stop" or answer.finish_reason != "stop"
        if is_whole and await self.work(is_refinement, answer, second):
            return Answers(second, given, first.notes)
        return Answers(answer, given, (*first.notes, NOT_REFINED))

    async def _ask(
        self, job: Job, image: DecodedImage, index: int, follower: Follower, sample: int = 0
    ) -> Answer | EngineError:
        generation = self._generation(job, image, index, sample)
        return await ask(self.engine, self.admission, generation, job.deadline, follower)

    def failure(self, outcomes: Sequence[Outcome]) -> ApiError:
        """What to say of the prompts that the engine failed on: the one thing that helps most."""
        errors = [outcome.answers.chosen for outcome in outcomes]
        for error in errors:
            if isinstance(error, PromptRefusedError):
                return ApiError(422, error.code, _REFUSALS[error.code])
        usual_s = self.settings.retry_after_s
        if any(isinstance(error, WaitedTooLongError) for error in errors):
            return queue_timeout(usual_s)
        waits = [
            error.retry_after_s or usual_s
            for error in errors
            if isinstance(error, EngineOverloadedError)
        ]
        if waits:
            return overloaded(max(waits))
        return engine_unavailable(usual_s, "the engine could not answer")

    def _generation(
        self, job: Job, image: DecodedImage, index: int, sample: int
    ) -> GenerationRequest:
        settings, capabilities = self.settings, self.engine.capabilities
        request = job.call.request
        wording = job.call.worded(job.named[index], image.view)
        default = min(settings.default_max_tokens, settings.max_tokens, capabilities.max_tokens)
        return GenerationRequest(
            # Clients choose the names of requests, and may choose one twice.
            request_id=f"{job.request_id}-{index}-{secrets.token_hex(4)}",
            image_hw3=image.pixels_hw3,
            image_key=image.key,
            instruction=wording.instruction,
            target=request.task,
            max_tokens=request.max_tokens or default,
            max_points=request.max_points or settings.default_max_points,
            temperature=request.sampling_temperature,
            seed=job.call.seed(index, sample),
            constrained=wording.constrained,
            history=wording.history,
            client_grammar=wording.client_grammar,
            adapter=capabilities.adapter_of(request.model),
        )


def _has_begun(outcome: Outcome) -> bool:
    """Whether the engine wrote anything in time, if only that the object is not there."""
    answer = outcome.answers.chosen
    if isinstance(answer, EngineError):
        return False
    return answer.finish_reason != "deadline" or bool(answer.text)


def _judged(job: Job, index: int, answer: Answer, calibrations: Calibrations) -> Judged:
    request = job.call.request
    item = job.call.items[index]
    wanted = Wanted.by(request, job.call.items)
    target = request.task
    is_free = job.call.wording is not None and target == "text"
    if is_free and parse_region(answer.text).value.parts:
        target = "region"  # which may be the answer to any question
    times = job.prompt_times[index]
    return to_result(index, item, target, answer, wanted, job.frame, times, calibrations)


def _image_warnings(image: DecodedImage, declared_type: str | None) -> list[ResultWarning]:
    notes = []
    if image.is_animated:
        notes.append(ParseWarning("animated_first_frame", "only the first frame was used"))
    if is_mismatch(declared_type, image.format):
        message = "the image's bytes are of another type than declared; the bytes decided"
        notes.append(ParseWarning("mime_mismatch", message))
    return result_warnings(notes, None)
