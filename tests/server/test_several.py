"""``samples`` and ``refine``: several answers to one prompt, of which one counts."""

import base64
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg_polygon.codec import format_region
from simpleseg_polygon.geometry import Box, Point, Region
from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import Reply

from .asking import answer, post, refusal
from .conftest import CAPABILITIES, PhraseEngine, encoded
from .test_stream import joined_polygons, stream

LEFT = str([[[0.1, 0.2], [0.3, 0.2], [0.3, 0.4], [0.1, 0.4]]])
NEARLY_LEFT = str([[[0.1, 0.2], [0.3, 0.2], [0.3, 0.42], [0.1, 0.42]]])
RIGHT = str([[[0.7, 0.2], [0.9, 0.2], [0.9, 0.4]]])


class InTurn(PhraseEngine):
    """Gives its texts one after the other."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.texts = list(texts)

    def _pick(self, request: GenerationRequest) -> Reply:
        return Reply(self.texts.pop(0))


def ask(make_client: Any, engine: PhraseEngine, image64: str, **fields: Any) -> Any:
    with make_client(engine) as client:
        return answer(client, image=image64, prompt="x", **fields)


def test_the_answer_that_agrees_most_counts(make_client: Any, image64: str) -> None:
    engine = InTurn(RIGHT, LEFT, NEARLY_LEFT, "[].", LEFT)
    body = ask(make_client, engine, image64, samples=5, seed=7)
    (result,) = body["results"]
    assert str(result["polygons"]) == LEFT
    assert result["score_type"] == "sample_agreement"
    assert result["score"] == pytest.approx((0 + 0.91 + 0 + 1) / 4, abs=0.01)
    assert [r.seed for r in engine.requests] == [7, 8, 9, 10, 11]
    assert {r.temperature for r in engine.requests} == {0.7}
    assert body["usage"]["prompt_tokens"] == 5 * 16


def test_most_say_that_it_is_not_there(make_client: Any, image64: str) -> None:
    engine = InTurn("[].", LEFT, "[].")
    (result,) = ask(make_client, engine, image64, samples=3, temperature=1.0)["results"]
    assert (result["status"], result["polygons"]) == ("empty", [])


def test_a_failed_sample_is_left_out(make_client: Any, image64: str) -> None:
    class Failing(InTurn):
        def _pick(self, request: GenerationRequest) -> Reply:
            text = self.texts.pop(0)
            return Reply(text, fault="error") if text == "fail" else Reply(text)

    body = ask(make_client, Failing("fail", LEFT), image64, samples=2)
    (result,) = body["results"]
    assert str(result["polygons"]) == LEFT
    assert result["score_type"] != "sample_agreement"
    (warning,) = body["warnings"]
    assert (warning["code"], warning["result"]) == ("samples_left_out", 0)
    assert "1 of 2" in warning["message"]


def test_unsound_samples_are_not_compared(make_client: Any, image64: str) -> None:
    """What cannot be read is no agreement that the object is not there, nor is what was cut."""

    class Cut(InTurn):
        def _pick(self, request: GenerationRequest) -> Reply:
            text = self.texts.pop(0)
            return Reply(text, finish_reason="length" if text == RIGHT else "stop")

    engine = Cut("well", "[].", "nothing", RIGHT, RIGHT, LEFT, LEFT)
    body = ask(make_client, engine, image64, samples=7)
    assert str(body["results"][0]["polygons"]) == LEFT
    assert body["results"][0]["score"] == 0.5
    (warning,) = body["warnings"]
    assert warning["code"] == "samples_left_out"
    assert "4 of 7" in warning["message"]
    assert body["usage"]["prompt_tokens"] == 7 * 16


def test_where_no_sample_is_sound_all_are_compared(make_client: Any, image64: str) -> None:
    body = ask(make_client, InTurn("well", "nothing"), image64, samples=2)
    assert body["results"][0]["status"] == "invalid"
    assert "samples_left_out" not in [w["code"] for w in body["warnings"]]


def test_a_second_look_keeps_the_warning_about_samples(make_client: Any) -> None:
    image64, _ = large_picture()

    class Mixed(Seeing):
        def _pick(self, request: GenerationRequest) -> Reply:
            return Reply("well") if request.seed == 8 else super()._pick(request)

    body = ask(make_client, Mixed(), image64, samples=2, seed=7, refine=True)
    assert "samples_left_out" in [w["code"] for w in body["warnings"]]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"samples": 2, "temperature": 0}, "temperature_needed"),
        ({"samples": 0}, "value_out_of_range"),
        ({"samples": 17}, "value_out_of_range"),
        ({"samples": 2, "task": "box"}, "not_applicable"),
        ({"refine": True, "task": "point"}, "not_applicable"),
    ],
)
def test_refusals(client: Any, image64: str, fields: dict[str, Any], code: str) -> None:
    assert refusal(post(client, image=image64, prompt="x", **fields))[:2] == (422, code)


class Seeing(PhraseEngine):
    """Outlines the blue pixels' box in the picture that it is shown, to whole hundredths at first
    sight and exactly when it sees a part; ``wrong`` is said of a part instead."""

    def __init__(self, wrong: str | None = None) -> None:
        super().__init__(CAPABILITIES)
        self.wrong = wrong

    def _pick(self, request: GenerationRequest) -> Reply:
        blue = request.image_hw3[..., 2] > 128
        if len(self.requests) > 1 and self.wrong is not None:
            return Reply(self.wrong)
        ys, xs = np.nonzero(blue)
        height, width = blue.shape
        box = Box(
            xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height
        )
        return Reply(format_region(Region((box.ring(),))) + ".")


def large_picture() -> tuple[str, Box]:
    """A blue rectangle in a picture that is larger than the engine takes: it is seen at a ninth of
    its size."""
    picture = Image.new("RGB", (576, 576), "red")
    picture.paste("blue", (201, 307, 263, 341))
    return base64.b64encode(encoded(picture)).decode(), Box(201, 307, 263, 341)


def corners(result: dict[str, Any]) -> Box:
    (ring,) = result["polygons"]
    return Box(*ring[0], *ring[2])


def furthest(a: Box, b: Box) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_a_second_look_is_finer(make_client: Any) -> None:
    image64, truth = large_picture()
    coarse = ask(make_client, Seeing(), image64, coordinates="pixel")["results"][0]
    engine = Seeing()
    fine = ask(make_client, engine, image64, coordinates="pixel", refine=True)["results"][0]
    assert furthest(corners(coarse), truth) > 2 * furthest(corners(fine), truth)
    assert furthest(corners(fine), truth) < 1.3
    assert fine["bbox"] == pytest.approx(list(corners(fine)), abs=0.01)
    assert fine["area"] == pytest.approx(62 * 34 / 576**2, rel=0.05)
    assert len(engine.requests) == 2
    assert engine.requests[0].instruction == engine.requests[1].instruction
    assert engine.requests[0].image_key != engine.requests[1].image_key


def test_a_part_of_a_small_picture_is_enlarged(make_client: Any) -> None:
    """The engine takes more pixels than the picture has, so the second look gets them."""
    picture = Image.new("RGB", (50, 40), "red")
    picture.paste("blue", (10, 10, 20, 18))
    image64 = base64.b64encode(encoded(picture)).decode()
    engine = Seeing()
    fine = ask(make_client, engine, image64, coordinates="pixel", refine=True)["results"][0]
    first, second = (request.image_hw3.shape for request in engine.requests)
    assert first == (40, 50, 3)
    assert CAPABILITIES.max_pixels * 0.95 < second[0] * second[1] <= CAPABILITIES.max_pixels
    assert furthest(corners(fine), Box(10, 10, 20, 18)) < 0.5


@pytest.mark.parametrize("wrong", ["[].", RIGHT, "nonsense"])
def test_a_second_look_at_something_else_is_dropped(make_client: Any, wrong: str) -> None:
    image64, _ = large_picture()
    body = ask(make_client, Seeing(wrong), image64, refine=True)
    assert body["results"][0]["status"] == "ok"
    assert [w["code"] for w in body["warnings"]] == ["not_refined"]
    assert body["usage"]["prompt_tokens"] == 2 * 16


def test_nothing_found_needs_no_second_look(make_client: Any, image64: str) -> None:
    engine = InTurn("[].")
    assert ask(make_client, engine, image64, refine=True)["results"][0]["status"] == "empty"
    assert len(engine.requests) == 1


def test_a_stream_tells_the_chosen_answer(make_client: Any) -> None:
    image64, truth = large_picture()
    with make_client(Seeing()) as client:
        events = stream(client, image=image64, prompt="x", refine=True, coordinates="pixel")
    (result,) = events[-1][1]["response"]["results"]
    assert joined_polygons(events, 0) == result["polygons"]
    assert abs(result["polygons"][0][0][0] - truth.x0) < 2


def test_points_are_normalised_to_the_whole() -> None:
    assert Box(0.5, 0.0, 1.0, 0.5).place(Point(0.0, 1.0)) == Point(0.5, 0.5)


def test_a_second_look_is_told_where_the_places_lie_in_it(make_client: Any) -> None:
    """A point and a box of the prompt mean the same place of the object in the crop."""
    image64, _ = large_picture()
    engine = Seeing()
    with make_client(engine) as client:
        prompt = {"text": "x", "box": [0.25, 0.25, 0.4, 0.4], "point": [0.3, 0.3]}
        answer(client, image=image64, prompts=[prompt], refine=True)
    first, second = (request.instruction for request in engine.requests)
    assert "at [0.3, 0.3] in the box [0.25, 0.25, 0.4, 0.4]" in first
    assert "at [0.3, 0.3]" not in second
    assert "in the box [0.25, 0.25, 0.4, 0.4]" not in second


SPECK, OTHER_SPECK = (
    str([[[x, x], [x + 0.001, x], [x + 0.001, x + 0.001], [x, x + 0.001]]]) for x in (0.1, 0.9)
)


@pytest.mark.parametrize("second", [OTHER_SPECK, "[]."])
def test_tiny_objects_are_told_apart(make_client: Any, second: str) -> None:
    image64, _ = large_picture()
    body = ask(make_client, InTurn(SPECK, second), image64, samples=2)
    assert body["results"][0]["score"] == 0
    body = ask(make_client, InTurn(SPECK, second), image64, refine=True)
    assert body["results"][0]["status"] == "ok"
    assert [w["code"] for w in body["warnings"]] == ["not_refined"]


def test_the_same_speck_agrees(make_client: Any, image64: str) -> None:
    (result,) = ask(make_client, InTurn(SPECK, SPECK), image64, samples=2)["results"]
    assert result["score"] == 1


def test_a_second_look_that_is_cut_does_not_replace_a_whole_answer(make_client: Any) -> None:
    image64, _ = large_picture()

    class Cut(Seeing):
        def _pick(self, request: GenerationRequest) -> Reply:
            seen = super()._pick(request)
            is_second = len(self.requests) > 1
            return Reply(seen.text, finish_reason="length") if is_second else seen

    body = ask(make_client, Cut(), image64, refine=True)
    assert body["results"][0]["status"] == "ok"
    assert [w["code"] for w in body["warnings"]] == ["not_refined"]
