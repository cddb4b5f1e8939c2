"""What both kinds of `simpleseg train` share: arguments, records, watching, export."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from simpleseg_polygon.metrics import giou
from simpleseg_training.curves import write_run_curves
from simpleseg_training.export import export_run
from simpleseg_training.optimizer import muon_and_adamw
from simpleseg_training.pairs import Pair, Pairs, held_out
from simpleseg_training.processing import VISION, Start, load_start
from simpleseg_training.rewards import format_reward, overlap_reward
from simpleseg_training.rollout import chat_answers
from simpleseg_training.train_config import EvaluationConfig, ModelConfig, Optimisation, TrainConfig

LOG_FILE = "log.jsonl"


def as_dataset(
    pairs: Pairs, start: Start, row: Callable[[Pair, Start], dict[str, Any]]
) -> datasets.Dataset:
    """Pairs as rows that are made when the trainer asks for them."""

    def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        made = [row(pairs[i], start) for i in batch["index"]]
        return {name: [one[name] for one in made] for name in made[0]}

    numbers = datasets.Dataset.from_dict({"index": range(len(pairs))})
    return numbers.with_transform(rows)


def begin(config: ModelConfig, out: Path) -> tuple[Start, Any]:
    """What to start from or to go on from, and the model as it is trained: whole, or with adapters
    (whose saved state is loaded by the trainer)."""
    if config.lora is None:
        start = load_start(config, last_state(out))
        return start, start.model
    start, lora = load_start(config), config.lora
    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        exclude_modules=VISION if config.freeze_vision else None,
        task_type="CAUSAL_LM",
    )
    return start, get_peft_model(start.model, adapters)


def last_state(out: Path) -> Path | None:
    """Where a run that was stopped goes on from: the last state that was saved whole. The file that
    tells is the one that the trainer writes last."""
    whole = [path.parent for path in (out / "state").glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def optimizer_of(model: nn.Module, config: Optimisation) -> Optimizer:
    """One optimizer over the trainable weights."""
    if config.optimizer == "muon":
        return muon_and_adamw(model, config.rate, config.weight_decay)
    trained = [p for p in model.parameters() if p.requires_grad]
    return AdamW(trained, lr=config.rate, weight_decay=config.weight_decay)


def common_arguments(config: TrainConfig, out: Path, batch: int) -> dict[str, Any]:
    """TRL's names for what both kinds of training have in common; ``batch`` sequences a step.

    Raises ValueError where the batch does not divide among devices and passes.
    """
    training, records = config.optimisation, config.records
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    in_one_pass = training.device_batch * int(os.environ.get("WORLD_SIZE", "1"))
    if batch % in_one_pass:
        raise ValueError(
            f"a batch of {batch} is no multiple of the {in_one_pass} sequences in one pass "
            "(optimisation.device_batch on every device)"
        )
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    return {
        "output_dir": str(out / "state"),
        "per_device_train_batch_size": training.device_batch,
        "gradient_accumulation_steps": batch // in_one_pass,
        "learning_rate": training.rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": training.final_rate / training.rate},
        "warmup_steps": training.warmup,
        "max_grad_norm": training.max_grad_norm,
        "num_train_epochs": training.epochs,
        "max_steps": training.steps or -1,
        "activation_checkpointing": training.gradient_checkpointing,
        "bf16": training.mixed_bfloat16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": training.seed,
        "dataloader_num_workers": training.workers,
        "remove_unused_columns": False,
        "logging_steps": records.log_every,
        "save_steps": records.save_every,
        "save_total_limit": 1,
        "report_to": "tensorboard" if records.tensorboard else "none",
        "disable_tqdm": not sys.stderr.isatty(),
    }


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Every line of a trainer's log as a line of JSON, and told to the caller."""

    def __init__(self, out: Path, tell: Callable[[str], None]) -> None:
        self._file = out / LOG_FILE
        self._tell = tell

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in logs.items()}
        line = json.dumps({"step": state.global_step, **rounded})
        with self._file.open("a") as file:
            file.write(line + "\n")
        self._tell(line)


class Watch(TrainerCallback):  # type: ignore[misc]
    """Greedy answers to held-out questions: at the start, every so many steps, and at the end."""

    def __init__(self, trainer: Any, config: EvaluationConfig, start: Start) -> None:
        self._trainer = trainer
        self._config = config
        self._start = start
        self._questions = {name: held_out(name, config.cases) for name in config.data}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 0:
            self._look(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._config.every == 0 and state.global_step < state.max_steps:
            self._look(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._look(state)

    def _look(self, state: Any) -> None:
        """On every process: where weights are sharded, each needs the others to answer at all."""
        if not self._questions:
            return
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        was_training = model.training
        model.eval()
        found: dict[str, float] = {}
        for name, pairs in self._questions.items():
            texts = greedy_texts(model, self._start, pairs, self._config)
            found |= {f"{name}/{k}": v for k, v in watched(texts, pairs).items()}
        self._trainer.log({f"eval/{name}": value for name, value in found.items()})
        model.train(was_training)


def greedy_texts(
    model: Any, start: Start, pairs: list[Pair], config: EvaluationConfig
) -> list[str]:
    images = [start.fitted(pair.image) for pair in pairs]
    asked = [pair.instruction for pair in pairs]
    return chat_answers(model, start.processor, images, asked, config.max_tokens, config.batch)


def watched(texts: list[str], pairs: list[Pair]) -> dict[str, float]:
    """Mean IoU, the share of answers in the language, and characters per answer."""
    judged = [(text, pair.truth) for text, pair in zip(texts, pairs, strict=True) if pair.truth]
    return {
        "giou": giou([overlap_reward(text, truth) for text, truth in judged]),
        "valid": giou([format_reward(text, truth) for text, truth in judged]),
        "characters": giou([float(len(text)) for text, _ in judged]),
    }


def run(
    trainer: Any, config: TrainConfig, start: Start, out: Path, tell: Callable[[str], None]
) -> Path:
    """Train from the start or from the last saved state, draw the curves and export."""
    _check_sharding(trainer, config)
    # Not handed to the trainer when it is made: with FSDP it refuses one, and here it takes it.
    trainer.optimizer = optimizer_of(trainer.model, config.optimisation)
    if trainer.is_world_process_zero():
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(config.model_dump_json(indent=1) + "\n")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Recorder(out, tell))
    trainer.add_callback(Watch(trainer, config.evaluation, start))
    state = last_state(out)
    if state is not None and config.model.lora is None:
        # transformers 5.24 saves Qwen2.5-VL under its published names, and goes on by looking for
        # the names in memory: it would find none, warn, and train the start again. `begin` has
        # loaded these weights.
        trainer._load_from_checkpoint = lambda *_, **__: None
    trainer.train(resume_from_checkpoint=None if state is None else str(state))
    if trainer.is_world_process_zero():
        write_run_curves(out / LOG_FILE, out / "curves.png")
    export_run(trainer, start.files, out / "checkpoint")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()  # the threads of its process group may abort a later exit
    return out / "checkpoint"


def _check_sharding(trainer: Any, config: TrainConfig) -> None:
    """Raises ValueError for what cannot be trained where `accelerate` shards the weights."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return
    if config.model.lora is not None:
        raise ValueError("model.lora: adapters are trained and merged on whole weights only")
    if trainer.is_deepspeed_enabled and config.optimisation.optimizer == "muon":
        raise ValueError(
            "optimisation.optimizer: muon needs whole matrices, and DeepSpeed flattens them; "
            "adamw, or FSDP"
        )
