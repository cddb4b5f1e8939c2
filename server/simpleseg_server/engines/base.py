"""The Engine protocol: an image and an instruction in, answer text with token probabilities out."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from simpleseg_polygon.confidence import Calibration
from simpleseg_polygon.prompts import Target

if TYPE_CHECKING:  # the command line reads the settings, and so this module, without it
    from prometheus_client import Metric

FinishReason = Literal["stop", "length"]
Role = Literal["system", "user", "assistant"]
PromptFault = Literal[
    "context_length_exceeded",
    "conversation_unsupported",
    "grammar_rejected",
    "prompt_refused",
    "request_poisoned",
]
DeathReason = Literal["crash", "killed", "stopped", "hang", "memory", "start"]
GrammarKind = Literal["json", "json_object", "regex", "choice", "grammar"]
DraftKind = Literal["structure", "digits", "unknown"]


@dataclass(frozen=True)
class Turn:
    """A message of a conversation. ``has_image``: the request's image stands before its text."""

    role: Role
    text: str
    has_image: bool = False


@dataclass(frozen=True)
class ClientGrammar:
    """A grammar that a client brought: a JSON schema, True for any JSON object, a regular
    expression, a list of texts, or EBNF, as vLLM and xgrammar read them."""

    kind: GrammarKind
    value: Any


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt on one image.

    ``instruction`` is the user's last message; ``history`` holds the messages before it. At most
    one of them has the image; where none has, the instruction has it. All texts are plain: names of
    control tokens in them control nothing. ``client_grammar`` is only for target ``text``, and for
    engines that take it.
    ``image_hw3`` is RGB uint8 of shape (height, width, 3); ``image_key`` is a hash of it that the
    server computed, under which an engine may cache what it made of the image.
    ``max_tokens`` bounds the answer; under the grammar the answer is always closed within it.
    ``max_points`` bounds the vertices of a region or the points of a point list.
    ``temperature`` 0 is greedy. ``constrained`` False turns the grammar off. ``adapter`` is one of
    the engine's, None for the model itself.
    """

    request_id: str
    image_hw3: NDArray[np.uint8]
    image_key: str
    instruction: str
    target: Target
    max_tokens: int
    max_points: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    constrained: bool = True
    history: tuple[Turn, ...] = ()
    client_grammar: ClientGrammar | None = None
    adapter: str | None = None


def conversation(instruction: str, history: Sequence[Turn] = ()) -> tuple[Turn, ...]:
    """All messages, the instruction last; it has the image unless one before it has.

    >>> conversation("Locate the dog.", [Turn("system", "Be brief.")])[-1]
    Turn(role='user', text='Locate the dog.', has_image=True)
    """
    has_image = not any(turn.has_image for turn in history)
    return (*history, Turn("user", instruction, has_image))


@dataclass(frozen=True)
class TokenLogprob:
    """One answer token: its text and the natural logarithm of the probability the model gave it
    among the tokens that the grammar allowed."""

    text: str
    logprob: float


@dataclass(frozen=True)
class DraftCount:
    """Drafted tokens of one kind that the model verified. ``digits`` are decimals of coordinates,
    ``structure`` is what follows from the text so far; ``unknown`` where an engine cannot tell."""

    kind: DraftKind
    accepted: int
    rejected: int


@dataclass(frozen=True)
class Usage:
    """What a finished request cost. ``forward_passes`` counts decode steps after the prefill's own;
    ``completion_tokens`` includes the end token. Times are in milliseconds. ``drafts`` has a
    kind at most once, and is empty where nothing was drafted or an engine does not count.
    ``preprocess_ms`` is the image's way from pixels to what the model takes, 0 where an engine does
    not tell it from the prefill. ``cached_tokens`` are those of the prompt that earlier prompts had
    left computed, None where an engine does not tell."""

    prompt_tokens: int
    completion_tokens: int
    forward_passes: int
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    drafts: tuple[DraftCount, ...] = ()
    preprocess_ms: float = 0.0
    cached_tokens: int | None = None


@dataclass(frozen=True)
class Delta:
    """The next piece of an answer. Concatenated ``text`` is the answer, without the end token.

    The last delta of a request, and only it, carries ``finish_reason`` and ``usage``. The reason is
    ``length`` where the budget ended the answer, also where the grammar closed it in good form.
    """

    text: str
    tokens: tuple[TokenLogprob, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Capabilities:
    """What an engine serves: fixed once it has started.

    ``max_pixels`` is the area beyond which the engine scales images down; the server may scale
    larger images before handing them over. ``input_hw`` is set where the model was trained on one
    fixed size: then images are stretched to exactly it (coordinates are normalised, so answers
    need no mapping back). ``logprobs``: tokens come with log-probabilities;
    ``client_grammars``: requests may have one. ``calibrations`` say, for some targets, what
    log-probabilities mean for an answer's IoU. ``adapters`` are the names of models that are
    ``model`` with other weights on top, whose probabilities nobody has calibrated.
    """

    engine: str
    model: str
    targets: tuple[Target, ...]
    max_tokens: int
    max_concurrency: int
    max_pixels: int
    input_hw: tuple[int, int] | None = None
    logprobs: bool = True
    client_grammars: bool = False
    calibrations: Mapping[Target, Calibration] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Every name that a request may give as its model, that of the default first."""
        return (self.model, *self.adapters)

    def adapter_of(self, model: str | None) -> str | None:
        """The adapter that a request's model means; None for the model itself."""
        return model if model in self.adapters else None

    def calibrations_of(self, model: str | None) -> Mapping[Target, Calibration]:
        """What log-probabilities of one of the models mean."""
        return self.calibrations if self.adapter_of(model) is None else {}


