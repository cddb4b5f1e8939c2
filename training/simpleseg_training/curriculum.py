"""What the model sees when: one object first, then several, then every task."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset, get_worker_info

from simpleseg_training.contours import Order
from simpleseg_training.examples import (
    TASK_WEIGHTS,
    Example,
    Task,
    demo_contours,
    make_examples,
)
from simpleseg_training.model import ModelSize
from simpleseg_training.packing import Batch, Packed, Packer, collate
from simpleseg_training.scenes import SPLITS, Rendering, render_scene

_PROBES: dict[Task, float] = {  # short answers that tell where and what an object is
    ("text", "box"): 0.45,
    ("text", "point"): 0.15,
    ("point", "text"): 0.15,
    ("point", "box"): 0.07,
    # One token tells an absent object from a present one: rare questions would never teach it.
    ("absent", "box"): 0.18,
}
_OUTLINES: dict[Task, float] = {
    ("text", "region"): 0.74,
    ("point", "region"): 0.06,
    ("box", "region"): 0.06,
    ("absent", "region"): 0.14,
}
# As rare as elsewhere, absent regions were told in four cases of five only.
_EVERY: dict[Task, float] = TASK_WEIGHTS | {("text", "region"): 0.4, ("absent", "region"): 0.14}


@dataclass(frozen=True)
class Stage:
    """Scenes of one kind: how many objects, and which tasks are asked about them."""

    min_objects: int
    max_objects: int
    tasks: tuple[dict[Task, float], ...]
    """One task is drawn from each in turn, as long as the sequence has room."""


ONE = Stage(1, 1, (_PROBES, _OUTLINES, _PROBES))
WHICH = Stage(2, 4, (_PROBES,) * 6)
FEW = Stage(2, 3, (_PROBES, _OUTLINES, _OUTLINES, _PROBES))
ALL = Stage(1, 6, (_PROBES, _EVERY, _EVERY, _EVERY))


def mixture(progress: float) -> tuple[tuple[float, Stage], ...]:
    """Shares of the stages at a point of training in [0, 1]; single objects stay in the mix."""
    if progress < 0.15:
        return ((1.0, ONE),)
    if progress < 0.5:
        return ((0.25, ONE), (0.4, WHICH), (0.35, FEW))
    return ((0.15, ONE), (0.2, WHICH), (0.4, FEW), (0.25, ALL))


def draw_examples(
    rng: Generator, seed: int, progress: float, image_px: int, order: Order = "clockwise"
) -> tuple[Rendering, list[Example]]:
    """A scene of the mixture and its questions; vertices of answers in this order."""
    shares, stages = zip(*mixture(progress), strict=True)
    stage = stages[int(rng.choice(len(stages), p=shares))]
    rendering = render_scene(seed, stage.min_objects, stage.max_objects, image_px)
    contours = replace(demo_contours(image_px), order=order)
    examples = [
        example
        for tasks in stage.tasks
        for example in make_examples(rng, rendering, 1, tasks, contours)
    ]
    return rendering, examples


class TrainingBatches(IterableDataset[Batch]):
    """An endless stream of batches; image number i of the run is train scene ``first_scene + i``.

    ``first_image`` is where to go on after a resume, ``total_images`` sets the curriculum's pace.
    Processes (``rank`` of ``world``) and loader workers take turns, so no scene is used twice.
    """

    def __init__(
        self,
        tokenizer_json: str,
        size: ModelSize,
        batch_images: int,
        length: int,
        first_image: int,
        total_images: int,
        rank: int = 0,
        world: int = 1,
        order: Order = "clockwise",
        first_scene: int = 0,
    ) -> None:
        super().__init__()
        self._tokenizer_json = tokenizer_json
        self._size = size
        self._batch_images = batch_images
        self._length = length
        self._first_image = first_image
        self._total_images = total_images
        self._rank = rank
        self._world = world
        self._order = order
        self._first_seed = SPLITS["train"].start + first_scene

    def __iter__(self) -> Iterator[Batch]:
        packer = Packer(Tokenizer.from_str(self._tokenizer_json), self._size)
        worker = get_worker_info()
        workers, turn = (worker.num_workers, worker.id) if worker else (1, 0)
        stride = self._world * workers
        image = self._first_image + self._rank * workers + turn
        while True:
            packs: list[Packed] = []
            while len(packs) < self._batch_images:
                packs.append(self._pack(packer, image))
                image += stride
            yield collate(packs, self._length)  # one shape, so that one graph is compiled

    def _pack(self, packer: Packer, image: int) -> Packed:
        seed = self._first_seed + image
        rng = np.random.default_rng((seed, 1))
        progress = min(1.0, image / self._total_images)
        rendering, examples = draw_examples(rng, seed, progress, self._size.image_px, self._order)
        return packer.pack(rendering, examples, self._length)


def pass_through(batch: Any) -> Any:
    """The loader's collate function: batches come ready-made."""
    return batch
