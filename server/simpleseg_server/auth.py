"""Who may call which route: every path needs a key, except the probes and what the operator opens.

Plain ASGI, outside the body limit and the routes: a client without a key costs no body and no slot.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError
from simpleseg_server.keys import Key, KeyRing
from simpleseg_server.middleware import refuse
from simpleseg_server.quota import Quotas
from simpleseg_server.setting_kinds import Tool
from simpleseg_server.telemetry import Metrics

PROBES = frozenset({"/livez", "/readyz", "/health", "/ping", "/v1/health/live", "/v1/health/ready"})
"""Paths that never need a key."""
_BEARER = re.compile(rb"bearer +([!-~]{1,512})", re.IGNORECASE)
_BASIC = re.compile(rb"basic +([A-Za-z0-9+/=]{1,2048})", re.IGNORECASE)
_BARE = re.compile(rb"([!-~]{1,512})")
_UNCOUNTED_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="simpleseg"'}
_MESSAGE = "give one valid API key, as Authorization: Bearer KEY or as X-API-Key: KEY"

Reader = Callable[[bytes], str | None]
"""A header's value -> the key in it."""


def _bare(value: bytes) -> str | None:
    match = _BARE.fullmatch(value)
    return None if match is None else match[1].decode("ascii")


def _bearer(value: bytes) -> str | None:
    match = _BEARER.fullmatch(value)
    return None if match is None else match[1].decode("ascii")


def _bearer_or_password(value: bytes) -> str | None:
    """The key is the password, whoever the user is."""
    match = _BASIC.fullmatch(value)
    if match is None:
        return _bearer(value)
    try:
        _, _, password = base64.b64decode(match[1], validate=True).partition(b":")
    except binascii.Error:
        return None
    return _bare(password)


_READERS: Mapping[bytes, Reader] = MappingProxyType(
    {b"authorization": _bearer, b"x-api-key": _bare}
)
_READERS_OF_TOOLS: Mapping[Tool, Mapping[bytes, Reader]] = {
    "label-studio": {b"authorization": _bearer_or_password},
    "moondream": {b"x-moondream-auth": _bare},
    "roboflow": {},
    "x-anylabeling": {b"token": _bare},
}


def readers(tools: Iterable[Tool]) -> Mapping[bytes, Reader]:
    """The headers that may hold a key, those of the tools among them."""
    return dict(_READERS) | {k: v for tool in tools for k, v in _READERS_OF_TOOLS[tool].items()}


class Credentials:
    """Which key a request came with, by its head, and whether it needs one; with no keys none does.

    Raises ConfigError for a bad file of keys.
    """

    def __init__(self, settings: Settings, open_paths: Iterable[str]) -> None:
        self._readers = readers(settings.enable)
        self._ring = KeyRing(settings)
        self._open_paths = PROBES | frozenset(open_paths)

    def are_needed(self, scope: Scope) -> bool:
        return self._ring.is_locked and scope["path"] not in self._open_paths

    def key_of(self, scope: Scope) -> Key | None:
        """The one valid key of a request."""
        presented = presented_key(scope["headers"], self._readers)
        return None if presented is None else self._ring.find(presented)


class KeyGuard:
    """Answers 401 without a valid key, and 429 where a key has used up what it may.

    The key's name is in ``scope["state"]["key_name"]``.
    """

    def __init__(
        self, app: ASGIApp, credentials: Credentials, metrics: Metrics, retry_after_s: float
    ) -> None:
        self.app = app
        self.metrics = metrics
        self._credentials = credentials
        self._quotas = Quotas(retry_after_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._credentials.are_needed(scope):
            await self.app(scope, receive, send)
            return
        key = self._credentials.key_of(scope)
        if key is None:
            error = ApiError(401, "invalid_api_key", _MESSAGE)
            await refuse(error, scope, receive, send, self.metrics, _CHALLENGE)
            return
        scope["state"]["key_name"] = key.name
        if scope["method"] in _UNCOUNTED_METHODS:
            await self.app(scope, receive, send)
            return
        await self._counted(key, scope, receive, send)

    async def _counted(self, key: Key, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._quotas.enter(key)
        except ApiError as error:
            headers = self._quotas.headers(key)
            await refuse(error, scope, receive, send, self.metrics, headers)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._quotas.headers(key))
            await send(message)

        try:
            await self.app(scope, receive, send_with_limits)
        finally:
            self._quotas.leave(key)


def presented_key(
    headers: Iterable[tuple[bytes, bytes]], readers: Mapping[bytes, Reader] = _READERS
) -> str | None:
    """The key in a request's headers; None where there is none, more than one, or no sound one.

    >>> presented_key([(b"authorization", b"Bearer abc")]), presented_key([(b"x-api-key", b"abc")])
    ('abc', 'abc')
    """
    given = [(name, value) for name, value in headers if name in readers]
    if len(given) != 1:
        return None
    ((name, value),) = given
    return readers[name](value)


def document_keys(document: dict[str, Any], settings: Settings) -> None:
    """Add to an OpenAPI document how keys are given and where they are needed; a route that needs
    one may answer 401, and 429 if it is counted."""
    schema = {"$ref": "#/components/schemas/ErrorResponse"}
    refusal = {"content": {"application/json": {"schema": schema}}}
    needed: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}]
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in document["paths"].items():
        if path in PROBES | frozenset(settings.open_paths):
            continue
        for method, operation in operations.items():
            operation["security"] = needed if settings.has_keys else [{}, *needed]
            responses = operation["responses"]
            responses["401"] = {"description": "No valid API key", **refusal}
            if method.upper() not in _UNCOUNTED_METHODS:
                responses["429"] = {"description": "The key's limit is reached", **refusal}
