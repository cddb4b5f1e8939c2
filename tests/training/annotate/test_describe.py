"""Descriptions by an endpoint on a real socket."""

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simpleseg_polygon.geometry import Box
from simpleseg_training.annotate.describe import MARKED, ModelDescriber, Unavailable, clean
from simpleseg_training.annotate.parts import Detection

FOUND = [Detection("dog", 0.9, Box(0.25, 0.25, 0.75, 0.75))]
PICTURE = np.full((40, 80, 3), 255, np.uint8)


@contextmanager
def endpoint(answers: list[tuple[int, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """Gives the answers in turn; what was asked is kept."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers["Authorization"], json.loads(body)))
            status, answer = answers.pop(0)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
        server.shutdown()


def _says(text: str) -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"content": text}}]}


def test_the_object_is_shown_by_a_red_box() -> None:
    with endpoint([(503, {}), (429, {}), _says('"The left dog."\nIt is brown.')]) as (url, asked):
        described = ModelDescriber(url, "m", "secret", wait_s=0.01).describe(PICTURE, FOUND, FOUND)
    assert described == ["the left dog"]
    assert len(asked) == 3  # a busy server is asked again
    path, authorization, question = asked[-1]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
    picture, text = question["messages"][0]["content"]
    assert text["text"] == MARKED
    shown = Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].split(",")[1])))
    red = np.asarray(shown).astype(int)
    assert red[10, 40, 0] - red[10, 40, 2] > 100
    assert red[20, 40].min() > 240


def test_our_own_models_are_told_the_box_in_numbers() -> None:
    with endpoint([_says("the dog.")]) as (url, asked):
        describer = ModelDescriber(url, "m", is_marked=False)
        assert describer.describe(PICTURE, FOUND, FOUND) == ["the dog"]
    text = asked[0][2]["messages"][0]["content"][1]["text"]
    assert text == "Describe the object in the box [0.25, 0.25, 0.75, 0.75] in the image."


@pytest.mark.parametrize(
    ("answers", "asks"),
    [([(401, {})], 1), ([(500, {})] * 4, 4), ([(200, {"choices": []})], 1)],
)
def test_an_endpoint_that_does_not_answer_ends_the_run(
    answers: list[tuple[int, Any]], asks: int
) -> None:
    with endpoint(answers) as (url, asked), pytest.raises(Unavailable):
        ModelDescriber(url, "m", wait_s=0.001).describe(PICTURE, FOUND, FOUND)
    assert len(asked) == asks


@pytest.mark.parametrize(
    ("said", "phrase"),
    [("", ""), ("Dog", "Dog"), ("  A cat. ", "a cat"), ("`the bus`", "the bus"), ("\n", "")],
)
def test_answers_become_phrases(said: str, phrase: str) -> None:
    assert clean(said) == phrase
