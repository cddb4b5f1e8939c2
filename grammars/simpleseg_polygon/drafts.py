"""The tokens that probably follow, for the model to verify in one forward pass (speculation).

A draft is text turned into tokens. The text is the structure between numbers, which is nearly
certain, and digits, each the likeliest by a forecast of the next vertex (``forecast.py``), which
are often right in front. The text becomes tokens by the longest match in the vocabulary. On Qwen's
vocabulary that gives exactly the tokens of its own tokenizer, because no token crosses the borders
at which it splits text (a test holds this against the real one); where another tokenizer differs,
drafts are refused and cost nothing but their place. Output never depends on a draft: greedy
decoding takes only what the model would have written.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from simpleseg_polygon.answer_state import (
    BETWEEN_ITEMS,
    BETWEEN_NUMBERS,
    Pen,
    numbers_per_item,
    read_pen,
    thousandths,
)
from simpleseg_polygon.forecast import Trail
from simpleseg_polygon.guesses import Guess, LearnedGuesser

LEAST_CHANCE = 0.02
_START = b"[[[0."
_SAMPLE = b"[[[0.000, 0.000], [0.000, 0.000]], [[0.000, 0.000]]]. [[0.0, 0.00]]. []."
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_LIKELY = 0.5
_UNLIKELY = 0.1  # below it, a forecast's own microseconds are not won back
_MOST_TOKENS = 1024  # of an answer's end, that are read for a draft


class Guesser(Protocol):
    """Guesses the vertex that follows a part so far; None stands for a part not yet begun."""

    def guess(self, trail: Trail | None) -> Guess: ...


class _Spelling(dict[int, bytes]):
    """What ids spell; those that no answer can hold spell nothing."""

    def __missing__(self, token: int) -> bytes:
        return b""


@dataclass
class _Draft:
    """Text, and of each of its bytes the chance that the answer goes on so far; whether it ends the
    answer."""

    text: bytes = b""
    chances: list[float] = field(default_factory=list)
    chance: float = 1.0
    ends: bool = False

    def add(self, text: bytes, chance: float = 1.0) -> None:
        self.chance *= chance
        self.chances += [self.chance] * len(text)
        self.text += text

    def end(self, text: bytes) -> None:
        self.add(text)
        self.ends = True


class Drafter:
    """Guesses what follows an answer so far; made once per loaded model, then shared.

    ``max_draft`` bounds the tokens of a draft; 8 hold the rest of one number and most of the next.
    ``grid_hw`` is the height and width in pixels of the masks that the model was trained on, where
    they all had one size: then coordinates are multiples of a pixel, and the first two digits
    nearly settle the third. ``digits`` is how many are guessed in each number: 0 drafts structure
    only, 3 goes on to the next number. Where the vocabulary has tokens of several digits, a number
    is guessed whole or not at all: a part of it would be another token. ``final_dot`` says whether
    the model's answers end with a dot; ``end_token_id`` is drafted after a whole answer, None for
    an engine that knows by itself that nothing else may follow. A draft ends before the first token
    whose chance to be reached and right is below ``least_chance``: what verifying a token costs, as
    a share of a forward pass. ``guesser`` replaces the learned statistics.

    >>> vocabulary = dict(enumerate([b"[[", b"[", b"0", b".", b",", b" ", b"],", b"1"]))
    >>> drafter = Drafter(vocabulary, digits=0)
    >>> [vocabulary[token] for token in drafter.draft([0, 1, 2, 3, 7, 7, 7])]
    [b',', b' ', b'0', b'.']
    """

    def __init__(
        self,
        vocabulary: Mapping[int, bytes],
        max_draft: int = 8,
        *,
        grid_hw: tuple[int, int] | None = None,
        digits: int = 3,
        final_dot: bool = True,
        end_token_id: int | None = None,
        least_chance: float = LEAST_CHANCE,
        guesser: Guesser | None = None,
    ) -> None:
        self._text = _Spelling({t: b for t, b in vocabulary.items() if _occurs(b)})
        self._token = {text: token for token, text in reversed(self._text.items())}
        self._lengths = _lengths(self._token)
        self._max_draft = max_draft
        groups_digits = any(len(text) > 1 and text.isdigit() for text in self._token)
        self._digits = 0 if groups_digits and digits < 3 else digits
        self._end = b"." if final_dot else b""
        self._end_token_id = end_token_id
        self._least_chance = least_chance
        self._guesser = guesser or LearnedGuesser(grid_hw)

    def draft(self, answer_token_ids: Sequence[int]) -> list[int]:
        """At most ``max_draft`` tokens that may follow, perhaps none; some tens of microseconds.

        An id that no answer can hold counts as nothing.
        """
        spell = self._text.__getitem__
        text = b"".join(map(spell, answer_token_ids[-_MOST_TOKENS:]))
        head = b"".join(map(spell, answer_token_ids[:3]))
        return self._tokens(self._continuation(head, text))

    def _tokens(self, draft: _Draft) -> list[int]:
        text, tokens = draft.text, list[int]()
        at = 0
        while at < len(text) and len(tokens) < self._max_draft:
            for length in self._lengths[text[at]]:
                token = self._token.get(piece := text[at : at + length])
                if token is not None:
                    break
            else:
                break
            if draft.chances[at + len(piece) - 1] < self._least_chance:
                break
            tokens.append(token)
            at += len(piece)
        is_whole = draft.ends and at == len(text) and len(tokens) < self._max_draft
        if is_whole and self._end_token_id is not None:
            tokens.append(self._end_token_id)
        return tokens

    def _continuation(self, head: bytes, text: bytes) -> _Draft:
        draft = _Draft()
        is_bare = head[:1] == b"[" and head[1:2] in (b"0", b"1")
        if text == b"[" and b"[[" in self._token:
            draft.add(b"0.")  # a list would have begun with its natural token
        elif _START.startswith(text):
            draft.add(_START[len(text) :])
        elif text.endswith(b"]" if is_bare else b"]]"):
            is_open = head.startswith(b"[[[") and not text.endswith(b"]]]")
            draft.end(b"]" + self._end if is_open else self._end)
        elif (pen := read_pen(text)) is not None:
            self._write(draft, pen, numbers_per_item(head, text), head)
        return draft

    def _write(self, draft: _Draft, pen: Pen, numbers: int, head: bytes) -> None:
        """Text from the pen's place on, until it holds enough for a draft or the guess ends."""
        draft.add(pen.due)
        enough = self._max_draft + 2  # some two structural tokens are two bytes
        while len(draft.text) < enough and draft.chance >= self._least_chance:
            if pen.digits is not None and not self._finish_number(draft, pen, numbers):
                return
            pen.digits = b""
            if len(pen.item) < numbers:
                draft.add(BETWEEN_NUMBERS)
            elif numbers == 2 and head.startswith(b"[[["):
                if self._finish_vertex(draft, pen):
                    return
            elif head.startswith(b"[[") or not head.startswith(b"["):
                draft.add(BETWEEN_ITEMS)
                pen.item = []
            else:
                draft.end(b"]" + self._end)
                return

    def _finish_number(self, draft: _Draft, pen: Pen, numbers: int) -> bool:
        """Whether the number could be written to its end."""
        known = pen.digits or b""
        if len(known) < 3:
            if not self._digits or numbers != 2 or draft.chance < _UNLIKELY:
                return False
            x = pen.item[0] if pen.item else None
            digits, chances = self._guesser.guess(pen.trail).number(known, x)
            # A chance without a digit is that of the end.
            for at, chance in enumerate(chances[: max(self._digits - len(known), 0)], len(known)):
                draft.add(digits[at : at + 1], chance)
            if self._digits < 3:
                return False
            known = digits
        pen.item.append(thousandths(known))
        return True

    def _finish_vertex(self, draft: _Draft, pen: Pen) -> bool:
        """Whether the part ends with this vertex."""
        vertex = (pen.item[0], pen.item[1])
        pen.trail = Trail.of([vertex]) if pen.trail is None else pen.trail.then(vertex)
        pen.item = []
        ends = 0.0
        if self._digits and draft.chance > _LIKELY:  # else hardly worth the question
            ends = self._guesser.guess(pen.trail).ends
        if ends > _LIKELY:
            draft.add(b"]]", ends)
            draft.end(b"]" + self._end)
            return True
        draft.add(BETWEEN_ITEMS, 1 - ends)
        return False


