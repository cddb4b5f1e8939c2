"""The error tree of the client library, by HTTP status, named as users of such clients expect."""

from collections.abc import Mapping


class SimpleSegError(Exception):
    """The root of every error that this library raises on purpose."""


class InvalidInputError(SimpleSegError, ValueError):
    """An argument cannot be sent: not an image, no prompt, an unknown option."""


class APIConnectionError(SimpleSegError):
    """No answer: the server could not be reached or hung up."""


class APITimeoutError(APIConnectionError):
    """No answer within the timeout."""


class ResponseFormatError(SimpleSegError):
    """The answer is not one of this server's: another program or a proxy sent it."""


class APIStatusError(SimpleSegError):
    """The server answered with an error status.

    ``code`` is the stable code for programs, or None where a proxy answered; ``param`` names the
    field at fault; ``request_id`` finds the request in the server's log; ``retry_after_ms`` is the
    wait that the server asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        parts = [f"{self.status}", self.code or "", self.message]
        where = f" (param {self.param})" if self.param else ""
        return " ".join(part for part in parts if part) + where


class BadRequestError(APIStatusError):
    """400: the request is malformed or has an unknown field."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """403: the API key may not do this."""


class NotFoundError(APIStatusError):
    """404: no such route or model."""


class PayloadTooLargeError(APIStatusError):
    """413: more bytes than the server takes."""


class UnsupportedMediaTypeError(APIStatusError):
    """415: not an image type or body type that the server reads."""


class UnprocessableEntityError(APIStatusError):
    """422: well-formed, but it cannot be done: a truncated image, an empty prompt."""


class RateLimitError(APIStatusError):
    """429: this key's quota is used up."""


class InternalServerError(APIStatusError):
    """500 and other 5xx: a fault of the server."""


class ServiceUnavailableError(InternalServerError):
    """503: overloaded, loading or draining; a later try may succeed."""


_BY_STATUS: Mapping[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    413: PayloadTooLargeError,
    415: UnsupportedMediaTypeError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    503: ServiceUnavailableError,
}


def error_class(status: int) -> type[APIStatusError]:
    """The class for an HTTP status.

    >>> error_class(503).__name__, error_class(502).__name__, error_class(418).__name__
    ('ServiceUnavailableError', 'InternalServerError', 'APIStatusError')
    """
    fallback = InternalServerError if status >= 500 else APIStatusError
    return _BY_STATUS.get(status, fallback)
