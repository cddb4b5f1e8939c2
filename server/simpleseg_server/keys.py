"""API keys: who may use the server, kept as hashes and compared in constant time.

A file of keys is TOML, one table for each client::

    [alice]
    key = "sk-..."                  # or: sha256 = "<64 hexadecimal digits>"
    requests_per_minute = 600       # optional, in place of the server's setting
    max_concurrent_requests = 8
"""

import hashlib
import hmac
import logging
import re
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.setting_kinds import Positive, Secret
from simpleseg_server.sources import read_text

RELOAD_AFTER_S = 1.0
"""A changed file is seen after this time at the latest."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

logger = logging.getLogger("simpleseg_server")


@dataclass(frozen=True)
class Key:
    """A client that may use the server; its name is for logs, its limits None where unlimited."""

    name: str
    digest: bytes
    requests_per_minute: int | None = None
    max_concurrent_requests: int | None = None


class _Entry(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid")

    key: Secret | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    requests_per_minute: Positive | None = None
    max_concurrent_requests: Positive | None = None


_ENTRIES = TypeAdapter(dict[str, _Entry])


def digest_of(key: str) -> bytes:
    """SHA-256 of a key. Digests, and not keys, are compared: they are all of one length."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class KeyRing:
    """The keys of a server; a file of keys is read again when it changes.

    Raises ConfigError for a file that cannot be read, holds no key, or holds one twice. A changed
    file with such a fault is logged, and the keys before the change stay.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._file = settings.api_keys_file
        self._signature = _signature(self._file)
        self._keys = self._read()
        self._checked = clock()

    @property
    def is_locked(self) -> bool:
        """Whether requests need a key."""
        return bool(self._keys)

    def find(self, presented: str) -> Key | None:
        """The key that was presented. Takes as long for a wrong one, whatever is wrong with it."""
        self._refresh()
        digest, found = digest_of(presented), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def _refresh(self) -> None:
        if self._file is None or self._clock() - self._checked < RELOAD_AFTER_S:
            return
        self._checked = self._clock()
        signature = _signature(self._file)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = self._read()
        except ConfigError as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("read %d API keys", len(self._keys))

    def _read(self) -> tuple[Key, ...]:
        settings = self._settings
        given = (
            Key(f"key-{number}", digest_of(key.get_secret_value()), *_limits(settings))
            for number, key in enumerate(settings.api_keys, 1)
        )
        filed = () if self._file is None else _from_file(self._file, settings)
        return _distinct([*given, *filed])


def _limits(settings: Settings) -> tuple[int | None, int | None]:
    return settings.requests_per_minute, settings.max_concurrent_requests


def _distinct(keys: Iterable[Key]) -> tuple[Key, ...]:
    """Raises ConfigError where two clients have one key or one name."""
    seen: dict[bytes | str, str] = {}
    for key in (kept := tuple(keys)):
        for mark in (key.digest, key.name):
            if mark in seen:
                raise ConfigError(f"API keys: {seen[mark]} and {key.name} are the same")
            seen[mark] = key.name
    return kept


def _signature(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file does; None where there is none."""
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _from_file(file: Path, settings: Settings) -> Iterator[Key]:
    entries = _entries(file)
    if not entries:
        raise ConfigError(f"{file}: there is no key")
    for name, entry in entries.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{file}: a name is 1 to 64 characters of A-Z, a-z, 0-9, . _ -")
        if (entry.key is None) == (entry.sha256 is None):
            raise ConfigError(f"{file}: {name}: give either key or sha256")
        secret = entry.key
        yield Key(
            name=name,
            digest=bytes.fromhex(entry.sha256 or "")
            if secret is None
            else digest_of(secret.get_secret_value()),
            requests_per_minute=entry.requests_per_minute or settings.requests_per_minute,
            max_concurrent_requests=entry.max_concurrent_requests
            or settings.max_concurrent_requests,
        )


def _entries(file: Path) -> dict[str, _Entry]:
    try:
        return _ENTRIES.validate_python(tomllib.loads(read_text(file)))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from None
    except ValidationError as error:
        (fault, *_) = error.errors(include_input=False, include_url=False, include_context=False)
        known = fault["type"] != "extra_forbidden"
        words = fault["msg"] if known else "unknown field"
        raise ConfigError(f"{file}: {'.'.join(map(str, fault['loc']))}: {words}") from None
