"""Packed training computes what transformers computes; a run learns, stops and goes on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText, AutoTokenizer

from simpleseg_polygon.codec import parse_region
from simpleseg_training.contours import Order
from simpleseg_training.curriculum import ALL, ONE, TrainingBatches, draw_examples, mixture
from simpleseg_training.evaluate import Reply, judge, metrics_of, run
from simpleseg_training.examples import Task, demo_contours, make_examples
from simpleseg_training.export import write_checkpoint
from simpleseg_training.forward import hidden_states, patchify
from simpleseg_training.initial import initialise
from simpleseg_training.model import PATCH, ModelSize, new_model
from simpleseg_training.optimizer import rate_factor
from simpleseg_training.packing import Packer, collate
from simpleseg_training.pairs import DemoPairs
from simpleseg_training.pretrain import Recipe, loader, sigma_at, train
from simpleseg_training.recombine import Source
from simpleseg_training.scenes import render_scene
from simpleseg_training.train_config import DataConfig


def test_packed_branches_equal_single_turns(tokenizer: Tokenizer, tiny: ModelSize) -> None:
    torch.manual_seed(0)
    model = new_model(tiny, tokenizer).eval()
    initialise(model, tokenizer)
    rendering = render_scene(3, 2, 3, tiny.image_px)
    examples = make_examples(np.random.default_rng(0), rendering, 3)
    packer = Packer(tokenizer, tiny)
    batch = collate([packer.pack(rendering, examples, 512)], 512)
    patches = patchify(batch.images).view(-1, 3, 1, PATCH, PATCH)
    frames = patches.expand(-1, -1, 2, -1, -1).flatten(1)
    with torch.no_grad():
        packed, _, _ = hidden_states(model, batch, packer.image_start)
        for branch in range(1, int(batch.segments.max()) + 1):
            own = (batch.segments[0] == 0) | (batch.segments[0] == branch)
            ids = batch.ids[0][own][None]
            single = model.model(
                input_ids=ids,
                pixel_values=frames,
                image_grid_thw=torch.tensor([[1, tiny.grid, tiny.grid]]),
                mm_token_type_ids=(ids == model.config.image_token_id).long(),
            ).last_hidden_state
            assert torch.allclose(single[0], packed[0][own], atol=2e-5)


def test_batches_go_on_where_a_run_stopped(tokenizer: Tokenizer, tiny: ModelSize) -> None:
    def stream(first: int) -> TrainingBatches:
        return TrainingBatches(tokenizer.to_str(), tiny, 2, 256, first, 100)

    iterator = iter(stream(0))
    next(iterator)
    second = next(iterator)
    assert torch.equal(second.ids, next(iter(stream(2))).ids)


def test_a_run_that_goes_on_can_see_other_scenes(tokenizer: Tokenizer, tiny: ModelSize) -> None:
    def images(first_image: int, first_scene: int) -> torch.Tensor:
        stream = TrainingBatches(
            tokenizer.to_str(), tiny, 2, 256, first_image, 1000, first_scene=first_scene
        )
        return next(iter(stream)).images

    assert torch.equal(images(0, 6), images(6, 0))
    assert not torch.equal(images(0, 6), images(0, 0))


def test_loader_processes_take_turns(tokenizer: Tokenizer, tiny: ModelSize) -> None:
    def images(workers: int) -> set[bytes]:
        batches = iter(loader(TrainingBatches(tokenizer.to_str(), tiny, 2, 256, 0, 100), workers))
        drawn = torch.cat([next(batches).images, next(batches).images])
        return {image.numpy().tobytes() for image in drawn}

    assert len(images(0)) == 4
    assert images(2) == images(0)


@pytest.mark.parametrize("order", ["counter-clockwise", "unordered"])
def test_another_order_is_the_same_outline(order: Order) -> None:
    tasks: dict[Task, float] = {("box", "region"): 1.0}
    others = 0
    for seed in range(6):
        rendering = render_scene(seed, 1, 1, 64)
        made = [
            make_examples(np.random.default_rng(seed), rendering, 1, tasks, contours)
            for contours in (demo_contours(64), replace(demo_contours(64), order=order))
        ]
        usual, other = (parse_region(one.answer).value.parts for (one,) in made)
        assert [set(ring) for ring in usual] == [set(ring) for ring in other]
        others += usual != other
    assert others == 6


def test_a_run_is_told_the_order(tokenizer: Tokenizer, tiny: ModelSize) -> None:
    orders: tuple[Order, ...] = ("clockwise", "counter-clockwise")
    streams = [TrainingBatches(tokenizer.to_str(), tiny, 8, 256, 0, 100, order=o) for o in orders]
    clockwise, other = (next(iter(stream)) for stream in streams)
    assert torch.equal(clockwise.images, other.images)
    assert not torch.equal(clockwise.ids, other.ids)
    pairs = [DemoPairs(DataConfig(source="demo", limit=30, order=o)) for o in orders]
    assert any(pairs[0][i].answer != pairs[1][i].answer for i in range(30))
    assert [pairs[0][i].instruction for i in range(30) if pairs[0][i].target == "box"] == [
        pairs[1][i].instruction for i in range(30) if pairs[0][i].target == "box"
    ]


def test_absent_objects_can_be_asked_for_more_often() -> None:
    def share(weights: dict[Source, float]) -> float:
        pairs = DemoPairs(DataConfig(source="demo", limit=120, targets=["region"], weights=weights))
        return sum(pairs[i].answer == "[]." for i in range(120)) / 120

    assert share({"absent": 0.0}) == 0
    assert 0.02 < share({}) < 0.25
    assert share({"absent": 20.0}) > 0.5


def test_curriculum_ends_with_every_stage() -> None:
    assert mixture(0.0) == ((1.0, ONE),)
    assert ALL in [stage for _, stage in mixture(1.0)]
    for progress in np.linspace(0, 1, 11):
        assert sum(share for share, _ in mixture(progress)) == pytest.approx(1)
    rendering, examples = draw_examples(np.random.default_rng(0), 5, 1.0, 64)
    assert rendering.masks_hw
    assert examples


def test_schedules() -> None:
    recipe = Recipe()
    assert sigma_at(recipe, 0.0) == recipe.sigma_start
    assert sigma_at(recipe, 1.0) == pytest.approx(recipe.sigma_end)
    assert rate_factor(0, 0.0) < rate_factor(59, 0.0) == 1.0
    assert rate_factor(10_000, 1.0) == pytest.approx(0.01)


@pytest.mark.usefixtures("eager")
def test_a_run_learns_and_resumes(tmp_path: Path, tiny: ModelSize) -> None:
    recipe = Recipe(images=128, batch_images=4, length=192, size=tiny)
    train(recipe, tmp_path, log_every=8, evaluate_every=16, limit=2)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [record["answer"] for record in records if "answer" in record]
    assert losses[-1] < losses[0]
    longer = Recipe(images=144, batch_images=4, length=192, size=tiny)
    train(longer, tmp_path, log_every=1, evaluate_every=1000, limit=2)
    onward = Recipe(
        images=32, batch_images=4, length=192, size=tiny, start_from=str(tmp_path / "checkpoint")
    )
    train(onward, tmp_path / "onward", log_every=1, evaluate_every=1000, limit=2)
    first = json.loads((tmp_path / "onward/log.jsonl").read_text().splitlines()[0])
    assert first["images"] == 20  # halfway through the curriculum
    assert first["answer"] < losses[0]
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "answer" in r][-4:] == [33, 34, 35, 36]


def test_checkpoint_loads_unmodified(tmp_path: Path, tokenizer: Tokenizer, tiny: ModelSize) -> None:
    model = new_model(tiny, tokenizer)
    write_checkpoint(model, tokenizer, tiny.image_px, tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.dtype == torch.bfloat16
    text = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}]
    ids = text.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert ids.startswith("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Hi")
    profile = json.loads((tmp_path / "simpleseg.json").read_text())
    assert profile == {"name": "simpleseg-demo", "input_hw": [64, 64]}


def test_perfect_answers_score_near_one() -> None:
    """The ceiling: the labels themselves as answers."""

    def tell(image: NDArray[np.uint8], phrase: str, target: str) -> Reply:
        rendering, example = truth[phrase, target, image.tobytes()]
        return Reply(example, 10, 4, 1.0)

    truth: dict[tuple[str, str, bytes], tuple[None, str]] = {}
    for seed in range(20):
        rendering = render_scene(seed, 1, 1, 128)
        rng = np.random.default_rng((seed, 2))
        example = make_examples(rng, rendering, 1, {("text", "region"): 1.0})[0]
        box = make_examples(rng, rendering, 1, {("box", "box"): 1.0})[0]
        key = rendering.image_hw3.tobytes()
        truth[example.phrase, "region", key] = (None, example.answer)
        truth[example.phrase, "box", key] = (None, box.answer)
    metrics, judged = run("demo-single", "test", 20, tell)
    assert metrics["giou"] > 0.92
    assert metrics["box_acc50"] == 1.0
    assert metrics["tokens_per_step"] == pytest.approx(2.5)
    assert metrics["baseline_true_box"] < metrics["giou"]
    assert metrics["baseline_centre_box"] < metrics["baseline_true_box"]
    assert len(judged) == 20


def test_absent_phrases_are_scored_by_emptiness() -> None:
    from simpleseg_training.cases import Case

    image = np.zeros((8, 8, 3), np.uint8)
    absent = Case(image, "the red star", np.zeros((8, 8), bool))
    right = judge(absent, Reply("[].", 2, 1, 1.0), Reply("[].", 2, 1, 1.0))
    wrong_text = "[[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]]."
    wrong = judge(absent, Reply(wrong_text, 9, 3, 1.0), Reply("[0.0, 0.0, 1.0, 1.0].", 9, 3, 1.0))
    metrics = metrics_of([right, wrong])
    assert (right.iou, wrong.iou) == (1.0, 0.0)
    assert metrics["empty_recall"] == 0.5
