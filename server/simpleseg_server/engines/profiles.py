"""How each model is served: what a checkpoint's own files do not say, or say wrongly.

A profile is chosen by hub id for the published checkpoints, else by the ``model_type`` of
``config.json``; ``simpleseg.json`` in the checkpoint, where there is one, overrides single entries.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from simpleseg_polygon.confidence import Calibration
from simpleseg_polygon.prompts import Target
from simpleseg_server.engines.base import Turn

PROFILE_FILE = "simpleseg.json"
CONFIG_FILE = "config.json"

_USER_TURN = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    + _USER_TURN
    + "{% endif %}"
)
QWEN_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    + _CONTENT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KIMI_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>{% endif %}"
    "{% for message in messages %}<|im_{{ message['role'] }}|>{{ message['role'] }}<|im_middle|>"
    + _CONTENT.replace("IMAGE", "<|media_start|>image<|media_content|><|media_pad|><|media_end|>")
    + "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)


@dataclass(frozen=True)
class Profile:
    """How a checkpoint is served.

    ``name`` is the model id that clients see, ``input_hw`` the one image size of its training, if
    there was one. ``min_pixels`` and ``max_pixels`` narrow the areas its image processor takes.
    ``image_first`` puts the image before the instruction; ``system_prompt`` stands in for what the
    chat template says by itself; ``chat_template`` is used where the checkpoint brings none.
    ``coordinates`` are what its answers count in: nothing but shares of width and height is served.
    ``final_dot`` says whether its answers end with a dot, which matters to drafts alone.
    ``max_tokens`` bounds an answer. ``dtype`` is what the embedded engine loads weights in.
    ``calibration`` has, for some targets, the weights that ``simpleseg calibrate`` found.
    ``needs_remote_code`` and ``needs_vllm`` say what it cannot be served without.
    """

    name: str = ""
    input_hw: tuple[int, int] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    image_first: bool = True
    system_prompt: str | None = None
    chat_template: str | None = None
    coordinates: Literal["normalised"] = "normalised"
    final_dot: bool = True
    max_tokens: int = 8192
    dtype: str = "float32"
    calibration: Mapping[Target, Calibration] = field(default_factory=dict)
    needs_remote_code: bool = False
    needs_vllm: bool = False

    @classmethod
    def load(cls, path: str) -> "Profile":
        """The profile of a folder or hub id, from two small files of it.

        Raises ValueError where ``simpleseg.json`` has an unknown entry or coordinates of another
        kind, and OSError where the checkpoint cannot be had.
        """
        entries = read_json(path, PROFILE_FILE)
        unknown = sorted(entries.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"{PROFILE_FILE}: unknown entry {', '.join(unknown)}")
        if entries.get("coordinates", "normalised") != "normalised":
            raise ValueError(f"{PROFILE_FILE}: only coordinates 'normalised' are served")
        if entries.get("input_hw") is not None:
            height, width = entries["input_hw"]
            entries["input_hw"] = (int(height), int(width))
        entries["calibration"] = {
            target: Calibration.from_dict(weights)
            for target, weights in entries.get("calibration", {}).items()
        }
        profile = PUBLISHED.get(path) or of_model_type(
            read_json(path, CONFIG_FILE).get("model_type")
        )
        profile = replace(profile, **entries)
        return replace(profile, name=profile.name or _last_name(path))

    def require(self, path: str, *, trust_remote_code: bool) -> None:
        """Raise ValueError, in one line that names the option, where the checkpoint needs Python
        code that comes with it and that is not allowed."""
        if self.needs_remote_code and not trust_remote_code:
            raise ValueError(
                f"{path} needs Python code that comes with it; "
                "read that code, then allow it with --trust-remote-code"
            )

    def messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        """A conversation in the form that chat templates take; ``system_prompt`` begins it unless
        it has a system message of its own."""
        messages = [self._message(turn) for turn in turns]
        if self.system_prompt is None or any(turn.role == "system" for turn in turns):
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def _message(self, turn: Turn) -> dict[str, Any]:
        if not turn.has_image:
            return {"role": turn.role, "content": turn.text}
        content = [{"type": "image"}, {"type": "text", "text": turn.text}]
        return {"role": turn.role, "content": content if self.image_first else content[::-1]}


QWEN2_5_VL = Profile(
    # 1280 visual tokens. The checkpoint's own bound of 16384 leaves no room for an answer.
    max_pixels=1280 * 28 * 28,
    chat_template=QWEN_CHAT_TEMPLATE,
)
KIMI_VL = Profile(
    chat_template=KIMI_CHAT_TEMPLATE,
    needs_remote_code=True,
    needs_vllm=True,
)
# The weights are stored in bfloat16; float32 would take 30 GB and more.
PUBLISHED = {
    "sthui/SimpleSeg-Qwen2.5-VL": replace(QWEN2_5_VL, dtype="bfloat16"),
    "sthui/SimpleSeg-Kimi-VL": replace(KIMI_VL, dtype="bfloat16"),
}


def of_model_type(model_type: str | None) -> Profile:
    """The profile of a checkpoint that is known by its architecture alone.

    >>> of_model_type("kimi_vl").needs_remote_code
    True
    """
    return {"qwen2_5_vl": QWEN2_5_VL, "kimi_vl": KIMI_VL}.get(model_type or "", Profile())


def known_profile(path: str) -> Profile:
    """The profile of a hub id or a folder, without asking the hub: of an id that is not published
    here, nothing is known."""
    if path in PUBLISHED or not Path(path).is_dir():
        return PUBLISHED.get(path, Profile())
    return Profile.load(path)


def read_json(path: str, name: str) -> dict[str, Any]:
    """A JSON file of the checkpoint; empty where it has no such file."""
    from transformers.utils.hub import cached_file

    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    content: dict[str, Any] = {} if file is None else json.loads(Path(file).read_text())
    return content


def longest_context(path: str, *, trust_remote_code: bool) -> int:
    """The tokens of prompt and answer together that the model has positions for."""
    config = read_json(path, CONFIG_FILE)
    for part in (config.get("text_config", {}), config):
        if "max_position_embeddings" in part:
            return int(part["max_position_embeddings"])
    from transformers import AutoConfig  # which knows the defaults that a file may leave out

    full = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    return int(full.get_text_config().max_position_embeddings)


def _last_name(path: str) -> str:
    folder = Path(path)
    return folder.resolve().name if folder.exists() else path
