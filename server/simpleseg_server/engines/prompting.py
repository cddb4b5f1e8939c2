"""What a checkpoint says besides its weights: its prompt and its vocabulary."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from transformers import AutoTokenizer

from simpleseg_server.engines.base import PromptRefusedError, Role, Turn, conversation
from simpleseg_server.engines.profiles import Profile
from simpleseg_server.engines.vocabulary import TextTokens, text_tokens

_ANSWER = "answer goes here"

Shape = tuple[tuple[Role, bool], ...]
"""The role of every message, and whether it has the image: all that a chat template looks at."""

_ONE_QUESTION: Shape = (("user", True),)


class Prompter:
    """The chat prompt around texts, as token ids, and what the ids of answers spell.

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
        tokens = text_tokens(tokenizer)
        self.vocabulary = tokens.vocabulary
        self._plain = tokens.plain
        self._frame = lru_cache(64)(
            lambda shape: [tokens.rendered(text) for text in _around(tokenizer, profile, shape)]
        )
        self.prompt_end = tuple(self._frame(_ONE_QUESTION)[-1])
        self.end_token_id = _end_of_turn(tokenizer, profile, tokens)

    def text_ids(self, text: str) -> list[int]:
        """A text as the prompt holds it, without anything around it."""
        return self._plain(text)

    def ids(self, instruction: str, history: Sequence[Turn] = ()) -> list[int]:
        """The prompt with one placeholder for the image. The texts are read as plain text: the
        names of control tokens in them are spelled out and control nothing.

        Raises PromptRefusedError where the chat template has no place for the conversation.
        """
        turns = conversation(instruction, history)
        try:
            frame = self._frame(tuple((turn.role, turn.has_image) for turn in turns))
        except Exception as error:  # a template may raise what it likes
            message = f"the chat template refuses the conversation: {error}"
            raise PromptRefusedError(message, "conversation_unsupported") from error
        ids = list(frame[0])
        for turn, after in zip(turns, frame[1:], strict=True):
            ids += [*self._plain(turn.text), *after]
        return ids


def _around(tokenizer: Any, profile: Profile, shape: Shape) -> list[str]:
    """The chat template's text before, between and after the messages' texts."""
    names = [f"text {index} goes here" for index in range(len(shape))]
    turns = [Turn(role, name, image) for (role, image), name in zip(shape, names, strict=True)]
    rest = tokenizer.apply_chat_template(
        profile.messages(turns), tokenize=False, add_generation_prompt=True
    )
    parts = []
    for name in names:
        before, found, rest = rest.partition(name)
        if not found:
            raise ValueError("the chat template leaves a message out")
        parts.append(before)
    if not rest:
        raise ValueError("nothing follows the instruction in the chat template")
    return [*parts, rest]


def _end_of_turn(tokenizer: Any, profile: Profile, tokens: TextTokens) -> int:
    """The control token after an answer in the chat template, which is what the model was trained
    to end with; else the tokenizer's end token. Kimi-VL's files name another one than its template.
    """
    turns = (*conversation("the instruction"), Turn("assistant", _ANSWER))
    try:
        text = tokenizer.apply_chat_template(profile.messages(turns), tokenize=False)
    except Exception:  # a template may raise what it likes about an answer
        text = ""
    following = tokens.rendered(text.partition(_ANSWER)[2])[:1]
    if following and following[0] not in tokens.vocabulary:
        return following[0]
    return int(tokenizer.eos_token_id)
