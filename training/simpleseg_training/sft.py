"""Supervised fine-tuning on instruction pairs: `simpleseg train sft`.

The chat format is the base model's; the loss is on answers alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trl.trainer.sft_config import SFTConfig as SftArguments
from trl.trainer.sft_trainer import SFTTrainer

from simpleseg_training.finetune import as_dataset, begin, common_arguments, run
from simpleseg_training.pairs import Pair, open_pairs
from simpleseg_training.processing import Start
from simpleseg_training.train_config import SftConfig, checked


def turn(pair: Pair, start: Start) -> dict[str, Any]:
    """A pair as TRL takes it: the loss is on what is ``completion``."""
    return {
        "images": [start.fitted(pair.image)],
        "prompt": [{"role": "user", "content": pair.instruction}],
        "completion": [{"role": "assistant", "content": pair.answer}],
    }


def train_with(
    content: Mapping[str, Any], name: str, out: Path, tell: Callable[[str], None] = print
) -> Path:
    """``train`` with the content of a configuration file of this name."""
    return train(checked(SftConfig, content, name), out, tell)


def train(config: SftConfig, out: Path, tell: Callable[[str], None] = print) -> Path:
    """Run, or go on with, what the configuration says; the folder of the exported checkpoint.

    Raises ValueError where data or model do not fit the configuration.
    """
    start, model = begin(config.model, out)
    trainer = SFTTrainer(
        model=model,
        args=arguments(config, out),
        train_dataset=as_dataset(open_pairs(config.data), start, turn),
        processing_class=start.processor,
    )
    return run(trainer, config, start, out, tell)


def arguments(config: SftConfig, out: Path) -> SftArguments:
    """The configuration in TRL's words."""
    return SftArguments(
        **common_arguments(config, out, config.batch),
        max_length=config.max_length,
        completion_only_loss=True,
    )
