"""The catalogue's own bookkeeping, and that the canary notices harm."""

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .canary import Canary, address_of, started, unharmed
from .catalogue import report, rows_of_name, sections
from .mutations import ROOT, mutations


def test_the_catalogue_has_136_rows() -> None:
    assert sum(len(section.rows) for section in sections()) == 136


def test_names_of_tests_name_rows() -> None:
    assert rows_of_name("test_A7_png_bomb") == ("A7",)
    assert rows_of_name("test_A7_A8_bombs[big]") == ("A7", "A8")
    assert rows_of_name("test_B1") == ("B1",)
    assert rows_of_name("test_a_box") == rows_of_name("test_A7b_x") == ()


def test_the_report_names_what_is_missing() -> None:
    lines = list(report({"K1", "K2"}))
    assert lines[0] == "2 of 136 rows have a test"
    assert any(line.startswith("K    2 / 3 ") for line in lines)
    assert [line for line in lines if line.startswith("no test: K")] == [
        "no test: K3   bad files and URLs, a closed loop"
    ]


def test_a_refusal_and_a_garbled_request_do_no_harm(canary: Canary) -> None:
    assert canary.segment(prompt="").status_code == 422
    assert canary.segment(prompt="canary-error").status_code == 503
    assert canary.raw(b"\x16\x03\x01 nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def _tell_a_secret(canary: Canary) -> None:
    canary.secrets.append("not_found")
    canary.client.get("/nowhere")


def _leave_a_file(canary: Canary) -> None:
    (canary.temporary / "left").touch()


KEPT: list[socket.socket] = []


def _keep_a_connection(canary: Canary) -> None:
    KEPT.append(socket.create_connection(address_of(canary.url)))


def _forge_a_line(canary: Canary) -> None:
    with canary.log.open("a") as log:
        log.write('{"event": "request"}\n{"event": "request"}\n')


def _stop_the_engine(canary: Canary) -> None:
    canary.segment(prompt="canary-death")


HARMS = {
    "(e) not_found": _tell_a_secret,
    "(c) temporary files": _leave_a_file,
    "(c) descriptors": _keep_a_connection,
    "(d)": _forge_a_line,
    "engine_unavailable": _stop_the_engine,
}


def _after(canary: Canary, harm: Callable[[Canary], None]) -> None:
    with unharmed(canary):
        harm(canary)


def test_the_canary_notices_every_kind_of_harm(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(f"{unharmed.__module__}.SETTLING_S", 0.3)
    with started(tmp_path) as canary:
        for said, harm in HARMS.items():
            with pytest.raises(AssertionError, match=re.escape(said)):
                _after(canary, harm)
            while KEPT:
                KEPT.pop().close()


def test_every_guard_of_the_mutations_is_there_once() -> None:
    every = mutations()
    assert len(every) >= 30
    for name, mutation in every.items():
        text = (ROOT / mutation["file"]).read_text()
        assert text.count(mutation["guard"]) == 1, name
        assert (ROOT / mutation["tests"].split()[0]).is_file(), name
