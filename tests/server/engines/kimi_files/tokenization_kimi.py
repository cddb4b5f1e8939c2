"""A tokenizer of tiktoken's kind, as Kimi-VL's repository brings one: stands in for it in tests.

Copied into a checkpoint, and loaded from there by ``trust_remote_code``. Its pattern splits numbers
into groups of up to three digits, its tokens are GPT-2's printable characters.
"""

import shutil
from pathlib import Path
from typing import Any

from tiktoken import Encoding
from tiktoken.load import load_tiktoken_bpe
from transformers import AddedToken, PreTrainedTokenizer

PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?\p{Lu}*\p{Ll}+",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(0x100) if byte not in _PRINTABLE]
CHARACTERS = {b: chr(b) for b in _PRINTABLE} | {b: chr(0x100 + i) for i, b in enumerate(_OTHERS)}
BYTES = {character: byte for byte, character in CHARACTERS.items()}


class TikTokenTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    vocab_files_names = {"vocab_file": "tiktoken.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self, vocab_file: str, added_tokens_decoder: dict[int, AddedToken], **options: Any
    ) -> None:
        self._file = vocab_file
        self.special = {str(token): int(i) for i, token in added_tokens_decoder.items()}
        ranks = load_tiktoken_bpe(vocab_file)
        self.model = Encoding(
            Path(vocab_file).name,
            pat_str=PATTERN,
            mergeable_ranks=ranks,
            special_tokens=self.special,
        )
        self._names = {i: name for name, i in self.special.items()}
        self._names |= {i: "".join(CHARACTERS[b] for b in text) for text, i in ranks.items()}
        self._ids = {name: i for i, name in self._names.items()}
        super().__init__(added_tokens_decoder=added_tokens_decoder, **options)

    @property
    def vocab_size(self) -> int:
        return int(self.model.n_vocab)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._names[token] for token in self.model.encode_ordinary(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return self._names[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return bytes(BYTES[c] for token in tokens for c in token).decode("utf-8", "replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> Any:
        file = Path(save_directory) / f"{filename_prefix or ''}tiktoken.model"
        return (str(shutil.copy(self._file, file)),)
