"""The errors of the client library, named as users of such clients expect.

SimpleSegError                    everything that this library raises on purpose
├── InvalidInputError             an argument cannot be sent; a ValueError too
├── MissingPackageError           an optional package is not installed; an ImportError too
├── ResponseFormatError           the answer is not one of this server's
├── APIConnectionError            no answer, or one that broke off
│   ├── ServerUnreachableError    nobody took the connection
│   └── APITimeoutError           the wait was too long
└── APIError                      the server answered with an error
    ├── StreamError               in the middle of a stream, after the status 200
    └── APIStatusError            with an error status
        ├── BadRequestError               400
        ├── AuthenticationError           401
        ├── PermissionDeniedError         403
        ├── NotFoundError                 404
        ├── PayloadTooLargeError          413
        ├── UnsupportedMediaTypeError     415
        ├── UnprocessableEntityError      422
        ├── RateLimitError                429
        └── InternalServerError           500 and other 5xx
            └── ServiceUnavailableError   503
"""

from collections.abc import Mapping


class SimpleSegError(Exception):
    """The root of every error that this library raises on purpose.

    ``request_id`` finds the request in the server's log; None where none was sent.
    """

    request_id: str | None = None


class InvalidInputError(SimpleSegError, ValueError):
    """An argument cannot be sent: not an image, no prompt, an unknown option."""


class MissingPackageError(SimpleSegError, ImportError):
    """A method needs a package that is not installed; the message has the command to install it."""


class ResponseFormatError(SimpleSegError):
    """The answer is not one of this server's: another program or a proxy sent it."""


class APIConnectionError(SimpleSegError):
    """No answer: the server could not be reached or hung up."""


class ServerUnreachableError(APIConnectionError):
    """Nobody took the connection: no server is running there."""


class APITimeoutError(APIConnectionError):
    """No answer within the timeout."""


class APIError(SimpleSegError):
    """The server answered with an error.

    ``code`` is the stable code for programs, or None where a proxy answered; ``param`` names the
    field at fault; ``retry_after_ms`` is the wait that the server asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        where = f" (param {self.param})" if self.param else ""
        return f"{self.code or ''} {self.message}".strip() + where


class StreamError(APIError):
    """The server reported an error in a stream that had begun. What came before it stays valid."""


class APIStatusError(APIError):
    """The server answered with an error status, ``status``."""

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
        super().__init__(
            message, code=code, param=param, request_id=request_id, retry_after_ms=retry_after_ms
        )
        self.status = status

    def __str__(self) -> str:
        return f"{self.status} {super().__str__()}"


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
