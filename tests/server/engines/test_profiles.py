"""Which profile serves a checkpoint, and the exact prompt of each published one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simpleseg_polygon.prompts import instruction
from simpleseg_server.engines import choose
from simpleseg_server.engines.base import Turn
from simpleseg_server.engines.image_limits import ImageLimits
from simpleseg_server.engines.profiles import (
    KIMI_VL,
    PROFILE_FILE,
    PUBLISHED,
    QWEN2_5_VL,
    Profile,
    longest_context,
)
from simpleseg_server.engines.prompting import Prompter

from .real_tokenizers import BUILDERS

QWEN_ID, KIMI_ID = "sthui/SimpleSeg-Qwen2.5-VL", "sthui/SimpleSeg-Kimi-VL"
PROMPTS = {
    "qwen": (
        b"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        b"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        b"Output the polygon coordinates of the left dog in the image.<|im_end|>\n"
        b"<|im_start|>assistant\n"
    ),
    "kimi": (
        b"<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>"
        b"<|im_user|>user<|im_middle|>"
        b"<|media_start|>image<|media_content|><|media_pad|><|media_end|>"
        b"Output the polygon coordinates of the left dog in the image.<|im_end|>"
        b"<|im_assistant|>assistant<|im_middle|>"
    ),
}


@pytest.fixture(params=PROMPTS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The tokenizer of a published checkpoint's kind, without weights."""
    name: str = request.param
    path = tmp_path / name
    path.mkdir()
    BUILDERS[name](path)
    return path


def spelled(folder: Path, prompter: Prompter, ids: list[int]) -> bytes:
    """The bytes of a prompt, control tokens by their names."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    names = {int(i): token["content"] for i, token in config["added_tokens_decoder"].items()}
    return b"".join(prompter.vocabulary.get(i) or names[i].encode() for i in ids)


def test_the_prompt_of_a_published_model(folder: Path) -> None:
    prompter = Prompter(str(folder), trust_remote_code=True)
    ids = prompter.ids(instruction("region", "the left dog"))
    assert spelled(folder, prompter, ids) == PROMPTS[folder.name]
    assert prompter.ids("")[-len(prompter.prompt_end) :] == list(prompter.prompt_end)


def test_the_checkpoint_s_own_chat_template_comes_first(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message['content'] %}"
        "{{ part['text'] if part['type'] == 'text' else 'IMAGE' }}{% endfor %}{% endfor %}!"
    )
    prompter = Prompter(str(folder), trust_remote_code=True)
    assert spelled(folder, prompter, prompter.ids("a cat")) == b"IMAGEa cat!"


def test_a_profile_file_changes_the_prompt(folder: Path) -> None:
    write(folder, {"system_prompt": "Be brief.", "image_first": False})
    prompter = Prompter(str(folder), trust_remote_code=True)
    text = spelled(folder, prompter, prompter.ids("a cat"))
    assert b"Be brief.<|im_end|>" in text
    assert b"helpful" not in text
    assert text.index(b"a cat") < text.index(b"_pad|>")


def write(folder: Path, profile: dict[str, Any], name: str = PROFILE_FILE) -> None:
    (folder / name).write_text(json.dumps(profile))


def test_profiles_are_chosen_by_id_file_and_model_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = as_hub(tmp_path, QWEN_ID, {"model_type": "qwen2_5_vl"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert Profile.load(QWEN_ID) == replace(PUBLISHED[QWEN_ID], name=QWEN_ID)
    assert PUBLISHED[QWEN_ID].dtype == "bfloat16"  # float32 takes twice the memory

    folder = tmp_path / "kept"
    folder.mkdir()
    for model_type, expected in (
        ("qwen2_5_vl", QWEN2_5_VL),
        ("kimi_vl", KIMI_VL),
        ("?", Profile()),
    ):
        write(folder, {"model_type": model_type}, "config.json")
        assert Profile.load(str(folder)) == replace(expected, name="kept")
    write(folder, {"name": "mine", "input_hw": [64, 32], "needs_vllm": True})
    assert Profile.load(str(folder)) == Profile(name="mine", input_hw=(64, 32), needs_vllm=True)


def as_hub(folder: Path, name: str, config: dict[str, Any]) -> Path:
    """A hub's cache that holds one repository with one file."""
    cache = folder / "hub"
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    write(snapshot, config, "config.json")
    return cache


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"max_pixel": 5}, "unknown entry max_pixel"),
        ({"coordinates": "pixels"}, "only coordinates 'normalised' are served"),
    ],
)
def test_what_a_profile_file_cannot_say_is_refused(
    folder: Path, entries: dict[str, Any], message: str
) -> None:
    write(folder, entries)
    with pytest.raises(ValueError, match=message):
        Profile.load(str(folder))


