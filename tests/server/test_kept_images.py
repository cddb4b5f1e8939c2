"""``/v1/images`` and ``/v1/segment/batch``."""

import io
import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg.schema import BatchResponse, UploadedImage
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import Reply
from simpleseg_server.errors import ApiError
from simpleseg_server.image_store import ImageStore
from simpleseg_server.images import DecodedImage, decode, judged
from simpleseg_server.pipeline import Segmenter
from simpleseg_server.pixels import EngineSize

from .asking import answer, post, refusal
from .conftest import encoded
from .test_stream import without_timings


def decoded(side: int) -> tuple[bytes, DecodedImage]:
    data = encoded(Image.new("RGB", (side, side)))
    return data, decode(judged(data, EngineSize(10**6), Settings(), "image"), Settings(), "image")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_least_recently_used_image_goes_first() -> None:
    data, image = decoded(100)
    one = len(data) + 30_000
    store = ImageStore(2 * one, 60)
    first, second = store.add(data, image, ""), store.add(data, image, "")
    store.find(first.id, "", "image")
    third = store.add(data, image, "")
    assert store.used_bytes == 2 * one
    assert store.find(third.id, "", "image") is third
    assert store.find(first.id, "", "image") is first
    with pytest.raises(ApiError, match="image_not_found"):
        store.find(second.id, "", "image")


def test_images_expire() -> None:
    clock = Clock()
    store = ImageStore(10**6, 60, clock)
    stored = store.add(*decoded(10), "")
    assert stored.expires == stored.created + 60
    clock.now += 59
    assert store.find(stored.id, "", "image") is stored
    clock.now += 2
    with pytest.raises(ApiError, match="image_not_found"):
        store.find(stored.id, "", "image")
    assert store.used_bytes == 0


def test_an_image_belongs_to_its_key() -> None:
    store = ImageStore(10**6, 60)
    stored = store.add(*decoded(10), "ann")
    for attempt in (store.find, lambda name, owner, _: store.remove(name, owner)):
        with pytest.raises(ApiError, match="image_not_found"):
            attempt(stored.id, "bob", "image")
    store.remove(stored.id, "ann")
    assert store.used_bytes == 0


def test_an_image_larger_than_all_the_room_is_refused() -> None:
    with pytest.raises(ApiError, match="image_too_large"):
        ImageStore(1000, 60).add(*decoded(100), "")


def upload(client: Any, png: bytes) -> dict[str, Any]:
    response = client.post("/v1/images", files={"image": ("a.png", png, "image/png")})
    assert response.status_code == 200, response.text
    UploadedImage.model_validate(response.json())
    return dict(response.json())


def test_a_kept_image_gives_the_same_answer(
    client: Any, engine: Any, png: bytes, image64: str
) -> None:
    engine.default = Reply("[[[0.1, 0.2], [0.3, 0.2], [0.3, 0.4]]].")
    kept = upload(client, png)
    assert (kept["width"], kept["height"], kept["bytes"]) == (200, 100, len(png))
    by_id = answer(client, image={"id": kept["id"]}, prompt="x", refine=True)
    plain = answer(client, image=image64, prompt="x", refine=True)
    assert by_id["image"].pop("id") == kept["id"]
    assert without_timings(by_id) == without_timings(plain)
    assert "decode_image" not in answer(client, image={"id": kept["id"]}, prompt="x")["timings_ms"]
    assert len({request.image_key for request in engine.requests}) == 2  # the whole and the part


def test_upload_as_json_describe_and_forget(client: Any, image64: str) -> None:
    kept = client.post("/v1/images", json={"image": {"base64": image64}}).json()
    assert client.get(f"/v1/images/{kept['id']}").json() == kept
    gone = client.delete(f"/v1/images/{kept['id']}").json()
    assert gone == {"id": kept["id"], "object": "image", "deleted": True}
    missing = refusal(post(client, image={"id": kept["id"]}, prompt="x"))
    assert missing == (404, "image_not_found", "image.id")
    assert refusal(client.get(f"/v1/images/{kept['id']}"))[:2] == (404, "image_not_found")
    assert refusal(client.delete("/v1/images/nonsense"))[:2] == (404, "image_not_found")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image": "aGk="}, (415, "image_type_unsupported", "image")),
        ({"image": {"id": "img_1"}}, (422, "image_id_not_applicable", "image.id")),
        ({"image": "aGk=", "prompt": "x"}, (400, "unknown_parameter", "prompt")),
        ({}, (400, "type_invalid", "image")),
    ],
)
def test_bad_uploads(client: Any, fields: dict[str, Any], expected: tuple[int, str, str]) -> None:
    assert refusal(client.post("/v1/images", json=fields)) == expected


def test_a_form_with_other_fields_is_refused(client: Any, png: bytes) -> None:
    response = client.post("/v1/images", files={"image": png}, data={"prompt": "x"})
    assert refusal(response) == (400, "unknown_parameter", "prompt")


def test_keys_do_not_see_each_others_images(make_client: Any, engine: Any, png: bytes) -> None:
    with make_client(engine, api_keys=("ann-key", "bob-key")) as client:
        ann, bob = ({"X-API-Key": key} for key in ("ann-key", "bob-key"))
        kept = client.post("/v1/images", files={"image": png}, headers=ann).json()
        path = f"/v1/images/{kept['id']}"
        assert client.get(path, headers=ann).status_code == 200
        assert client.get(path, headers=bob).status_code == 404
        body = {"image": {"id": kept["id"]}, "prompt": "x"}
        assert client.post("/segment", json=body, headers=ann).status_code == 200
        assert client.post("/segment", json=body, headers=bob).status_code == 404


