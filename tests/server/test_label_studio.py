"""A real Label Studio, started for the test, with our server as its ML backend.

It is a gigabyte with an environment of its own: ``pip install label-studio`` there, and name its
command in the variable ``LABEL_STUDIO``.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from simpleseg_server.engines.scripted import Reply

from .test_compat_label_studio import CONFIG, TRIANGLE_PERCENT, mark

COMMAND = os.environ.get("LABEL_STUDIO") or shutil.which("label-studio")
TOKEN = "0123456789abcdef0123456789abcdef01234567"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMMAND is None, reason="Label Studio is not installed"),
]

# The backend is on this machine, which Label Studio otherwise forbids.
OPEN = {
    "ML_BLOCK_LOCAL_IP": "false",
    "SSRF_PROTECTION_ENABLED": "false",
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "LATEST_VERSION_CHECK": "false",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of its API, as its first user."""
    folder, port = tmp_path_factory.mktemp("label-studio"), free_port()
    options = ["--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    user = ["--username", "a@example.org", "--password", "not-a-secret-1", "--user-token", TOKEN]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | OPEN
    environment["LABEL_STUDIO_BASE_DATA_DIR"] = str(folder)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(COMMAND), "start", *options, *user],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )
    headers = {"Authorization": f"Token {TOKEN}"}
    base = f"http://127.0.0.1:{port}"
    try:
        with httpx2.Client(base_url=base, headers=headers, timeout=120, trust_env=False) as client:
            _wait(client, process, folder / "log")
            yield client
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait(client: httpx2.Client, process: Any, log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(1)
    pytest.fail("Label Studio did not start")


def answer(response: httpx2.Response) -> Any:
    assert response.is_success, response.text
    return response.json()


@pytest.fixture
def backend(label_studio: httpx2.Client, engine: Any, serve_on_socket: Any) -> Iterator[str]:
    engine.default = Reply("[[[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]]].")
    engine.replies["cat"] = Reply("[].")
    settings = {
        "enable": ("label-studio",),
        "api_keys": ("sk-ls",),
        "image_urls": "listed",
        "image_url_hosts": (label_studio.base_url.netloc.decode(),),
        "image_url_timeout_s": 60,
        "label_studio_url": str(label_studio.base_url).rstrip("/"),
        "label_studio_token": TOKEN,
    }
    with serve_on_socket(engine, **settings) as url:
        yield url


@pytest.fixture
def project(label_studio: httpx2.Client, backend: str, png: bytes) -> dict[str, Any]:
    """A project with one uploaded picture and our server as its backend."""
    made = {"title": "dogs", "label_config": CONFIG}
    project: dict[str, Any] = answer(label_studio.post("/api/projects", json=made))
    path = f"/api/projects/{project['id']}/import"
    answer(label_studio.post(path, files={"file": ("a.png", png, "image/png")}))
    connected = {
        "project": project["id"],
        "url": backend,
        "title": "SimpleSeg",
        "is_interactive": True,
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": "anybody",
        "basic_auth_pass": "sk-ls",
    }
    project["ml"] = answer(label_studio.post("/api/ml", json=connected))
    found = answer(label_studio.get("/api/tasks", params={"project": project["id"]}))
    (project["task"],) = found["tasks"]
    return project


def test_it_connects(label_studio: httpx2.Client, project: Any) -> None:
    assert project["task"]["data"]["picture"].startswith("/data/upload/")
    (backend,) = answer(label_studio.get("/api/ml", params={"project": project["id"]}))
    assert (backend["readable_state"], backend["model_version"]) == ("Connected", "scripted-model")


@pytest.mark.parametrize(
    ("mark_", "wording"),
    [
        (mark("textarea", text=["the left dog"]), "the left dog"),
        (mark("keypointlabels", x=25, y=50, keypointlabels=["dog"]), "at [0.25, 0.5]"),
        (
            mark("rectanglelabels", x=10, y=20, width=40, height=70, rectanglelabels=["dog"]),
            "in the box [0.1, 0.2, 0.5, 0.9]",
        ),
    ],
)
def test_smart_tools(
    label_studio: httpx2.Client, project: Any, engine: Any, mark_: Any, wording: str
) -> None:
    asked = {"task": project["task"]["id"], "context": {"result": [mark_]}}
    path = f"/api/ml/{project['ml']['id']}/interactive-annotating"
    told = answer(label_studio.post(path, json=asked))
    assert "errors" not in told, told
    (found,) = told["data"]["result"]
    assert found["value"]["points"] == TRIANGLE_PERCENT
    assert found["value"]["polygonlabels"] == ["dog"]
    assert wording in engine.requests[-1].instruction


def test_predictions_are_saved(label_studio: httpx2.Client, project: Any) -> None:
    actions = {"id": "retrieve_tasks_predictions", "project": project["id"]}
    chosen = {"selectedItems": {"all": True, "excluded": []}, "project": project["id"]}
    answer(label_studio.post("/api/dm/actions", params=actions, json=chosen))
    saved = answer(label_studio.get("/api/predictions", params={"task": project["task"]["id"]}))
    (prediction,) = saved
    assert prediction["model_version"] == "scripted-model"
    (found,) = prediction["result"]
    assert found["value"]["polygonlabels"] == ["dog"]


def test_what_is_refused_is_told_to_the_person(label_studio: httpx2.Client, project: Any) -> None:
    negative = mark("keypointlabels", x=25, y=50) | {"is_positive": False}
    asked = {"task": project["task"]["id"], "context": {"result": [negative]}}
    path = f"/api/ml/{project['ml']['id']}/interactive-annotating"
    told = answer(label_studio.post(path, json=asked))
    assert "400" in told["errors"][0]


def test_a_webhook_that_is_ours(label_studio: httpx2.Client, project: Any, backend: str) -> None:
    hooks = answer(label_studio.get("/api/webhooks/", params={"project": project["id"]}))
    assert [hook["url"] for hook in hooks] == [f"{backend}/webhook"]
    sent = {"action": "ANNOTATION_CREATED", "project": {"id": project["id"]}}
    told = httpx2.post(f"{backend}/webhook", json=sent, headers={"X-API-Key": "sk-ls"})
    assert told.status_code == 200
