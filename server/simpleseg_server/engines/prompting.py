"""What a checkpoint says besides its weights: how it is served, its prompt and its vocabulary."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from simpleseg_polygon.grammar import token_bytes
from simpleseg_server.engines.picture import stretched

PROFILE_FILE = "simpleseg.json"
_SENTINEL = "instruction goes here"


@dataclass(frozen=True)
class Profile:
    """How a checkpoint is served: the model id that clients see, and the one image size of its
    training, if there was one. From ``simpleseg.json``, else the folder's name or the hub id."""

    name: str
    input_hw: tuple[int, int] | None

    @classmethod
    def load(cls, path: str) -> "Profile":
        file = cached_file(path, PROFILE_FILE, _raise_exceptions_for_missing_entries=False)
        entries = {} if file is None else json.loads(Path(file).read_text())
        size = entries.get("input_hw")
        folder = Path(path)
        return cls(
            name=entries.get("name") or (folder.resolve().name if folder.exists() else path),
            input_hw=None if size is None else (int(size[0]), int(size[1])),
        )

    def picture(self, image_hw3: NDArray[np.uint8]) -> Image.Image:
        """The image for the checkpoint's processor: stretched to ``input_hw`` where there is one."""
        return stretched(image_hw3, self.input_hw)


class Prompter:
    """The chat prompt around an instruction, as token ids, and what the ids of answers spell.

    ``vocabulary`` gives the bytes of every token but the control tokens; ``end_token_id`` ends an
    answer under the grammar; ``prompt_end`` are the ids between the instruction and the answer.
    """

    def __init__(self, path: str, *, trust_remote_code: bool = False) -> None:
        """Read the tokenizer of a folder or hub id. Raises ValueError where its chat template
        leaves the instruction out or it is not a fast tokenizer."""
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError("only tokenizers that come as tokenizer.json are supported")
        self._plain = _without_added_tokens(tokenizer)
        self._before, self.prompt_end = _pieces(tokenizer)
        self.vocabulary = _vocabulary(tokenizer)
        self.end_token_id = int(tokenizer.eos_token_id)

    def ids(self, instruction: str) -> list[int]:
        """The prompt with one placeholder for the image. The instruction is read as plain text: the
        names of control tokens in it are spelled out and control nothing."""
        return [*self._before, *self._plain.encode(instruction).ids, *self.prompt_end]


def _without_added_tokens(tokenizer: Any) -> Tokenizer:
    """The tokenizer with no control or other added token, so that text cannot spell one."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(spec))


def _pieces(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The chat template before and after the instruction, as ids."""
    content = [{"type": "image"}, {"type": "text", "text": _SENTINEL}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    before, found, after = text.partition(_SENTINEL)
    if not (found and after):
        raise ValueError("the chat template leaves the instruction out, or nothing follows it")
    encode = tokenizer.backend_tokenizer.encode
    return tuple(encode(before).ids), tuple(encode(after).ids)


def _vocabulary(tokenizer: Any) -> Mapping[int, bytes]:
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    control = {token for token, meaning in added.items() if meaning.special}
    spelled = token_bytes(tokenizer.get_vocab())
    return {token: text for token, text in spelled.items() if token not in control}
