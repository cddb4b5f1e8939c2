"""Fine-tuning end to end, on small random weights: it runs, goes on, exports, and is served."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForImageTextToText
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.checkpoint import Checkpoint
from simpleseg_server.engines.scripted import ScriptedEngine
from simpleseg_training import rl, sft
from simpleseg_training.model import ModelSize
from simpleseg_training.optimizer import muon_and_adamw
from simpleseg_training.pairs import DemoPairs, open_pairs
from simpleseg_training.processing import load_start
from simpleseg_training.train_config import DataConfig, ModelConfig, RlConfig, SftConfig

from ..client.serving import TRIANGLE, serving
from . import checkpoints

# What TRL 1.16 calls by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(params=["demo", "qwen25"])
def start(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Tokenizer, tiny: ModelSize
) -> Path:
    folder = tmp_path / "start"
    if request.param == "demo":
        return checkpoints.demo(folder, tokenizer, tiny)
    return checkpoints.qwen25(folder, tokenizer)


@pytest.fixture
def qwen25(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return checkpoints.qwen25(tmp_path / "start", tokenizer)


def _config(pairs: Path, start: Path, steps: int, **more: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(start)} | more.pop("model", {}),
        "data": [{"source": str(pairs)}, {"source": "demo", "limit": 8, "targets": ["region"]}],
        "evaluation": {"data": ["demo-single", str(pairs)], "cases": 2, "max_tokens": 8},
        "optimisation": {"rate": 1e-2, "device_batch": 2, "steps": steps, "threads": 1}
        | more.pop("optimisation", {}),
        "records": {"log_every": 1, "save_every": 1},
    } | more


def _records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def _names(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForImageTextToText.from_pretrained(folder).named_parameters())


def test_sft_learns_exports_and_is_loaded_by_the_server(start: Path, tmp_path: Path) -> None:
    pairs = checkpoints.write_pairs(tmp_path / "data")
    config = SftConfig.model_validate(_config(pairs, start, 4, batch=4))
    made = sft.train(config, tmp_path / "run")
    records = _records(tmp_path / "run")
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    checks = [record for record in records if "eval/demo-single/giou" in record]
    assert [record["step"] for record in checks] == [0, 4]
    assert f"eval/{pairs}/valid" in checks[0]
    before, after = _names(start), _names(made)
    assert before.keys() == after.keys()
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("visual" in name for name in changed)
    assert any("language_model" in name for name in changed)
    served = Checkpoint(made, device="cpu")
    assert served.parameters == Checkpoint(start, device="cpu").parameters
    assert not served.profile.calibration
    assert (tmp_path / "run/curves.png").stat().st_size > 1000
    assert list((tmp_path / "run/tensorboard").rglob("events*"))


def test_a_stopped_run_goes_on(qwen25: Path, tmp_path: Path) -> None:
    pairs = checkpoints.write_pairs(tmp_path / "data")
    whole = SftConfig.model_validate(_config(pairs, qwen25, 4, batch=2))
    sft.train(whole, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop_at_three(line: str) -> None:
        if json.loads(line).get("step") == 3:
            raise Stopped

    with pytest.raises(Stopped):
        sft.train(whole, tmp_path / "halves", stop_at_three)
    sft.train(whole, tmp_path / "halves")
    last = [
        [r["loss"] for r in _records(tmp_path / run) if r["step"] == 4 and "loss" in r]
        for run in ("whole", "halves")
    ]
    assert last[0] == pytest.approx(last[1], rel=1e-3)


def test_loss_is_on_the_answer_alone(start: Path) -> None:
    loaded = load_start(ModelConfig(path=str(start)))
    pair = DemoPairs(DataConfig(source="demo", limit=1, targets=["region"]))[0]
    collator = DataCollatorForVisionLanguageModeling(loaded.processor, completion_only_loss=True)
    batch = collator([sft.turn(pair, loaded)])
    tokenizer = loaded.processor.tokenizer
    learnt = batch["labels"][0][batch["labels"][0] != -100]
    assert tokenizer.decode(learnt).strip() == f"{pair.answer}<|im_end|>"
    whole = tokenizer.decode(batch["input_ids"][0])
    assert whole.startswith("<|im_start|>user\n<|vision_start|><|image_pad|>")
    assert f"<|vision_end|>{pair.instruction}<|im_end|>" in whole


def test_adapters_are_merged_on_export(qwen25: Path, tmp_path: Path) -> None:
    pairs = checkpoints.write_pairs(tmp_path / "data")
    model = {"lora": {"rank": 2}, "freeze_vision": True}
    config = SftConfig.model_validate(_config(pairs, qwen25, 2, batch=2, model=model))
    before, after = _names(qwen25), _names(sft.train(config, tmp_path / "run"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)


@pytest.mark.parametrize(("start", "lora"), [("demo", False), ("qwen25", True)], indirect=["start"])
def test_rl_runs_and_tells_of_groups(start: Path, tmp_path: Path, lora: bool) -> None:
    pairs = checkpoints.write_pairs(tmp_path / "data")
    more: dict[str, Any] = {"model": {"lora": {"rank": 2}}} if lora else {}
    content = _config(pairs, start, 2, **more) | {
        "rollouts": {"prompts": 2, "group": 2, "updates": 1 + lora, "max_tokens": 12}
        | ({} if lora else {"shared_prompt": True, "oversample": 2}),
        "rewards": {"length": 0.3},
        "gspo": {"watch_kl": True},
    }
    rl.train(RlConfig.model_validate(content), tmp_path / "run")
    steps = [record for record in _records(tmp_path / "run") if "reward" in record]
    assert [record["step"] for record in steps] == ([1] if lora else [1, 2])  # one a rollout
    for name in ("iou", "distance", "format", "length"):
        assert f"rewards/{name}/mean" in steps[0]
    assert {"reward_std", "kl", "entropy", "completions/mean_length"} <= steps[0].keys()
    assert _names(tmp_path / "run/checkpoint").keys() == _names(start).keys()


def test_rollouts_by_a_server_get_its_new_weights(qwen25: Path, tmp_path: Path) -> None:
    asked: list[GenerationRequest] = []

    def script(request: GenerationRequest) -> str:
        asked.append(request)
        return TRIANGLE + "." if len(asked) % 2 else "[]."

    pairs = checkpoints.write_pairs(tmp_path / "data")
    seen = tmp_path / "seen"
    with serving(ScriptedEngine(script)) as url:
        content = _config(pairs, qwen25, 2) | {
            "rollouts": {
                "prompts": 2,
                "group": 2,
                "max_tokens": 100,
                "server": {
                    "url": url,
                    "model": "scripted",
                    "refresh": ["sh", "-c", f'ls "$SIMPLESEG_WEIGHTS" > {seen}'],
                },
            }
        }
        rl.train(RlConfig.model_validate(content), tmp_path / "run")
    assert len(asked) == 8
    assert {request.image_hw3.shape for request in asked} <= {(84, 84, 3), (128, 128, 3)}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(seen.read_text().split())
    steps = [record for record in _records(tmp_path / "run") if "reward" in record]
    assert steps[0]["rewards/format/mean"] == 1
    assert steps[0]["reward_std"] > 0


def test_one_optimizer_over_two_keeps_rates_and_state() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    model[0].weight.requires_grad_(True)
    optimizer = muon_and_adamw(model, 1e-2, 0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    schedule.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    other = muon_and_adamw(model, 1e-2, 0.0)
    other.load_state_dict(optimizer.state_dict())
    assert {group["lr"] for group in other.param_groups} == {5e-3}
    torch.optim.lr_scheduler.LambdaLR(other, lambda step: 0.1)
    assert {g["lr"] for part in other._parts for g in part.param_groups} == {1e-3}


def test_sources_are_read_as_they_are_described(tmp_path: Path) -> None:
    file = checkpoints.write_pairs(tmp_path)
    parquet = tmp_path / "pairs.parquet"
    import datasets

    datasets.Dataset.from_json(str(file)).to_parquet(str(parquet))
    for path in (file, parquet):
        pairs = open_pairs([DataConfig(source=str(path), limit=5)])
        assert len(pairs) == 5
        assert pairs[0].image.size == (84, 84)
        truth = pairs[1].truth
        assert truth is not None
        assert truth.target == "region"
    with pytest.raises(ValueError, match="holds no pair"):
        open_pairs([DataConfig(source=str(file), targets=["box"])])
    with pytest.raises(ValueError, match="no data 'nowhere.jsonl'"):
        open_pairs([DataConfig(source="nowhere.jsonl")])
    with pytest.raises(ValueError, match="the order that they have"):
        open_pairs([DataConfig(source=str(file), order="unordered")])
    with pytest.raises(ValueError, match="give them a limit"):
        open_pairs([DataConfig(source="demo")])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"image": "a.png", "question": "?"}\n')
    with pytest.raises(ValueError, match="no instruction, answer in its records"):
        open_pairs([DataConfig(source=str(bad))])
