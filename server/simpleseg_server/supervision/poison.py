"""Requests that are refused, since they ended the engine before."""

import hashlib
from dataclasses import fields

from cachetools import TTLCache

from simpleseg_server.engines.base import GenerationRequest

_MOST = 1024
_REMEMBERED_S = 600.0
_UNSAID = ("request_id", "image_hw3", "seed")


class Poison:
    """Remembers what was asked, not who asked: sent again, it would end the engine again."""

    def __init__(self) -> None:
        self._known: TTLCache[str, bool] = TTLCache(_MOST, _REMEMBERED_S)

    def __contains__(self, request: GenerationRequest) -> bool:
        return bool(self._known) and _digest(request) in self._known

    def add(self, request: GenerationRequest) -> None:
        self._known[_digest(request)] = True


def _digest(request: GenerationRequest) -> str:
    """The same for requests that ask the same; ``image_key`` stands for the image."""
    said = [(one.name, getattr(request, one.name)) for one in fields(request)]
    text = repr([one for one in said if one[0] not in _UNSAID])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
