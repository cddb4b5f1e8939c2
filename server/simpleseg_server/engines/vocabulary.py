"""A loaded tokenizer, whichever kind it is: text as its tokens, and the bytes of every token.

Three kinds are known: byte-level BPE (Qwen, DeepSeek, Llama 3), SentencePiece with byte fallback
(Llama 2, Mistral), and tiktoken (Kimi), which comes with Python code of its own.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from tokenizers import Tokenizer

from simpleseg_polygon.grammar import token_bytes

_SPACE = "\u2581"  # how SentencePiece writes a space


class TextTokens(Protocol):
    """Text to ids and back.

    ``vocabulary`` gives the bytes of every token but control tokens; where two spell the same, the
    one that text becomes comes first.
    """

    @property
    def vocabulary(self) -> Mapping[int, bytes]: ...

    def plain(self, text: str) -> list[int]:
        """The text as a user's: names of control tokens in it are spelled out."""
        ...

    def rendered(self, text: str) -> list[int]:
        """The text as a chat template's: names of control tokens in it are those tokens."""
        ...


def text_tokens(tokenizer: Any) -> TextTokens:
    """The view of a tokenizer that transformers has loaded. Raises ValueError for other kinds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _FastTokens(backend)
    for value in vars(tokenizer).values():
        if hasattr(value, "encode_ordinary") and hasattr(value, "decode_single_token_bytes"):
            return _TiktokenTokens(value)
    raise ValueError("the tokenizer is neither a tokenizer.json nor one of tiktoken")


class _FastTokens:
    """A tokenizer of the tokenizers library."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec = json.loads(tokenizer.to_str())
        added = tokenizer.get_added_tokens_decoder()
        control = {token for token, meaning in added.items() if meaning.special}
        spelled = _spelled(spec, tokenizer.get_vocab(with_added_tokens=True))
        self.vocabulary = {token: text for token, text in spelled.items() if token not in control}
        self._tokenizer = tokenizer
        spec["added_tokens"] = []  # so that text cannot spell one
        self._plain = Tokenizer.from_str(json.dumps(_without_leading_space(spec)))

    def plain(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def rendered(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class _TiktokenTokens:
    """An ``Encoding`` of tiktoken."""

    def __init__(self, encoding: Any) -> None:
        control = {encoding.encode_single_token(name) for name in encoding.special_tokens_set}
        self.vocabulary = {
            token: text for token, text in _tiktoken_bytes(encoding) if token not in control
        }
        self._encoding = encoding

    def plain(self, text: str) -> list[int]:
        return list(self._encoding.encode_ordinary(text))

    def rendered(self, text: str) -> list[int]:
        return list(self._encoding.encode(text, allowed_special="all"))


def _tiktoken_bytes(encoding: Any) -> Iterator[tuple[int, bytes]]:
    for token in range(encoding.n_vocab):
        try:
            yield token, encoding.decode_single_token_bytes(token)
        except KeyError:  # no token has this id
            continue


def _spelled(spec: Mapping[str, Any], vocab: Mapping[str, int]) -> dict[int, bytes]:
    """The bytes of every token, as the tokenizer's own decoder joins them."""
    decoders = {step["type"] for step in _steps(spec["decoder"])}
    if "ByteLevel" in decoders:
        return token_bytes(vocab)
    if decoders & {"ByteFallback", "Metaspace"}:
        # Bytes last: where a piece spells the same, it is the one that text becomes.
        pieces = sorted(vocab.items(), key=lambda item: _is_byte(item[0]))
        return {token: _sentencepiece_bytes(piece) for piece, token in pieces}
    raise ValueError(f"the tokenizer's decoder is of an unknown kind: {', '.join(decoders)}")


def _sentencepiece_bytes(piece: str) -> bytes:
    """What a piece spells inside a text; ``<0x5B>`` is a byte.

    >>> _sentencepiece_bytes("\u2581["), _sentencepiece_bytes("<0x5B>")
    (b' [', b'[')
    """
    if _is_byte(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(_SPACE, " ").encode()


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _without_leading_space(spec: dict[str, Any]) -> dict[str, Any]:
    """SentencePiece puts a space before a text; an instruction stands within one."""
    normalizer = spec.get("normalizer")
    if normalizer is not None:
        kept = [step for step in _steps(normalizer) if step["type"] != "Prepend"]
        spec["normalizer"] = {"type": "Sequence", "normalizers": kept}
    for step in _steps(spec.get("pre_tokenizer")):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
    return spec


def _steps(part: Mapping[str, Any] | None) -> list[Any]:
    """The steps of a part of tokenizer.json, which is one step or a sequence of them."""
    if part is None:
        return []
    for name in ("decoders", "normalizers", "pretokenizers"):
        if name in part:
            return list(part[name])
    return [part]
