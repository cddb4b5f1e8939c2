"""A pretraining in several runs has one record."""

import json
from pathlib import Path
from typing import Any

from simpleseg_training.history import read_history


def _run(folder: Path, recipe: dict[str, Any], images: list[int]) -> Path:
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(recipe))
    lines = [json.dumps({"images": count, "digits": 1.0}) for count in images]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_images_are_counted_over_all_runs(tmp_path: Path) -> None:
    first = _run(tmp_path / "1", {"images": 300}, [100, 200, 310])
    second = _run(tmp_path / "2", {"images": 200, "start_from": "1"}, [110, 205])
    third = _run(tmp_path / "3", {"images": 100, "start_from": "2"}, [60])
    found = read_history([first, second, third])
    assert found.images == (310, 105, 10)
    assert [r["images"] for r in found.records] == [100, 200, 310, 320, 415, 425]
    assert [r["images"] for r in found.recipes] == [300, 200, 100]
