"""What is refused by a request's head alone, before anything is made for the request.

Under a flood nearly every request is, and what that costs is taken from those that are answered. So
this is outside of everything else, and its answers are made once.
"""

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from simpleseg_server.auth import Credentials
from simpleseg_server.errors import ApiError, draining, overloaded, render
from simpleseg_server.middleware import UnreadRequests, answer_unread, request_id_from
from simpleseg_server.services import Services
from simpleseg_server.telemetry import server_timing

_ID = "req_0123456789abcdef"


class Door:
    """Answers 503 where there is no room for a client's request, or no more are taken.

    That costs a key nothing of its rate, and leaves no trace. Who has no valid key is let in: that
    is said elsewhere.
    """

    def __init__(self, app: ASGIApp, services: Services, credentials: Credentials) -> None:
        self.app = app
        self._services = services
        self._credentials = credentials
        self._unread = UnreadRequests(services.metrics)
        self._overloaded = Refusal(overloaded(services.settings.retry_after_s))
        self._draining = Refusal(draining(services.settings.retry_after_s))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        is_asked = scope["type"] == "http" and scope["method"] == "POST"
        if not (is_asked and self._may_refuse()):
            await self.app(scope, receive, send)
            return
        owner = self._owner(scope)
        refusal = None if owner is None else self._refusal(owner)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        request_id = request_id_from(Headers(scope=scope).get("x-request-id"))
        await answer_unread(refusal.response(request_id, began), scope, receive, send)
        self._unread.record(refusal.error, request_id, owner or None)

    def _may_refuse(self) -> bool:
        admission = self._services.admission
        return self._services.keeper.is_refusing or (admission is not None and admission.is_full)

    def _owner(self, scope: Scope) -> str | None:
        """The name of the client's key, "" where none is needed, None where it has none."""
        if not self._credentials.are_needed(scope):
            return ""
        key = self._credentials.key_of(scope)
        return None if key is None else key.name

    def _refusal(self, owner: str) -> "Refusal | None":
        if self._services.keeper.is_refusing:
            return self._draining
        admission = self._services.admission
        return self._overloaded if admission and not admission.has_room(owner) else None


class Refusal:
    """An answer of which only the request's id differs."""

    def __init__(self, error: ApiError) -> None:
        self.error = error
        response = render(error, _ID)
        self._before, self._after = bytes(response.body).split(_ID.encode())
        self._headers = [pair for pair in response.raw_headers if pair[0] != b"content-length"]

    def response(self, request_id: str, began: float) -> ASGIApp:
        named = request_id.encode()
        body = b"".join((self._before, named, self._after))
        timing = server_timing({"total": round((time.perf_counter() - began) * 1000, 3)})
        headers = [
            *self._headers,
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", named),
            (b"server-timing", timing.encode()),
        ]

        async def respond(_scope: Scope, _receive: Receive, send: Send) -> None:
            status = self.error.status
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return respond
