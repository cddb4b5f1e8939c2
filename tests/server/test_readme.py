"""The README's commands and programs, run against a real server with the shipped model.

A block in ``sh`` or ``python`` runs as it stands, unless the line before it says why not:
``<!-- not run: the reason -->``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?```(sh|python)\n(.+?)```", re.DOTALL)


class Block(NamedTuple):
    reason: str
    language: str
    text: str


BLOCKS = [
    Block(*match.groups(default="")) for match in BLOCK.finditer((ROOT / "README.md").read_text())
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as if it were the checkout: what is written there is gone afterwards."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "server.toml").write_text("port = 8000\n")
    return tmp_path


@pytest.mark.parametrize("block", [b for b in BLOCKS if not b.reason], ids=lambda b: b.text[:40])
def test_a_block_runs(block: Block, folder: Path, demo_url: str) -> None:
    text = block.text.replace("http://127.0.0.1:8000", demo_url)
    shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
    # As in an activated environment.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        [*shell, text],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip()


def test_what_is_not_run_needs_what_is_not_here() -> None:
    for block in BLOCKS:
        if block.reason:
            assert block.reason in ("installs", "needs a GPU", "needs vLLM", "needs other servers")
    assert sum("curl" in block.text for block in BLOCKS if not block.reason) >= 1
    assert sum(block.language == "python" for block in BLOCKS if not block.reason) >= 2
