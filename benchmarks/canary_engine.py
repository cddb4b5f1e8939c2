"""An engine without a model whose answers say which image and which question they belong to."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.prompts import TARGETS
from simpleseg_server.engines.base import Capabilities, Engine, GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine

TOKENS = 20


def canary_points(image_hw3: NDArray[np.uint8], instruction: str) -> list[list[float]]:
    """Six vertices (x, y) in [0, 1], other ones for every image and every instruction."""
    said = image_hw3.tobytes() + instruction.encode()
    digest = hashlib.blake2b(said, digest_size=24).digest()
    numbers = [int.from_bytes(digest[i : i + 2], "big") % 1000 / 1000 for i in range(0, 24, 2)]
    return [numbers[i : i + 2] for i in range(0, 12, 2)]


@dataclass(frozen=True)
class CanaryEngine:
    """Makes one that takes ``service_s`` for an answer and eight answers at once."""

    service_s: float

    def __call__(self) -> Engine:
        def reply(request: GenerationRequest) -> Reply:
            text = f"{[canary_points(request.image_hw3, request.instruction)]}."
            length = -(-len(text) // TOKENS)
            return Reply(text, token_length=length, delay_s=self.service_s / TOKENS)

        capabilities = Capabilities("canary", "canary", TARGETS, 4096, 8, 64 * 64)
        return ScriptedEngine(reply, capabilities=capabilities)
