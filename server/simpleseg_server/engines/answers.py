"""One answer under way: which token comes next, what is drafted after it, when it ends."""

import codecs
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simpleseg_server.engines.base import EngineError, FinishReason, TokenLogprob
from simpleseg_server.engines.constraints import Walk
from simpleseg_server.engines.draft_count import DraftTally

_TAIL_TOKENS = 8  # at least a number


class TokenDrafter(Protocol):
    """See ``simpleseg_polygon.drafts.Drafter``."""

    def draft(self, answer_token_ids: Sequence[int]) -> list[int]: ...


class Choice:
    """How a request chooses: greedy at temperature 0, else by a draw of its own for every token.

    A draw is made only where more than one token may follow, and one for each token; so drafting
    changes neither the distribution nor, with the same seed, the answer.
    """

    def __init__(self, temperature: float, seed: int | None) -> None:
        self._temperature = temperature
        self._random = np.random.default_rng(seed)

    def pick(self, logits: NDArray[np.float32]) -> tuple[int, float]:
        """The index chosen, and the logarithm of its probability at temperature 1.

        Raises EngineError where the logits are not finite.
        """
        exact = logits.astype(np.float64)
        log_probs = _log_softmax(exact)
        greedy = self._temperature == 0.0 or len(exact) == 1
        chosen = int(exact.argmax()) if greedy else self._draw(exact)
        return chosen, float(log_probs[chosen])

    def _draw(self, logits: NDArray[np.float64]) -> int:
        with np.errstate(over="ignore"):  # at a temperature next to 0 all but the largest are -inf
            scaled = (logits - logits.max()) / self._temperature
        cumulative = np.exp(_log_softmax(scaled)).cumsum()
        drawn = self._random.random() * cumulative[-1]
        return min(int(np.searchsorted(cumulative, drawn, side="right")), len(logits) - 1)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    total = float(np.exp(shifted).sum())
    if not math.isfinite(total):
        raise EngineError("the model's logits are not finite")
    normalised: NDArray[np.float64] = shifted - math.log(total)
    return normalised


@dataclass(frozen=True)
class AnswerRules:
    """What an answer must keep to.

    ``candidates`` are the ids, ascending, whose logits are given under a grammar; all of the
    vocabulary is given without one. ``drafter`` None turns drafting off; then forced tokens too
    cost a forward pass each.
    """

    vocabulary: Mapping[int, bytes]
    candidates: NDArray[np.int32]
    stop_token_ids: frozenset[int]
    drafter: TokenDrafter | None
    max_draft: int


class Answer:
    """The tokens of one answer, and what they mean for the next ones.

    ``pending`` are its last tokens, those that the model has not read yet: at least one between the
    first ``read`` and the end. ``drafts`` counts what was drafted. ``walk`` is None where the
    grammar is off.
    """

    def __init__(
        self, rules: AnswerRules, walk: Walk | None, choice: Choice, max_tokens: int
    ) -> None:
        self._rules = rules
        self._walk = walk
        self._choice = choice
        self._max_tokens = max_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._new_text = ""
        self._new_tokens: list[TokenLogprob] = []
        self.tokens: list[int] = []
        self.pending: list[int] = []
        self.drafts = DraftTally()
        self.finish_reason: FinishReason | None = None
        self._cut_off = False

    @property
    def constrained(self) -> bool:
        return self._walk is not None

    def draft(self) -> list[int]:
        """Tokens that may follow the pending ones, as far as the grammar allows them: those of the
        drafter and those that the grammar forces. Never the end token, which need not be read."""
        if self._rules.drafter is None:
            return []
        room = min(self._rules.max_draft, self._max_tokens - len(self.tokens) - 1)
        guesses = self._rules.drafter.draft(self.tokens)[: max(0, room)]
        if self._walk is None:
            return [t for t in guesses if t not in self._rules.stop_token_ids]
        walk = self._walk.fork()
        draft: list[int] = []
        while len(draft) < room:
            token = _next_draft(walk.allowed(), guesses[len(draft) : len(draft) + 1])
            if token is None or token in self._rules.stop_token_ids:
                break
            walk.advance(token)
            draft.append(token)
        return draft

    def read(self, draft: Sequence[int], logits: NDArray[np.float32]) -> int:
        """Choose the tokens that follow, given the logits after the pending tokens' last and after
        each drafted one, (1 + len(draft), candidates or vocabulary).

        Returns how many drafted tokens were chosen, so that what the model read of them stays true.
        """
        accepted = 0
        before = self._spelled(self.tokens[-_TAIL_TOKENS:])
        while self._choose(logits[accepted]):
            if accepted == len(draft) or self.tokens[-1] != draft[accepted]:
                break
            accepted += 1
        self.drafts.add(before, [self._spelled([token]) for token in draft], accepted)
        self.pending = self.tokens[-1:]
        if self._rules.drafter is not None:
            self._take_forced()
        return accepted

    def take_new(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """The text and tokens since the last call; the end token is not among them."""
        text, self._new_text = self._new_text, ""
        tokens, self._new_tokens = tuple(self._new_tokens), []
        return text, tokens

    def _spelled(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self._rules.vocabulary.get(token, b"") for token in tokens)

    def _choose(self, logits: NDArray[np.float32]) -> bool:
        """Take one token; whether another one may follow."""
        if self._walk is None:
            token, log_prob = self._choice.pick(logits)
            self._take(token, log_prob)
        else:
            allowed = self._walk.allowed()
            columns = np.searchsorted(self._rules.candidates, allowed)
            index, log_prob = self._choice.pick(logits[columns])
            self._note_refused(self._walk, logits, float(logits[columns].max()))
            self._take(int(allowed[index]), log_prob)
        return self.finish_reason is None

    def _note_refused(self, walk: Walk, logits: NDArray[np.float32], best: float) -> None:
        """Remember where the model would rather have gone on than the budget let it."""
        refused = walk.refused()
        if len(refused):
            columns = np.searchsorted(self._rules.candidates, refused)
            self._cut_off = self._cut_off or float(logits[columns].max()) > best

    def _take_forced(self) -> None:
        """Take tokens that have no alternative, whatever their logits: they are read with the next
        ones, and the end token needs no forward pass at all."""
        while self._walk is not None and self.finish_reason is None:
            allowed = self._walk.allowed()
            if len(allowed) != 1 or len(self._walk.refused()):
                return
            self._take(int(allowed[0]), 0.0)
            self.pending.append(self.tokens[-1])

    def _take(self, token: int, log_prob: float) -> None:
        self.tokens.append(token)
        if self._walk is not None:
            self._walk.advance(token)
            ended = self._walk.finished
        else:
            ended = token in self._rules.stop_token_ids
        if not ended:
            self._write(token, log_prob)
        if ended or len(self.tokens) >= self._max_tokens:
            self.finish_reason = "stop" if ended and not self._cut_off else "length"
            self._new_text += self._decoder.decode(b"", True)

    def _write(self, token: int, log_prob: float) -> None:
        spelled = self._rules.vocabulary.get(token, b"")
        self._new_text += self._decoder.decode(spelled)
        self._new_tokens.append(TokenLogprob(spelled.decode("utf-8", "replace"), log_prob))


def _next_draft(allowed: NDArray[np.int32], guess: Sequence[int]) -> int | None:
    if len(allowed) == 1:
        return int(allowed[0])
    return guess[0] if guess and guess[0] in allowed else None
