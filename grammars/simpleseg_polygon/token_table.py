"""The token-level automaton: which tokens may follow, for any vocabulary, at about a microsecond.

The byte automaton is lifted over the vocabulary: an edge for every token that can be spelled from a
state, with the events (``P``, ``M``, ``C``, ``N``) that its bytes pass. Whether a token with events
is allowed is a comparison of four counters with thresholds fixed beforehand, so a token may finish
any number of points and parts. ``M`` and ``N`` also ask whether the answer can still be closed if
every token from there on is a single byte: hence an answer closes within ``max_tokens`` under any
tokenization, without cutting.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.automaton import (
    ALPHABET,
    POINT_BYTES,
    Automaton,
    Budget,
    automaton,
    item_bounds,
    least_max_tokens,
)
from simpleseg_polygon.prompts import Target

_NO_BOUND = sys.maxsize


def token_bytes(vocab: Mapping[str, int]) -> dict[int, bytes]:
    """The bytes of every token of a byte-level BPE vocabulary (GPT-2's printable alphabet undone).

    Tokens that hold characters outside that alphabet, such as added ones, stand for their UTF-8.

    >>> token_bytes({"\u0120[[": 7, "],": 8})
    {7: b' [[', 8: b'],'}
    """
    alphabet = _byte_of_character()
    return {
        token: bytes(alphabet[c] for c in text)
        if all(c in alphabet for c in text)
        else text.encode()
        for text, token in vocab.items()
    }


def _byte_of_character() -> dict[str, int]:
    """Printable Latin-1 stands for itself; the other bytes, in order, for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


class _Effect(NamedTuple):
    """What a token's events add up to: points and parts finished, whether a part closed, and the
    points finished since then (or since the token began)."""

    points: int
    parts: int
    closed: bool
    part_points: int


class _Guard(NamedTuple):
    """The least value of each counter with which a token is allowed.

    ``tokens_left_in_part`` is compared with the tokens left plus what the points already in this
    part are worth: the more of its least points a part has, the fewer tokens must be left.
    """

    part_points: int
    points_left: int
    parts_left: int
    tokens_left: int
    tokens_left_in_part: int


@dataclass(eq=False)
class _Row:
    """One state: its edges by token, and the allowed tokens by which guards hold.

    ``edges[token]`` is the next row, the effect if the token has events, and the guard if it has
    one. ``allowed_by_bits[bits]`` is filled on first use; bit i tells whether guard i holds.
    """

    edges: dict[int, tuple["_Row", _Effect | None, _Guard | None]] = field(default_factory=dict)
    guards: tuple[_Guard, ...] = ()
    allowed_by_bits: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    is_end: bool = False

    def allowed(self, bits: int) -> NDArray[np.int32]:
        known = self.allowed_by_bits.get(bits)
        if known is None:
            holding = {g for i, g in enumerate(self.guards) if bits >> i & 1}
            known = _frozen(
                token for token, (_, _, g) in self.edges.items() if g is None or g in holding
            )
            self.allowed_by_bits[bits] = known
        return known


def _frozen(tokens: Iterable[int]) -> NDArray[np.int32]:
    array = np.array(sorted(tokens), np.int32)
    array.setflags(write=False)
    return array


_NOTHING = _frozen(())


class TokenWalk:
    """One answer under way: the tokens that may follow, and the counters of its budget.

    Made by ``TokenTable.walk``. Not thread-safe; ``fork`` gives an independent copy.
    """

    __slots__ = ("_part_points", "_parts_left", "_points_left", "_row", "_tokens_left")

    def __init__(
        self, row: _Row, tokens_left: int, points_left: int, parts_left: int, part_points: int = 0
    ) -> None:
        self._row = row
        self._tokens_left = tokens_left
        self._points_left = points_left
        self._parts_left = parts_left
        self._part_points = part_points

    @property
    def finished(self) -> bool:
        """Whether the end token has been taken."""
        return self._row.is_end

    def allowed(self) -> NDArray[np.int32]:
        """The ids that may follow: int32, ascending, read-only; empty only once finished."""
        row = self._row
        bits = 0
        for i, guard in enumerate(row.guards):
            if self._admits(guard):
                bits |= 1 << i
        return row.allowed(bits)

    def refused(self) -> NDArray[np.int32]:
        """The ids that would go on here if the budget were larger: int32, ascending.

        An answer that closed although the model would rather have taken one of these was cut off.
        """
        row = self._row
        if all(self._admits(guard) for guard in row.guards):
            return _NOTHING
        return _frozen(
            token
            for token, (_, _, guard) in row.edges.items()
            if guard is not None
            and self._part_points >= guard.part_points
            and not self._admits(guard)
        )

    def advance(self, token_id: int) -> None:
        """Take a token. Raises ValueError, and changes nothing, where it is not allowed."""
        edge = self._row.edges.get(token_id)
        if edge is None or (edge[2] is not None and not self._admits(edge[2])):
            raise ValueError(f"token {token_id} is not allowed here")
        self._row, effect, _ = edge
        self._tokens_left -= 1
        if effect is not None:
            self._points_left -= effect.points
            self._parts_left -= effect.parts
            kept = 0 if effect.closed else self._part_points
            self._part_points = kept + effect.part_points

    def fork(self) -> "TokenWalk":
        """An independent walk at the same place."""
        return TokenWalk(
            self._row, self._tokens_left, self._points_left, self._parts_left, self._part_points
        )

    def _admits(self, guard: _Guard) -> bool:
        return (
            self._part_points >= guard.part_points
            and self._points_left >= guard.points_left
            and self._parts_left >= guard.parts_left
            and self._tokens_left >= guard.tokens_left
            and self._tokens_left + POINT_BYTES * self._part_points >= guard.tokens_left_in_part
        )


class TokenTable:
    """A target's grammar over one vocabulary; made once per loaded model, then shared.

    ``vocabulary`` gives the bytes of each id; ids whose bytes cannot occur in an answer are left
    out. ``end_token_id`` ends an answer wherever the grammar allows. ``tokens`` is the int32 array
    of every id that can occur in some answer, ascending, the end token included.

    >>> vocabulary = {i: bytes([b]) for i, b in enumerate(b"[]0123456789., ")}
    >>> walk = TokenTable("region", vocabulary, end_token_id=99).walk(Budget(max_tokens=64))
    >>> walk.advance(0)
    >>> walk.allowed().tolist()
    [0, 1]

    Raises ValueError for target ``text``, and where a byte of the language is no token by itself:
    then an answer might not be closable (byte-level vocabularies hold every byte).
    """

    def __init__(self, target: Target, vocabulary: Mapping[int, bytes], end_token_id: int) -> None:
        self._target = target
        self._automaton = automaton(target)
        spelled = {
            token: text
            for token, text in vocabulary.items()
            if text and token != end_token_id and not text.translate(None, ALPHABET)
        }
        missing = [chr(b) for b in ALPHABET if bytes([b]) not in set(spelled.values())]
        if missing:
            raise ValueError(f"the vocabulary has no token for {missing}")
        self._end_token_id = end_token_id
        self._edges = _lift(self._automaton, spelled)
        ids = {token for edges in self._edges.values() for token in edges}
        self.tokens = _frozen(ids | {end_token_id})
        self._start_rows: dict[int, _Row] = {}

    def walk(self, budget: Budget) -> TokenWalk:
        """Begin an answer. Raises ValueError where the budget cannot hold the shortest region, box
        or point in its longest spelling."""
        min_points, max_points, max_parts = item_bounds(self._target, budget)
        if budget.max_tokens < (least := least_max_tokens(self._target, min_points)):
            raise ValueError(f"max_tokens must be at least {least}, not {budget.max_tokens}")
        if max_points is not None and max_points < min_points:
            raise ValueError(f"max_points {max_points} is below min_points {min_points}")
        if min_points not in self._start_rows:
            self._start_rows[min_points] = self._rows(min_points)
        return TokenWalk(
            self._start_rows[min_points],
            budget.max_tokens,
            _NO_BOUND if max_points is None else max_points,
            _NO_BOUND if max_parts is None else max_parts,
        )

    def _rows(self, min_points: int) -> _Row:
        """Rows for one least number of points per part; all other bounds are counters."""
        rows = {state: _Row() for state in self._edges}
        end = _Row(is_end=True)
        for state, row in rows.items():
            for token, (target, events) in self._edges[state].items():
                guard = _guard(self._automaton, target, events, min_points)
                row.edges[token] = (rows[target], _effect(events), guard)
            if state in self._automaton.accepting:
                row.edges[self._end_token_id] = (end, None, None)
            row.guards = tuple(sorted({g for _, _, g in row.edges.values() if g is not None}))
        return rows[0]


_Edges = dict[int, dict[int, tuple[int, str]]]


def _lift(automaton: Automaton, spelled: Mapping[int, bytes]) -> _Edges:
    """For each state that a token can end in: token -> (state after it, its events)."""
    by_text: dict[bytes, list[int]] = {}
    for token, text in spelled.items():
        by_text.setdefault(text, []).append(token)
    lifted: _Edges = {}
    pending = [0]
    while pending:
        state = pending.pop()
        if state in lifted:
            continue
        lifted[state] = {}
        for text, tokens in by_text.items():
            end = _read(automaton, state, text)
            if end is not None:
                lifted[state].update(dict.fromkeys(tokens, end))
                pending.append(end[0])
    return lifted


def _read(automaton: Automaton, state: int, text: bytes) -> tuple[int, str] | None:
    """The state after reading the text and the events passed, or None where it does not fit."""
    events = ""
    for byte in text:
        edge = automaton.edges[state].get(byte)
        if edge is None:
            return None
        state = edge[0]
        events += edge[1]
    return state, events


def _effect(events: str) -> _Effect | None:
    if not events:
        return None
    closed = "C" in events
    return _Effect(
        points=events.count("P"),
        parts=events.count("C"),
        closed=closed,
        part_points=events.rpartition("C")[2].count("P"),
    )


def _guard(automaton: Automaton, target: int, events: str, min_points: int) -> _Guard | None:
    """The thresholds under which a token with these events, leading to ``target``, is allowed."""
    if not set(events) & set("MCN"):
        return None
    points = parts = part_points = 0
    closed = False
    least_part_points = least_points = least_parts = 0
    for event in events:
        if event == "P":
            points += 1
            part_points += 1
        elif event == "M":
            least_points = max(least_points, points + 1)
        elif event == "N":
            least_points = max(least_points, points + min_points)
            least_parts = max(least_parts, parts + 1)
        elif event == "C":
            missing = min_points - part_points
            if closed:  # a part that lies within this token: no counter can help it
                least_part_points = _NO_BOUND if missing > 0 else least_part_points
            else:
                least_part_points = max(0, missing)
            parts, part_points, closed = parts + 1, 0, True
    tokens, tokens_in_part = _tokens_to_close(
        automaton, target, events, min_points - part_points, closed
    )
    return _Guard(least_part_points, least_points, least_parts, tokens, tokens_in_part)


def _tokens_to_close(
    automaton: Automaton, target: int, events: str, missing_points: int, closed: bool
) -> tuple[int, int]:
    """Tokens that must be left before a token that goes on (M or N), so that the answer can close
    after it: flat, and plus what the points of this part are worth. Without M and N every byte
    shortens the way to the end, so nothing need be asked."""
    if not set(events) & set("MN"):
        return 0, 0
    at_least = 1 + automaton.tail[target] + 1  # this token, the longest way to the end, end token
    owed = POINT_BYTES * (missing_points - automaton.open_points[target])
    if closed:
        return at_least + max(0, owed), 0
    return at_least, at_least + owed
