"""Many images, kept images and models, through both clients and the real server."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg import (
    AsyncSimpleSeg,
    InvalidInputError,
    NotFoundError,
    Outcome,
    SimpleSeg,
    UnprocessableEntityError,
)
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine

from .serving import TRIANGLE, serving, wait_until

PICTURES = np.zeros((9, 20, 40, 3), np.uint8)
Many = Callable[..., list[Outcome]]


class Watched(ScriptedEngine):
    """Knows how many answers were under way at most; the first one asked for is the slowest."""

    def __init__(self) -> None:
        super().__init__(self._pick)
        self.most = 0

    def _pick(self, request: GenerationRequest) -> Reply:
        self.most = max(self.most, self.running)
        return Reply(TRIANGLE, delay_s=0.1 if "slow" in request.instruction else 0.01)


@pytest.fixture
def engine() -> Watched:
    return Watched()


@pytest.fixture
def url(engine: Watched) -> Iterator[str]:
    with serving(engine) as url:
        yield url


@pytest.fixture(params=["sync", "async"])
def many(request: pytest.FixtureRequest, url: str) -> Many:
    def sync(images: Any, prompt: Any = None, **options: Any) -> list[Outcome]:
        with SimpleSeg(url) as client:
            return list(client.segment_many(images, prompt, **options))

    async def in_loop(images: Any, prompt: Any, options: Any) -> list[Outcome]:
        async with AsyncSimpleSeg(url) as client:
            return [outcome async for outcome in client.segment_many(images, prompt, **options)]

    def run(images: Any, prompt: Any = None, **options: Any) -> list[Outcome]:
        return asyncio.run(in_loop(images, prompt, options))

    return sync if request.param == "sync" else run


SLOW_FIRST = [(picture, "slow" if i == 0 else "fast") for i, picture in enumerate(PICTURES)]


def test_outcomes_come_in_the_order_of_the_input(many: Many, engine: Watched) -> None:
    outcomes = many(SLOW_FIRST, concurrency=3)
    assert [outcome.index for outcome in outcomes] == list(range(9))
    assert [outcome.result.prompt for outcome in outcomes] == ["slow"] + ["fast"] * 8
    assert outcomes[3].image is SLOW_FIRST[3][0]
    assert 2 <= engine.most <= 3


def test_outcomes_come_as_they_are_completed(many: Many) -> None:
    outcomes = many(SLOW_FIRST, concurrency=3, order="completed")
    assert sorted(outcome.index for outcome in outcomes) == list(range(9))
    assert outcomes[0].index != 0


def test_several_prompts_and_a_bar(many: Many, capsys: pytest.CaptureFixture[str]) -> None:
    (outcome,) = many(PICTURES[:1], ["a", "b"], progress=True, max_points=32)
    assert [result.prompt for result in outcome.results] == ["a", "b"]
    assert capsys.readouterr().out == ""


BAD = [PICTURES[0], "nowhere.png", b"no image", 3, PICTURES[1]]


def test_errors_are_yielded_where_they_are_wanted(many: Many) -> None:
    outcomes = many(BAD, "a", on_error="yield")
    assert [type(outcome.error) for outcome in outcomes[:2]] == [type(None), FileNotFoundError]
    assert [type(outcome.error) for outcome in outcomes[2:4]] == [InvalidInputError] * 2
    assert outcomes[4].result.status == "ok"
    with pytest.raises(FileNotFoundError):
        _ = outcomes[1].result


def test_the_first_error_is_raised_with_its_item(many: Many) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        many(BAD, "a", concurrency=1)
    assert caught.value.__notes__ == ["item 1"]


def test_an_item_needs_a_prompt_and_somebody_to_ask(many: Many) -> None:
    assert many([], "a") == []
    with pytest.raises(InvalidInputError, match="item 0 has no prompt"):
        many(PICTURES)
    with pytest.raises(InvalidInputError, match="concurrency"):
        many(PICTURES, "a", concurrency=0)


def test_items_are_taken_as_they_are_needed(url: str) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Any]:
        while True:
            taken.append(len(taken))
            yield PICTURES[0]

    with SimpleSeg(url) as client:
        outcomes = client.segment_many(endless(), "a", concurrency=2)
        for _ in range(5):
            assert next(outcomes).result.status == "ok"
        outcomes.close()
    assert len(taken) <= 5 + 4
    assert not [t for t in threading.enumerate() if t.name.startswith("segment_many")]


def test_leaving_cancels_what_asyncio_has_under_way(url: str, engine: Watched) -> None:
    async def scenario() -> None:
        async with AsyncSimpleSeg(url) as client:
            outcomes = client.segment_many([*SLOW_FIRST[1:], *SLOW_FIRST[:1] * 5], concurrency=4)
            assert (await anext(outcomes)).result.status == "ok"
            await outcomes.aclose()

    asyncio.run(scenario())
    wait_until(lambda: engine.running == 0)


def test_a_kept_image_stands_for_itself(url: str) -> None:
    with SimpleSeg(url) as client:
        kept = client.upload(PICTURES[0])
        assert (kept.width, kept.height) == (40, 20)
        assert client.get_image(kept.id).expires_at == kept.expires_at
        result = client.segment(kept, "a")
        assert result.mask().shape == (20, 40)
        assert result.overlay(Image.fromarray(PICTURES[0]))
        with pytest.raises(ValueError, match="only the server has the image"):
            result.overlay()
        client.delete_image(kept)
        with pytest.raises(NotFoundError) as caught:
            client.get_image(kept)
        assert caught.value.request_id
        with pytest.raises((NotFoundError, UnprocessableEntityError)):
            client.segment(kept, "a")
        with pytest.raises(InvalidInputError, match="not the id"):
            client.get_image("../segment")


def test_a_kept_image_and_the_models_for_asyncio(url: str) -> None:
    async def scenario() -> Any:
        async with AsyncSimpleSeg(url) as client:
            kept = await client.upload(PICTURES[0])
            assert (await client.get_image(kept)).id == kept.id
            await client.delete_image(kept)
            with pytest.raises(NotFoundError):
                await client.delete_image(kept.id)
            return await client.models()

    (model,) = asyncio.run(scenario())
    with SimpleSeg(url) as client:
        assert client.models() == [model]
    assert model.id == "scripted"
    assert "region" in model.tasks
