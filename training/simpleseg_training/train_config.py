"""What a run of `simpleseg train` depends on: a TOML file, checked whole before anything starts."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simpleseg_training.contours import Order
from simpleseg_training.recombine import Source

CONFIGS = Path(__file__).parent / "configs"

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class _Section(BaseModel):
    """A frozen table; a key that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Lora(_Section):
    """Low-rank adapters in place of the whole weights; merged into them on export."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Share = 0.0
    targets: str | list[str] = "all-linear"


class ModelConfig(_Section):
    """What to start from. ``path`` is a folder or hub id; ``freeze_vision`` keeps the vision tower
    as it is. ``dtype`` is that of the weights in training; export keeps that of the start."""

    path: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False
    freeze_vision: bool = False
    max_pixels: Positive | None = None
    lora: Lora | None = None


class DataConfig(_Section):
    """One source of pairs: ``demo`` (drawn scenes) or a JSONL or Parquet file of pairs.

    ``limit`` takes that many pairs; drawn scenes need it. ``objects`` bounds the objects of a
    scene, ``first_scene`` says where in the training seeds to begin. ``targets`` keeps only the
    pairs that ask for these. Of drawn scenes, ``weights`` says which questions are asked more or
    less often, by what they name, such as ``{ absent = 2 }``, and ``order`` is that of the vertices
    in the answers.
    """

    source: str
    limit: Positive | None = None
    objects: tuple[Positive, Positive] = (1, 6)
    first_scene: Annotated[int, Field(ge=0)] = 0
    targets: list[Literal["region", "box", "point", "text"]] | None = None
    weights: dict[Source, Weight] = {}
    order: Order = "clockwise"


class EvaluationConfig(_Section):
    """Greedy answers to held-out questions while training: ``data`` names demo data or files of
    pairs, of which the first ``cases`` are asked at the start, every ``every`` steps and at the
    end."""

    data: list[str] = []
    cases: Positive = 100
    every: Positive = 200
    max_tokens: Positive = 512
    batch: Positive = 50


class Optimisation(_Section):
    """``device_batch`` sequences go through a device in one pass. ``rate`` falls to ``final_rate``
    along a cosine after ``warmup``, a share of the run. ``steps``, where given, ends the run in
    place of ``epochs``."""

    optimizer: Literal["muon", "adamw"] = "muon"
    rate: Rate = 5e-5
    final_rate: Annotated[float, Field(ge=0, lt=1)] = 2e-6
    warmup: Share = 0.03
    weight_decay: Weight = 0.0
    max_grad_norm: Weight = 1.0
    device_batch: Positive = 4
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Positive | None = None
    gradient_checkpointing: bool = False
    mixed_bfloat16: bool = False
    seed: int = 0
    threads: Positive | None = None
    """CPU threads of each process."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that make pairs."""


class Records(_Section):
    """Steps between log lines and between saved states (from which a stopped run goes on)."""

    log_every: Positive = 10
    save_every: Positive = 200
    tensorboard: bool = True


class Rewards(_Section):
    """Weights of the rewards; 0 leaves one out. ``length`` is the penalty on long answers, which
    the paper found to hurt. ``distance_scale`` is the distance between centroids, in shares of the
    image's side, at which the reward has fallen to 1/e."""

    iou: Weight = 1.0
    distance: Weight = 0.5
    format: Weight = 0.2
    length: Weight = 0.0
    distance_scale: Annotated[float, Field(gt=0)] = 0.1


class ServerRollouts(_Section):
    """Answers sampled by a server with an OpenAI-compatible chat instead of by the trainer.

    Each ``refresh_every`` rollouts the weights are exported, ``refresh`` is run (a command that has
    the server load the folder in the variable SIMPLESEG_WEIGHTS), and the run waits until ``url`` +
    ``ready`` answers 200.
    """

    url: str
    model: str
    refresh: Annotated[list[str], Field(min_length=1)]
    refresh_every: Positive = 1
    ready: str = "/readyz"
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    together: Positive = 32


