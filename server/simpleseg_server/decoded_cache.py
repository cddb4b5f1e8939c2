"""Pixels of the image files decoded last, for clients that ask about a picture again and again."""

import hashlib
from collections.abc import Callable
from threading import Lock

from cachetools import LRUCache

from simpleseg_server.image_store import Look
from simpleseg_server.images import DecodedImage
from simpleseg_server.pixels import Reading


class DecodedCache:
    """At most ``max_bytes`` of pixels; what was used least recently goes. For any thread.

    A file is known by a hash that nobody can find a second file for, so that it never gets
    another's pixels. ``on_look`` is told of every look for one.
    """

    def __init__(self, max_bytes: int, on_look: Callable[[Look], None] = lambda _: None) -> None:
        self._images: LRUCache[object, DecodedImage] = LRUCache(
            max_bytes, getsizeof=lambda image: image.pixels_hw3.nbytes
        )
        self._lock = Lock()
        self._on_look = on_look

    @property
    def used_bytes(self) -> float:
        return float(self._images.currsize)

    def get(self, reading: Reading, decode: Callable[[], DecodedImage]) -> DecodedImage:
        """The picture that ``reading`` asks for, from ``decode`` if it is not here; raises what
        ``decode`` raises."""
        if not self._images.maxsize:
            return decode()
        key = (hashlib.blake2b(reading.data).digest(), reading.wanted, reading.view)
        with self._lock:
            found = self._images.get(key)
        self._on_look("miss" if found is None else "hit")
        if found is None:
            found = decode()
            if found.pixels_hw3.nbytes <= self._images.maxsize:
                with self._lock:
                    self._images[key] = found
        return found
