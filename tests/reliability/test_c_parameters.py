"""Section C: what reaches the engine is listed and in range."""

import threading
from itertools import product
from typing import Any

import pytest

from .canary import IMAGE64, Canary

CHAT = "/v1/chat/completions"
URL = f"data:image/png;base64,{IMAGE64}"
PICTURE = {"type": "image_url", "image_url": {"url": URL}}
QUESTION = "Output the polygon coordinates of the dog in the image."
REGEX, EBNF = "(a+)+b", 'root ::= "(" root ")" | ""'


def chat(canary: Canary, *parts: Any, **fields: Any) -> tuple[int, str]:
    """Status and code of the refusal of a chat, of which the engine hears nothing."""
    asked = canary.asked()
    content = [PICTURE, {"type": "text", "text": QUESTION}, *parts]
    body = {"messages": [{"role": "user", "content": content}], **fields}
    response = canary.client.post(CHAT, json=body)
    assert response.status_code == 200 or canary.asked() == asked, "the engine was asked"
    error = response.json().get("error", {})
    return response.status_code, error.get("code", "")


GRAMMARS: tuple[dict[str, Any], ...] = (
    {"structured_outputs": {"regex": REGEX}},
    {"structured_outputs": {"grammar": EBNF}},
    {"structured_outputs": {"json": {"type": "object"}}},
    {"structured_outputs": {"json_object": True}},
    {"structured_outputs": {"choice": ["yes"]}},
    {"structured_outputs": {"structural_tag": "{}"}},
    {"guided_regex": REGEX},
    {"guided_grammar": EBNF},
    {"guided_json": {}},
    {"guided_choice": ["yes"]},
    {"guided_decoding_backend": "xgrammar"},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "structural_tag", "structures": [], "triggers": []}},
    {"response_format": {"type": "grammar", "grammar": EBNF}},
)


@pytest.mark.parametrize("fields", GRAMMARS, ids=str)
def test_C1_grammars_of_clients(canary: Canary, fields: dict[str, Any]) -> None:
    status, code = chat(canary, **fields)
    assert status == 400
    assert code in ("parameter_not_allowed", "unknown_parameter", "unsupported_value")
    [(name, value)] = fields.items()
    assert canary.segment(**{name: value}).json()["error"]["code"] == "unknown_parameter"


PARAMETERS: dict[str, Any] = {
    "chat_template": "{{ 1 }}",
    "chat_template_kwargs": {"a": 1},
    "mm_processor_kwargs": {"max_pixels": 10**9},
    "media_io_kwargs": {"image": {}},
    "prompt_embeds": "gASV",
    "prompt_logprobs": 5,
    "best_of": 64,
    "n": 10**6,
    "logit_bias": {"1": 100},
    "bad_words": ["]"],
    "allowed_token_ids": [1],
    "logprobs": 5,
    "top_logprobs": 20,
    "min_tokens": 10**6,
    "stop": ["]"] * 1000,
    "stop_token_ids": [1],
    "priority": -1,
    "cache_salt": "x",
    "lora": "x",
    "lora_request": {},
    "repetition_penalty": 0,
    "presence_penalty": 2,
    "ignore_eos": True,
    "truncate_prompt_tokens": 1,
    "vllm_xargs": {},
    "kv_transfer_params": {},
    "return_token_ids": True,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_C3_parameters_of_engines(canary: Canary, name: str) -> None:
    asked = {name: PARAMETERS[name]}
    assert chat(canary, **asked)[0] in (400, 422)
    assert canary.segment(**asked).status_code == 400


def test_C3_tensors_are_no_images(canary: Canary) -> None:
    for kind in ("image_embeds", "prompt_embeds", "video_url", "audio_url", "input_audio"):
        assert chat(canary, {"type": kind, kind: "gASV"}) == (400, "unsupported_value")
    assert chat(canary, n=2)[0] == 200


HARMLESS = ("a", "A-z_0.9", "x" * 64)
HARMFUL = ("", "x" * 65, "a b", "a\tb", "é", "a;b", "../a", "%0d%0aX: y", "x" * 10_000)


def test_C4_request_ids(canary: Canary) -> None:
    for given in HARMLESS:
        answer = canary.client.post("/segment", json={}, headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"] == given
    for given in HARMFUL:
        headers = [(b"X-Request-Id", given.encode())]
        answer = canary.client.post("/segment", json={}, headers=headers)
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    huge = canary.raw(b"GET /livez HTTP/1.1\r\nX-Request-Id: " + b"x" * 10**6 + b"\r\n\r\n")
    assert huge == b"" or huge.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))


def test_C4_the_engine_s_id_is_ours(canary: Canary) -> None:
    """Two requests of one name, and one whose name begins another's, are told apart by the engine,
    and one that ends takes no other with it."""
    names, statuses = ("same", "same", "sam"), []

    def ask(name: str) -> None:
        body = {"image": IMAGE64, "prompt": "canary-slow"}
        answer = canary.client.post("/segment", json=body, headers={"X-Request-Id": name})
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask, args=[name]) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 3
    ids = canary.engine_ids()[-3:]
    assert len(set(ids)) == 3
    assert not any(a != b and a.startswith(b) for a in ids for b in ids)


def test_C5_an_engine_that_cannot_go_on(canary: Canary) -> None:
    """The request is 503, those beside it are answered, and so is the next."""
    statuses: dict[str, int] = {}

    def ask(prompt: str) -> None:
        statuses[prompt] = canary.segment(prompt=prompt).status_code

    prompts = ("canary-error", "canary-slow", "a dog")
    threads = [threading.Thread(target=ask, args=[prompt]) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {"canary-error": 503, "canary-slow": 200, "a dog": 200}
    assert canary.client.get("/readyz").status_code == 200


ROUTES = """
    /invocations /pause /resume /sleep /wake_up /is_sleeping /collective_rpc /reset_prefix_cache
    /reset_mm_cache /server_info /load /start_profile /stop_profile /scale_elastic_ep /detokenize
    /pooling /classify /score /rerank /v1/completions /v1/embeddings /v1/responses /v1/messages
    /v1/load_lora_adapter /v1/unload_lora_adapter /v1/audio/transcriptions /v2/rerank
    /inference/v1/generate /abort_requests /update_weights /init_weight_transfer_engine
    /generate /generate_stream /infer /v2/models/x/infer
"""


def test_C6_routes_of_engines(canary: Canary) -> None:
    for method, path in product(("GET", "POST"), ROUTES.split()):
        response = canary.client.request(method, path, json={})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
