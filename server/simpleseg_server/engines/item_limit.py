"""Ends an answer at a number of items, and knows whether the model wanted more.

A grammar alone cannot tell: an answer that it closed at the last item allowed looks like one that
was complete. So the grammar gets one item more than the budget, and the answer ends here when the
model begins it.

Nor can it count tokens. Where an engine tells its tokens one by one, they are counted here: the
answer goes on as long as one more item fits in any spelling. Where it does not, the items are
bounded by the worst spelling of them all, with which ``max_tokens`` hold fewer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from simpleseg_polygon.grammar import Budget, ebnf, max_tokens_for
from simpleseg_polygon.prompts import Target
from simpleseg_server.engines.base import EngineError, GenerationRequest, TokenLogprob

MAX_ANSWER_TOKENS = 8192
"""The most that a request may ask for, however long the model's context is."""


def items_within(target: Target, max_tokens: int, max_points: int | None) -> int:
    """The vertices, points or boxes that ``max_tokens`` hold in any spelling, end token included,
    and ``max_points`` allows; may be below 1.

    >>> items_within("region", 1024, None), items_within("region", 1024, 6)
    (56, 6)
    """
    one, two = max_tokens_for(target, 1), max_tokens_for(target, 2)
    affordable = (max_tokens - one) // (two - one) + 1
    return affordable if max_points is None or target == "box" else min(affordable, max_points)


def budget_beyond(target: Target, items: int) -> Budget:
    """The budget of answers with one item more than ``items``.

    Raises EngineError where no answer has as few items.
    """
    try:
        ebnf(target, Budget(max(1, max_tokens_for(target, items))))
    except ValueError as error:
        raise EngineError(f"no answer fits the request's budget: {error}") from error
    return Budget(max_tokens_for(target, items + 1))


@dataclass
class ItemLimit:
    """Reads an answer piece by piece and cuts it before item ``items`` + 1.

    >>> limit = ItemLimit(2)
    >>> limit.read("[[0.5, 0.5], [0.1,"), limit.read(" 0.2]"), limit.read(", [0.7")
    ('[[0.5, 0.5], [0.1,', ' 0.2]', ']')
    >>> limit.is_cut
    True

    With ``tokens``, which counts the end token, every piece must be one token; then the answer is
    also cut before an item where fewer than ``item_tokens`` are left for it and the end.
    """

    items: int
    tokens: int | None = None
    item_tokens: int = 0
    is_cut: bool = False
    _depth: int = 0
    _finished: int = 0
    _after_digit: bool = field(default=False, repr=False)

    def read(self, text: str) -> str:
        """The part of ``text`` that belongs to the answer; the closing brackets where it is cut."""
        if self.is_cut:
            return ""
        if self.tokens is not None:
            self.tokens -= 1
        for index, character in enumerate(text):
            if character == "," and self._is_full():
                self.is_cut = True
                return text[:index] + "]" * self._depth
            self._see(character)
        return text

    def _is_full(self) -> bool:
        """Whether the last item allowed is finished: a comma after it begins another one."""
        if self._after_digit or not self._finished:
            return False
        is_spent = self.tokens is not None and self.tokens < self.item_tokens
        return is_spent or self._finished >= self.items

    def _see(self, character: str) -> None:
        if character == "]":
            self._depth -= 1
            self._finished += self._after_digit
        elif character == "[":
            self._depth += 1
        self._after_digit = character.isdigit()


def item_limit(
    request: GenerationRequest, most_tokens: int, *, counts_tokens: bool = False
) -> ItemLimit | None:
    """The limit of a request; None for an answer without a grammar.

    ``counts_tokens`` says that every token will be read by itself. Raises EngineError where the
    request asks for more than the ``most_tokens`` that are served, and for a budget that holds no
    answer where tokens are counted.
    """
    target, max_tokens = request.target, request.max_tokens
    if max_tokens > most_tokens:
        raise EngineError(f"max_tokens is above {most_tokens}")
    if target == "text" or not request.constrained:
        return None
    certain = items_within(target, max_tokens, request.max_points)
    if not counts_tokens:
        return ItemLimit(certain)
    budget_beyond(target, certain)
    points = None if target == "box" else request.max_points
    # No item takes less than a token.
    return ItemLimit(points or max_tokens, max_tokens, max_tokens_for(target, 1))


def within(
    limit: ItemLimit | None, pieces: Iterable[tuple[str, TokenLogprob | None]]
) -> tuple[str, tuple[TokenLogprob, ...], int]:
    """The text of tokens up to the limit, the tokens that are wholly in it, and how many tokens
    were read. A piece is what a token adds to the text; its token may be unknown."""
    text, count = "", 0
    tokens: list[TokenLogprob] = []
    for piece, token in pieces:
        count += 1
        text += piece if limit is None else limit.read(piece)
        if limit is not None and limit.is_cut:
            break
        if token is not None:
            tokens.append(token)
    return text, tuple(tokens), count
