"""What became of drafted tokens, by kind."""

import re
from collections import Counter
from collections.abc import Sequence

from simpleseg_server.engines.base import DraftCount, DraftKind

_WITHIN_DECIMALS = re.compile(rb"\.[0-9]*$")
_DECIMALS = re.compile(rb"\.[0-9]")
_TAIL_BYTES = 8  # more than a coordinate has


def kind_of(before: bytes, token: bytes) -> DraftKind:
    """``digits`` for decimals of a coordinate, which are guessed; all else is ``structure``, the
    digit before the point too.

    >>> kind_of(b"[[[0.", b"3"), kind_of(b"[[[", b"0"), kind_of(b"[[[0.3", b",")
    ('digits', 'structure', 'structure')
    """
    goes_on = token[:1].isdigit() and _WITHIN_DECIMALS.search(before[-_TAIL_BYTES:])
    return "digits" if goes_on or _DECIMALS.search(token) else "structure"


class DraftTally:
    """Counts the drafted tokens of one answer.

    >>> tally = DraftTally()
    >>> tally.add(b"[[[0.1", [b"3", b",", b" ", b"0"], accepted=3)
    >>> for count in tally.counts(): print(count)
    DraftCount(kind='digits', accepted=1, rejected=0)
    DraftCount(kind='structure', accepted=2, rejected=1)
    """

    def __init__(self) -> None:
        self._accepted: Counter[DraftKind] = Counter()
        self._rejected: Counter[DraftKind] = Counter()

    @property
    def accepted(self) -> int:
        return self._accepted.total()

    @property
    def rejected(self) -> int:
        return self._rejected.total()

    def add(self, before: bytes, drafted: Sequence[bytes], accepted: int) -> None:
        """Count one verified draft: its first ``accepted`` tokens were right. ``before`` is the
        end of the answer that it continued."""
        for index, token in enumerate(drafted):
            counts = self._accepted if index < accepted else self._rejected
            counts[kind_of(before, token)] += 1
            before = (before + token)[-_TAIL_BYTES:]

    def counts(self) -> tuple[DraftCount, ...]:
        """One for each kind that occurred."""
        kinds = sorted(self._accepted.keys() | self._rejected.keys())
        return tuple(DraftCount(k, self._accepted[k], self._rejected[k]) for k in kinds)
