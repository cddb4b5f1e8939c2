"""``POST /segment``: what comes back."""

import asyncio
import base64
import io
import json
import math
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg_polygon.codec import parse_region
from simpleseg_polygon.geometry import ImageSize
from simpleseg_polygon.raster import region_to_mask
from simpleseg_polygon.rle import Rle, rle_to_mask
from simpleseg_server.engines.base import Capabilities, Delta, GenerationRequest
from simpleseg_server.engines.scripted import Reply, ScriptedEngine

from .asking import answer, post, refusal
from .conftest import PhraseEngine

TRIANGLE = [[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]
SQUARE = [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]


def test_a_region_comes_back_with_score_usage_and_timings(client: Any, image64: str) -> None:
    body = answer(client, image=image64, prompt="the left dog")
    (result,) = body["results"]
    assert result == {
        "index": 0,
        "prompt": "the left dog",
        "status": "ok",
        "finish_reason": "stop",
        "score": 0.5,
        "score_type": "geometric_mean_coordinate_token_probability",
        "area": 0.14,
        "bbox": [0.1, 0.2, 0.5, 0.9],
        "polygons": TRIANGLE,
    }
    assert body["image"] == {"width": 200, "height": 100, "exif_applied": False}
    assert (body["object"], body["model"]) == ("segmentation", "scripted-model")
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    stages = {"read_body", "decode_image", "queue", "prefill", "decode", "generate", "parse"}
    stages |= {"preprocess", "rasterize", "first_token", "first_point", "total"}
    assert stages == body["timings_ms"].keys()
    assert body["warnings"] == []


def test_the_engine_gets_the_scaled_image_and_the_trained_instruction(
    client: Any, engine: Any, image64: str
) -> None:
    fields = {"max_points": 7, "max_tokens": 99, "temperature": 0.5, "seed": 3}
    answer(client, image=image64, prompt="the  left\tdog", **fields)
    (request,) = engine.requests
    assert request.instruction == "Output the polygon coordinates of the left dog in the image."
    assert request.image_hw3.shape == (45, 90, 3)
    assert request.image_hw3[0, 0].tolist() == [255, 0, 0]
    assert (request.target, request.constrained) == ("region", True)
    given = (request.max_points, request.max_tokens, request.temperature, request.seed)
    assert given == (7, 99, 0.5, 3)


def test_all_ways_to_send_an_image_give_the_same_answer(
    client: Any, png: bytes, image64: str
) -> None:
    url = f"data:image/png;base64,{image64}"
    images = [image64, url, {"base64": image64}, {"url": url}]
    bodies = [answer(client, image=image, prompt="dog") for image in images]
    form = client.post("/v1/segment", files={"image": ("x", png)}, data={"prompt": "dog"})
    results = [body["results"] for body in [*bodies, form.json()]]
    assert all(result == results[0] for result in results)


def test_a_form_has_the_same_fields(client: Any, engine: Any, png: bytes) -> None:
    data = {
        "prompt": ["a dog", "[a cat]"],
        "return": ["rle,bbox", "polygons"],
        "coordinates": "pixel",
        "max_points": "9",
        "temperature": "0.5",
    }
    response = client.post("/segment", files={"image": ("../x", png, "image/png")}, data=data)
    assert response.status_code == 200, response.text
    first, second = response.json()["results"]
    assert first["bbox"] == [20.0, 20.0, 100.0, 90.0]
    assert second["prompt"] == "[a cat]"
    assert first["rle"]["size"] == [100, 200]
    assert engine.requests[0].max_points == 9
    prompts = json.dumps([{"text": "dog", "point": [0.5, 0.5]}])
    response = client.post("/segment", files={"image": ("x", png)}, data={"prompts": prompts})
    assert response.status_code == 200
    assert "dog at [0.5, 0.5]" in engine.requests[-1].instruction


def test_prompts_run_side_by_side_and_come_back_in_order(
    client: Any, engine: Any, image64: str
) -> None:
    engine.replies = {"slow": Reply(engine.default.text, delay_s=0.01), "no": Reply("[].")}
    body = answer(client, image=image64, prompts=["slow", "no", {"text": "quick"}])
    assert [r["index"] for r in body["results"]] == [0, 1, 2]
    assert [r["prompt"] for r in body["results"]] == ["slow", "no", "quick"]
    assert [r["status"] for r in body["results"]] == ["ok", "empty", "ok"]
    assert len({request.request_id for request in engine.requests}) == 3
    assert len({request.image_key for request in engine.requests}) == 1


class MeetingEngine(PhraseEngine):
    """Answers no prompt before three have come."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        async with asyncio.timeout(10):
            await self.meeting.wait()
        async for delta in super().generate(request):
            yield delta

    async def start(self) -> None:
        self.meeting = asyncio.Barrier(3)
        await super().start()


def test_no_prompt_of_a_request_waits_for_another(make_client: Any, image64: str) -> None:
    with make_client(MeetingEngine()) as client:
        body = answer(client, image=image64, prompts=["one", "two", "three"])
    assert [r["status"] for r in body["results"]] == ["ok", "ok", "ok"]


def test_an_absent_object_is_an_empty_mask(client: Any, engine: Any, image64: str) -> None:
    engine.default = Reply("[].")
    body = answer(
        client, image=image64, prompt="x", **{"return": ["polygons", "bbox", "rle", "png"]}
    )
    (result,) = body["results"]
    assert (result["status"], result["score"], result["bbox"]) == ("empty", None, None)
    assert (result["polygons"], result["area"]) == ([], 0.0)
    assert not rle_to_mask(Rle.from_coco(result["rle"])).any()


@pytest.mark.parametrize(
    ("text", "finish_reason", "status", "codes"),
    [
        ("I cannot see it.", "stop", "invalid", set()),
        ("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]], [[0.3, 0.", "length", "truncated", None),
        ("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].", "length", "truncated", set()),
        ("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]], [[0.1, 0.1]]]", "stop", "ok", {"part_too_small"}),
        ("[[[-1e300, nan], [2147483647, 0], [9, 9e999], [0, 1]]]", "stop", None, None),
        ("[" * 10_000, "length", "truncated", None),
        ("\x00" * 100, "stop", "invalid", set()),
        ("", "stop", "invalid", set()),
    ],
)
@pytest.mark.catalogue("G7", "G8", "G10", "G11")
def test_every_answer_text_gives_an_honest_status(
    client: Any,
    engine: Any,
    image64: str,
    text: str,
    finish_reason: Any,
    status: str | None,
    codes: set[str] | None,
) -> None:
    engine.default = Reply(text, token_length=1000, finish_reason=finish_reason)
    body = answer(client, image=image64, prompt="x", **{"return": ["polygons", "rle", "png"]})
    (result,) = body["results"]
    assert status in (None, result["status"])
    assert codes is None or {w["code"] for w in body["warnings"]} == codes
    assert all(w["result"] == 0 for w in body["warnings"])
    for ring in result["polygons"]:
        assert all(0 <= value <= 1 for point in ring for value in point)
    if result["status"] == "invalid":
        assert (result["rle"], result["area"], result["score"]) == (None, None, None)


def test_mask_outputs_agree_with_the_polygons(client: Any, image64: str) -> None:
    outputs = ["polygons", "bbox", "rle", "png"]
    body = answer(client, image=image64, prompt="x", **{"return": outputs})
    (result,) = body["results"]
    truth = region_to_mask(parse_region(str(result["polygons"])).value, ImageSize(100, 200))
    assert np.array_equal(rle_to_mask(Rle.from_coco(result["rle"])), truth)
    picture = Image.open(io.BytesIO(base64.b64decode(result["png"])))
    assert np.array_equal(np.asarray(picture.convert("1")), truth)
    assert result["area"] == pytest.approx(truth.mean(), abs=1e-6)


def test_only_the_outputs_asked_for_are_sent(client: Any, image64: str) -> None:
    (result,) = answer(client, image=image64, prompt="x", **{"return": ["rle"]})["results"]
    assert "rle" in result
    assert not {"polygons", "bbox", "png", "boxes", "points", "text"} & result.keys()


def test_vertices_stay_in_written_order(client: Any, engine: Any, image64: str) -> None:
    backwards = SQUARE[:1] + SQUARE[:0:-1]
    engine.default = Reply(str([backwards]))
    (result,) = answer(client, image=image64, prompt="x")["results"]
    assert result["polygons"] == [backwards]


def test_other_tasks(client: Any, engine: Any, image64: str) -> None:
    engine.replies = {
        "bounding box": Reply("[[0.1, 0.2, 0.3, 0.4]]."),
        "point coordinates": Reply("[[0.5, 0.25]]."),
        "Describe": Reply("a red square"),
    }
    pixel = {"image": image64, "prompt": "x", "coordinates": "pixel"}
    (box,) = answer(client, task="box", **pixel)["results"]
    (point,) = answer(client, task="point", **pixel)["results"]
    (text,) = answer(client, task="text", **pixel)["results"]
    assert box["boxes"] == [[20.0, 20.0, 60.0, 40.0]]
    assert point["points"] == [[100.0, 25.0]]
    assert (text["text"], text["score_type"]) == (
        "a red square",
        "geometric_mean_token_probability",
    )
    assert [r.constrained for r in engine.requests] == [True, True, False]
    response = post(client, image=image64, prompt="x", task="box", **{"return": ["rle"]})
    assert refusal(response)[1] == "return_not_applicable"


def test_point_and_box_prompts_become_the_trained_phrase(
    client: Any, engine: Any, image64: str
) -> None:
    prompt = {"text": "dog", "point": [100, 25], "box": [150, 80, -20, 10]}
    body = answer(client, image=image64, prompt=prompt, coordinates="pixel")
    expected = "dog at [0.5, 0.25] in the box [0.0, 0.1, 0.75, 0.8] in the image."
    assert engine.requests[0].instruction.endswith(expected)
    assert [w["code"] for w in body["warnings"]] == ["box_reordered", "box_clipped"]


def test_the_score_is_the_geometric_mean_over_digits(
    client: Any, engine: Any, image64: str
) -> None:
    engine.default = Reply(str([SQUARE]), token_length=4, logprob=math.log(0.25))
    (result,) = answer(client, image=image64, prompt="x")["results"]
    assert result["score"] == 0.25


def test_one_failing_prompt_does_not_fail_the_others(
    client: Any, engine: Any, image64: str
) -> None:
    engine.replies = {"bad": Reply("[[[0.1", fault="error", fault_after=1)}
    body = answer(client, image=image64, prompts=["good", "bad"])
    good, bad = body["results"]
    assert (good["status"], bad["status"], bad["finish_reason"]) == ("ok", "invalid", "error")
    assert [(w["code"], w["result"]) for w in body["warnings"]] == [("engine_error", 1)]
    response = post(client, image=image64, prompts=["bad", "bad"])
    assert refusal(response) == (503, "engine_unavailable", None)
    assert int(response.headers["retry-after"]) >= 1
    assert "scripted error" not in response.text
    answer(client, image=image64, prompt="good")


def test_an_overloaded_engine_is_503_with_the_wait_that_it_asks_for(
    client: Any, engine: Any, image64: str
) -> None:
    engine.replies = {"busy": Reply("[]", fault="busy"), "bad": Reply("[]", fault="error")}
    response = post(client, image=image64, prompts=["busy", "bad"])
    assert refusal(response) == (503, "overloaded", None)
    assert response.headers["retry-after"] == "7"
    assert answer(client, image=image64, prompts=["good", "busy"])["results"][0]["status"] == "ok"


def test_exif_and_animation_are_reported(client: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    image = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    body = answer(client, image=image, prompt="x")
    assert body["image"] == {"width": 20, "height": 40, "exif_applied": True}
    assert [w["code"] for w in body["warnings"]] == ["mime_mismatch"]


def test_a_model_with_a_fixed_size_gets_it(make_client: Any, image64: str) -> None:
    fixed = Capabilities("scripted", "m", ("region",), 256, 1, 10**6, input_hw=(128, 96))
    engine = ScriptedEngine(["[]"], capabilities=fixed)
    with make_client(engine) as client:
        answer(client, image=image64, prompt="x", model="m")
        assert engine.requests[0].image_hw3.shape == (128, 96, 3)
        assert engine.requests[0].max_tokens == 256
        response = post(client, image=image64, prompt="x", model="other")
        assert refusal(response) == (404, "model_not_found", "model")
        response = post(client, image=image64, prompt="x", task="box")
        assert refusal(response) == (422, "task_unsupported", "task")
        response = post(client, image=image64, prompt="x", max_tokens=257)
        assert refusal(response) == (422, "value_out_of_range", "max_tokens")
