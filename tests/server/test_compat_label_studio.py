"""Label Studio's ML backend, in the frames that Label Studio 1.23.2 sends; with a real one in
``test_label_studio.py``."""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from simpleseg_server.engines.scripted import Reply
from simpleseg_server.errors import ApiError
from simpleseg_server.routes.compat.label_config import read_interface

from .conftest import TRIANGLE, PhraseEngine
from .image_hosts import PRIVATE, Host, Names, redirecting, response, saying, world
from .test_fetch_routes import Neighbour, neighbour  # noqa: F401

CONFIG = """<View>
  <Image name="img" value="$picture"/>
  <TextArea name="prompt" toName="img"/>
  <KeyPointLabels name="kp" toName="img" smart="true"><Label value="dog"/></KeyPointLabels>
  <PolygonLabels name="poly" toName="img">
    <Label value="cat"/><Label value="dog"/><!-- two of them -->
  </PolygonLabels>
</View>"""
TRIANGLE_PERCENT = [[10.0, 20.0], [50.0, 20.0], [50.0, 90.0]]
TOKEN = "0123abcd"


def body(*images: str, result: Any = None, config: str = CONFIG) -> dict[str, Any]:
    """What Label Studio posts to ``/predict``."""
    return {
        "tasks": [
            {"id": k, "data": {"picture": image}, "project": 1, "annotations": [], "meta": {}}
            for k, image in enumerate(images)
        ],
        "project": "1.1793000000",
        "label_config": config,
        "params": {
            "login": None,
            "password": None,
            "context": None if result is None else {"result": result},
        },
    }


def mark(kind: str, **value: Any) -> dict[str, Any]:
    return {
        "id": "x1",
        "type": kind,
        "from_name": "kp",
        "to_name": "img",
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": value,
    }


@pytest.fixture
def client(engine: Any, make_client: Any) -> Iterator[Any]:
    with make_client(engine, enable=("label-studio",)) as client:
        yield client


@pytest.fixture
def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def predictions(client: Any, asked: Any) -> Any:
    answer = client.post("/predict", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def test_health_and_setup(client: TestClient) -> None:
    assert client.get("/health").status_code == 200
    setup = {"project": "1.1793000000", "schema": CONFIG, "hostname": "", "access_token": "t"}
    assert client.post("/setup", json=setup).json() == {"model_version": "scripted-model"}
    assert client.post("/webhook", json={"action": "X"}).json() == {"status": "ignored"}


def test_without_marks_every_label_is_looked_for(
    client: TestClient, engine: Any, data_url: str
) -> None:
    engine.replies["cat"] = Reply("[].")
    (prediction,) = predictions(client, body(data_url))
    (found,) = prediction["result"]
    assert (found["type"], found["from_name"], found["to_name"]) == ("polygonlabels", "poly", "img")
    assert found["value"]["points"] == TRIANGLE_PERCENT
    assert found["value"]["polygonlabels"] == ["dog"]
    assert (found["original_width"], found["original_height"]) == (200, 100)
    assert prediction["model_version"] == "scripted-model"
    assert prediction["score"] == found["score"] == pytest.approx(0.5)


def test_a_phrase_in_the_text_area(client: TestClient, engine: Any, data_url: str) -> None:
    asked = body(data_url, result=[mark("textarea", text=["the left Dog", "a tree"])])
    (prediction,) = predictions(client, asked)
    assert [one["value"]["polygonlabels"] for one in prediction["result"]] == [["dog"], ["cat"]]
    wordings = sorted(request.instruction for request in engine.requests)
    assert ["a tree" in wordings[0], "the left Dog" in wordings[1]] == [True, True]


def test_a_key_point_and_a_rectangle(client: TestClient, engine: Any, data_url: str) -> None:
    marks = [
        mark("keypointlabels", x=25.0, y=50, width=0.3, keypointlabels=["dog"]),
        mark("rectanglelabels", x=10, y=20, width=40, height=70, rotation=0, rectanglelabels=["x"]),
    ]
    (prediction,) = predictions(client, body(data_url, result=marks))
    assert [one["value"]["polygonlabels"] for one in prediction["result"]] == [["dog"], ["cat"]]
    wordings = sorted(request.instruction for request in engine.requests)
    assert "the object at [0.25, 0.5] in" in wordings[0]
    assert "the object in the box [0.1, 0.2, 0.5, 0.9]" in wordings[1]


def test_a_key_point_with_a_phrase(client: TestClient, engine: Any, data_url: str) -> None:
    marks = [mark("textarea", text=["spot"]), mark("keypoint", x=25, y=50)]
    predictions(client, body(data_url, result=marks))
    (request,) = engine.requests
    assert "spot at [0.25, 0.5]" in request.instruction


def test_regions_have_ids_of_their_own(client: TestClient, data_url: str) -> None:
    asked = body(data_url, result=[mark("keypoint", x=25, y=50)])
    ids = [predictions(client, asked)[0]["result"][0]["id"] for _ in range(3)]
    assert len(set(ids)) == 3


def test_of_several_tasks_one_may_fail(client: TestClient, data_url: str) -> None:
    one, two, three = predictions(client, body(data_url, "/data/upload/1/a.png", data_url))
    assert one["result"][0]["value"] == three["result"][0]["value"]
    assert "result" not in two
    assert (two["error"]["code"], two["error"]["param"]) == (
        "image_url_invalid",
        "tasks.data.picture",
    )
    assert "label_studio_url" in two["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"tasks": []}, "wrong_length", "tasks"),
        ({"tasks": [{"data": {"other": "x"}}]}, "image_missing", "tasks.data.picture"),
        ({"label_config": "<View/>"}, "label_config_unusable", "label_config"),
        ({"label_config": "<View>"}, "label_config_unusable", "label_config"),
    ],
)
def test_what_cannot_be_answered(
    changes: Any, code: str, param: str, client: TestClient, data_url: str
) -> None:
    refused = client.post("/predict", json=body(data_url) | changes)
    assert 400 <= refused.status_code < 500
    assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == (code, param)


