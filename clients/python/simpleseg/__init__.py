"""Client library of the SimpleSeg server: an image and a phrase in, polygons and a mask out."""

__version__ = "0.1.0"

from simpleseg.async_client import AsyncSimpleSeg
from simpleseg.client import SimpleSeg
from simpleseg.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    InvalidInputError,
    MissingPackageError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    ResponseFormatError,
    ServerUnreachableError,
    ServiceUnavailableError,
    SimpleSegError,
    StreamError,
    UnprocessableEntityError,
    UnsupportedMediaTypeError,
)
from simpleseg.many import Outcome
from simpleseg.results import Segmentation, overlay
from simpleseg.retry import RetryBudget
from simpleseg.schema import PromptItem, StreamEvent, UploadedImage
from simpleseg.streaming import AsyncSegmentStream, SegmentStream

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncSegmentStream",
    "AsyncSimpleSeg",
    "AuthenticationError",
    "BadRequestError",
    "InternalServerError",
    "InvalidInputError",
    "MissingPackageError",
    "NotFoundError",
    "Outcome",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PromptItem",
    "RateLimitError",
    "ResponseFormatError",
    "RetryBudget",
    "SegmentStream",
    "Segmentation",
    "ServerUnreachableError",
    "ServiceUnavailableError",
    "SimpleSeg",
    "SimpleSegError",
    "StreamError",
    "StreamEvent",
    "UnprocessableEntityError",
    "UnsupportedMediaTypeError",
    "UploadedImage",
    "__version__",
    "overlay",
]
