"""Train the demo model from scratch on procedural scenes.

One file for CPU and CUDA. On two CPU cores:

    torchrun --nproc-per-node 2 -m simpleseg_training.pretrain --out runs/demo

The recipe: several question-answer branches share one image; number-level soft targets whose
deviation shrinks; auxiliary losses on the visual tokens and on the numbers, fading out; curriculum
from one object to all tasks; Muon and AdamW. A run that is stopped goes on from its last
checkpoint when the same command is given again.
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import Qwen3VLForConditionalGeneration

from simpleseg_training import numbers
from simpleseg_training.auxiliary import AuxiliaryHeads
from simpleseg_training.contours import ORDERS, Order
from simpleseg_training.curriculum import TrainingBatches, pass_through
from simpleseg_training.examples import tokenizer_corpus
from simpleseg_training.export import write_checkpoint
from simpleseg_training.forward import hidden_states
from simpleseg_training.initial import initialise
from simpleseg_training.model import ModelSize, new_model
from simpleseg_training.optimizer import (
    make_optimizers,
    multiplies_bfloat16,
    parameters,
    rate_factor,
    set_rates,
)
from simpleseg_training.packing import IGNORE, Batch, Packer
from simpleseg_training.rollout import quick_evaluation
from simpleseg_training.tokenizer import cut_tokenizer, qwen_tokenizer_file, token_id


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on; written beside its checkpoints."""

    images: int = 300_000
    batch_images: int = 16
    length: int = 256
    seed: int = 0
    sigma_start: float = 25.0
    """Deviation of the soft targets in thousandths, at the start and from 45 % of the run on."""
    sigma_end: float = 1.5
    size: ModelSize = ModelSize()
    order: Order = "clockwise"
    """Of the vertices in answers: the ablation that shows what a fixed order is worth."""
    start_from: str | None = None
    """Folder of a checkpoint whose weights to go on from; such a run begins halfway through the
    curriculum, with fresh auxiliary heads."""
    first_scene: int = 0
    """Train scene of the run's image 0, so that a run that goes on sees new scenes."""


@dataclass(frozen=True)
class Losses:
    """Mean losses of a step; ``digits`` and ``structure`` are hard cross-entropies, to watch."""

    total: Tensor
    answer: Tensor
    digits: Tensor
    structure: Tensor
    visual: Tensor
    next_number: Tensor
    last_number: Tensor
    pointer: Tensor


class Trainee(nn.Module):
    """The model and its auxiliary heads; calling it gives the losses of a batch."""

    def __init__(
        self, model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, size: ModelSize
    ) -> None:
        super().__init__()
        self.model = model
        self.image_start = Packer(tokenizer, size).image_start
        self.hidden_states = torch.compile(hidden_states, dynamic=False)
        self.heads = AuxiliaryHeads(model.config.text_config.hidden_size)
        self.digit_ids: Tensor
        digits = [token_id(tokenizer, str(d)) for d in range(10)]
        self.register_buffer("digit_ids", torch.tensor(digits), persistent=False)

    def forward(self, batch: Batch, targets: Tensor, sigma: float, help_weight: float) -> Losses:
        hidden, middle, visual = self.hidden_states(self.model, batch, self.image_start)
        hidden = hidden.float()
        answered = batch.labels[:, 1:] != IGNORE
        log_probs = F.linear(hidden[:, :-1][answered], self.model.lm_head.weight.float())
        log_probs = log_probs.log_softmax(dim=-1)
        labels = batch.labels[:, 1:][answered]
        places = batch.places[:, 1:][answered]
        hard = -log_probs.gather(1, labels[:, None])[:, 0]
        wanted = targets[places, batch.values[:, 1:][answered]]
        soft = self._soft_loss(log_probs, labels, wanted)
        in_number = wanted.sum(dim=-1) > 0
        # Digits are where the difficulty is; averaged with all tokens they would count a third.
        answer = 2 * soft[in_number].mean() + hard[~in_number].mean()
        next_number, last_number = self.heads.number_losses(
            hidden, batch.places, batch.values, sigma
        )
        visual_loss = self.heads.visual_loss(visual.float(), batch.visual)
        pointer = self.heads.pointer_loss(middle, self.image_start, batch.starts, batch.shares)
        help_loss = 0.3 * visual_loss + 0.5 * next_number + 0.1 * last_number + 0.5 * pointer
        return Losses(
            answer + help_weight * help_loss,
            answer.detach(),
            hard.detach()[in_number].mean(),
            hard.detach()[~in_number].mean(),
            visual_loss.detach(),
            next_number.detach(),
            last_number.detach(),
            pointer.detach(),
        )

    def _soft_loss(self, log_probs: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        """Cross-entropy with the digits' and the terminator's target masses; the terminator is
        whichever token really ended the number."""
        digits = -(wanted[:, : numbers.TERMINATOR] * log_probs[:, self.digit_ids]).sum(dim=-1)
        is_digit = (labels[:, None] == self.digit_ids).any(dim=-1)
        ended = -log_probs.gather(1, labels[:, None])[:, 0] * wanted[:, numbers.TERMINATOR]
        return digits + torch.where(is_digit, torch.zeros_like(ended), ended)


def sigma_at(recipe: Recipe, progress: float) -> float:
    """Geometric from start to end over the first 45 % of the run."""
    share = min(progress / 0.45, 1.0)
    return float(recipe.sigma_start * (recipe.sigma_end / recipe.sigma_start) ** share)


def help_at(progress: float) -> float:
    """Weight of the auxiliary losses: 1, fading to 0 between 50 % and 85 % of the run."""
    return min(1.0, max(0.0, (0.85 - progress) / 0.35))


def loader(stream: TrainingBatches, workers: int) -> DataLoader[Batch]:
    """The stream drawn in this process, or in ``workers`` others.

    Those are forks of a process that started afresh: forks of this one would inherit the thread
    pools of OpenCV and torch in whatever state they are, and a process that ends as Python itself
    does, while it hands over a batch, is aborted within torch.
    """
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        collate_fn=pass_through,
        multiprocessing_context="forkserver" if workers else None,
    )


