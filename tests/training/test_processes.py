"""Training by several processes, and by one that was stopped: the same as by one that was not."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.multiprocessing.spawn import start_processes

from simpleseg_server.engines.base import GenerationRequest
from simpleseg_server.engines.scripted import ScriptedEngine
from simpleseg_training import sft
from simpleseg_training.finetune import last_state
from simpleseg_training.model import ModelSize
from simpleseg_training.optimizer import muon_and_adamw
from simpleseg_training.pairs import Pair
from simpleseg_training.processing import Start
from simpleseg_training.train_config import CONFIGS, RlConfig, SftConfig, read_config

from ..client.serving import serving
from . import checkpoints

# What TRL 1.16 calls by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

ACCELERATE = sorted((CONFIGS / "accelerate").glob("*.yaml"))
LAUNCH = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1"]


@pytest.fixture
def config(tmp_path: Path, tokenizer: Tokenizer, tiny: ModelSize) -> dict[str, Any]:
    """Sixteen pairs, of which six steps take four each: one epoch and a half."""
    start = checkpoints.demo(tmp_path / "start", tokenizer, tiny)
    pairs = checkpoints.write_pairs(tmp_path / "data", 12)
    return {
        "batch": 4,
        "model": {"path": str(start)},
        "data": [{"source": str(pairs)}, {"source": "demo", "limit": 4}],
        "optimisation": {"rate": 1e-3, "device_batch": 2, "steps": 6, "threads": 1},
        "records": {"log_every": 1, "save_every": 1, "tensorboard": False},
    }


def _toml(config: dict[str, Any]) -> str:
    """The configuration as a file; JSON's strings, numbers and lists are TOML's as well."""
    lines = [f"{key} = {json.dumps(v)}" for key, v in config.items() if not _is_table(v)]
    for key, value in config.items():
        if _is_table(value):
            for table in value if isinstance(value, list) else [value]:
                lines.append(f"[[{key}]]" if isinstance(value, list) else f"[{key}]")
                lines += [f"{name} = {_inline(v)}" for name, v in table.items()]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict | list)


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(v)}" for key, v in value.items()) + "}"
    return json.dumps(value)


def _launch(stage: str, config: dict[str, Any], out: Path) -> None:
    process = _start(stage, config, out)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-4000:]


def _start(stage: str, config: dict[str, Any], out: Path) -> subprocess.Popen[str]:
    """``accelerate launch`` of ``simpleseg train``, on two processes."""
    file = out.with_suffix(".toml")
    file.write_text(_toml(config))
    assert read_config(str(file)) == config
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", str(port), "-m", "simpleseg.cli"]
    command = [*launcher, "train", stage, str(file), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def _column(out: Path, name: str) -> list[float]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [record[name] for record in records if name in record]


def _weights(out: Path) -> dict[str, torch.Tensor]:
    """As they are in training, before export rounds them."""
    (state,) = (out / "state").glob("checkpoint-*")
    return load_file(state / "model.safetensors")


def _assert_alike(one: Path, other: Path, start: Path) -> None:
    """Weights differ by float noise, which is little against what training changed."""
    first, second, before = _weights(one), _weights(other), load_file(start / "model.safetensors")
    assert first.keys() == second.keys()
    apart = sum((first[n] - second[n]).square().sum().item() for n in first)
    moved = sum((first[n] - before[n].float()).square().sum().item() for n in first)
    assert moved > 0
    assert apart < 1e-4 * moved  # a hundredth of the way


def test_two_processes_learn_what_one_does(config: dict[str, Any], tmp_path: Path) -> None:
    sft.train(SftConfig.model_validate(config), tmp_path / "one")
    _launch("sft", config, tmp_path / "two")
    assert len(_column(tmp_path / "one", "loss")) == 6
    for name in ("loss", "grad_norm"):
        one, two = _column(tmp_path / "one", name), _column(tmp_path / "two", name)
        assert one == pytest.approx(two, rel=1e-3), name
    _assert_alike(tmp_path / "one", tmp_path / "two", Path(config["model"]["path"]))
    names = {path.name for path in (tmp_path / "one/checkpoint").iterdir()}
    assert {path.name for path in (tmp_path / "two/checkpoint").iterdir()} == names


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_to_what_one_learns(
    config: dict[str, Any], tmp_path: Path
) -> None:
    sft.train(SftConfig.model_validate(config), tmp_path / "one")
    two = tmp_path / "two"
    process = _start("sft", config, two)
    while last_state(two) is None:
        assert process.poll() is None, process.communicate()[1][-4000:]
        time.sleep(0.01)
    launcher = psutil.Process(process.pid)
    for one in [*launcher.children(recursive=True), launcher]:
        one.kill()
    process.communicate()
    assert len(_column(two, "loss")) < 6, "it had ended before it was killed"
    _launch("sft", config, two)
    assert _column(two, "loss")[-2:] == pytest.approx(
        _column(tmp_path / "one", "loss")[-2:], rel=1e-3
    )
    _assert_alike(tmp_path / "one", two, Path(config["model"]["path"]))


def test_a_state_that_was_not_saved_whole_is_not_gone_on_from(tmp_path: Path) -> None:
    for name in ("checkpoint-9/trainer_state.json", "checkpoint-10/trainer_state.json"):
        (tmp_path / "state" / name).parent.mkdir(parents=True)
        (tmp_path / "state" / name).touch()
    (tmp_path / "state/checkpoint-11").mkdir()
    assert last_state(tmp_path) == tmp_path / "state/checkpoint-10"
    assert last_state(tmp_path / "elsewhere") is None


@pytest.mark.slow
def test_two_processes_reinforce_what_one_does(config: dict[str, Any], tmp_path: Path) -> None:
    """Answers come from a server, since the processes would sample others than one does."""
    asked: Counter[int] = Counter()

    def script(request: GenerationRequest) -> str:
        question = hash((request.instruction, request.image_hw3.tobytes()))
        asked[question] += 1
        size = 0.2 + 0.7 * (question % 97) / 97
        answer = f"[[[0.1, 0.1], [{size:.3f}, 0.1], [{size:.3f}, 0.9]]]."
        return answer if asked[question] % 2 else "[]."  # what differs within a group teaches

    del config["batch"]
    with serving(ScriptedEngine(script)) as url:
        server = {"url": url, "model": "scripted", "refresh": ["true"], "together": 1}
        config["rollouts"] = {"prompts": 4, "group": 2, "max_tokens": 60, "server": server}
        config["data"] = [one | {"targets": ["region"]} for one in config["data"]]
        config["optimisation"] |= {"optimizer": "adamw", "steps": 3, "rate": 1e-4}
        from simpleseg_training import rl

        rl.train(RlConfig.model_validate(config), tmp_path / "one")
        asked.clear()
        _launch("rl", config, tmp_path / "two")
    assert _column(tmp_path / "one", "reward") == pytest.approx(
        _column(tmp_path / "two", "reward"), abs=1e-5
    )
    _assert_alike(tmp_path / "one", tmp_path / "two", Path(config["model"]["path"]))


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pairs in the order in which the trainer asks for them."""
    asked: list[str] = []
    made = sft.turn

    def turn(pair: Pair, start: Start) -> dict[str, Any]:
        asked.append(f"{pair.instruction} {pair.answer}")
        return made(pair, start)

    monkeypatch.setattr(sft, "turn", turn)
    return asked


