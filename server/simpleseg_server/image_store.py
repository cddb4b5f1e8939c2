"""Images that clients have uploaded once to ask about them again and again."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cachetools import TTLCache

from simpleseg.schema import UploadedImage
from simpleseg_server.errors import ApiError
from simpleseg_server.images import DecodedImage

Look = Literal["hit", "miss"]


@dataclass(frozen=True)
class StoredImage:
    """An image file with what was decoded of it. ``owner`` is the API key's name that brought it,
    "" without keys; times are in seconds since 1970."""

    id: str
    owner: str
    data: bytes
    image: DecodedImage
    created: float
    expires: float

    @property
    def size_bytes(self) -> int:
        return len(self.data) + self.image.pixels_hw3.nbytes

    def info(self) -> UploadedImage:
        return UploadedImage(
            object="image",
            id=self.id,
            bytes=len(self.data),
            width=self.image.size.width,
            height=self.image.size.height,
            exif_applied=self.image.exif_applied,
            created=int(self.created),
            expires_at=int(self.expires),
        )


class ImageStore:
    """At most ``max_bytes`` of files and pixels, each for ``ttl_s`` seconds; what was used least
    recently goes first. For one event loop, in memory only.

    Ids are random, and an image is found only by the key that brought it. ``on_look`` is told of
    every look for one.
    """

    def __init__(
        self,
        max_bytes: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
        on_look: Callable[[Look], None] = lambda _: None,
    ) -> None:
        self._images: TTLCache[str, StoredImage] = TTLCache(
            max_bytes, ttl_s, timer=clock, getsizeof=lambda image: image.size_bytes
        )
        self._ttl_s = ttl_s
        self._on_look = on_look

    @property
    def used_bytes(self) -> float:
        return float(self._images.currsize)

    def add(self, data: bytes, image: DecodedImage, owner: str) -> StoredImage:
        """Raises ApiError 413 image_too_large for one that would not fit into an empty store."""
        now = time.time()  # only told: what counts is a clock that nobody sets
        name = f"img_{secrets.token_hex(12)}"
        stored = StoredImage(name, owner, data, image, now, now + self._ttl_s)
        try:
            self._images[name] = stored
        except ValueError:
            message = "the image is larger than all the room for uploaded images"
            raise ApiError(413, "image_too_large", message, param="image") from None
        return stored

    def find(self, name: str, owner: str, param: str) -> StoredImage:
        """Raises ApiError 404 image_not_found, which is also what somebody else's image gives."""
        stored = self._images.get(name)
        is_there = stored is not None and stored.owner == owner
        self._on_look("hit" if is_there else "miss")
        if stored is None or not is_there:
            message = "no such image; it may have expired: upload it again"
            raise ApiError(404, "image_not_found", message, param=param)
        return stored

    def remove(self, name: str, owner: str) -> None:
        """Raises ApiError 404 image_not_found."""
        self._images.pop(self.find(name, owner, "id").id, None)
