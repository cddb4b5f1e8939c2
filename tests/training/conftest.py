"""Shared fixtures: the demo tokenizer, and a model size that trains in a blink."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from simpleseg_training.examples import tokenizer_corpus
from simpleseg_training.model import ModelSize
from simpleseg_training.tokenizer import cut_tokenizer, qwen_tokenizer_file

# Read when `datasets` is imported: what it makes of files of pairs is not for the user's own cache.
os.environ.setdefault("HF_DATASETS_CACHE", str(Path(tempfile.gettempdir()) / "simpleseg-datasets"))
torch.set_num_threads(1)  # threads that wait for each other are slower on a busy machine


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return cut_tokenizer(qwen_tokenizer_file(), tokenizer_corpus())


@pytest.fixture
def tiny() -> ModelSize:
    return ModelSize(
        image_px=64,
        vision_width=32,
        vision_depth=2,
        vision_heads=2,
        vision_ffn=32,
        width=64,
        depth=2,
        heads=1,
        kv_heads=1,
        ffn=64,
    )


@pytest.fixture
def eager() -> Iterator[None]:
    """No compilation: it costs a minute and computes the same."""
    with torch.compiler.set_stance("force_eager"):
        yield
