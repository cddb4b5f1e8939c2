"""Answers that no test may cause but where it injects a bug: 500, 502 and 504."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simpleseg_server.stages import StageTimes
from simpleseg_server.telemetry import Metrics

FAULTS = frozenset({500, 502, 504})
_seen: list[tuple[str, int]] = []


def watch() -> None:
    """Notice what servers in this process answer from now on."""
    observe_request = Metrics.observe_request

    def watched(self: Metrics, route: str, status: int, seconds: float, times: StageTimes) -> None:
        if status in FAULTS:
            _seen.append((route, status))
        observe_request(self, route, status, seconds, times)

    Metrics.observe_request = watched  # type: ignore[method-assign]


@contextmanager
def none_seen(are_meant: bool) -> Iterator[None]:
    """Fails where a server in this process gives such an answer, or none that is meant to."""
    _seen.clear()
    yield
    assert bool(_seen) == are_meant, f"answers of a server at fault: {_seen or 'none'}"


def none_logged(log: Path) -> None:
    """Fails where a server has written of such an answer."""
    codes = "|".join(map(str, FAULTS))
    found = re.findall(rf'.*"status": (?:{codes})\b.*', log.read_text())
    assert not found, f"answers of a server at fault: {found[:3]}"
