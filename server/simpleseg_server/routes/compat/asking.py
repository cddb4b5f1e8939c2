"""What the tools' routes share: a body read under admission, and a question put to the pipeline."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from simpleseg.schema import SegmentResponse
from simpleseg_server.body import read_json_body
from simpleseg_server.calls import call_of
from simpleseg_server.errors import ApiError, engine_unavailable, from_validation_error
from simpleseg_server.jobs import Job
from simpleseg_server.routes.segment import read_request_body, unless_disconnected
from simpleseg_server.services import owner_of, services_of
from simpleseg_server.stages import StageTimes

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Question:
    """A tool's request as the fields of ``POST /segment``.

    ``names`` maps those fields to what the tool calls them, for errors. ``authorization`` is what
    the server of the image's URL is told.
    """

    fields: dict[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = None

    def name_of(self, param: str | None) -> str | None:
        """The tool's name of a field at fault, the most particular one.

        >>> Question({}, {"image": "image_url", "prompt": "object"}).name_of("image.url")
        'image_url'
        """
        if param is None:
            return None
        fitting = [
            ours
            for ours in self.names
            if param == ours or param.startswith((f"{ours}.", f"{ours}["))
        ]
        return self.names[max(fitting, key=len)] if fitting else param


@dataclass(frozen=True)
class Part:
    """One of several questions in a request; images are fetched in ``turns``."""

    request_id: str
    times: StageTimes
    turns: asyncio.Semaphore | None = None


@asynccontextmanager
async def admitted(request: Request) -> AsyncGenerator[dict[str, Any], None]:
    """The fields of a JSON body, read once there is room for the request."""
    services = services_of(request)
    services.keeper.require_ready()
    with services.segmenter.admission.enter(owner_of(request)):
        body = await read_request_body(request, services.settings.body_timeout_s)
        content_type = request.headers.get("content-type", "")
        with request.state.times.measure("read_body"):
            fields = await services.segmenter.work(read_json_body, body, content_type)
        yield fields


def checked(model: type[M], fields: Mapping[str, Any]) -> M:
    """The fields as a model. Raises ApiError with the one at fault."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise from_validation_error(error) from None


async def prepared(request: Request, question: Question, part: Part | None = None) -> Job:
    """The question, with nothing wrong with it. Raises ApiError."""
    services = services_of(request)
    part = part or Part(request.state.request_id, request.state.times)
    try:
        call = await services.segmenter.work(call_of, question.fields, services.settings)
        call = replace(call, image_authorization=question.authorization)
        owner = owner_of(request)
        return await services.segmenter.job(call, part.request_id, part.times, owner, part.turns)
    except ApiError as error:
        error.param = question.name_of(error.param)
        raise


async def answer(request: Request, question: Question, part: Part | None = None) -> SegmentResponse:
    """The answer to a question.

    Raises ApiError, also where the engine failed on one prompt of several: the tools have no word
    for that, and would take it for an object that is not there.
    """
    services = services_of(request)
    response = await services.segmenter.run(await prepared(request, question, part))
    if any(result.finish_reason == "error" for result in response.results):
        wait_s = services.settings.retry_after_s
        raise engine_unavailable(wait_s, "the engine could not answer every prompt")
    return response


async def answered(request: Request, question: Question) -> SegmentResponse:
    """The answer to a request's only question, given up where the client leaves.

    Raises ApiError.
    """
    return await unless_disconnected(request, answer(request, question))


def unsupported(message: str, param: str) -> ApiError:
    return ApiError(400, "unsupported_value", message, param=param)