class EngineError(Exception):
    """The engine could not answer; the message is for the operator, never for the client."""


class PromptRefusedError(EngineError):
    """The model cannot read what it is asked: with the answer it is too long, the chat template has
    no place for a conversation of this form, the client's grammar is none, the server that runs
    the model refuses it for a reason of its own, or reading it ended the engine before."""

    def __init__(self, message: str, code: PromptFault) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.code)


class EngineOverloadedError(EngineError):
    """The engine has more to do than it takes; ``retry_after_s`` is the wait that it asks for."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.retry_after_s)


class EngineDeadError(EngineError):
    """The engine has stopped for good and must be restarted.

    ``reason``: its own fault (``crash``), a signal from outside (``killed``, or ``stopped`` while
    it still exists), it does nothing any more (``hang``), it had no ``memory``, or no ``start``.
    """

    def __init__(self, message: str, reason: DeathReason = "crash") -> None:
        super().__init__(message)
        self.reason: DeathReason = reason

    def __reduce__(self) -> Any:
        return type(self), (str(self), self.reason)


class EngineAwayError(EngineDeadError):
    """Nothing can answer now, but the engine comes back by itself: a restart would not help."""


class Engine(Protocol):
    """Turns requests into answers; its methods are called from the event loop and must not block.

    Closing the iterator of ``generate`` cancels the request and frees its slot within one step.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    async def start(self) -> None:
        """Load the model and warm it up; returns once the engine can answer."""
        ...

    async def close(self) -> None:
        """Stop, failing what is still running with EngineDeadError."""
        ...

    def check_health(self) -> None:
        """Raise EngineDeadError where the engine can no longer answer, EngineAwayError where it
        will again."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream the answer. Raises EngineError."""
        ...


@runtime_checkable
class MeasuredEngine(Protocol):
    """An engine with Prometheus metrics of its own, which ``/metrics`` shows as they are."""

    def collect(self) -> "Iterable[Metric]":
        """Called at every scrape, from the event loop."""
        ...


@runtime_checkable
class TokenizingEngine(Protocol):
    """An engine that has the model's tokenizer at hand."""

    def tokenize(self, text: str) -> list[int]:
        """The text's ids as a prompt holds them: plain text, the names of control tokens spelled
        out. Called from a worker thread, once the engine has started."""
        ...
