"""Deadlines: whatever is finished by then is given, and the engine's slot is free again."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from simpleseg_server.engines.scripted import Reply

from .asking import answer, post, refusal
from .conftest import CAPABILITIES, MakeClient, PhraseEngine

PART = "[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]"
TWO_PARTS = f"[{PART}, [[0.6, 0.6], [0.9, 0.6], [0.9, 0.9]]]."
# Every token is one character, so that all of the first part and some of the second come at once.
HALF = Reply(TWO_PARTS, token_length=1, fault="hang", fault_after=len(PART) + 10)
NOTHING = Reply(TWO_PARTS, fault="hang")
SOON_MS = 1000  # time enough to begin, on a busy machine too


def until(condition: Callable[[], bool]) -> bool:
    """Whether it came true within some seconds."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_whole_parts_are_kept(client: Any, engine: PhraseEngine, image64: str) -> None:
    engine.default = HALF
    response = answer(client, image=image64, prompt="x", deadline_ms=SOON_MS)
    [result] = response["results"]
    assert (result["status"], result["finish_reason"]) == ("truncated", "deadline")
    assert result["polygons"] == [[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]]
    assert result["area"] > 0
    assert result["score"] is not None
    assert ("deadline_passed", 0) in [(w["code"], w["result"]) for w in response["warnings"]]
    assert response["usage"]["completion_tokens"] == HALF.fault_after
    assert response["usage"]["prompt_tokens"] == 0


def test_the_engine_s_slot_is_free_again(client: Any, engine: PhraseEngine, image64: str) -> None:
    engine.default = HALF
    answer(client, image=image64, prompt="x", deadline_ms=SOON_MS)
    assert until(lambda: engine.running == 0)
    assert engine.cancelled == [engine.requests[0].request_id]


@pytest.mark.parametrize(
    ("task", "field"), [("region", "polygons"), ("box", "boxes"), ("point", "points")]
)
def test_nothing_finished_is_truncated_too(
    client: Any, engine: PhraseEngine, image64: str, task: str, field: str
) -> None:
    engine.default = NOTHING
    [result] = answer(client, image=image64, prompt="x", task=task, deadline_ms=SOON_MS)["results"]
    assert (result["status"], result[field], result["score"]) == ("truncated", [], None)


def test_an_answer_without_a_word_is_not_empty(
    client: Any, engine: PhraseEngine, image64: str
) -> None:
    """`empty` says that the object is not there, which nobody has found out."""
    engine.default = NOTHING
    body = {"image": image64, "prompt": "x", "deadline_ms": SOON_MS}
    [result] = answer(client, **body, task="text")["results"]
    assert (result["status"], result["text"]) == ("truncated", "")


def test_prompts_that_were_in_time_are_whole(
    client: Any, engine: PhraseEngine, image64: str
) -> None:
    engine.replies["slow"] = HALF
    response = answer(client, image=image64, prompts=["slow", "quick"], deadline_ms=SOON_MS)
    assert [r["status"] for r in response["results"]] == ["truncated", "ok"]
    assert {w["result"] for w in response["warnings"]} == {0}


def test_waiting_for_a_slot_counts(make_client: MakeClient, image64: str) -> None:
    engine = PhraseEngine(replace(CAPABILITIES, max_concurrency=1))
    engine.default = HALF
    with make_client(engine) as client:
        body = {"image": image64, "prompts": ["a", "b"], "deadline_ms": SOON_MS}
        results = answer(client, **body)["results"]
    assert [len(r["polygons"]) for r in results] == [1, 0]
    assert {r["status"] for r in results} == {"truncated"}
    assert len(engine.requests) == 1


def test_a_deadline_that_passes_before_the_engine_could_begin_is_told_at_once(
    client: Any, engine: PhraseEngine, image64: str
) -> None:
    engine.default = NOTHING
    refused = post(client, image=image64, prompt="x", deadline_ms=1)
    assert refusal(refused) == (503, "deadline_exceeded", None)
    assert "retry-after" in refused.headers
    assert not engine.requests


def test_the_server_s_limit_holds_without_a_deadline(make_client: MakeClient, image64: str) -> None:
    engine = PhraseEngine()
    engine.replies["half"] = HALF
    engine.replies["nothing"] = NOTHING
    with make_client(engine, max_deadline_ms=SOON_MS) as client:
        [result] = answer(client, image=image64, prompt="half")["results"]
        assert (result["status"], len(result["polygons"])) == ("truncated", 1)
        refused = post(client, image=image64, prompt="nothing")
        assert refusal(refused) == (503, "queue_timeout", None)
        assert "retry-after" in refused.headers
        assert until(lambda: engine.running == 0)


def test_the_server_s_limit_bounds_what_may_be_asked(make_client: MakeClient, image64: str) -> None:
    with make_client(PhraseEngine(), max_deadline_ms=5000) as client:
        body = {"image": image64, "prompt": "x"}
        refused = post(client, **body, deadline_ms=5001)
        assert refusal(refused) == (422, "value_out_of_range", "deadline_ms")
        assert refusal(post(client, **body, deadline_ms=0))[:2] == (422, "value_out_of_range")
        assert answer(client, **body, deadline_ms=5000)["results"][0]["status"] == "ok"


def test_a_stream_ends_with_what_there_is(client: Any, engine: PhraseEngine, image64: str) -> None:
    engine.default = HALF
    body = {"image": image64, "prompt": "x", "deadline_ms": SOON_MS, "stream": True}
    text = post(client, **body).text
    assert text.rstrip().endswith("[DONE]")
    assert '"finish_reason":"deadline"' in text


@pytest.mark.server_fault
def test_timeouts_of_the_engine_s_own_are_no_deadline(
    client: Any, engine: PhraseEngine, image64: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(engine, "_reply", fail)
    assert post(client, image=image64, prompt="x", deadline_ms=5000).status_code == 500