@pytest.mark.parametrize(
    "marks",
    [
        [mark("keypoint", x=1, y=1) | {"is_positive": False}],
        [mark("rectangle", x=1, y=1, width=5, height=5, rotation=30)],
        [mark("keypoint", x=101, y=1)],
    ],
)
def test_marks_that_are_not_served(client: TestClient, data_url: str, marks: Any) -> None:
    refused = client.post("/predict", json=body(data_url, result=marks))
    assert 400 <= refused.status_code < 500
    assert refused.json()["error"]["param"] == "params.context"


def test_entities_are_refused() -> None:
    bomb = '<!DOCTYPE v [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><View>&b;</View>'
    with pytest.raises(ApiError, match="label_config_unusable"):
        read_interface(bomb)


def test_too_many_tasks(engine: Any, make_client: Any, data_url: str) -> None:
    with make_client(engine, enable=("label-studio",), max_batch_requests=2) as client:
        refused = client.post("/predict", json=body(*[data_url] * 3))
    assert refused.json()["error"]["code"] == "too_many_requests"


def test_the_key_is_the_password(engine: Any, make_client: Any, data_url: str) -> None:
    with make_client(engine, enable=("label-studio",), api_keys=("sk-ls",)) as client:
        asked = body(data_url)
        for password, status in (("sk-other", 401), ("sk-ls", 200)):
            answer = client.post("/predict", json=asked, auth=("anybody", password))
            assert answer.status_code == status
        broken = {"Authorization": "Basic !!!"}
        assert client.post("/predict", json=asked, headers=broken).status_code == 401


def test_it_is_off_unless_enabled(engine: Any, make_client: Any, data_url: str) -> None:
    with make_client(engine, api_keys=("sk-ls",)) as client:
        basic = client.post("/predict", json=body(data_url), auth=("anybody", "sk-ls"))
        bearer = client.post("/predict", json={}, headers={"Authorization": "Bearer sk-ls"})
    assert (basic.status_code, bearer.status_code) == (401, 404)


class Store:
    """Label Studio's files on a private address, and a client of a server that may go there."""

    def __init__(self, client: Any, host: Host) -> None:
        self.client = client
        self.host = host

    def tokens(self) -> list[bool]:
        return [f"authorization: token {TOKEN}" in head.lower() for head in self.host.heads]


def store_of(host: Host, make_client: Any, engine: PhraseEngine, *others: Host) -> Any:
    names = Names({"ls.internal": [("127.0.0.1",)], "host.test": [(PRIVATE,)]})
    settings = {
        "enable": ("label-studio",),
        "image_urls": "listed",
        "image_url_hosts": tuple(f"ls.internal:{one.port}" for one in (host, *others)),
        "label_studio_url": f"http://ls.internal:{host.port}",
        "label_studio_token": TOKEN,
        "image_url_timeout_s": 60,
        "image_url_connect_timeout_s": 30,
    }
    return make_client(engine, world(names=names), **settings)


@pytest.fixture
def store(neighbour: Neighbour, make_client: Any, engine: Any, png: bytes) -> Iterator[Store]:  # noqa: F811
    host = neighbour.host(saying(response(png)))
    with store_of(host, make_client, engine) as client:
        yield Store(client, host)


def test_images_of_label_studio_are_fetched_with_its_token(store: Store) -> None:
    paths = ["/data/upload/1/a.png", "/tasks/3/resolve/?fileuri=czM6Ly94"]
    paths.append(f"http://ls.internal:{store.host.port}/data/local-files/?d=a.png")
    for path in paths:
        (prediction,) = predictions(store.client, body(path))
        assert prediction["result"]
    assert store.tokens() == [True] * 3


@pytest.mark.parametrize(
    "path",
    [
        "/api/users/",
        "/data/../api/users",
        "/data/%2e%2e/api/users",
        "/tasks/3/",
        "//host.test/data/x",
    ],
)
def test_other_paths_of_label_studio_are_asked_without_it(store: Store, path: str) -> None:
    predictions(store.client, body(path))
    assert store.tokens() == [False]


def test_other_hosts_do_not_get_the_token(store: Store) -> None:
    for url in ("http://host.test/data/x.png", "http://ls.internal/data/x.png"):
        refused = store.client.post("/predict", json=body(url))
        assert refused.status_code == 422
    assert store.host.heads == []


def test_a_redirect_does_not_take_the_token_along(
    neighbour: Neighbour,  # noqa: F811
    make_client: Any,
    engine: Any,
    png: bytes,
) -> None:
    bucket = neighbour.host(saying(response(png)))
    target = f"http://ls.internal:{bucket.port}/signed.png"
    host = neighbour.host(redirecting("/data/upload/2/b.png", target))
    with store_of(host, make_client, engine, bucket) as client:
        predictions(client, body("/data/upload/1/a.png"))
        assert Store(client, host).tokens() == [True, True]  # the first target is its own
        assert Store(client, bucket).tokens() == [False]


def test_the_token_is_in_no_answer(store: Store) -> None:
    refused = store.client.post("/predict", json=body("/data/x.png", config="<View/>"))
    told = refused.text + store.client.get("/metrics").text
    assert TOKEN not in told


def test_a_ring_that_is_drawn_wrongly_is_no_prediction(
    client: TestClient, engine: Any, data_url: str
) -> None:
    engine.default = Reply(TRIANGLE[:-30])
    (prediction,) = predictions(client, body(data_url))
    assert (prediction["result"], prediction["score"]) == ([], 0.0)