def _lengths(texts: Iterable[bytes]) -> defaultdict[int, list[int]]:
    """How long the texts with each first byte are, longest first."""
    lengths: defaultdict[int, list[int]] = defaultdict(list)
    for length, first in sorted({(len(text), text[0]) for text in texts}, reverse=True):
        lengths[first].append(length)
    return lengths


def _occurs(text: bytes) -> bool:
    """Whether a token's text can be part of an answer."""
    return bool(text) and text.translate(_DIGITS_TO_ZERO) in _SAMPLE


@dataclass(frozen=True)
class PassCount:
    """What drafting made of an answer: its tokens, the forward passes that wrote them (the
    prefill's own included), tokens drafted and tokens of drafts that were right."""

    tokens: int
    passes: int
    drafted: int
    accepted: int

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / self.passes

    def __add__(self, other: "PassCount") -> "PassCount":
        return PassCount(
            self.tokens + other.tokens,
            self.passes + other.passes,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )


def count_passes(draft: Callable[[Sequence[int]], list[int]], answer: Sequence[int]) -> PassCount:
    """Forward passes of greedy decoding that writes ``answer`` (end token included): the prefill
    gives the first token, each later pass the right beginning of a draft and one token more.

    >>> count_passes(lambda so_far: [7, 7], [5, 7, 7, 8, 7])
    PassCount(tokens=5, passes=3, drafted=4, accepted=3)
    """
    done, passes, drafted, accepted = 1, 1, 0, 0
    while done < len(answer):
        guess = draft(answer[:done])
        right = 0
        for guessed, actual in zip(guess, answer[done:], strict=False):
            if guessed != actual:
                break
            right += 1
        passes, drafted, accepted = passes + 1, drafted + len(guess), accepted + right
        done += right + 1
    return PassCount(len(answer), passes, drafted, accepted)
