"""What ``POST /v1/chat/completions`` answers with: OpenAI's shapes, and ``segmentation``."""

from typing import Any, Literal

from simpleseg.schema import ResponseModel, Result


class TokenLogprob(ResponseModel):
    """A token of the answer, and the logarithm of its probability among the tokens that the grammar
    allowed. ``bytes`` is null where the token alone is no text."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[Any]


class ChoiceLogprobs(ResponseModel):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(ResponseModel):
    """``content`` is the model's text to the letter; ``segmentation`` is what it means."""

    role: Literal["assistant"]
    content: str
    refusal: None = None
    segmentation: Result


class Choice(ResponseModel):
    """``finish_reason`` is ``length`` where tokens, points or time ran out."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]


class PromptTokensDetails(ResponseModel):
    cached_tokens: int


class ChatUsage(ResponseModel):
    """``prompt_tokens`` counts the one question, ``completion_tokens`` all its answers. How many of
    the prompt's tokens were computed before is there where the engine tells."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class ChatCompletion(ResponseModel):
    """The answer of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: ChatUsage


class ChoiceDelta(ResponseModel):
    """What a chunk adds to a message: its role first, then pieces of its content, and with the
    finish reason, ``segmentation``."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    segmentation: Result | None = None


class ChunkChoice(ResponseModel):
    index: int
    delta: ChoiceDelta
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(ResponseModel):
    """An event of a stream. ``usage`` is there with ``stream_options.include_usage`` only: null,
    but for the last event, which has no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