def batch(client: Any, *requests: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/segment/batch", json={"requests": list(requests)})
    assert response.status_code == 200, response.text
    BatchResponse.model_validate(response.json())
    results: list[dict[str, Any]] = response.json()["results"]
    assert [item["index"] for item in results] == list(range(len(requests)))
    return results


def test_each_item_has_its_own_outcome(client: Any, engine: Any, image64: str) -> None:
    engine.replies = {"broken": Reply("[[[0.1", fault="error")}
    good = {"image": image64, "prompt": "x"}
    results = batch(
        client,
        good,
        {"image": "???", "prompt": "x"},
        {"image": image64, "prompt": "x", "colour": "red"},
        {"image": image64, "prompt": "broken"},
        {**good, "stream": True},
        good,
    )
    assert [item["status"] for item in results] == [200, 400, 400, 503, 422, 200]
    codes = [item["error"]["code"] for item in results if "error" in item]
    assert codes == [
        "image_base64_invalid",
        "unknown_parameter",
        "engine_unavailable",
        "stream_not_applicable",
    ]
    plain = answer(client, **good)
    assert without_timings(results[0]["response"]) == without_timings(plain)


def test_more_items_than_the_engine_takes_at_once(client: Any, image64: str) -> None:
    results = batch(client, *[{"image": image64, "prompt": str(i)} for i in range(20)])
    assert [item["response"]["results"][0]["prompt"] for item in results] == [
        str(i) for i in range(20)
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (400, "type_invalid", "requests")),
        ({"requests": []}, (400, "type_invalid", "requests")),
        ({"requests": ["x"]}, (400, "type_invalid", "requests[0]")),
        ({"requests": [{}], "more": 1}, (400, "unknown_parameter", "more")),
        ({"requests": [{}] * 65}, (422, "too_many_requests", "requests")),
    ],
)
def test_bad_batches(client: Any, fields: dict[str, Any], expected: tuple[int, str, str]) -> None:
    assert refusal(client.post("/v1/segment/batch", json=fields)) == expected


def test_the_decoded_pixels_are_kept(client: Any, engine: Any) -> None:
    picture = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    kept = upload(client, buffer.getvalue())
    answer(client, image={"id": kept["id"]}, prompt="x")
    assert np.array_equal(engine.requests[0].image_hw3, np.asarray(picture))


def test_a_bug_in_one_item_of_a_batch_is_its_own(
    client: Any, image64: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Segmenter.job

    async def break_one(self: Segmenter, call: Any, *rest: Any) -> Any:
        if call.items[0].text == "bug":
            raise RuntimeError("secret 4711")
        return await find(self, call, *rest)

    monkeypatch.setattr(Segmenter, "job", break_one)
    requests = [{"image": image64, "prompt": text} for text in ("cat", "bug", "dog")]
    response = client.post("/v1/segment/batch", json={"requests": requests})
    assert response.status_code == 200
    items = response.json()["results"]
    assert [item["status"] for item in items] == [200, 500, 200]
    assert items[1]["error"]["code"] == "internal_error"
    assert "4711" not in response.text


def test_a_batch_feeds_the_stages(client: Any, image64: str) -> None:
    def count(stage: str) -> float:
        name = f'simpleseg_stage_duration_seconds_count{{stage="{stage}"}} '
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = {stage: count(stage) for stage in ("decode_image", "generate", "parse")}
    requests = [{"image": image64, "prompt": text} for text in ("cat", "dog")]
    assert client.post("/v1/segment/batch", json={"requests": requests}).status_code == 200
    assert {stage: count(stage) - before[stage] for stage in before} == dict.fromkeys(before, 2)


def test_a_batch_tells_its_stages_as_a_request_does(
    client: Any, engine: Any, image64: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log's one line, in ``Server-Timing`` and in each answer: of what ran side by side the
    slowest counts."""
    engine.replies = {"slow": Reply("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].", delay_s=0.02)}
    asked = [{"image": image64, "prompt": text} for text in ("quick", "slow", "quick")]
    with caplog.at_level(logging.INFO, "simpleseg_server"):
        single = client.post("/segment", json=asked[0])
        response = client.post("/v1/segment/batch", json={"requests": asked})
    lines = [record.fields for record in caplog.records if hasattr(record, "fields")]
    of_one, of_all = (line["stages_ms"] for line in lines if line["event"] == "request")
    assert of_all.keys() == of_one.keys() - {"total"}
    items = [item["response"]["timings_ms"] for item in response.json()["results"]]
    assert all(item.keys() == single.json()["timings_ms"].keys() for item in items)
    slowest = max(item["generate"] for item in items)
    assert of_all["generate"] == slowest == items[1]["generate"]
    assert of_all["first_token"] <= min(item["first_token"] for item in items) + slowest

    def timed(answer: Any) -> dict[str, str]:
        pairs = (part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
        return dict(pairs)

    assert timed(response).keys() == timed(single).keys()
    assert float(timed(response)["generate"]) == pytest.approx(slowest)
