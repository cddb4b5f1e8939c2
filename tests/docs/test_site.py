"""The documentation as a site: complete, without a dead link, and without another server."""

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer.main

from simpleseg.cli import app as commands
from simpleseg.results import Segmentation
from simpleseg_server.app import create_app
from simpleseg_server.config import Settings
from simpleseg_server.engines.scripted import ScriptedEngine
from simpleseg_server.telemetry import Metrics

ROOT = Path(__file__).parents[2]
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "form": "action"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return folder


class _Loads(HTMLParser):
    """What a browser would fetch for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        name = LOADING.get(tag)
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            name = "href"
        if name is not None and values.get(name):
            self.urls.append(str(values[name]))


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        parser = _Loads()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.urls
        assert [url for url in parser.urls if re.match(r"(?:https?:)?//", url)] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()[ \"']*(?:https?:)?//", style.read_text())


def _text(site: Path, page: str) -> str:
    html = (site / page / "index.html").read_text(encoding="utf-8")
    assert "generated:" not in html
    return html


def test_every_route_and_shape_is_told(site: Path) -> None:
    text = _text(site, "http-api")
    document: Any = create_app(Settings(), ScriptedEngine(["[]"])).openapi()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"{method.upper()} {path}" in text
    for name, schema in document["components"]["schemas"].items():
        assert f'id="{name.lower()}"' in text
        assert all(f"<code>{field}</code>" in text for field in schema.get("properties", {}))


def test_every_command_and_option_is_told(site: Path) -> None:
    text, settings = _text(site, "command-line"), _text(site, "settings")
    group: Any = typer.main.get_command(commands)
    told = dict(_commands_of(group))
    assert "data refcoco" in told
    for name, command in told.items():
        assert f"simpleseg {name}" in text
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in text or parameter.name in settings or option == "--help"


def _commands_of(group: Any) -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from ((f"{name} {inner}", command) for inner, command in _commands_of(one))
        else:
            yield name, one


def test_every_metric_is_told(site: Path) -> None:
    text = _text(site, "operations")
    for family in Metrics().registry.collect():
        if family.name.startswith("simpleseg_"):
            assert family.name in text


def test_the_python_reference_has_every_method(site: Path) -> None:
    text = _text(site, "python")
    for name in vars(Segmentation):
        if not name.startswith("_") and callable(getattr(Segmentation, name)):
            assert f"simpleseg.Segmentation.{name}" in text
    assert "&gt;&gt;&gt;" in text.replace("</span>", "").replace('<span class="gp">', "")
    assert "<blockquote>" not in text
    assert "ServiceUnavailableError   503" in text


def test_the_readme_lists_every_route() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    document: Any = create_app(Settings(), ScriptedEngine(["[]"])).openapi()
    for path in document["paths"]:
        assert path.partition("{")[0].rstrip("/") in readme, path
