"""Images by URL: from public addresses and listed hosts only, within bytes, time and number.

A host is resolved once for each request and redirect; all its addresses are judged, and the
connection goes to one of those judged, by its number, while TLS and the ``Host`` header keep the
name. So no name server can swap the address in between. Nothing of the client's or the server's is
sent along: no cookies, traces, nor through a proxy that variables name, and no credentials but what
the operator gave for that server, which no redirect takes elsewhere. Neither URLs nor what hosts
answer are logged or repeated in errors.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal
from weakref import WeakValueDictionary

import httpx2

from simpleseg_server.addresses import IPAddress, is_own, is_public
from simpleseg_server.config import Settings
from simpleseg_server.errors import ApiError, image_url_blocked, overloaded
from simpleseg_server.fetch_rules import MAX_URL_CHARACTERS, WEB_PORTS, Rules, Target, target_of
from simpleseg_server.image_headers import sniff
from simpleseg_server.images import too_large
from simpleseg_server.resolver import Resolve, ResolverBusyError, SystemResolver

Outcome = Literal[
    "ok", "invalid", "blocked", "redirects", "timeout", "failed", "too_large", "busy", "cancelled"
]

_MESSAGES: Mapping[str, str] = {
    "image_url_invalid": "an image URL must read data:image/...;base64,... or http(s)://host/..., "
    f"without a user name and with at most {MAX_URL_CHARACTERS} characters",
    "too_many_redirects": "the URL redirects too often",
    "image_fetch_timeout": "the image did not come in time",
    "image_fetch_failed": "no image came from the URL",
}
_OUTCOMES: Mapping[str, Outcome] = {
    "image_url_invalid": "invalid",
    "image_url_blocked": "blocked",
    "too_many_redirects": "redirects",
    "image_fetch_timeout": "timeout",
    "image_fetch_failed": "failed",
    "image_too_large": "too_large",
    "overloaded": "busy",
}
_HEADERS = {
    "User-Agent": "simpleseg-server",
    # Servers that do not know what their own files are would refuse to send them without the last.
    "Accept": "image/jpeg, image/png, image/webp, image/gif, */*;q=0.1",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
_REDIRECTS = frozenset(
    {
        HTTPStatus.MOVED_PERMANENTLY,
        HTTPStatus.FOUND,
        HTTPStatus.SEE_OTHER,
        HTTPStatus.TEMPORARY_REDIRECT,
        HTTPStatus.PERMANENT_REDIRECT,
    }
)
_MOST_ADDRESSES = 4
"""Addresses of a host that are tried, lest a name make us knock on many doors."""
_SNIFFED_BYTES = 16
_RESOLVER_THREADS = 64


class FetchError(Exception):
    """No image; ``code`` is that of the answer, ``message`` a text of ours in place of the usual
    one."""

    def __init__(self, code: str, message: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


def _is_open(address: IPAddress) -> bool:
    return is_public(address) and not is_own(address)


@dataclass(frozen=True)
class Network:
    """What a fetcher knows of the world: how names resolve, which addresses and ports are open to
    clients, and whom TLS trusts."""

    resolve: Resolve = field(default_factory=lambda: SystemResolver(_RESOLVER_THREADS))
    is_open: Callable[[IPAddress], bool] = _is_open
    ports: frozenset[int] = WEB_PORTS
    tls: Callable[[], ssl.SSLContext] = httpx2.create_ssl_context


class Fetcher:
    """Fetches images for one server; use it on one event loop. ``on_outcome`` hears how each fetch
    ended."""

    def __init__(
        self,
        settings: Settings,
        network: Network | None = None,
        on_outcome: Callable[[Outcome], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._network = network or Network()
        self._on_outcome = on_outcome
        is_listed_only = settings.image_urls == "listed"
        hosts, ports = settings.image_url_hosts, self._network.ports
        self._rules = Rules(hosts, ports, only_listed=is_listed_only)
        self._places = _Places(settings.max_fetches, settings.max_fetches_per_host)
        self._trust: ssl.SSLContext | None = None

    async def fetch(
        self, url: str, param: str, deadline: float, authorization: str | None = None
    ) -> bytes:
        """The image file at ``url``, which ``param`` named, by ``deadline`` on the event loop's
        clock. Cancelling it closes the connection. ``authorization``, a header's value, is for the
        URL's own server.

        Raises ApiError: 413 image_too_large; 422 image_url_invalid; 422 image_url_blocked, also for
        a host without addresses, lest it tell which names there are; 422 too_many_redirects,
        image_fetch_timeout or image_fetch_failed; 503 overloaded.
        """
        try:
            data = await self._in_time(url, deadline, authorization)
        except FetchError as error:
            self._on_outcome(_OUTCOMES[error.code])
            raise self._refusal(error, param) from None
        except asyncio.CancelledError:
            self._on_outcome("cancelled")
            raise
        self._on_outcome("ok")
        return data

    def _refusal(self, error: FetchError, param: str) -> ApiError:
        if error.code == "overloaded":
            return overloaded(self._settings.retry_after_s)
        if error.code == "image_too_large":
            return too_large(self._settings, param)
        if error.code == "image_url_blocked":
            return image_url_blocked(param)
        return ApiError(422, error.code, error.message or _MESSAGES[error.code], param=param)

    async def _in_time(self, url: str, deadline: float, authorization: str | None) -> bytes:
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(deadline, now + self._settings.image_url_timeout_s)):
                return await self._followed(url, authorization)
        except TimeoutError:
            raise FetchError("image_fetch_timeout") from None

    async def _followed(self, url: str, authorization: str | None) -> bytes:
        """The file at a URL or at the end of its redirects."""
        try:
            target = target_of(url)
        except ValueError:
            raise FetchError("image_url_invalid") from None
        private = {} if authorization is None else {"Authorization": authorization}
        origin = target.origin
        for _ in range(self._settings.max_image_url_redirects + 1):
            async with self._places.take(target.host):
                answer = await self._answer(target, private if target.origin == origin else {})
            if isinstance(answer, bytes):
                return answer
            target = _redirected(target, answer)
        raise FetchError("too_many_redirects")

    async def _answer(self, target: Target, private: Mapping[str, str]) -> bytes | str:
        """The file, or where the host redirects to; asks the next address where nobody listens."""
        code = "image_fetch_failed"
        for address in await self._judged(target):
            try:
                return await self._asked(target, address, private)
            except httpx2.ConnectTimeout:
                code = "image_fetch_timeout"
            except httpx2.ConnectError:
                code = "image_fetch_failed"
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError):
                raise FetchError("image_fetch_failed") from None
        raise FetchError(code)

    async def _judged(self, target: Target) -> tuple[IPAddress, ...]:
        """The addresses to ask. One that is not open closes all of them: whoever mixes them means
        to reach that one."""
        if not self._rules.allows(target):
            raise FetchError("image_url_blocked")
        is_listed = self._rules.is_listed(target)
        try:
            addresses = await self._network.resolve(target.host)
        except OSError:
            addresses = ()
        except ResolverBusyError:
            raise FetchError("overloaded") from None
        if not addresses:
            raise FetchError("image_fetch_failed" if is_listed else "image_url_blocked")
        if not is_listed and not all(map(self._network.is_open, addresses)):
            raise FetchError("image_url_blocked")
        return addresses[:_MOST_ADDRESSES]

    async def _asked(
        self, target: Target, address: IPAddress, private: Mapping[str, str]
    ) -> bytes | str:
        """One request, on a connection of its own: a kept one might have been judged, or its
        certificate checked, for another host. Raises httpx2.HTTPError and OSError."""
        patience = httpx2.Timeout(None, connect=self._settings.image_url_connect_timeout_s)
        request = httpx2.Request(
            "GET",
            target.at(address),
            headers={"Host": target.url.netloc.decode("ascii"), **_HEADERS, **private},
            extensions={"sni_hostname": target.host, "timeout": patience.as_dict()},
        )
        trust = await self._trusted()
        async with httpx2.AsyncHTTPTransport(verify=trust, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            async with aclosing(response):
                return await self._read(response)

    async def _trusted(self) -> ssl.SSLContext:
        """Made once, in a thread: it reads files."""
        if self._trust is None:
            self._trust = await asyncio.to_thread(self._network.tls)
        return self._trust

    async def _read(self, response: httpx2.Response) -> bytes | str:
        """The whole file or the redirect's target; stops reading at the first byte too many, and
        where the beginning is that of no image."""
        headers, limit = response.headers, self._settings.max_image_bytes
        location = headers.get("location")
        if response.status_code in _REDIRECTS and location:
            return location
        if response.status_code != HTTPStatus.OK:
            kind = response.status_code // 100
            raise FetchError("image_fetch_failed", f"the URL's server answered with {kind}xx")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise FetchError("image_fetch_failed")
        if _declared_bytes(headers) > limit:
            raise FetchError("image_too_large")
        data = bytearray()
        async with aclosing(response.aiter_raw()) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > limit:
                    raise FetchError("image_too_large")
                if len(data) >= _SNIFFED_BYTES:
                    _check_beginning(data)
        _check_beginning(data)
        return bytes(data)


def _redirected(target: Target, location: str) -> Target:
    try:
        return target_of(str(target.url.join(location)))
    except (ValueError, httpx2.InvalidURL):
        raise FetchError("image_url_blocked") from None


def _declared_bytes(headers: httpx2.Headers) -> int:
    declared = headers.get("content-length", "")
    return int(declared[:20]) if declared.isascii() and declared.isdigit() else 0


def _check_beginning(data: bytearray) -> None:
    if sniff(bytes(data[:_SNIFFED_BYTES])) is None:
        raise FetchError("image_fetch_failed", "what the URL holds is no JPEG, PNG, WebP or GIF")


class _Room:
    """``places`` at once; up to ``most`` may be in it, those who wait included."""

    def __init__(self, places: int, most: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._most = most
        self._inside = 0

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None, None]:
        """Raises FetchError overloaded."""
        if self._inside >= self._most:
            raise FetchError("overloaded")
        self._inside += 1
        try:
            async with self._places:
                yield
        finally:
            self._inside -= 1


class _Places:
    """At most ``most`` fetches at once, and ``most_per_host`` from one host. Only there as many may
    wait, so that requests on a slow host leave places to all others."""

    def __init__(self, most: int, most_per_host: int) -> None:
        self._all = _Room(most, most)
        self._most_per_host = most_per_host
        self._hosts: WeakValueDictionary[str, _Room] = WeakValueDictionary()

    @asynccontextmanager
    async def take(self, host: str) -> AsyncGenerator[None, None]:
        """Raises FetchError overloaded."""
        room = self._hosts.get(host)
        if room is None:
            self._hosts[host] = room = _Room(self._most_per_host, 2 * self._most_per_host)
        async with room.place(), self._all.place():
            yield
