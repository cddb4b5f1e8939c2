"""Phrases for objects: by a vision-language model, or by the detector's labels and the places."""

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw

from simpleseg_polygon import prompts
from simpleseg_polygon.geometry import Box
from simpleseg_training.annotate.parts import Detection, Image

MARKED = (
    "Name the object in the red box with a short noun phrase that is true of no other object in "
    "the image. Answer with the phrase only."
)
_ATTEMPTS = 4
_TIMEOUT_S = 120.0
_LONGEST_PX = 1024


@dataclass(frozen=True)
class LabelDescriber:
    """``the dog``, and with several dogs the outermost: ``the leftmost dog``."""

    def describe(
        self, image_hw3: Image, found: Sequence[Detection], seen: Sequence[Detection]
    ) -> list[str]:
        return [self._phrase(one, [o for o in seen if o.label == one.label]) for one in found]

    def _phrase(self, one: Detection, alike: Sequence[Detection]) -> str:
        if len(alike) == 1:
            return f"the {one.label}"
        middles = sorted((o.box.x0 + o.box.x1) / 2 for o in alike)
        own = (one.box.x0 + one.box.x1) / 2
        if own == middles[0] < middles[1]:
            return f"the leftmost {one.label}"
        if own == middles[-1] > middles[-2]:
            return f"the rightmost {one.label}"
        return ""


class Unavailable(RuntimeError):
    """The endpoint gives no answer; what is done so far is kept."""


@dataclass(frozen=True)
class ModelDescriber:
    """Asks an OpenAI-compatible endpoint (``url`` ends in ``/v1``) about each object.

    ``is_marked`` draws the box into the picture and asks in words that any model understands;
    without it the instruction is that of this project's models, which know boxes by their numbers.
    Raises Unavailable where the endpoint refuses, or fails again and again.
    """

    url: str
    model: str
    key: str | None = None
    is_marked: bool = True
    wait_s: float = 1.0

    def describe(
        self, image_hw3: Image, found: Sequence[Detection], seen: Sequence[Detection]
    ) -> list[str]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        with httpx2.Client(headers=headers, timeout=_TIMEOUT_S) as client:
            return [clean(self._ask(client, self._question(image_hw3, one.box))) for one in found]

    def _question(self, image_hw3: Image, box: Box) -> dict[str, Any]:
        text = MARKED if self.is_marked else prompts.instruction("text", prompts.phrase(box=box))
        picture = _marked(image_hw3, box if self.is_marked else None)
        content = [
            {"type": "image_url", "image_url": {"url": data_url(picture)}},
            {"type": "text", "text": text},
        ]
        messages = [{"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 64}

    def _ask(self, client: httpx2.Client, question: dict[str, Any]) -> str:
        reason = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(self.wait_s * 2 ** (attempt - 1))
            try:
                response = client.post(f"{self.url.rstrip('/')}/chat/completions", json=question)
            except httpx2.HTTPError as error:
                reason = type(error).__name__
                continue
            reason = f"status {response.status_code}"
            if response.status_code == 200:
                return _content(response.json())
            if response.status_code < 500 and response.status_code != 429:
                break
        raise Unavailable(f"{self.url} gives no description: {reason}")


def _content(answer: Any) -> str:
    try:
        return str(answer["choices"][0]["message"]["content"] or "")
    except (KeyError, IndexError, TypeError) as error:
        raise Unavailable("the endpoint's answer is not a chat completion") from error


def _marked(image_hw3: Image, box: Box | None) -> Pictures.Image:
    picture = Pictures.fromarray(image_hw3)
    picture.thumbnail((_LONGEST_PX, _LONGEST_PX))
    if box is not None:
        scale = np.array([picture.width - 1, picture.height - 1] * 2)
        ImageDraw.Draw(picture).rectangle((np.array(box) * scale).tolist(), outline="red", width=3)
    return picture


def data_url(picture: Pictures.Image) -> str:
    """The picture as a JPEG in a ``data:`` URL."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def clean(answer: str) -> str:
    """The first line of an answer as a phrase.

    >>> clean(' "The left dog."')
    'the left dog'
    """
    line = answer.strip().split("\n")[0].strip().strip("\"'`*").rstrip(".").strip("\"'`* ")
    is_article = line.split(" ")[0] in ("The", "A", "An")
    return line[0].lower() + line[1:] if is_article else line
