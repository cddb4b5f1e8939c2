"""What a checkpoint says besides its weights: its prompt and its vocabulary."""

from typing import Any

from transformers import AutoTokenizer

from simpleseg_server.engines.profiles import Profile
from simpleseg_server.engines.vocabulary import TextTokens, text_tokens

_SENTINEL = "instruction goes here"
_ANSWER = "answer goes here"


class Prompter:
    """The chat prompt around an instruction, as token ids, and what the ids of answers spell.

    ``vocabulary`` gives the bytes of every token but the control tokens; ``end_token_id`` ends the
    model's turn; ``prompt_end`` are the ids between the instruction and the answer.
    """

    def __init__(
        self, path: str, profile: Profile | None = None, *, trust_remote_code: bool = False
    ) -> None:
        """Read the tokenizer of a folder or hub id; ``profile`` is the checkpoint's own, unless
        another is given.

        Raises ValueError where the chat template leaves the instruction out, for tokenizers of an
        unknown kind, and where one needs code that ``trust_remote_code`` does not allow.
        """
        profile = profile or Profile.load(path)
        profile.require(path, trust_remote_code=trust_remote_code)
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        if getattr(tokenizer, "chat_template", None) is None:
            tokenizer.chat_template = profile.chat_template
        self._tokens = text_tokens(tokenizer)
        self.vocabulary = self._tokens.vocabulary
        self.text_before, self.text_after = _around(tokenizer, profile)
        self._before = self._tokens.rendered(self.text_before)
        self.prompt_end = tuple(self._tokens.rendered(self.text_after))
        self.end_token_id = _end_of_turn(tokenizer, profile, self._tokens)

    def ids(self, instruction: str) -> list[int]:
        """The prompt with one placeholder for the image. The instruction is read as plain text: the
        names of control tokens in it are spelled out and control nothing."""
        return [*self._before, *self._tokens.plain(instruction), *self.prompt_end]


def _around(tokenizer: Any, profile: Profile) -> tuple[str, str]:
    """The chat template's text before and after the instruction."""
    text = tokenizer.apply_chat_template(
        profile.messages(_SENTINEL), tokenize=False, add_generation_prompt=True
    )
    before, found, after = text.partition(_SENTINEL)
    if not (found and after):
        raise ValueError("the chat template leaves the instruction out, or nothing follows it")
    return before, after


def _end_of_turn(tokenizer: Any, profile: Profile, tokens: TextTokens) -> int:
    """The control token after an answer in the chat template, which is what the model was trained
    to end with; else the tokenizer's end token. Kimi-VL's files name another one than its template.
    """
    turns = [*profile.messages(_SENTINEL), {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template may raise what it likes about an answer
        text = ""
    following = tokens.rendered(text.partition(_ANSWER)[2])[:1]
    if following and following[0] not in tokens.vocabulary:
        return following[0]
    return int(tokenizer.eos_token_id)
