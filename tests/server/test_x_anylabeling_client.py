"""X-AnyLabeling's own client. It brings Qt and a gigabyte more along: ``pip install
x-anylabeling-cvhub`` in an environment of its own, and name its Python in ``X_ANYLABELING_PYTHON``.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from simpleseg_server.engines.scripted import Reply

from .test_compat_x_anylabeling import CLOSED_PX

PYTHON = os.environ.get("X_ANYLABELING_PYTHON")
SCRIPT = Path(__file__).with_name("x_anylabeling_client.py")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="X-AnyLabeling is not installed"),
]


def test_it_lists_models_and_draws_what_is_found(
    engine: Any, serve_on_socket: Any, png: bytes, tmp_path: Path
) -> None:
    engine.replies["cat"] = Reply("[].")
    picture = tmp_path / "a.png"
    picture.write_bytes(png)
    with serve_on_socket(engine, enable=("x-anylabeling",), api_keys=("sk-any",)) as url:
        run = subprocess.run(
            [str(PYTHON), str(SCRIPT), url, "sk-any", str(picture)],
            capture_output=True,
            text=True,
            env={"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout.splitlines()[-1])
    assert (told["models"], told["batch"]) == (["scripted-model"], "text_prompt")
    ((label, shape_type, points, score),) = told["phrases"]
    assert (label, shape_type, points) == (
        "the dog",
        "polygon",
        CLOSED_PX[:-1],
    )  # it closes them itself
    assert score == pytest.approx(0.5)
    ((label, _, points, _),) = told["marked"]
    assert (label, points) == ("AUTOLABEL_OBJECT", CLOSED_PX[:-1])
    assert told["refused"] == []
    assert len(told["said"]) == 1
    assert "400" in told["said"][0]
