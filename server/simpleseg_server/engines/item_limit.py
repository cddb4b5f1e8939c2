"""Ends an answer at a number of items, and knows whether the model wanted more.

A grammar alone cannot tell: an answer that it closed at the last item allowed looks like one that
was complete. So the grammar gets one item more than the budget, and the answer ends here when the
model begins it.
"""

from dataclasses import dataclass, field

from simpleseg_polygon.grammar import Budget, ebnf, max_tokens_for
from simpleseg_polygon.prompts import Target


def items_within(target: Target, max_tokens: int, max_points: int | None) -> int:
    """The vertices, points or boxes that ``max_tokens`` hold in any spelling, end token included,
    and ``max_points`` allows; may be below 1.

    >>> items_within("region", 1024, None), items_within("region", 1024, 6)
    (56, 6)
    """
    one, two = max_tokens_for(target, 1), max_tokens_for(target, 2)
    affordable = (max_tokens - one) // (two - one) + 1
    return affordable if max_points is None or target == "box" else min(affordable, max_points)


def grammar_beyond(target: Target, items: int) -> tuple[str, int]:
    """The EBNF of answers with one item more than ``items``, and the tokens they take at most.

    Raises ValueError where no answer has as few items.
    """
    ebnf(target, Budget(max(1, max_tokens_for(target, items))))
    max_tokens = max_tokens_for(target, items + 1)
    return ebnf(target, Budget(max_tokens)), max_tokens


@dataclass
class ItemLimit:
    """Reads an answer piece by piece and cuts it before item ``items`` + 1.

    >>> limit = ItemLimit(2)
    >>> limit.read("[[0.5, 0.5], [0.1,"), limit.read(" 0.2]"), limit.read(", [0.7")
    ('[[0.5, 0.5], [0.1,', ' 0.2]', ']')
    >>> limit.is_cut
    True
    """

    items: int
    is_cut: bool = False
    _depth: int = 0
    _finished: int = 0
    _after_digit: bool = field(default=False, repr=False)

    def read(self, text: str) -> str:
        """The part of ``text`` that belongs to the answer; the closing brackets where it is cut."""
        if self.is_cut:
            return ""
        for index, character in enumerate(text):
            if character == "," and self._is_full():
                self.is_cut = True
                return text[:index] + "]" * self._depth
            self._see(character)
        return text

    def _is_full(self) -> bool:
        """Whether the last item allowed is finished: a comma after it begins another one."""
        return self._finished >= self.items and not self._after_digit

    def _see(self, character: str) -> None:
        if character == "]":
            self._depth -= 1
            self._finished += self._after_digit
        elif character == "[":
            self._depth += 1
        self._after_digit = character.isdigit()
