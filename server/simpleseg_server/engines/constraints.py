"""What may follow in an answer: the token table, or outlines_core's index over the same tokens."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from outlines_core import Index, Vocabulary

from simpleseg_polygon.automaton import ALPHABET
from simpleseg_polygon.grammar import Budget, TokenTable, regex
from simpleseg_polygon.prompts import Target

GrammarKind = Literal["table", "outlines"]


class Walk(Protocol):
    """One answer under way; see ``simpleseg_polygon.grammar.TokenWalk``."""

    @property
    def finished(self) -> bool: ...
    def allowed(self) -> NDArray[np.int32]: ...
    def refused(self) -> NDArray[np.int32]: ...
    def advance(self, token_id: int) -> None: ...
    def fork(self) -> "Walk": ...


class Grammar(Protocol):
    """A target's grammar over one vocabulary; ``tokens`` holds every id an answer can have."""

    tokens: NDArray[np.int32]

    def walk(self, budget: Budget) -> Walk: ...


def grammar(
    kind: GrammarKind, target: Target, vocabulary: Mapping[int, bytes], end_token_id: int
) -> Grammar:
    """The grammar of a target. Raises ValueError for target ``text``, which has none."""
    if kind == "outlines":
        return OutlinesGrammar(target, vocabulary, end_token_id)
    return TokenTable(target, vocabulary, end_token_id)


class OutlinesGrammar:
    """The regular expression of a target compiled by outlines_core, one index per budget.

    Only tokens spelled in the alphabet of answers are indexed: over Qwen's whole vocabulary a
    budget of 128 vertices takes seconds to compile, over these tokens milliseconds.
    """

    def __init__(self, target: Target, vocabulary: Mapping[int, bytes], end_token_id: int) -> None:
        spelled: dict[bytes, list[int]] = {}
        for token, text in vocabulary.items():
            if text and not text.translate(None, ALPHABET):
                spelled.setdefault(text, []).append(token)
        ids = [token for tokens in spelled.values() for token in tokens]
        self.tokens = np.array(sorted({*ids, end_token_id}), np.int32)
        self._target = target
        self._end_token_id = end_token_id
        self._index = lru_cache(32)(
            lambda expression: Index(expression, Vocabulary(end_token_id, spelled))
        )

    def walk(self, budget: Budget) -> Walk:
        index = self._index(regex(self._target, budget))
        return _OutlinesWalk(index, index.get_initial_state(), self._end_token_id)


class _OutlinesWalk:
    """A place in the index. Not ``outlines_core.Guide``, which cannot be copied for a draft."""

    __slots__ = ("_end_token_id", "_index", "_state", "finished")

    def __init__(self, index: Index, state: int, end_token_id: int) -> None:
        self._index = index
        self._state = state
        self._end_token_id = end_token_id
        self.finished = False

    def allowed(self) -> NDArray[np.int32]:
        if self.finished:
            return np.empty(0, np.int32)
        return np.array(sorted(self._index.get_allowed_tokens(self._state)), np.int32)

    def refused(self) -> NDArray[np.int32]:
        return np.empty(0, np.int32)  # the index does not tell a budget from the language

    def advance(self, token_id: int) -> None:
        # The index offers the end token in final states, but has no state behind it.
        if token_id == self._end_token_id and self._index.is_final_state(self._state):
            self.finished = True
            return
        state = None if self.finished else self._index.get_next_state(self._state, token_id)
        if state is None:
            raise ValueError(f"token {token_id} is not allowed here")
        self._state = state

    def fork(self) -> "_OutlinesWalk":
        copy = _OutlinesWalk(self._index, self._state, self._end_token_id)
        copy.finished = self.finished
        return copy
