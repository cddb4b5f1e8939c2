"""The stages of an engine's start, each logged with its seconds when it ends."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("simpleseg_server")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Log what happens inside as one stage; it says nothing of a stage that fails."""
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    fields = {"event": "start", "stage": name, "seconds": round(seconds, 2)}
    logger.info("start stage=%s seconds=%.2f", name, seconds, extra={"fields": fields})
