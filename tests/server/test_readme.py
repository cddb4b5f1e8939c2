"""The commands and programs of README and documentation, run against a real server with the shipped
model.

A block in ``sh`` or ``python`` runs as it stands, unless the line before it says why not:
``<!-- not run: the reason -->``. A block in ``toml`` is read as settings, or as keys.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from simpleseg_server.config import Settings
from simpleseg_server.keys import KeyRing
from simpleseg_server.sources import load

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?```(sh|python|toml)\n(.+?)```", re.DOTALL)
LINK = re.compile(r"(?:\]\(|src=\")(?!https?://)([^)\s\"#]+)")
REASONS = {
    "installs",
    "needs a GPU",
    "needs Docker",
    "needs Ray",
    "needs a bucket",
    "needs a cluster",
    "needs vLLM",
    "needs other servers",
    "its port is taken while the server runs",
    "trains for hours",
    "writes into a checkpoint",
    "needs the data sets",
    "needs published weights",
    "needs the packages",
}


class Block(NamedTuple):
    page: str
    reason: str
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}: {self.text[:40]}"


BLOCKS = [
    Block(page.name, *match.groups(default=""))
    for page in PAGES
    for match in BLOCK.finditer(page.read_text(encoding="utf-8"))
]
PROGRAMS = [block for block in BLOCKS if not block.reason and block.language != "toml"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as if it were the checkout: what is written there is gone afterwards."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "server.toml").write_text("port = 8000\n")
    return tmp_path


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.name)
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
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (run.stdout + run.stderr).strip()


@pytest.mark.parametrize(
    "block", [one for one in BLOCKS if one.language == "toml"], ids=lambda block: block.name
)
def test_a_block_of_settings_can_be_read(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    file.write_text(block.text)
    if block.text.startswith("["):
        assert KeyRing(Settings(api_keys_file=file)).is_locked
    else:
        assert load({}, file).origins


def test_what_is_not_run_needs_what_is_not_here() -> None:
    assert {block.reason for block in BLOCKS if block.reason} <= REASONS
    in_readme = [block for block in PROGRAMS if block.page == "README.md"]
    assert {"sh", "python"} == {block.language for block in in_readme}
    assert len(PROGRAMS) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_a_new_user_sees_a_request_and_a_picture_at_once() -> None:
    start = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:40]
    marks = ("pip install", "client.segment(", 'overlay.png" width')
    lines = [next(i for i, line in enumerate(start) if mark in line) for mark in marks]
    assert lines == sorted(lines)
