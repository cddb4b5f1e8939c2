"""LoRA adapters in the real vLLM: models of their own, beside the checkpoint."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from simpleseg_polygon.prompts import instruction
from simpleseg_server.engines.base import EngineError, GenerationRequest
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_server.engines.vllm import VllmEngine
from simpleseg_server.engines.vllm_backend import Adapter, VllmOptions
from simpleseg_training.cases import load_cases

from .support import DEMO_MODEL, DEMO_PX, Outcome, answer, same_tokens

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not (DEMO_MODEL / "config.json").is_file(), reason="this build ships no demo model"
    ),
]
SCENES = 3
RANKS = {"little": 4, "much": 12}
"""By adapter; the second is none of the ranks that vLLM knows."""


def write_adapter(folder: Path, rank: int, seed: int) -> None:
    """An adapter as PEFT saves it, with random weights, and the checkpoint with them merged in."""
    import peft
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    model: Any = AutoModelForImageTextToText.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,  # answers change, and still end
        target_modules=r".*language_model.*\.(q_proj|v_proj|o_proj|up_proj|down_proj)",
        init_lora_weights=False,
    )
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(str(folder / "adapter"))
    merged: Any = adapted.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    for file in DEMO_MODEL.iterdir():
        if file.suffix in (".json", ".jinja") and not (folder / "merged" / file.name).exists():
            (folder / "merged" / file.name).write_bytes(file.read_bytes())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in RANKS}
    for seed, (name, rank) in enumerate(RANKS.items()):
        write_adapter(found[name], rank, seed)
    return found


def requests(adapter: str | None) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            request_id=f"scene {number}",
            image_hw3=case.image_hw3,
            image_key=f"scene {number}",
            instruction=instruction("region", case.phrase),
            target="region",
            max_tokens=512,
            adapter=adapter,
        )
        for number, case in enumerate(load_cases("demo-multi", "test", SCENES, DEMO_PX))
    ]


async def together(engine: VllmEngine) -> dict[str | None, list[Outcome]]:
    """All models' answers to the same questions, in one batch."""
    await engine.start()
    try:
        names = (None, *RANKS)
        asked = [request for name in names for request in requests(name)]
        found = await asyncio.gather(*(answer(engine, request) for request in asked))
        return {name: found[SCENES * place :][:SCENES] for place, name in enumerate(names)}
    finally:
        await engine.close()


def test_each_answers_as_its_merged_weights_do(folders: dict[str, Path]) -> None:
    adapters = tuple(Adapter(name, str(folders[name] / "adapter")) for name in RANKS)
    engine = VllmEngine(DEMO_MODEL, VllmOptions(dtype="float32", adapters=adapters))
    found = asyncio.run(together(engine))
    assert engine.capabilities.models == ("simpleseg-demo", *RANKS)
    for name in (None, *RANKS):
        checkpoint = DEMO_MODEL if name is None else folders[name] / "merged"
        same_tokens(found[name], answers_of(checkpoint))
    texts = [[outcome.text for outcome in outcomes] for outcomes in found.values()]
    assert texts[0] != texts[1] != texts[2]


def answers_of(checkpoint: Path) -> list[Outcome]:
    """The embedded engine's."""
    engine = TransformersEngine(checkpoint, num_threads=1)

    async def run() -> list[Outcome]:
        await engine.start()
        try:
            return [await answer(engine, request) for request in requests(None)]
        finally:
            await engine.close()

    return asyncio.run(run())


def test_an_adapter_that_does_not_fit_fails_the_start(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "peft_type": "LORA"}')
    options = VllmOptions(dtype="float32", adapters=(Adapter("broken", str(tmp_path)),))
    with pytest.raises(EngineError):
        asyncio.run(VllmEngine(DEMO_MODEL, options).start())
