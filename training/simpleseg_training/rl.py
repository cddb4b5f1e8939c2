"""Reinforcement learning from rewards on the answer's text: `simpleseg train rl`.

GSPO (arXiv 2507.18071) is TRL's GRPO with the importance ratio of the whole sequence.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from simpleseg_training.finetune import as_dataset, begin, common_arguments, run
from simpleseg_training.pairs import Pair, Pairs, open_pairs
from simpleseg_training.processing import Start
from simpleseg_training.rewards import REWARDED, reward_functions
from simpleseg_training.server_rollouts import ServerRollout
from simpleseg_training.train_config import RlConfig, checked


def question(pair: Pair, start: Start) -> dict[str, Any]:
    """A pair as TRL takes it: a question, its image, and the truth for the rewards."""
    return {
        "image": start.fitted(pair.image),
        "prompt": [{"role": "user", "content": pair.instruction}],
        "truth": pair.truth,
    }


def train_with(
    content: Mapping[str, Any], name: str, out: Path, tell: Callable[[str], None] = print
) -> Path:
    """``train`` with the content of a configuration file of this name."""
    return train(checked(RlConfig, content, name), out, tell)


def train(config: RlConfig, out: Path, tell: Callable[[str], None] = print) -> Path:
    """Run, or go on with, what the configuration says; the folder of the exported checkpoint.

    Raises ValueError where data or model do not fit the configuration.
    """
    start, model = begin(config.model, out)
    functions, weights = reward_functions(config.rewards, config.rollouts.max_tokens)
    if not functions:
        raise ValueError("rewards: all weights are 0")
    trainer = GRPOTrainer(
        model=model,
        args=arguments(config, weights, out),
        train_dataset=as_dataset(_rewarded(config), start, question),
        processing_class=start.processor,
        reward_funcs=functions,
        rollout_func=_server(config, start, out),
    )
    return run(trainer, config, start, out, tell)


def _rewarded(config: RlConfig) -> Pairs:
    """The pairs for which there are rewards."""
    known = [
        source.model_copy(update={"targets": list(source.targets or REWARDED)})
        for source in config.data
    ]
    for source in known:
        if not set(source.targets or ()) <= set(REWARDED):
            raise ValueError(f"data.targets: rewards are for {' and '.join(REWARDED)} alone")
    return open_pairs(known)


def _server(config: RlConfig, start: Start, out: Path) -> ServerRollout | None:
    server = config.rollouts.server
    if server is None:
        return None
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # the warning that rollout functions may change
    return ServerRollout(server, config.rollouts, start, out)


def arguments(config: RlConfig, weights: list[float], out: Path) -> GRPOConfig:
    """The configuration in TRL's words."""
    rollouts, gspo = config.rollouts, config.gspo
    # A KL term too small to matter makes TRL measure it.
    beta = gspo.beta or (1e-12 if gspo.watch_kl else 0.0)
    batch, rest = divmod(rollouts.prompts * rollouts.group, rollouts.updates)
    if rest:
        raise ValueError("rollouts: prompts * group must be a multiple of updates")
    common = common_arguments(config, out, batch)
    return GRPOConfig(
        **common,
        num_generations=rollouts.group,
        steps_per_generation=rollouts.updates * common["gradient_accumulation_steps"],
        max_completion_length=rollouts.max_tokens,
        temperature=rollouts.temperature,
        top_p=rollouts.top_p,
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=gspo.clip_low,
        epsilon_high=gspo.clip_high,
        beta=beta,
        scale_rewards=gspo.scale,
        reward_weights=weights,
    )
