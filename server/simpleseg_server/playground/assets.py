"""The page's files in memory, with the headers under which a browser may run them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.responses import Response

PAGE = "/"
"""Where the page is."""
PREFIX = "/playground/"
"""Where all else is that belongs to it."""

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
}

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Only the server's own files run, and no text can become markup."""

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-cache",  # asked for again each time, and mostly answered 304
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page. ``etag`` is a strong validator, quoted as in the header."""

    content: bytes
    media_type: str
    etag: str

    @staticmethod
    def of(content: bytes, media_type: str) -> "Asset":
        return Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:24]}"')

    def response(self, if_none_match: str) -> Response:
        """The file, or 304 where the client's copy is this one."""
        headers = {**HEADERS, "ETag": self.etag}
        known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        if self.etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


@cache
def assets() -> Mapping[str, Asset]:
    """Every file by the path under which it is served; there are no others to be had.

    >>> assets()["/"].media_type, assets()["/playground/js/main.js"].media_type
    ('text/html; charset=utf-8', 'text/javascript; charset=utf-8')
    """
    found = dict(_below(files("simpleseg_server.playground") / "static", PREFIX))
    return {PAGE: found.pop(f"{PREFIX}index.html"), **found}


def _below(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found: list[tuple[str, Asset]] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        ending = entry.name.rpartition(".")[2]
        if entry.is_dir():
            found += _below(entry, f"{prefix}{entry.name}/")
        elif ending in MEDIA_TYPES:
            asset = Asset.of(entry.read_bytes(), MEDIA_TYPES[ending])
            found.append((prefix + entry.name, asset))
    return found
