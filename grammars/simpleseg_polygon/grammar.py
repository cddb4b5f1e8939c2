"""The grammar of each task, for whatever constrains decoding: EBNF, a regular expression, a table.

``ebnf`` is for vLLM (xgrammar), ``regex`` for outlines_core, ``TokenTable`` for the embedded
engine. All allow ``[]`` for an absent object and an optional final dot, and no wrapper sentence.

``ebnf`` and ``regex`` always state the same language. Given a bound on the items, and at least
``max_tokens_for`` it, the table accepts exactly that language for boxes, for points, and for
regions with ``min_points=1`` (the flat language) or ``max_parts=1``. A counted repeat has one
counter; so for regions of several parts with ``min_points`` above 1 the first two ask
``min_points`` of the whole region only, the table of every part: it accepts a subset. With fewer
tokens, the table counts the tokens really used, the others the worst case.
"""

import hashlib
from functools import cache, lru_cache
from importlib.resources import files

from simpleseg_polygon.automaton import Budget, automaton, item_bounds, least_max_tokens
from simpleseg_polygon.prompts import Target
from simpleseg_polygon.token_table import TokenTable, TokenWalk, token_bytes

__all__ = [
    "Budget",
    "TokenTable",
    "TokenWalk",
    "automaton",
    "ebnf",
    "fingerprint",
    "least_max_tokens",
    "max_tokens_for",
    "regex",
    "token_bytes",
]

_NUMBER = r"(0\.[0-9]{1,3}|1\.0)"
_POINT = rf"\[{_NUMBER}, {_NUMBER}\]"
_BOX = rf"\[{_NUMBER}, {_NUMBER}, {_NUMBER}, {_NUMBER}\]"

_WORST_CASE = {
    # longest bytes per item with the separator before it; of all else, end token included
    "one part": (len(", [0.123, 0.456]"), len("[[") + len("]].") + 1 - len(", ")),
    "region": (len("], [[0.123, 0.456]"), len("[[") + len("]].") + 1 - len("], [")),
    "box": (len(", [0.123, 0.123, 0.123, 0.123]"), len("[") + len("].") + 1 - len(", ")),
    "point": (len(", [0.123, 0.456]"), len("[") + len("].") + 1 - len(", ")),
}


def max_tokens_for(target: Target, items: int, *, max_parts: int | None = None) -> int:
    """The tokens in which every answer of at most ``items`` vertices, boxes or points closes,
    spelled byte by byte and with every part of a region a single point, end token included.

    Natural answers take about 14 tokens per vertex (SimpleSeg on Qwen's vocabulary).

    >>> max_tokens_for("region", 28), max_tokens_for("region", 28, max_parts=1)
    (506, 452)
    """
    per_item, rest = _WORST_CASE[_shape(target, max_parts)]
    return per_item * items + rest


@cache
def fingerprint() -> str:
    """Twelve hexadecimal digits that change when a grammar does.

    >>> len(fingerprint()), fingerprint() == fingerprint()
    (12, True)
    """
    digest = hashlib.sha256()
    for target in ("box", "point", "region"):
        digest.update((files("simpleseg_polygon") / f"{target}.ebnf").read_bytes())
    return digest.hexdigest()[:12]


@lru_cache(maxsize=128)
def ebnf(target: Target, budget: Budget) -> str:
    """The grammar in the EBNF of xgrammar, which vLLM takes; its start rule is ``root``.

    It has no token counter: the items are bounded by what ``max_tokens`` holds in the worst case
    (``max_tokens_for``) or by the budget's own bound, whichever is less.

    >>> print(ebnf("point", Budget(max_tokens=64)))
    root ::= ("[]" | point | "[" point (", " point){0,2} "]") "."?
    point ::= "[" number ", " number "]"
    number ::= "0." [0-9]{1,3} | "1.0"

    Raises ValueError for target ``text``; where the budget cannot hold the shortest answer; and for
    regions with a ``max_parts`` above 1, which no counted repeat can bound next to ``max_points``.
    """
    least, most = _repeats(target, budget)
    text = (files("simpleseg_polygon") / f"{target}.ebnf").read_text(encoding="ascii")
    separators = '", "' if budget.max_parts == 1 else '", " | "], ["'
    rules = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    rules = rules.replace("MIN_MORE", str(least)).replace("MAX_MORE", str(most))
    return rules.replace("SEPARATORS", separators)


def regex(target: Target, budget: Budget) -> str:
    """The language of ``ebnf`` as a regular expression for whole answers; raises as it does.

    >>> import re
    >>> bool(re.fullmatch(regex("point", Budget(max_tokens=64)), "[[0.5, 0.25], [1.0, 0.0]]."))
    True
    """
    least, most = _repeats(target, budget)
    if target == "region":
        separator = ", " if budget.max_parts == 1 else r"(, |\], \[)"
        answer = rf"\[\[{_POINT}({separator}{_POINT}){{{least},{most}}}\]\]"
    else:
        item = _BOX if target == "box" else _POINT
        answer = rf"{item}|\[{item}(, {item}){{{least},{most}}}\]"
    return rf"(\[\]|{answer})\.?"


def _repeats(target: Target, budget: Budget) -> tuple[int, int]:
    """How many items follow the first one, at least and at most."""
    least, most, max_parts = item_bounds(target, budget)
    if max_parts is not None and max_parts > 1:
        raise ValueError("EBNF and regex cannot bound points and parts at once; use a TokenTable")
    per_item, rest = _WORST_CASE[_shape(target, max_parts)]
    affordable = (budget.max_tokens - rest) // per_item
    items = affordable if most is None else min(affordable, most)
    if items < least:
        raise ValueError(f"the budget holds {items} items, fewer than the least of {least}")
    return least - 1, items - 1


def _shape(target: Target, max_parts: int | None) -> str:
    automaton(target)  # raises for a target without a grammar
    return "one part" if target == "region" and max_parts == 1 else target
