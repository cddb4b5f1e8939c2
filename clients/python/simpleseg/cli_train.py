"""`simpleseg train`: fine-tuning and reinforcement learning of a checkpoint."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simpleseg.cli_support import Failure, checkpoint_of, extra


class Stage(StrEnum):
    """``sft`` learns answers, ``rl`` learns from rewards for its own answers."""

    sft = "sft"
    rl = "rl"


def train(
    stage: Annotated[Stage, typer.Argument(help="What to learn from: answers, or rewards.")],
    config: Annotated[str, typer.Argument(help="A TOML file, or the name of a packaged one.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: log, curves, states, checkpoint.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="What to start from where CONFIG names nothing.", show_default="the demo model"
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change CONFIG: rewards.distance=0."),
    ] = None,
) -> None:
    """Fine-tune a checkpoint; the result is in OUT/checkpoint, for `simpleseg serve --model`.

    A run that was stopped goes on when the same command is given again.
    """
    with extra("training"):
        from simpleseg_training import train_config

        if stage is Stage.sft:
            from simpleseg_training.sft import train_with
        else:
            from simpleseg_training.rl import train_with
    try:
        content = train_config.read_config(config, override or ())
        content.setdefault("model", {}).setdefault("path", checkpoint_of(model))
        made = train_with(content, config, out, typer.echo)
    except ValueError as error:
        raise Failure(str(error)) from error
    typer.echo(f"wrote {made}", err=True)
