"""Limits of a request's head, and what is said of one that no route will see."""

from simpleseg_server.errors import ApiError
from simpleseg_server.middleware import CLIENT_CLOSED

MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 64
MAX_URL_BYTES = 8 * 1024

MALFORMED = ApiError(400, "http_invalid", "this is not a request of HTTP/1.1")
HOST_WRONG = ApiError(400, "host_invalid", "a request has one Host header, a name and a port")
TOO_SLOW = ApiError(408, "header_timeout", "the request's head came too slowly")
GONE = ApiError(CLIENT_CLOSED, "client_closed", "the client hung up")
URL_TOO_LONG = ApiError(414, "url_too_long", f"a URL may have {MAX_URL_BYTES} bytes")
HEAD_TOO_LARGE = ApiError(
    431, "headers_too_large", f"a head may have {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes"
)
EXPECTATION = ApiError(417, "expectation_unsupported", "only 100-continue can be expected")
