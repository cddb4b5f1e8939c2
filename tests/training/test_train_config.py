"""Configurations are checked whole, and faults name their key."""

from pathlib import Path

import pytest

from simpleseg_training.train_config import (
    RlConfig,
    SftConfig,
    TrainConfig,
    checked,
    packaged,
    read_config,
)


@pytest.mark.parametrize("name", packaged())
def test_packaged_configurations_are_right(name: str) -> None:
    kind: type[TrainConfig] = RlConfig if name.endswith("-rl") else SftConfig
    config = checked(kind, read_config(name), name)
    assert config.data


def test_the_paper_is_in_its_configuration() -> None:
    config = checked(SftConfig, read_config("qwen2.5-vl-7b-sft"), "paper")
    training = config.optimisation
    assert (training.rate, training.final_rate, training.warmup) == (5e-5, 2e-6, 0.03)
    assert (config.batch, training.epochs, training.optimizer) == (256, 1, "muon")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rewards.beauty=1", "rewards.beauty: unknown key"),
        ("beauty=1", "beauty: unknown key"),
        ("batch=32", "batch: unknown key"),  # of the other kind: it would do nothing here
        ("rollouts.group=1", "rollouts.group: "),
        ("rollouts.group='8'", "rollouts.group: "),
        ("optimisation.rate=-1.0", "optimisation.rate: "),
        ("gspo.scale=all", "gspo.scale: "),
        ("rollouts.server.url=http://127.0.0.1", "rollouts.server.refresh: "),
        ("data=[]", "data: "),
    ],
)
def test_faults_name_the_key(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        checked(RlConfig, read_config("demo-rl", [override]), "demo-rl")
    assert "\n" not in str(caught.value)


def test_files_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[[data]]\nsource = "demo"\n[rewards]\niou = 2\nformat = 0.5\n')
    config = checked(RlConfig, read_config(str(file), ["rewards.iou=3", "model.path=x"]), "run")
    assert (config.rewards.iou, config.rewards.format, config.model.path) == (3, 0.5, "x")
    with pytest.raises(ValueError, match=r"no configuration 'nowhere': a file, or one of .*demo"):
        read_config("nowhere")
    file.write_text("data = [")
    with pytest.raises(ValueError, match=r"run\.toml: "):
        read_config(str(file))