def test_a_run_that_goes_on_sees_the_rest_of_the_epoch_in_the_same_order(
    config: dict[str, Any], tmp_path: Path, order: list[str]
) -> None:
    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if json.loads(line).get("step") == 3:
            raise Stopped

    settings = SftConfig.model_validate(config)
    sft.train(settings, tmp_path / "whole")
    whole = [*order]
    assert len(whole) >= 24 > len(set(whole))  # an epoch, and then some of it a second time
    order.clear()
    with pytest.raises(Stopped):
        sft.train(settings, tmp_path / "halves", stop)
    assert order == whole[: len(order)]
    order.clear()
    sft.train(settings, tmp_path / "halves")
    assert 0 < len(order) < len(whole)
    assert order[-16:] == whole[-16:]  # the last four steps: two are saved
    first, second = _weights(tmp_path / "whole"), _weights(tmp_path / "halves")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("file", ACCELERATE, ids=lambda file: file.stem)
def test_accelerate_takes_the_configurations(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_config_from_file(str(file))
    assert loaded.num_processes == 8
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True)
    command = ["--config_file", str(file), "-m", "simpleseg.cli", "train"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    if file.stem == "fsdp":
        assert arguments.use_fsdp
        assert int(arguments.fsdp_version) == 2
        assert arguments.fsdp_state_dict_type == "FULL_STATE_DICT"
    else:
        assert arguments.use_deepspeed
        assert str(arguments.zero_stage) == file.stem[-1]


def test_muon_on_shares_does_what_it_does_on_whole_matrices(tmp_path: Path) -> None:
    """FSDP2's shares of a model on two processes, against the whole of it on one."""
    start_processes(_train_shares, (tmp_path,), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
    shared = torch.load(tmp_path / "shared.pt")
    model = _small_model()
    _steps(model, muon_and_adamw(model, 1e-2, 0.1))
    before = _small_model().state_dict()
    for name, tensor in model.state_dict().items():
        assert not torch.equal(tensor, before[name])
        torch.testing.assert_close(shared[name], tensor, rtol=1e-3, atol=1e-4)


def _small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5))


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()


def _train_shares(rank: int, folder: Path) -> None:
    from torch import distributed
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = _small_model()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = muon_and_adamw(model, 1e-2, 0.1)
    _steps(model, optimizer)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    states = get_optimizer_state_dict(model, optimizer, options=options)
    whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, states, options=whole)
    weights = get_model_state_dict(model, options=options)
    if rank == 0:
        assert states["state"]
        torch.save(weights, folder / "shared.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def test_what_cannot_be_trained_in_shares_is_refused() -> None:
    from types import SimpleNamespace

    from simpleseg_training.finetune import _check_sharding

    data = [{"source": "demo", "limit": 1}]
    deepspeed = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=True)
    with pytest.raises(ValueError, match="muon needs whole matrices"):
        _check_sharding(deepspeed, SftConfig.model_validate({"data": data}))
    fsdp = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    _check_sharding(fsdp, SftConfig.model_validate({"data": data}))
    adapted = SftConfig.model_validate({"data": data, "model": {"lora": {}}})
    with pytest.raises(ValueError, match=r"model\.lora"):
        _check_sharding(fsdp, adapted)
