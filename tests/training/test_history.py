"""A pretraining in several runs has one record."""

import json
from pathlib import Path
from typing import Any

from simpleseg_training.history import read_history
from simpleseg_training.model_card import reinforced_by
from simpleseg_training.train_config import RlConfig, checked, read_config


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


def test_the_card_tells_what_reinforcement_learning_was_asked(tmp_path: Path) -> None:
    config = checked(RlConfig, read_config("demo-rl", ["optimisation.rate=2e-4"]), "demo-rl")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "log.jsonl").write_text('{"step": 5}\n{"step": 80}\n')
    told = " ".join(reinforced_by(tmp_path).split())
    assert "80 steps of GSPO" in told
    assert "scenes of 1 to 6 objects" in told
    assert "learning rate 0.0002," in told
    assert reinforced_by(None) == ""
