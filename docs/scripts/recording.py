"""One answer of the shipped model, with what every forward pass was given and gave."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import simpleseg_server
from simpleseg_polygon.prompts import instruction
from simpleseg_server.engines import decoding
from simpleseg_server.engines.answers import Answer
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.transformers import TransformersEngine

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "examples/images/scene-04.png"
PHRASE = "the hexagon"
_MODEL = Path(simpleseg_server.__file__).parent / "demo_model"


@dataclass(frozen=True)
class Pass:
    """Of one forward pass: drafted tokens taken, the token that the model itself chose after them,
    those that the grammar forced after it, and drafted tokens that were refused."""

    accepted: tuple[str, ...]
    chosen: tuple[str, ...]
    forced: tuple[str, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    image: Image.Image
    phrase: str
    text: str
    passes: tuple[Pass, ...]


async def record(image: Path, phrase: str) -> Recorded:
    """The greedy answer to ``phrase``."""
    passes: list[Pass] = []

    class Watched(Answer):
        def read(self, draft: Sequence[int], logits: NDArray[np.float32]) -> int:
            before = len(self.tokens)
            accepted = super().read(draft, logits)
            new = [self._spelled([token]).decode() or "end" for token in self.tokens[before:]]
            refused = tuple(self._spelled([token]).decode() for token in draft[accepted:])
            passes.append(
                Pass(
                    tuple(new[:accepted]),
                    tuple(new[accepted : accepted + 1]),
                    tuple(new[accepted + 1 :]),
                    refused,
                )
            )
            return accepted

    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    request = GenerationRequest(
        request_id="figure",
        image_hw3=np.asarray(picture),
        image_key="figure",
        instruction=instruction("region", phrase),
        target="region",
        max_tokens=1024,
    )
    engine = TransformersEngine(_MODEL)
    await engine.start()  # which answers a request of its own
    with patch.object(decoding, "Answer", Watched):
        text = "".join([delta.text async for delta in engine.generate(request)])
    await engine.close()
    return Recorded(picture, phrase, text, tuple(passes))