class Rollouts(_Section):
    """``prompts`` questions a rollout, each answered ``group`` times; ``updates`` optimizer steps
    are made with one rollout (1 is strictly on-policy). ``shared_prompt`` samples without
    transformers' loop and reads a question once for its group; it is for the demo model. There,
    ``oversample`` times the group is sampled, and those are kept whose rewards vary most (Xu et al.
    2025, arXiv 2504.13818): an update costs several times what a rollout does."""

    prompts: Positive = 32
    group: Annotated[int, Field(ge=2)] = 8
    updates: Positive = 1
    max_tokens: Positive = 1024
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    shared_prompt: bool = False
    oversample: Positive = 1
    server: ServerRollouts | None = None


class Gspo(_Section):
    """Group Sequence Policy Optimization (Zheng et al. 2025, arXiv 2507.18071): clip range of the
    sequence's importance ratio as there. ``beta`` weighs the KL divergence from the start;
    ``watch_kl`` measures it where ``beta`` is 0, for one more forward pass. ``scale`` divides
    advantages by the deviation of rewards in the group, in the batch, or not at all."""

    clip_low: Rate = 3e-4
    clip_high: Rate = 4e-4
    beta: Weight = 0.0
    watch_kl: bool = False
    scale: Literal["group", "batch", "none"] = "group"


class TrainConfig(_Section):
    """What supervised and reinforcement learning have in common."""

    model: ModelConfig = ModelConfig()
    data: Annotated[list[DataConfig], Field(min_length=1)]
    evaluation: EvaluationConfig = EvaluationConfig()
    optimisation: Optimisation = Optimisation()
    records: Records = Records()


class SftConfig(TrainConfig):
    """Supervised fine-tuning. ``batch`` is the number of pairs behind one step over all devices;
    ``max_length`` cuts sequences, in tokens with those of the image."""

    batch: Positive = 256
    max_length: Positive | None = None


class RlConfig(TrainConfig):
    """Reinforcement learning with rewards that are computed from the answer's text."""

    rewards: Rewards = Rewards()
    rollouts: Rollouts = Rollouts()
    gspo: Gspo = Gspo()


ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def packaged() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(file.stem for file in CONFIGS.glob("*.toml"))


def read_config(config: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a TOML file says, or a packaged one by its name, not yet checked.

    ``overrides`` are ``table.key=value`` with a TOML value. Raises ValueError, in one line.
    """
    path = CONFIGS / f"{config}.toml" if config in packaged() else Path(config)
    if not path.is_file():
        raise ValueError(f"no configuration {config!r}: a file, or one of {', '.join(packaged())}")
    content: dict[str, Any] = {}
    try:
        for table in (path.read_text(), *map(_as_toml, overrides)):
            content = _merged(content, tomllib.loads(table))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{config}: {error}") from error
    return content


def checked(kind: type[ConfigT], content: Mapping[str, Any], name: str) -> ConfigT:
    """``content`` as a configuration. Raises ValueError with every key at fault."""
    try:
        # As JSON, in which a list may be a tuple, while "8" is still no number.
        return kind.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        faults = (
            f"{'.'.join(map(str, fault['loc']))}: {_message(fault['type'], fault['msg'])}"
            for fault in error.errors()
        )
        raise ValueError(f"{name}: {'; '.join(faults)}") from error


def _message(kind: str, message: str) -> str:
    return "unknown key" if kind == "extra_forbidden" else message


def _as_toml(override: str) -> str:
    """``a.b=1`` as a line of TOML; a value that is none is a string.

    >>> _as_toml("rewards.distance=0"), _as_toml("model.path=runs/sft")
    ('rewards.distance=0', 'model.path="runs/sft"')
    """
    key, _, value = override.partition("=")
    try:
        tomllib.loads(f"value={value}")
    except tomllib.TOMLDecodeError:
        return f"{key}={json.dumps(value)}"
    return override


def _merged(content: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: content[key] for key in content.keys() & extra.keys()}
    deeper = {
        key: _merged(old, extra[key])
        for key, old in both.items()
        if isinstance(old, Mapping) and isinstance(extra[key], Mapping)
    }
    return {**content, **extra, **deeper}
