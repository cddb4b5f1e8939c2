"""The scripts that make figures and pages."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simpleseg_polygon.automaton import automaton
from simpleseg_polygon.codec import parse_region

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "docs/scripts"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_the_figures_are_those_of_the_pages(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPTS / "figures.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in (ROOT / "docs/figures").iterdir()} - {"five-minutes.png"}


def test_a_recorded_answer_is_all_of_its_passes() -> None:
    import asyncio

    from recording import IMAGE, PHRASE, record

    recorded = asyncio.run(record(IMAGE, PHRASE))
    taken = [one for p in recorded.passes for one in (*p.accepted, *p.chosen, *p.forced)]
    assert "".join(taken).removesuffix("end") == recorded.text
    assert parse_region(recorded.text).status == "ok"
    assert any(step.refused for step in recorded.passes)
    assert len(taken) > 2 * len(recorded.passes)


def test_every_state_of_the_automaton_has_a_place() -> None:
    from draw_automaton import TEXTS, state_after

    assert len({state_after(text) for text in TEXTS}) == len(automaton("region").edges)


def test_the_waterfall_is_drawn_from_what_was_recorded(tmp_path: Path) -> None:
    from draw_waterfall import STAGES, draw

    draw(tmp_path / "none.png", tmp_path)
    assert not (tmp_path / "none.png").exists()
    point = {"measured": 2.0, "predicted": 2.1}
    waterfall = dict.fromkeys(STAGES, 1.0) | {"total": float(len(STAGES))}
    result = {
        "waterfall_ms": waterfall,
        "laws": {"engine": {"fitted": [point], "held_out": [point]}},
    }
    (tmp_path / "waterfall-embedded.json").write_text(json.dumps(result))
    draw(tmp_path / "one.png", tmp_path)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_output_is_parted_by_command_and_times() -> None:
    from five_minutes import steps_in

    printed = "Looking in indexes: x\nSuccessfully installed a-1 b-2\n"
    output = f"\n@@@ 10.5\n\n@@@ 11.0\n{printed}\n@@@ 13.5\n"
    first, second = steps_in(output, ["cd x", "pip install x"])
    assert (first.output, first.seconds) == ("", 0.5)
    assert second.output == "[...]\nSuccessfully installed [... 2 packages]"
    assert second.seconds == 2.5


def test_the_recorded_way_is_the_one_that_the_script_goes() -> None:
    from five_minutes import COMMANDS, PAGE

    page = PAGE.read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"$ {command.splitlines()[0].split(' > ')[0].split(' http')[0]}" in page
    assert "This machine can serve" in page
    assert str(Path.home()) not in page
