"""When a request is repeated, and after how long."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpleseg.retry import backoff_s, requested_delay_s, retry_delay_s

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Tue, 01 Jan 2030 12:00:10 GMT"}, 10.0),
        ({"retry-after": "Tue, 01 Jan 2030 12:00:10"}, 10.0),  # no zone: UTC
        ({"retry-after": "Tue, 01 Jan 2030 11:00:00 GMT"}, 0.0),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Tue, 99 Jan 2030 12:00:10 GMT"}, None),
    ],
)
@pytest.mark.catalogue("K1")
def test_requested_delay(headers: dict[str, str], seconds: float | None) -> None:
    assert requested_delay_s(headers, NOW) == seconds


@given(st.text(max_size=40))
def test_any_header_is_read_without_an_error(value: str) -> None:
    seconds = requested_delay_s({"retry-after": value}, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (503, {}, 1.0),
        (429, {"retry-after-ms": "40"}, 0.04),
        (500, {"retry-after": "2"}, 2.0),
        (503, {"retry-after": "30"}, 30.0),
        (503, {"retry-after": "31"}, None),  # longer than is worth waiting
        (503, {"x-should-retry": "false"}, None),
        (400, {}, None),
        (422, {"retry-after": "1"}, None),
        (422, {"x-should-retry": "true"}, 1.0),
    ],
)
def test_retry_delay(status: int, headers: dict[str, str], seconds: float | None) -> None:
    assert retry_delay_s(status, headers, attempt=1, draw=lambda: 0.0) == seconds


@pytest.mark.catalogue("K1")
@given(st.floats(0, 30), st.floats(0, 1, exclude_max=True))
def test_what_is_asked_for_is_obeyed_and_not_in_step(seconds: float, draw: float) -> None:
    delay = retry_delay_s(503, {"retry-after": str(seconds)}, 0, lambda: draw)
    assert delay is not None
    assert seconds <= delay <= 1.1 * seconds


@given(st.integers(0, 60), st.floats(0, 1, exclude_max=True))
@pytest.mark.catalogue("K1")
def test_backoff_stays_within_bounds(attempt: int, draw: float) -> None:
    assert 0.375 <= backoff_s(attempt, lambda: draw) <= 8.0
