"""What the server gives the page: its files, their headers, and the files of other tools."""

import io
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg_server.config import Settings
from simpleseg_server.playground.assets import assets
from simpleseg_server.routes.playground import open_paths

STATIC = Path(str(files("simpleseg_server.playground"))) / "static"
SQUARE = [[0.0, 0.0], [0.5, 0.0], [0.5, 0.5], [0.0, 0.5]]
KEY = {"X-API-Key": "canary-key"}


def asked(**fields: Any) -> dict[str, Any]:
    one = {"label": "a", "polygons": [SQUARE]}
    return {
        "format": "coco",
        "file_name": "a.png",
        "width": 20,
        "height": 10,
        "objects": [one],
        **fields,
    }


def test_every_file_has_its_type_and_strict_headers(client: Any) -> None:
    assert len(assets()) > 20
    for path, asset in assets().items():
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"] == asset.media_type
        assert response.content == asset.content
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        policy = response.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(policy)
        assert "unsafe" not in response.headers["content-security-policy"]
    head = client.head("/")
    assert (head.status_code, head.content) == (200, b"")


def test_no_other_file_is_to_be_had(client: Any) -> None:
    for path in (
        "/playground/",
        "/playground/index.html",
        "/playground/../config.py",
        "/playground/%2e%2e/config.py",
        "/playground/js/..%2f..%2fassets.py",
        "/playground/assets.py",
    ):
        assert client.get(path).status_code == 404, path
    assert client.post("/").status_code == 405


def test_a_file_that_the_browser_has_is_not_sent_again(client: Any) -> None:
    first = client.get("/playground/js/main.js")
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for given in (etag, f'"other", W/{etag}', "*"):
        again = client.get("/playground/js/main.js", headers={"If-None-Match": given})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    other = client.get("/playground/js/main.js", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    """And has neither scripts nor styles of its own, nor a way for text to become markup."""
    for file in STATIC.rglob("*"):
        if file.suffix not in (".html", ".css", ".js"):
            continue
        text = file.read_text()
        assert len(text.splitlines()) < 400, file.name
        addresses = re.findall(r"https?://\w[^\s\"'`]*", text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file.name
        assert file.suffix != ".css" or "url(" not in text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", page)


def test_every_file_that_the_page_names_is_there() -> None:
    page = (STATIC / "index.html").read_text()
    named = {f"/{path}" for path in re.findall(r'(?:src|href)="(playground/[^"]+)"', page)}
    for script in (STATIC / "js").iterdir():
        imported = re.findall(r'from "\./([^"]+)"', script.read_text())
        named |= {f"/playground/js/{name}" for name in imported}
    assert named <= assets().keys()
    unused = {path for path in assets() if path.endswith((".js", ".css"))} - named
    assert unused == set()


def test_the_samples_are_those_of_the_examples() -> None:
    examples = Path(__file__).parents[2] / "examples/images"
    for sample in (STATIC / "samples").iterdir():
        assert sample.read_bytes() == (examples / sample.name).read_bytes()


def test_the_page_can_be_switched_off(make_client: Any, engine: Any) -> None:
    with make_client(engine, playground=False) as client:
        for path in ("/", "/playground/js/main.js", "/playground/config.json"):
            assert client.get(path).status_code == 404
        assert client.post("/playground/export", json=asked()).status_code == 404
    with make_client(engine, playground=False, api_keys="canary-key") as client:
        assert client.get("/").status_code == 401
    assert open_paths(Settings(playground=False)) == frozenset()


def test_only_the_files_open_without_a_key(make_client: Any, engine: Any, png: bytes) -> None:
    with make_client(engine, api_keys="canary-key") as client:
        for path in assets():
            assert client.get(path).status_code == 200
        config = client.get("/playground/config.json")
        assert config.json()["needs_key"] is True
        assert "canary" not in config.text
        kept = client.post("/v1/images", files={"image": png}, headers=KEY).json()["id"]
        picture = f"/playground/images/{kept}"
        assert client.get(picture).status_code == 401
        assert client.post("/playground/export", json=asked()).status_code == 401
        assert client.get(picture, headers=KEY).content == png
        assert client.post("/playground/export", json=asked(), headers=KEY).status_code == 200


def test_a_kept_image_comes_back_inert_and_to_its_owner(
    make_client: Any, engine: Any, png: bytes
) -> None:
    with make_client(engine, api_keys=("canary-key", "other-key")) as client:
        kept = client.post("/v1/images", files={"image": png}, headers=KEY).json()["id"]
        mine = client.get(f"/playground/images/{kept}", headers=KEY)
        assert mine.headers["content-type"] == "application/octet-stream"
        assert mine.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert mine.headers["x-content-type-options"] == "nosniff"
        other = client.get(f"/playground/images/{kept}", headers={"X-API-Key": "other-key"})
        assert other.status_code == 404
        assert other.json()["error"]["code"] == "image_not_found"


def test_the_page_is_no_part_of_the_documented_api(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/playground")]


def test_exports_name_equal_labels_once(client: Any) -> None:
    objects = [
        {"label": "a", "polygons": [SQUARE], "score": 0.5},
        {"label": "b", "polygons": [[[0.5, 0.5], [1.0, 0.5], [1.0, 1.0]]]},
        {"label": "a", "polygons": [SQUARE, [[0.1, 0.1]]]},
    ]
    document = client.post("/playground/export", json=asked(objects=objects)).json()
    assert document["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    assert [one["category_id"] for one in document["annotations"]] == [1, 2, 1]
    assert [one["id"] for one in document["annotations"]] == [1, 2, 3]
    assert document["annotations"][0]["score"] == 0.5
    assert [len(one["segmentation"]) for one in document["annotations"]] == [1, 1, 1]
    mask = client.post("/playground/export", json=asked(format="mask", objects=objects))
    values = np.asarray(Image.open(io.BytesIO(mask.content)))
    assert values.shape == (10, 20)
    assert values[2, 2] == 3
    assert values[6, 19] == 2
    assert values[9, 0] == 0


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"format": "psd"}, 422, "value_not_allowed", "format"),
        ({"colour": 1}, 400, "unknown_parameter", "colour"),
        ({"objects": []}, 422, "wrong_length", "objects"),
        ({"width": 0}, 422, "value_out_of_range", "width"),
        ({"width": 50_000, "height": 50_000}, 422, "image_too_many_pixels", "width"),
        (
            {"objects": [{"label": "a", "polygons": [[[1e400, 0.0]]]}]},
            422,
            "coordinate_not_finite",
            None,
        ),
    ],
)
def test_bad_exports_are_refused(
    client: Any, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    body = json.dumps(asked(**fields))
    headers = {"Content-Type": "application/json"}
    response = client.post("/playground/export", content=body, headers=headers)
    error = response.json()["error"]
    assert response.status_code == status, error
    if param is not None:
        assert (error["code"], error["param"]) == (code, param)


def test_outlines_that_cross_too_often_are_refused_in_words(client: Any) -> None:
    star = [[(k * 4_637 % 10_007) / 10_007, (k * 7_919 % 10_009) / 10_009] for k in range(300)]
    body = asked(format="geojson", objects=[{"label": "a", "polygons": [star]}], width=2000)
    response = client.post("/playground/export", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "outline_too_complex"
    body["format"] = "mask"
    assert client.post("/playground/export", json=body).status_code == 200
