"""Which of several workers an image belongs to, so that what one has cached of it is used again."""

import hashlib
import math

SLACK = 1.25
"""Of its share, what a preferred worker may hold (arXiv 1608.01350)."""
FREE_LOAD = 4
"""Requests that a worker takes as easily as one."""


def affinity(worker: str, image_key: str, weight: float = 1.0) -> float:
    """Weighted rendezvous hashing: the worker with the highest number has the image.

    Every image has its own order of the workers, and when one goes only its own images move.
    """
    digest = hashlib.blake2b(f"{worker} {image_key}".encode(), digest_size=8).digest()
    drawn = (int.from_bytes(digest, "big") + 1) / (2**64 + 2)
    return -weight / math.log(drawn)


def fair_share(running: int, part: float) -> int:
    """How many of ``running`` requests a worker may have whose part of all weights is ``part``."""
    return max(FREE_LOAD, math.ceil(SLACK * (running + 1) * part))
