"""What the OpenAI-compatible servers call the same thing: one request, in the words of each.

Sources: vLLM 0.32 (entrypoints/openai/chat_completion/protocol.py), SGLang
(srt/entrypoints/openai/protocol.py), LMDeploy (serve/openai/protocol.py).
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from simpleseg_polygon.grammar import Budget, ebnf, regex
from simpleseg_polygon.prompts import Target
from simpleseg_server.engines.base import ClientGrammar, GenerationRequest, Turn, conversation

Dialect = Literal["vllm", "sglang", "lmdeploy", "none"]

# A checkpoint may come with sampling defaults, which these servers apply where a request is silent.
_NEUTRAL: Mapping[Dialect, Mapping[str, Any]] = {
    "vllm": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "lmdeploy": {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    "none": {},
}
_COUNTS_AS_IT_GOES = ("vllm", "sglang")
_CONTROL = re.compile(r"<(?=\S)|\[(?=[A-Z/])")


def chat_request(
    dialect: Dialect,
    model: str,
    request: GenerationRequest,
    image_url: str,
    budget: Budget | None,
    *,
    logprobs: bool = True,
) -> dict[str, Any]:
    """The body of ``POST /v1/chat/completions``: the conversation, streamed, the image before the
    text of its message.

    ``budget`` bounds an answer under the grammar; None leaves it free. The dialect ``none`` knows
    no grammar and bounds tokens only.
    """
    turns = conversation(request.instruction, request.history)
    enforced = budget is not None and dialect != "none"
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(turn, image_url) for turn in turns],
        "max_tokens": budget.max_tokens if budget is not None and enforced else request.max_tokens,
        "temperature": request.temperature,
        "top_p": 1.0,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_NEUTRAL[dialect],
    }
    if dialect in _COUNTS_AS_IT_GOES:
        body["stream_options"]["continuous_usage_stats"] = True
    if logprobs:
        body["logprobs"] = True
        if dialect == "lmdeploy":
            body["top_logprobs"] = 1  # older ones send none at all without it
    if request.seed is not None:
        body["seed"] = request.seed
    if budget is not None and enforced:
        body |= constraint(dialect, request.target, budget)
    if request.client_grammar is not None:
        body |= client_constraint(dialect, request.client_grammar)
    return body


def _message(turn: Turn, image_url: str) -> dict[str, Any]:
    text = as_plain_text(turn.text)
    if not turn.has_image:
        return {"role": turn.role, "content": text}
    image = {"type": "image_url", "image_url": {"url": image_url}}
    return {"role": turn.role, "content": [image, {"type": "text", "text": text}]}


def constraint(dialect: Dialect, target: Target, budget: Budget) -> dict[str, Any]:
    """The fields that make a server keep to the grammar.

    >>> list(constraint("sglang", "point", Budget(64)))
    ['ebnf']
    """
    if dialect == "vllm":
        return {"structured_outputs": {"grammar": ebnf(target, budget)}}
    if dialect == "sglang":
        return {"ebnf": ebnf(target, budget)}
    if dialect == "lmdeploy":
        return {"response_format": {"type": "regex_schema", "regex_schema": regex(target, budget)}}
    return {}


def takes_client_grammars(dialect: Dialect) -> bool:
    """Whether a dialect has words for every kind of grammar."""
    return dialect == "vllm"


def client_constraint(dialect: Dialect, grammar: ClientGrammar) -> dict[str, Any]:
    """A client's grammar, passed on. Raises ValueError where the dialect does not take them."""
    if not takes_client_grammars(dialect):
        raise ValueError(f"no grammars of clients with the dialect {dialect}")
    return {"structured_outputs": {grammar.kind: grammar.value}}


def as_plain_text(instruction: str) -> str:
    """The instruction with names of control tokens taken apart by a space, since a chat server
    reads them wherever they stand. What looks like none is left as it is.

    >>> as_plain_text("the <|im_end|> sign at [0.5, 0.25] with a < b")
    'the < |im_end|> sign at [0.5, 0.25] with a < b'
    """
    return _CONTROL.sub(lambda found: found[0] + " ", instruction)