# Code that comes with a checkpoint.


def test_code_of_a_checkpoint_runs_by_option_only(tmp_path: Path) -> None:
    BUILDERS["kimi"](tmp_path)
    (tmp_path / "tokenization_kimi.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ValueError, match="--trust-remote-code") as raised:
        Prompter(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("local", [False, True])
def test_an_engine_is_refused_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(choose, "is_vllm_installed", lambda: True)
    path = KIMI_ID
    if local:
        write(tmp_path, {"model_type": "kimi_vl"}, "config.json")
        path = str(tmp_path)
    with pytest.raises(ValueError, match=r"allow it with --trust-remote-code$"):
        choose.make_engine("vllm", path)
    assert choose.make_engine("vllm", path, vllm_options={"trust_remote_code": True})
    with pytest.raises(ValueError, match="--engine vllm"):
        choose.make_engine("embedded", path)
    assert choose.make_engine("vllm", QWEN_ID)
    assert choose.make_engine("embedded", QWEN_ID)


# Images and lengths.


def test_image_limits_are_narrowed_and_never_widened(tmp_path: Path) -> None:
    path = str(tmp_path)
    size = {"shortest_edge": 3136, "longest_edge": 12_845_056}
    processor = {"image_processor_type": "Qwen2VLImageProcessor", "size": size}
    write(tmp_path, processor, "preprocessor_config.json")
    published = ImageLimits.of(path, QWEN2_5_VL, None)
    assert published.max_pixels == 1280 * 28 * 28
    assert published.arguments == {"min_pixels": 3136, "max_pixels": 1280 * 28 * 28}
    assert ImageLimits.of(path, QWEN2_5_VL, 10**5).max_pixels == 10**5
    assert ImageLimits.of(path, Profile(), None) == ImageLimits(12_845_056, {})
    narrow = ImageLimits.of(path, Profile(min_pixels=10**5, max_pixels=10**8), None)
    assert narrow.arguments == {"min_pixels": 10**5, "max_pixels": 12_845_056}
    assert ImageLimits.of(path, Profile(input_hw=(8, 6)), None) == ImageLimits(48, {})
    write(tmp_path, {"in_token_limit": 4096, "patch_size": 14}, "preprocessor_config.json")
    assert ImageLimits.of(path, KIMI_VL, None) == ImageLimits(4096 * 14**2, {})
    assert ImageLimits.of(path, KIMI_VL, 999).max_pixels == 999


@pytest.mark.parametrize(
    "config",
    [
        {"text_config": {"max_position_embeddings": 77}},
        {"max_position_embeddings": 77, "text_config": {}},
        {"model_type": "qwen2", "max_position_embeddings": 77},
    ],
)
def test_the_longest_context(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path, config, "config.json")
    assert longest_context(str(tmp_path), trust_remote_code=False) == 77


def test_the_default_context_is_the_architecture_s(tmp_path: Path) -> None:
    write(tmp_path, {"model_type": "qwen2"}, "config.json")
    assert longest_context(str(tmp_path), trust_remote_code=False) == 32768


def test_a_conversation_s_own_system_message_stands(folder: Path) -> None:
    prompter = Prompter(str(folder), Profile.load(str(folder)), trust_remote_code=True)
    ids = prompter.ids("a cat", [Turn("system", "Speak.")])
    assert b"Speak." in spelled(folder, prompter, ids)
    assert b"helpful" not in spelled(folder, prompter, ids)
