"""Real clients in Node: the ``openai`` package, Vercel's AI SDK and a plain ``fetch``.

The packages are installed once, into ``tests/server/node/node_modules``. Without Node, or without
the packages, the tests are skipped.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simpleseg_server.engines.scripted import Reply

from .chatting import QUESTION, user
from .conftest import TRIANGLE

FOLDER = Path(__file__).parent / "node"
POLYGONS = [[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]]


@pytest.fixture(scope="module")
def node() -> str:
    path = shutil.which("node")
    if path is None:
        pytest.skip("node is not installed")
    return path


@pytest.fixture(scope="module")
def packages() -> None:
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    if all(_version(name) == version for name, version in wanted.items()):
        return
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
    try:
        subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, timeout=300)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("npm cannot install the packages")


def _version(package: str) -> str | None:
    try:
        manifest = (FOLDER / "node_modules" / package / "package.json").read_text()
    except FileNotFoundError:
        return None
    return str(json.loads(manifest)["version"])


@pytest.fixture
def base_url(engine: Any, serve_on_socket: Any) -> Iterator[str]:
    engine.default = Reply(TRIANGLE, token_length=3)
    with serve_on_socket(engine) as url:
        yield f"{url}/v1"


def run(node: str, script: str, **data: Any) -> Any:
    """What a script prints, given these data."""
    finished = subprocess.run(
        [node, str(FOLDER / script)],
        input=json.dumps(data),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.usefixtures("packages")
def test_openai(node: str, base_url: str, engine: Any, image64: str) -> None:
    got = run(node, "openai_client.mjs", base_url=base_url, messages=[user(image64)])
    assert got["model"] == "scripted-model"
    assert got["requestID"].startswith("req_")
    contents = [choice["message"]["content"] for choice in got["plain"]["choices"]]
    assert contents == [TRIANGLE] * 2
    assert got["plain"]["choices"][0]["message"]["segmentation"]["polygons"] == POLYGONS
    tokens = got["plain"]["choices"][1]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == TRIANGLE
    assert got["streamed"] == got["helped"]["content"] == got["second"] == TRIANGLE
    assert got["last"]["finish_reason"] == "stop"
    assert got["last"]["delta"]["segmentation"]["polygons"] == POLYGONS
    assert got["usage"]["prompt_tokens"] == 16
    asked = next(r for r in engine.requests if r.history)
    assert [turn.role for turn in asked.history] == ["user", "assistant"]
    refusals = {
        name: (got[name]["name"], got[name]["status"], got[name]["code"], got[name]["param"])
        for name in ("unknown", "unsupported", "grammar", "missing")
    }
    assert refusals == {
        "unknown": ("BadRequestError", 400, "unknown_parameter", "guided_json"),
        "unsupported": ("BadRequestError", 400, "unsupported_value", "stop"),
        "grammar": ("BadRequestError", 400, "parameter_not_allowed", "response_format"),
        "missing": ("NotFoundError", 404, "model_not_found", None),
    }
    assert got["unknown"]["type"] == "invalid_request_error"
    assert got["unknown"]["requestID"].startswith("req_")


@pytest.mark.usefixtures("packages")
def test_the_ai_sdk(node: str, base_url: str, engine: Any, image64: str) -> None:
    got = run(node, "ai_sdk_client.mjs", base_url=base_url, image64=image64, question=QUESTION)
    assert got["text"] == got["streamed"] == TRIANGLE
    assert got["finishReason"] == got["streamReason"] == "stop"
    assert got["usage"]["inputTokens"] == got["streamUsage"]["inputTokens"] == 16
    assert got["segmentation"]["polygons"] == POLYGONS
    assert (engine.requests[0].seed, engine.requests[0].max_tokens) == (3, 500)
    assert engine.requests[0].history[0].text == "Answer briefly."
    assert got["refusal"]["status"] == 400
    error = json.loads(got["refusal"]["body"])["error"]
    assert got["refusal"]["message"] == error["message"]
    assert (error["code"], error["param"]) == ("unsupported_value", "stop")


def test_nothing_but_fetch(node: str, base_url: str, image64: str) -> None:
    got = run(node, "sse_client.mjs", base_url=base_url, messages=[user(image64)])
    assert got["type"].startswith("text/event-stream")
    assert (got["done"], got["rest"]) == ("[DONE]", "")
    assert got["content"] == TRIANGLE
    assert got["segmentation"]["polygons"] == POLYGONS
