"""Client library of the SimpleSeg server: an image and a phrase in, polygons and a mask out."""

__version__ = "0.1.0"

from simpleseg.client import AsyncSimpleSeg, SimpleSeg
from simpleseg.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    InvalidInputError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    ResponseFormatError,
    ServiceUnavailableError,
    SimpleSegError,
    UnprocessableEntityError,
    UnsupportedMediaTypeError,
)
from simpleseg.results import Segmentation, overlay
from simpleseg.schema import PromptItem

__all__ = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncSimpleSeg",
    "AuthenticationError",
    "BadRequestError",
    "InternalServerError",
    "InvalidInputError",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PromptItem",
    "RateLimitError",
    "ResponseFormatError",
    "Segmentation",
    "ServiceUnavailableError",
    "SimpleSeg",
    "SimpleSegError",
    "UnprocessableEntityError",
    "UnsupportedMediaTypeError",
    "__version__",
    "overlay",
]
