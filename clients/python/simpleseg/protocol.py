"""The HTTP conversation without input or output: requests built, answers read, retries decided.

Both clients are this module plus a socket; everything here is tested without one.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from pydantic import ValidationError

from simpleseg import __version__
from simpleseg.errors import (
    InvalidInputError,
    ResponseFormatError,
    SimpleSegError,
    error_class,
)
from simpleseg.image_input import SentImage
from simpleseg.retry import requested_delay_s, retry_delay_s
from simpleseg.schema import (
    ErrorResponse,
    ImageInput,
    Include,
    PromptItem,
    SegmentRequest,
    SegmentResponse,
    Task,
)

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
SEGMENT_PATH = "/segment"

PromptInput = str | PromptItem
"""A phrase, or a PromptItem that names the object by a point or a box as well."""


class SegmentOptions(TypedDict, total=False):
    """How to answer; what is left out is the server's choice. ``temperature`` 0 is greedy."""

    model: str
    simplify: float
    max_points: int
    max_tokens: int
    temperature: float
    seed: int
    deadline_ms: int
    samples: int
    refine: bool
    include: list[Include]


@dataclass(frozen=True)
class HttpRequest:
    """What is to be sent: ``path`` is relative to the base URL."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class HttpResponse:
    """What came back; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)


def base_headers(api_key: str | None) -> dict[str, str]:
    """The headers of every request of a client."""
    headers = {"accept": "application/json", "user-agent": f"simpleseg-python/{__version__}"}
    return headers | ({"authorization": f"Bearer {api_key}"} if api_key else {})


def check_base_url(url: str) -> str:
    """``url`` without a final slash. Raises InvalidInputError where it is not an http(s) URL."""
    if not url.startswith(("http://", "https://")):
        raise InvalidInputError(f"the server's URL must start with http(s)://, not {url!r}")
    return url.rstrip("/")


def as_prompts(prompt: PromptInput | Sequence[PromptInput]) -> list[PromptInput]:
    """
    >>> as_prompts("the left dog")
    ['the left dog']
    """
    return [prompt] if isinstance(prompt, str | PromptItem) else list(prompt)


def segment_request(
    image: SentImage, prompts: Sequence[PromptInput], task: Task, options: SegmentOptions
) -> HttpRequest:
    """The request of ``POST /segment``; its id stays the same over retries.

    Raises InvalidInputError naming the option or field that the contract does not allow.
    """
    unknown = options.keys() - SegmentOptions.__annotations__.keys()
    if unknown:
        raise InvalidInputError(f"unknown option {sorted(unknown)[0]}")
    try:
        body = SegmentRequest(
            image=ImageInput(url=image.url, base64=image.base64),
            prompts=list(prompts),
            task=task,
            **options,
        )
    except ValidationError as error:
        raise InvalidInputError(_first_problem(error)) from None
    content = body.model_dump_json(by_alias=True, exclude_unset=True, exclude_none=True)
    headers = {"content-type": "application/json", "x-request-id": f"req_{uuid.uuid4().hex}"}
    return HttpRequest("POST", SEGMENT_PATH, headers, content.encode("utf-8"))


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def retry_after(response: HttpResponse, attempt: int, max_retries: int) -> float | None:
    """Seconds to wait before retry number ``attempt`` (0 is the first); None to stop trying."""
    if response.status < 400 or attempt >= max_retries:
        return None
    return retry_delay_s(response.status, response.headers, attempt)


def read_segment_response(response: HttpResponse, prompt_count: int) -> SegmentResponse:
    """The answer of ``POST /segment``: one result for each prompt.

    Raises the APIStatusError of a status of 400 or above, ResponseFormatError for any other answer
    that is not this server's.
    """
    if response.status >= 300:
        raise _status_error(response)
    try:
        answer = SegmentResponse.model_validate_json(response.content)
    except ValidationError as error:
        raise ResponseFormatError(
            f"the answer of {SEGMENT_PATH} is not a segmentation: {_first_problem(error)}"
        ) from None
    if len(answer.results) != prompt_count:
        raise ResponseFormatError(f"{len(answer.results)} results for {prompt_count} prompts")
    return answer


def _status_error(response: HttpResponse) -> SimpleSegError:
    """The typed error; a body in another shape, as a proxy sends it, leaves the details out."""
    if response.status < 400:
        return ResponseFormatError(f"redirects are not followed (status {response.status})")
    kind = error_class(response.status)
    try:
        info = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        return kind(
            "the answer has no error body",
            status=response.status,
            request_id=response.headers.get("x-request-id"),
            retry_after_ms=_milliseconds(requested_delay_s(response.headers)),
        )
    return kind(
        info.message,
        status=response.status,
        code=info.code,
        param=info.param,
        request_id=info.request_id,
        retry_after_ms=info.retry_after_ms,
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)
