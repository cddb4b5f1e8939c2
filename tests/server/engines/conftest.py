"""Small checkpoints with random weights, written once per run."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import PreTrainedModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from simpleseg_polygon.prompts import TARGETS, instruction
from simpleseg_server.engines.transformers import TransformersEngine
from simpleseg_training.export import fast_tokenizer, write_checkpoint
from simpleseg_training.model import ModelSize, new_model
from simpleseg_training.tokenizer import cut_tokenizer, qwen_tokenizer_file

from .fake_upstream import Asked, FakeUpstream, Plan
from .remote_support import MakeUpstream, usual
from .support import DEMO_MODEL, DEMO_PX, IMAGES, StartEngine
from .vllm_process import VllmProcess

IMAGE_PX = 64

torch.set_num_threads(1)  # threads that wait for each other are slower on a busy machine


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    words = [instruction(target, "the left dog") for target in TARGETS]
    return cut_tokenizer(qwen_tokenizer_file(), [*words, "system\n", "user\n", "assistant\n"])


@pytest.fixture(scope="session")
def qwen3_checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-VL, trained (or not) on one image size."""
    torch.manual_seed(0)
    size = ModelSize(
        image_px=IMAGE_PX, vision_width=64, vision_depth=2, vision_ffn=64, width=64, depth=2, ffn=96
    )
    model = new_model(size, tokenizer)
    _spread(model, tokenizer)
    directory = tmp_path_factory.mktemp("qwen3")
    write_checkpoint(model, tokenizer, IMAGE_PX, directory, torch.float32)
    return directory


@pytest.fixture(scope="session")
def qwen25_checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL, for images of any size."""
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(_qwen25_config(tokenizer))
    _spread(model, tokenizer)
    directory = tmp_path_factory.mktemp("qwen25")
    model.save_pretrained(directory)
    fast_tokenizer(tokenizer).save_pretrained(directory)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


@pytest.fixture(params=["qwen3_checkpoint", "qwen25_checkpoint"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(scope="module")
def start_engine() -> Iterator[StartEngine]:
    """Engines by options, each started once, all closed in the end."""
    engines: dict[str, TransformersEngine] = {}

    def start(checkpoint: Path, **options: Any) -> TransformersEngine:
        name = f"{checkpoint} {options}"
        if name not in engines:
            engines[name] = TransformersEngine(checkpoint, num_threads=1, **options)
            asyncio.run(engines[name].start())
        return engines[name]

    yield start
    for engine in engines.values():
        asyncio.run(engine.close())


@pytest.fixture(scope="session")
def image64() -> str:
    """The first image as a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def make_upstream() -> Iterator[MakeUpstream]:
    """A server that answers every request but those that warm up by ``plan``."""
    made: list[FakeUpstream] = []

    def make(**plan: Any) -> FakeUpstream:
        def script(asked: Asked) -> Plan:
            return Plan(usual(asked)) if asked.warms_up else Plan(**{"text": usual(asked)} | plan)

        made.append(FakeUpstream(script))
        return made[-1]

    yield make
    for upstream in made:
        upstream.close()


@pytest.fixture(scope="session")
def demo_upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmProcess]:
    """vLLM's own server with the demo model; who kills it starts it again."""
    log = tmp_path_factory.mktemp("demo_upstream") / "log"
    with closing(VllmProcess(DEMO_MODEL, log, image_px=DEMO_PX)) as upstream:
        upstream.start()
        upstream.wait()
        yield upstream


def _qwen25_config(tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    token = tokenizer.token_to_id
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 64,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )


@torch.no_grad()
def _spread(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Larger weights than a fresh model has, so that answers differ from prompt to prompt, and
    little liking for the answer that ends at once."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(6.0)
    output = model.get_output_embeddings().weight
    for text, token in tokenizer.get_vocab().items():
        if text.startswith(("[]", "]")) and text != "],":
            output[token] *= 0.1
