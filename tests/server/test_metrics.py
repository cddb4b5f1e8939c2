"""``/metrics``: ours are valid, count drafts by kind, and show an engine's own beside them."""

from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram, Metric, generate_latest
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.parser import text_string_to_metric_families

from simpleseg_server.engines.base import DraftCount
from simpleseg_server.engines.scripted import Reply

from .asking import answer
from .conftest import MakeClient, PhraseEngine

DRAFTS = (DraftCount("digits", 5, 3), DraftCount("structure", 8, 0))


class EngineWithMetrics(PhraseEngine):
    """Has a registry of its own, with names and labels that are not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.own = CollectorRegistry()
        counter = PrometheusCounter("vllm:tokens", "Tokens.", ("model_name",), registry=self.own)
        counter.labels("a/b").inc(7)
        Histogram("vllm:ttft_seconds", "Time.", buckets=(0.1, 1.0), registry=self.own).observe(0.5)

    def collect(self) -> Iterable[Metric]:
        return self.own.collect()


def samples(client: Any) -> dict[tuple[str, ...], float]:
    """Every series of a scrape: the name and label values, in the order of the labels' names."""
    families = list(text_string_to_metric_families(client.get("/metrics").text))
    assert len({family.name for family in families}) == len(families)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_drafts_are_counted_by_kind(client: Any, engine: PhraseEngine, image64: str) -> None:
    engine.default = Reply("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].", drafts=DRAFTS)
    usage = answer(client, image=image64, prompts=["x", "y"])["usage"]
    assert usage["drafts"] == {
        "digits": {"accepted": 10, "rejected": 6},
        "structure": {"accepted": 16, "rejected": 0},
    }
    found = samples(client)
    assert found["simpleseg_draft_tokens_total", "digits", "accepted"] == 10
    assert found["simpleseg_draft_tokens_total", "digits", "rejected"] == 6
    assert found["simpleseg_draft_tokens_total", "structure", "accepted"] == 16
    assert found["simpleseg_completion_tokens_sum",] == usage["completion_tokens"]
    assert found["simpleseg_forward_passes_sum",] == usage["forward_passes"]
    ratio = usage["completion_tokens"] / usage["forward_passes"]
    assert found["simpleseg_tokens_per_step_sum",] == pytest.approx(ratio)


def test_without_drafts_nothing_is_said_of_them(
    client: Any, engine: PhraseEngine, image64: str
) -> None:
    assert "drafts" not in answer(client, image=image64, prompt="x")["usage"]
    assert not [key for key in samples(client) if key[0] == "simpleseg_draft_tokens_total"]


def test_answers_of_one_step_have_no_tokens_per_step(
    client: Any, engine: PhraseEngine, image64: str
) -> None:
    engine.default = Reply("[]", token_length=2)
    answer(client, image=image64, prompt="x")
    assert samples(client)["simpleseg_tokens_per_step_count",] == 0


def test_an_engine_s_metrics_are_shown_untouched(make_client: MakeClient, image64: str) -> None:
    engine = EngineWithMetrics()
    with make_client(engine) as client:
        answer(client, image=image64, prompt="x")
        text = client.get("/metrics").text
        assert generate_latest(engine.own).decode() in text
        found = samples(client)
        assert found["vllm:tokens_total", "a/b"] == 7
        assert found["simpleseg_completion_tokens_count",] == 1
