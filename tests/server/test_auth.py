"""API keys: deny by default, one shape of refusal, limits by key, a file that may change."""

import hashlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from simpleseg_server.app import create_app
from simpleseg_server.auth import PROBES, presented_key
from simpleseg_server.config import ConfigError, Settings
from simpleseg_server.engines.scripted import Reply
from simpleseg_server.errors import ApiError
from simpleseg_server.keys import Key, KeyRing, digest_of
from simpleseg_server.quota import Bucket, Quotas

KEY = "canary-key-4711"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def locked(make_client: Any, engine: Any) -> Iterator[Any]:
    with make_client(engine, api_keys=("other", KEY)) as client:
        yield client


def assert_refused(response: Any) -> None:
    """The one text, whatever was wrong with the key."""
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="simpleseg"'
    error = response.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert error["type"] == "authentication_error"
    assert error["request_id"] == response.headers["x-request-id"]
    assert "4711" not in response.text
    assert len(error["message"]) < 100


def test_every_route_but_the_probes_needs_a_key(locked: Any) -> None:
    """Also documentation, metrics, and paths that do not exist; the playground's files do not."""
    documented = locked.app.openapi()["paths"].keys()
    assert documented >= PROBES | {"/segment", "/metrics", "/v1/models", "/version"}
    paths = documented | {
        "/v1/segment",
        "/docs",
        "/openapi.json",
        "/nope",
        "http://testserver//livez",
    }
    for path in paths:
        for method in ("GET", "POST"):
            response = locked.request(method, path)
            if path in PROBES:
                assert response.status_code in (200, 405)
            else:
                assert_refused(response)


@pytest.mark.parametrize(
    "headers", [BEARER, {"X-API-Key": KEY}, {"authorization": f"bearer {KEY}"}]
)
def test_a_valid_key_opens_every_route(locked: Any, headers: dict[str, str], image64: str) -> None:
    for path in ("/metrics", "/docs", "/openapi.json", "/v1/models"):
        assert locked.get(path, headers=headers).status_code == 200
    body = {"image": image64, "prompt": "x"}
    assert locked.post("/segment", json=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "Bearer wrong-4711")],
        [("Authorization", f"Bearer {KEY[:-1]}")],
        [("Authorization", f"Bearer {KEY}x")],
        [("Authorization", f"Bearer {KEY} {KEY}")],
        [("Authorization", f"Bearer{KEY}")],
        [("Authorization", KEY)],
        [("Authorization", "Basic Y2FuYXJ5LTQ3MTE6")],
        [("Authorization", "Bearer ")],
        [("Authorization", "")],
        [("Authorization", "Bearer é4711".encode("latin-1"))],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
        [("Authorization", f"Bearer {KEY}"), ("X-API-Key", KEY)],
        [("X-API-Key", "")],
        [("X-API-Key", f"Bearer {KEY}")],
        [("X-API-Key", "k" * 600)],
    ],
)
@pytest.mark.catalogue("I1", "I2")
def test_anything_else_is_refused_alike(locked: Any, headers: Any) -> None:
    assert_refused(locked.get("/v1/models", headers=headers))


@pytest.mark.catalogue("I1")
def test_a_key_in_the_address_is_none(locked: Any) -> None:
    for name in ("api_key", "key", "access_token"):
        assert_refused(locked.get("/v1/models", params={name: KEY}))


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key"]), st.binary())))
def test_no_header_is_too_strange(headers: list[tuple[bytes, bytes]]) -> None:
    key = presented_key(headers)
    assert key is None or (key.isascii() and key.isprintable() and " " not in key)


def test_without_keys_everyone_is_served(client: Any) -> None:
    assert client.get("/v1/models").status_code == 200
    assert client.get("/v1/models", headers={"Authorization": "Bearer x"}).status_code == 200


def test_the_operator_may_open_paths(make_client: Any, engine: Any) -> None:
    with make_client(engine, api_keys=(KEY,), open_paths=("/metrics", "/docs")) as client:
        assert client.get("/metrics").status_code == client.get("/docs").status_code == 200
        assert_refused(client.get("/openapi.json"))
        assert_refused(client.get("/metrics/"))


def test_refusals_are_counted_without_new_series(locked: Any) -> None:
    for index in range(30):
        locked.get(f"/v1/{index}", headers={"Authorization": f"Bearer {index}"})
    text = locked.get("/metrics", headers=BEARER).text
    assert 'simpleseg_rejections_total{reason="invalid_api_key"} 30.0' in text
    assert text.count('status="401"') <= 2  # a counter, and when it was created
    assert KEY not in text


def test_the_documentation_tells_of_keys(locked: Any) -> None:
    document = locked.get("/openapi.json", headers=BEARER).json()
    assert document["components"]["securitySchemes"].keys() == {"bearer", "header"}
    assert {"401", "429"} <= document["paths"]["/segment"]["post"]["responses"].keys()
    assert "401" in document["paths"]["/v1/models"]["get"]["responses"]
    assert "401" not in document["paths"]["/livez"]["get"]["responses"]


