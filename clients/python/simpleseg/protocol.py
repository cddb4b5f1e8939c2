"""The HTTP conversation without input or output: requests built, answers read, retries decided.

Both clients are this module plus a socket; everything here is tested without one.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from simpleseg import __version__
from simpleseg.errors import (
    APIStatusError,
    InvalidInputError,
    ResponseFormatError,
    SimpleSegError,
    error_class,
)
from simpleseg.image_input import SentImage
from simpleseg.retry import requested_delay_s, retry_delay_s
from simpleseg.schema import (
    UNION_TAG,
    ErrorInfo,
    ErrorResponse,
    Include,
    PromptItem,
    SegmentRequest,
    SegmentResponse,
    Task,
    UploadRequest,
)

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
SEGMENT_PATH = "/segment"
IMAGES_PATH = "/v1/images"
MODELS_PATH = "/v1/models"
READY_PATH = "/readyz"

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

PromptInput = str | PromptItem
"""A phrase, or a PromptItem that names the object by a point or a box as well."""

Prompts = PromptInput | Sequence[PromptInput]


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
    content: bytes = field(default=b"", repr=False)

    @property
    def request_id(self) -> str:
        """The id of the request; it stays the same over retries."""
        return self.headers["x-request-id"]


@dataclass(frozen=True)
class HttpResponse:
    """What came back; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how the answer to it is read."""

    request: HttpRequest
    read: Callable[[HttpResponse], T]


def base_headers(api_key: str | None) -> dict[str, str]:
    """The headers of every request of a client."""
    headers = {"accept": "application/json", "user-agent": f"simpleseg-python/{__version__}"}
    return headers | ({"authorization": f"Bearer {api_key}"} if api_key else {})


def check_base_url(url: str) -> str:
    """``url`` without a final slash. Raises InvalidInputError where it is not an http(s) URL."""
    if not url.startswith(("http://", "https://")):
        raise InvalidInputError(f"the server's URL must start with http(s)://, not {url!r}")
    if not _names_a_host(url):
        raise InvalidInputError(f"the server's URL names no host or no port: {url!r}")
    return url.rstrip("/")


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and " " not in url
    except ValueError:
        return False


def as_prompts(prompt: Prompts) -> list[PromptInput]:
    """
    >>> as_prompts("the left dog")
    ['the left dog']
    """
    return [prompt] if isinstance(prompt, str | PromptItem) else list(prompt)


def request_of(method: str, path: str, body: BaseModel | str | None = None) -> HttpRequest:
    """A request with an id of its own. ``body`` is JSON, or goes as JSON without what was never
    set."""
    headers = {"x-request-id": f"req_{uuid.uuid4().hex}"}
    if body is None:
        return HttpRequest(method, path, headers)
    if isinstance(body, BaseModel):
        body = body.model_dump_json(by_alias=True, exclude_unset=True, exclude_none=True)
    headers["content-type"] = "application/json"
    return HttpRequest(method, path, headers, body.encode("utf-8"))


def segment_request(
    image: SentImage,
    prompts: Sequence[PromptInput],
    task: Task,
    options: SegmentOptions,
    *,
    stream: bool = False,
) -> HttpRequest:
    """The request of ``POST /segment``.

    Raises InvalidInputError naming the option or field that the contract does not allow.
    """
    unknown = options.keys() - SegmentOptions.__annotations__.keys()
    if unknown:
        raise InvalidInputError(f"unknown option {sorted(unknown)[0]}")
    streamed: dict[str, Any] = {"stream": True} if stream else {}
    try:
        body = SegmentRequest(
            image=image.field(), prompts=list(prompts), task=task, **options, **streamed
        )
    except ValidationError as error:
        raise InvalidInputError(first_problem(error)) from None
    return request_of("POST", SEGMENT_PATH, body)


def upload_request(image: SentImage) -> HttpRequest:
    """The request of ``POST /v1/images``."""
    return request_of("POST", IMAGES_PATH, UploadRequest(image=image.field()))


def image_request(method: str, image_id: str) -> HttpRequest:
    """A request about a kept image. Raises InvalidInputError for what is not the id of one."""
    if not image_id.isascii() or not image_id.replace("_", "").replace("-", "").isalnum():
        raise InvalidInputError(f"{image_id!r} is not the id of an image")
    return request_of(method, f"{IMAGES_PATH}/{image_id}")


def first_problem(error: ValidationError) -> str:
    """The first thing that does not fit, and where; never the value."""
    problem = error.errors(include_url=False, include_input=False)[0]
    parts = [str(part) for part in problem["loc"]]
    where = ".".join(part for part in parts if not part.startswith(UNION_TAG))
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def retry_after(response: HttpResponse, attempt: int, max_retries: int) -> float | None:
    """Seconds to wait before retry number ``attempt`` (0 is the first); None to stop trying."""
    if response.status < 400 or attempt >= max_retries:
        return None
    return retry_delay_s(response.status, response.headers, attempt)


def read_answer(response: HttpResponse, model: type[Model]) -> Model:
    """The body of a good answer.

    Raises the APIStatusError of a status of 400 or above, ResponseFormatError for any other answer
    that is not this server's.
    """
    check_status(response)
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise format_error(
            f"the answer is not a {model.__name__}: {first_problem(error)}", response.request_id
        ) from None


def check_status(response: HttpResponse) -> None:
    """Raises as ``read_answer`` does for an answer that is not a good one."""
    if response.status >= 300:
        raise _status_error(response)


def read_segment_response(response: HttpResponse, prompt_count: int) -> SegmentResponse:
    """The answer of ``POST /segment``: one result for each prompt. Raises as ``read_answer``."""
    answer = read_answer(response, SegmentResponse)
    if len(answer.results) != prompt_count:
        raise format_error(
            f"{len(answer.results)} results for {prompt_count} prompts", response.request_id
        )
    return answer


def format_error(message: str, request_id: str | None) -> ResponseFormatError:
    error = ResponseFormatError(message)
    error.request_id = request_id
    return error


def _status_error(response: HttpResponse) -> SimpleSegError:
    """The typed error; a body in another shape, as a proxy sends it, leaves the details out."""
    if response.status < 400:
        return format_error(
            f"redirects are not followed (status {response.status})", response.request_id
        )
    try:
        info = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        return error_class(response.status)(
            "the answer has no error body",
            status=response.status,
            request_id=response.request_id,
            retry_after_ms=_milliseconds(requested_delay_s(response.headers)),
        )
    return status_error(response.status, info)


def status_error(status: int, info: ErrorInfo) -> APIStatusError:
    """The typed error for a status of 400 or above and what the server said."""
    return error_class(status)(
        info.message,
        status=status,
        code=info.code,
        param=info.param,
        request_id=info.request_id,
        retry_after_ms=info.retry_after_ms,
    )


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)
