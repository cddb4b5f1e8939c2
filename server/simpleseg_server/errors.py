"""Errors as the client sees them: one shape on every route, with texts that are all our own."""

import math
import re
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from simpleseg.schema import UNION_TAG, ErrorInfo, ErrorResponse

INTERNAL_MESSAGE = "the server failed to answer; the request id finds it in the log"

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_HTTP_CODES = {
    400: ("bad_request", "the request is malformed"),
    404: ("not_found", "no such route"),
    405: ("method_not_allowed", "this route does not answer this method"),
    413: ("payload_too_large", "the request body is too large"),
    415: ("content_type_unsupported", "this content type is not read"),
    422: ("unprocessable", "the request cannot be processed"),
}
_SAFE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


class ApiError(Exception):
    """An answer with an error status.

    ``message`` is a text of ours: no input, no library's message. ``param`` is the field at fault.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class ClientGone(Exception):
    """The client hung up; nobody reads the answer."""


def overloaded(retry_after_s: float) -> ApiError:
    return ApiError(
        503, "overloaded", "the queue is full; try again later", retry_after_s=retry_after_s
    )


def engine_unavailable(retry_after_s: float, message: str = "the engine is not ready") -> ApiError:
    return ApiError(503, "engine_unavailable", message, retry_after_s=retry_after_s)


def model_not_found(param: str | None) -> ApiError:
    return ApiError(404, "model_not_found", "no such model is served", param=param)


def queue_timeout(retry_after_s: float) -> ApiError:
    return ApiError(
        503, "queue_timeout", "no answer was begun in time", retry_after_s=retry_after_s
    )


def deadline_exceeded(retry_after_s: float) -> ApiError:
    message = "the deadline would pass before the engine could begin"
    return ApiError(503, "deadline_exceeded", message, retry_after_s=retry_after_s)


def draining(retry_after_s: float) -> ApiError:
    return ApiError(503, "draining", "the engine is about to stop", retry_after_s=retry_after_s)


def body_timeout() -> ApiError:
    return ApiError(408, "body_timeout", "the request body came too slowly")


def image_url_blocked(param: str) -> ApiError:
    """One text for every reason: a reason would tell a client about the server's network."""
    message = "the server does not fetch from this URL; send the image itself"
    return ApiError(422, "image_url_blocked", message, param=param)


def unforeseen(error: Exception, retry_after_s: float) -> ApiError:
    """What to say where something was raised that nobody expected: that there is no memory left is
    the server's state and will pass, anything else is a bug."""
    if isinstance(error, MemoryError):
        return overloaded(retry_after_s)
    return ApiError(500, "internal_error", INTERNAL_MESSAGE)


def render(error: ApiError, request_id: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response for an error: the shared body, and ``Retry-After`` where a wait helps."""
    body = error_body(error, request_id).model_dump(exclude_unset=True)
    return JSONResponse(body, error.status, {**(headers or {}), **wait_headers(error)})


def wait_headers(error: ApiError) -> dict[str, str]:
    """``Retry-After`` in whole seconds and ``retry-after-ms``, where a wait helps."""
    retry_ms = _retry_ms(error)
    if retry_ms is None:
        return {}
    return {"Retry-After": str(math.ceil(retry_ms / 1000)), "retry-after-ms": str(retry_ms)}


def error_body(error: ApiError, request_id: str) -> ErrorResponse:
    """The error as every route, and a stream, says it; ``retry_after_ms`` only where it helps."""
    retry_ms = _retry_ms(error)
    wait = {} if retry_ms is None else {"retry_after_ms": retry_ms}
    return ErrorResponse(
        error=ErrorInfo(
            code=error.code,
            message=error.message,
            type=_error_type(error.status),
            param=error.param,
            request_id=request_id,
            **wait,
        )
    )


def _retry_ms(error: ApiError) -> int | None:
    return None if error.retry_after_s is None else math.ceil(error.retry_after_s * 1000)


def _error_type(status: int) -> str:
    if status in _TYPES:
        return _TYPES[status]
    if status == 503:
        return "overloaded_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def from_http_exception(error: HTTPException) -> ApiError:
    """The framework's own refusals (no route, wrong method) in our words."""
    code, message = _HTTP_CODES.get(error.status_code, ("bad_request", "the request was refused"))
    return ApiError(error.status_code, code, message)


def from_validation_error(error: ValidationError, param_prefix: str = "") -> ApiError:
    """The first fault of a request body: 400 for a wrong shape, 422 for a wrong value."""
    faults = error.errors(include_input=False, include_url=False)
    # An unknown field explains the faults beside it: a misspelt name is also a missing one.
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    param = param_prefix + parameter_path(fault["loc"]) or None
    status, code, message = _classify(fault["type"], fault.get("ctx", {}), fault["msg"], param)
    return ApiError(status, code, message, param=param)


_CUSTOM_STATUS = {
    "image_missing": 400,
    "image_source_ambiguous": 400,
    "prompt_ambiguous": 400,
    "prompt_missing": 400,
    "parameter_ambiguous": 400,
    "unsupported_value": 400,
    "return_not_applicable": 422,
    "simplify_not_applicable": 422,
    "not_applicable": 422,
    "temperature_needed": 422,
    "prompt_empty": 422,
}
_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def _classify(
    kind: str, context: dict[str, Any], message: str, param: str | None
) -> tuple[int, str, str]:
    if kind in _CUSTOM_STATUS:
        return _CUSTOM_STATUS[kind], kind, message
    if kind == "extra_forbidden":
        return 400, "unknown_parameter", "unknown parameter"
    if kind == "finite_number":
        is_coordinate = re.search(r"(point|box|polygons)\[", param or "") is not None
        code = "coordinate_not_finite" if is_coordinate else "number_not_finite"
        return 422, code, "NaN and Infinity are not accepted"
    if kind == "literal_error":
        return 422, "value_not_allowed", f"must be one of {context['expected']}"
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        return 422, "value_out_of_range", f"must be {words} {context[key]}"
    if kind in ("too_short", "too_long"):
        expected = context.get("min_length", context.get("max_length"))
        return 422, "wrong_length", f"must have {expected} items"
    return 400, "type_invalid", _TYPE_MESSAGES.get(kind, "has the wrong type")


_TYPE_MESSAGES = {
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "list_type": "must be a list",
    "model_type": "must be an object",
    "missing": "is missing",
}


def parameter_path(location: tuple[int | str, ...]) -> str:
    """The path of a field as a client writes it; names that are not plain words are left out.

    >>> parameter_path(("prompts", 0, "~object", "point", 1))
    'prompts[0].point[1]'
    """
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _SAFE_NAME.fullmatch(step):
            path += f".{step}" if path else step
        elif not step.startswith(UNION_TAG):
            break
    return path