class Run:
    """One process of a training run."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe = recipe
        self.out = out
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cpu")
        if self.cuda:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        torch.manual_seed(recipe.seed)
        self.tokenizer = cut_tokenizer(qwen_tokenizer_file(), tokenizer_corpus())
        model = self._first_model()
        self.trainee = Trainee(model, self.tokenizer, recipe.size).to(self.device)
        self.optimizers = make_optimizers(model, self.trainee.heads)
        self.images = recipe.images // 2 if recipe.start_from else 0
        self.step = 0
        self._resume()
        self.parallel: nn.Module = self.trainee
        if self.world > 1:
            torch._dynamo.config.optimize_ddp = False  # one graph: gradients are few and small
            self.parallel = DistributedDataParallel(self.trainee)

    def _first_model(self) -> Qwen3VLForConditionalGeneration:
        start = self.recipe.start_from
        if start is not None:
            return Qwen3VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
        model = new_model(self.recipe.size, self.tokenizer)
        initialise(model, self.tokenizer)
        return model

    @property
    def progress(self) -> float:
        return self.images / self.recipe.images

    def batches(self) -> DataLoader[Batch]:
        recipe = self.recipe
        stream = TrainingBatches(
            self.tokenizer.to_str(),
            recipe.size,
            recipe.batch_images,
            recipe.length,
            self.images,
            recipe.images,
            self.rank,
            self.world,
            recipe.order,
            recipe.first_scene,
        )
        workers = max(1, (os.cpu_count() or 2) - 1) if self.cuda else 0
        return loader(stream, workers)

    def train_step(self, batch: Batch, targets: Tensor, sigma: float) -> Losses:
        set_rates(self.optimizers, rate_factor(self.step, self.progress))
        is_fast = multiplies_bfloat16(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_fast):
            losses: Losses = self.parallel(
                batch.to(self.device), targets, sigma, help_at(self.progress)
            )
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.total)
        nn.utils.clip_grad_norm_(list(parameters(self.optimizers)), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.images += self.recipe.batch_images * self.world
        return losses

    def log(self, record: dict[str, object]) -> None:
        if self.rank == 0:
            line = json.dumps({"step": self.step, "images": self.images, **record})
            print(line, flush=True)
            with (self.out / "log.jsonl").open("a") as file:
                file.write(line + "\n")

    def evaluate(self, limit: int) -> None:
        """Rank 0 evaluates while the others wait at the next gradient exchange."""
        if self.rank == 0:
            model = self.trainee.model
            model.eval()
            scores = {
                data: quick_evaluation(model, self.tokenizer, self.recipe.size, data, limit)
                for data in ("demo-single", "demo-multi")
            }
            model.train()
            self.log({"evaluation": scores})

    def save(self) -> None:
        if self.rank != 0:
            return
        state = {
            "trainee": self.trainee.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "images": self.images,
            "step": self.step,
        }
        torch.save(state, self.out / "state.tmp")
        (self.out / "state.tmp").rename(self.out / "state.pt")
        write_checkpoint(
            self.trainee.model,
            self.tokenizer,
            self.recipe.size.image_px,
            self.out / "checkpoint",
        )

    def _resume(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        # On the CPU first: what belongs on the device is copied there, and the optimizers' step
        # counts stay, since on a GPU each would be waited for in every step.
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.trainee.load_state_dict(state["trainee"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.images, self.step = state["images"], state["step"]


def train(recipe: Recipe, out: Path, log_every: int, evaluate_every: int, limit: int) -> None:
    """Run to ``recipe.images`` images; ``evaluate_every`` counts steps and also saves."""
    out.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, out)
    if run.rank == 0:
        (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n")
    started, first = time.monotonic(), run.images
    sigma = math.inf
    for batch in run.batches():
        if run.progress >= 1:
            break
        wanted = sigma_at(recipe, run.progress)
        if not 0.97 * sigma < wanted <= sigma:
            sigma = wanted
            targets = numbers.soft_targets(sigma).to(run.device)
        losses = run.train_step(batch, targets, sigma)
        if run.step % log_every == 0:
            rate = (run.images - first) / (time.monotonic() - started)
            record = {name: round(value.item(), 4) for name, value in vars(losses).items()}
            run.log(record | {"sigma": round(sigma, 2), "images_per_s": round(rate, 1)})
        if run.step % evaluate_every == 0:
            run.save()
            run.evaluate(limit)
    run.save()
    run.evaluate(limit * 4)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and log")
    parser.add_argument("--images", type=int, default=Recipe.images)
    parser.add_argument("--batch-images", type=int, default=Recipe.batch_images)
    parser.add_argument("--start-from", help="checkpoint folder whose weights to go on from")
    parser.add_argument("--first-scene", type=int, default=0, help="train scene of image 0")
    parser.add_argument("--order", choices=ORDERS, default=Recipe.order, help="of the vertices")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--log-every", type=int, default=20, help="steps")
    parser.add_argument("--evaluate-every", type=int, default=400, help="steps")
    parser.add_argument("--limit", type=int, default=50, help="scenes of each evaluation")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    recipe = Recipe(
        options.images,
        options.batch_images,
        seed=options.seed,
        order=options.order,
        start_from=options.start_from,
        first_scene=options.first_scene,
    )
    train(recipe, options.out, options.log_every, options.evaluate_every, options.limit)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
