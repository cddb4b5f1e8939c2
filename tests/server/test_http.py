"""What HTTP itself asks of a server: methods, and numbers in JSON."""

from typing import Any

import httpx2
import pytest

from simpleseg_polygon.grammar import fingerprint

from .asking import answer, refusal
from .conftest import PhraseEngine


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v1/models", "/metrics", "/openapi.json"])
def test_head_is_get_without_a_body(serve_on_socket: Any, engine: Any, path: str) -> None:
    with serve_on_socket(engine) as url, httpx2.Client(base_url=url) as client:
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert client.get("/livez").status_code == 200  # the connection is still in step


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/images/img_0", "GET, DELETE, HEAD, OPTIONS"),
        ("/segment", "POST, OPTIONS"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
    ],
)
def test_allow_names_the_methods_of_a_path(client: Any, path: str, methods: str) -> None:
    options = client.options(path)
    assert (options.status_code, options.content) == (204, b"")
    refused = client.put(path)
    assert refusal(refused)[:2] == (405, "method_not_allowed")
    assert options.headers["allow"] == refused.headers["allow"] == methods
    assert refusal(client.options("/nope"))[:2] == (404, "not_found")


def test_a_whole_number_may_be_written_with_a_point(client: Any, engine: Any, image64: str) -> None:
    body = f'{{"image": "{image64}", "prompt": "x", "max_points": 7.0, "seed": 1e3}}'
    headers = {"Content-Type": "application/json"}
    assert client.post("/segment", content=body, headers=headers).status_code == 200
    assert (engine.requests[0].max_points, engine.requests[0].seed) == (7, 1000)
    refused = client.post("/segment", content=body.replace("7.0", "7.5"), headers=headers)
    assert refusal(refused) == (400, "type_invalid", "max_points")


def test_the_fingerprint_names_server_engine_and_grammars(client: Any, image64: str) -> None:
    found = answer(client, image=image64, prompt="x")["system_fingerprint"]
    assert found.startswith("simpleseg-")
    assert found.endswith(f"-scripted-{fingerprint()}")


def test_a_text_as_tokens(client: Any) -> None:
    tokens = client.post("/tokenize", json={"prompt": "ab<|im_end|>"}).json()
    assert tokens["tokens"] == list(b"ab<|im_end|>")
    assert (tokens["count"], tokens["model"]) == (12, "scripted-model")
    assert refusal(client.post("/tokenize", json={"text": "x"})) == (
        400,
        "unknown_parameter",
        "text",
    )
    refused = client.post("/tokenize", json={"prompt": "x", "model": "other"})
    assert refusal(refused) == (404, "model_not_found", "model")
    refused = client.post("/tokenize", json={"prompt": "x" * 70_000})
    assert refusal(refused) == (422, "prompt_too_long", "prompt")


def test_tokens_need_a_key(make_client: Any, engine: Any) -> None:
    with make_client(engine, api_keys=("k",)) as client:
        assert client.post("/tokenize", json={"prompt": "x"}).status_code == 401
        headers = {"X-API-Key": "k"}
        assert client.post("/tokenize", json={"prompt": "x"}, headers=headers).status_code == 200


class WithoutTokenizer(PhraseEngine):
    tokenize = None  # type: ignore[assignment]


def test_an_engine_without_a_tokenizer_says_so(make_client: Any) -> None:
    with make_client(WithoutTokenizer()) as client:
        refused = client.post("/tokenize", json={"prompt": "x"})
        assert refusal(refused)[:2] == (422, "tokenizer_unavailable")