@pytest.mark.catalogue("I4")
def test_a_large_body_without_a_key_is_refused_before_it_is_sent(
    serve_on_socket: Any, engine: Any
) -> None:
    """The answer comes although only the head of 30 MB was sent, and no place was taken."""
    with serve_on_socket(engine, api_keys=(KEY,)) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
            head = "POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"
            connection.sendall(head.encode())
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in answer.lower()
        metrics = httpx2.get(f"{url}/metrics", headers=BEARER).text
        assert "simpleseg_in_flight 0.0" in metrics or "simpleseg_in_flight" not in metrics


def test_a_client_that_sends_on_gets_the_answer_and_not_a_reset(
    serve_on_socket: Any, engine: Any
) -> None:
    with serve_on_socket(engine, api_keys=(KEY,)) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.request("POST", "/segment", b"x" * 8_000_000)
        response = connection.getresponse()
        assert response.status == 401
        assert b"invalid_api_key" in response.read()


# What a key may use


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_requests_in_a_minute(make_client: Any, engine: Any, image64: str) -> None:
    body = {"image": image64, "prompt": "x"}
    with make_client(engine, api_keys=(KEY, "other"), requests_per_minute=3) as client:
        for left in (2, 1, 0):
            response = client.post("/segment", json=body, headers=BEARER)
            assert response.status_code == 200
            assert response.headers["x-ratelimit-limit-requests"] == "3"
            assert response.headers["x-ratelimit-remaining-requests"] == str(left)
            assert response.headers["x-ratelimit-reset-requests"].endswith("s")
        refused = client.post("/segment", json=body, headers=BEARER)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert 1000 < error["retry_after_ms"] <= 20_000
        assert refused.headers["retry-after-ms"] == str(error["retry_after_ms"])
        assert refused.headers["retry-after"] == str(-(-error["retry_after_ms"] // 1000))
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert client.get("/v1/models", headers=BEARER).status_code == 200
        assert client.get("/livez").status_code == 200
        other = client.post("/segment", json=body, headers={"X-API-Key": "other"})
        assert other.status_code == 200


def test_requests_at_a_time(serve_on_socket: Any, engine: Any, image64: str) -> None:
    engine.replies = {"hang": Reply("[]", fault="hang")}
    with (
        serve_on_socket(engine, api_keys=(KEY, "other"), max_concurrent_requests=1) as url,
        httpx2.Client(base_url=url, timeout=10, headers=BEARER) as client,
    ):
        _wait(lambda: client.get("/readyz").status_code == 200)
        held: list[int] = []

        def hold() -> None:
            body = {"image": image64, "prompt": "hang"}
            response = httpx2.post(f"{url}/segment", json=body, headers=BEARER, timeout=10)
            held.append(response.status_code)

        thread = threading.Thread(target=hold)
        thread.start()
        _wait(lambda: engine.running == 1)
        body = {"image": image64, "prompt": "x"}
        refused = client.post("/segment", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "at a time" in refused.json()["error"]["message"]
        other = httpx2.post(f"{url}/segment", json=body, headers={"X-API-Key": "other"})
        assert other.status_code == 200
        engine.die()
        thread.join(10)
        assert held == [503]
        after = client.post("/segment", json=body)
        assert after.status_code == 503  # the engine is dead; the key is not in use any more


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@given(st.integers(1, 1000), st.lists(st.floats(0, 100), max_size=50))
def test_a_bucket_never_gives_more_than_it_may(rate: int, pauses: list[float]) -> None:
    """In any window of w seconds at most rate + w * rate / 60 requests pass; and whoever waits as
    long as told is served."""
    clock, passed = 0.0, 0
    bucket = Bucket(rate, now=0.0)
    for pause in pauses:
        clock += pause
        wait = bucket.take(clock)
        passed += wait == 0
        assert 0 <= wait <= 60 / rate
        assert passed <= rate + clock * rate / 60 + 1e-6
        if wait:
            clock += wait
            passed += 1
            assert bucket.take(clock) == 0


def test_a_refused_request_holds_nothing() -> None:
    clock = Clock()
    quotas = Quotas(1.0, clock)
    key = Key("a", b"", requests_per_minute=1, max_concurrent_requests=1)
    quotas.enter(key)
    with pytest.raises(ApiError, match="rate_limit_exceeded") as caught:
        quotas.enter(key)
    assert "at a time" in caught.value.message
    quotas.leave(key)
    clock.now = 60
    quotas.enter(key)
    quotas.leave(key)
    with pytest.raises(ApiError) as caught:
        quotas.enter(key)
    assert caught.value.retry_after_s == 60


# The file of keys


def _file(folder: Path, text: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_names_keys_and_may_hold_hashes(
    make_client: Any, engine: Any, tmp_path: Path, image64: str
) -> None:
    digest = hashlib.sha256(b"hashed-key").hexdigest()
    text = f'[alice]\nkey = "{KEY}"\n[bob]\nsha256 = "{digest}"\nrequests_per_minute = 1\n'
    body = {"image": image64, "prompt": "x"}
    with make_client(engine, api_keys_file=_file(tmp_path, text)) as client:
        for status in (200, 429):
            response = client.post("/segment", json=body, headers={"X-API-Key": "hashed-key"})
            assert response.status_code == status
        for _ in range(3):
            response = client.post("/segment", json=body, headers=BEARER)
            assert response.status_code == 200
            assert "x-ratelimit-limit-requests" not in response.headers
        assert_refused(client.get("/v1/models", headers={"X-API-Key": digest}))


def test_the_name_of_a_key_is_in_the_log_and_the_key_is_not(
    make_client: Any, engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = _file(tmp_path, f'[alice]\nkey = "{KEY}"')
    with make_client(engine, api_keys_file=file) as client, caplog.at_level("INFO"):
        client.get("/v1/models", headers=BEARER)
        client.get("/v1/models", headers={"X-API-Key": "wrong-4711"})
    named = [getattr(record, "fields", {}).get("key_name") for record in caplog.records]
    assert "alice" in named
    assert "4711" not in caplog.text + "".join(str(vars(record)) for record in caplog.records)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no key"),
        ("[alice]", "alice: give either key or sha256"),
        ('[alice]\nkey = "a-4711"\nsha256 = "' + "0" * 64 + '"', "give either"),
        ('[alice]\nkey = ""', "alice.key: a key is"),
        ('[alice]\nsha256 = "4711"', "alice.sha256: "),
        ('[alice]\nkey = "a"\nrate = 1', "alice.rate: unknown field"),
        ('[alice]\nkey = "a"\nrequests_per_minute = 0', "alice.requests_per_minute: "),
        ('[alice]\nkey = "a-4711"\n[bob]\nkey = "a-4711"', "alice and bob are the same"),
        ('["al ice"]\nkey = "a-4711"', "a name is"),
        ("[alice", "Expected ']'"),
        ('alice = "a-4711"', "alice: "),
    ],
)
def test_a_bad_file_is_refused_without_its_keys(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KeyRing(Settings(api_keys_file=_file(tmp_path, text)))
    assert words in str(caught.value)
    assert "4711" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        KeyRing(Settings(api_keys_file=tmp_path / "nowhere"))


def _change(file: Path, text: str) -> None:
    before = file.stat().st_mtime_ns
    file.write_text(text, encoding="utf-8")
    os.utime(file, ns=(before + 10**9, before + 10**9))


def test_keys_change_while_the_server_runs(tmp_path: Path) -> None:
    clock = Clock()
    file = _file(tmp_path, '[alice]\nkey = "old"')
    ring = KeyRing(Settings(api_keys_file=file), clock)
    assert ring.find("old") == Key("alice", digest_of("old"))
    _change(file, '[alice]\nkey = "new"\n[bob]\nkey = "second"')
    clock.now = 2
    assert ring.find("old") is None
    assert [ring.find(key).name for key in ("new", "second")] == ["alice", "bob"]  # type: ignore[union-attr]


@pytest.mark.parametrize("after", ["[broken", ""])
def test_a_change_for_the_worse_leaves_the_keys_and_the_lock(
    tmp_path: Path, after: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    file = _file(tmp_path, '[alice]\nkey = "old"')
    ring = KeyRing(Settings(api_keys_file=file), clock)
    _change(file, after)
    for clock.now in (2.0, 4.0, 6.0):
        assert ring.find("old") is not None
        assert ring.find("other") is None
        assert ring.is_locked
    assert caplog.text.count("the API keys stay as they were") == 1
    file.unlink()
    clock.now = 8
    assert ring.find("old") is not None


def test_the_same_key_may_not_be_given_twice() -> None:
    with pytest.raises(ConfigError, match="key-1 and key-2 are the same"):
        create_app(Settings(api_keys=(SecretStr("a"), SecretStr("a"))), None)  # type: ignore[arg-type]


def test_a_wrong_key_takes_as_long_wherever_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comparison is of all keys' digests: the work does not depend on what was presented."""
    ring = KeyRing(Settings(api_keys=tuple(SecretStr(f"key-{n}") for n in range(100))))
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr("simpleseg_server.keys.hmac.compare_digest", compare)
    for presented, found in (("key-0", True), ("key-99", True), ("x", False), ("", False)):
        compared.clear()
        assert (ring.find(presented) is not None) == found
        assert len(compared) == 100
        assert {len(side) for pair in compared for side in pair} == {32}


def test_the_client_library_sends_the_key(serve_on_socket: Any, engine: Any, png: bytes) -> None:
    from simpleseg import AuthenticationError, SimpleSeg

    with serve_on_socket(engine, api_keys=(KEY,)) as url:
        with SimpleSeg(url, api_key=KEY, max_retries=2) as client:
            assert client.segment(png, "x").status == "ok"
        with SimpleSeg(url, api_key="wrong") as client, pytest.raises(AuthenticationError):
            client.segment(png, "x")
