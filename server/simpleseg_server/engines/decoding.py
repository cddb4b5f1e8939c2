"""Continuous batching: requests join and leave between steps, each with drafts of its own.

A step is one forward pass over every request under way. Each row reads the tokens chosen since its
last pass, then its draft; the logits after each of them tell how far the draft is what the model
would have said. Rows are ragged: padded on the right, each with its own length, slots and rotary
positions, so that nothing of one request depends on which others run with it.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simpleseg_polygon.drafts import Drafter
from simpleseg_polygon.grammar import Budget
from simpleseg_polygon.prompts import TARGETS, Target
from simpleseg_server.engines.answers import Answer, AnswerRules, Choice
from simpleseg_server.engines.base import (
    Delta,
    EngineError,
    GenerationRequest,
    PromptRefusedError,
    Usage,
)
from simpleseg_server.engines.checkpoint import Checkpoint, ImageFeatures, Patches, Prompt
from simpleseg_server.engines.constraints import Grammar, GrammarKind, Walk, grammar
from simpleseg_server.engines.kv_rows import KeyValueRows


@dataclass(eq=False)
class Job:
    """A request on its way through the worker; ``deliver`` is called from the worker's thread.

    ``patches`` are there unless the image's features were cached when the request came.
    ``prepare_ms`` is what making them took. Setting ``cancelled`` frees the slot within one step.
    """

    request: GenerationRequest
    deliver: Callable[[Delta | EngineError], None]
    patches: Patches | None = None
    prepare_ms: float = 0.0
    submitted_at: float = field(default_factory=time.perf_counter)
    cancelled: bool = False


@dataclass(eq=False)
class _Row:
    """A request under way; ``length`` slots of its cache row hold tokens that are certain."""

    job: Job
    answer: Answer
    prompt_tokens: int
    position_offset: int
    length: int
    queue_ms: float
    prefill_ms: float
    forward_passes: int = 0
    started_at: float = field(default_factory=time.perf_counter)


class ImageFeatureCache:
    """The vision tower's output for the images used last, by image key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._features: OrderedDict[str, ImageFeatures] = OrderedDict()

    def __contains__(self, image_key: str) -> bool:
        return image_key in self._features

    def get(self, image_key: str) -> ImageFeatures | None:
        features = self._features.get(image_key)
        if features is not None:
            self._features.move_to_end(image_key)
        return features

    def put(self, image_key: str, features: ImageFeatures) -> None:
        self._features[image_key] = features
        while len(self._features) > self._size:
            self._features.popitem(last=False)


class _OutputRows:
    """The rows of the output layer that belong to some tokens: all a grammar needs of it."""

    def __init__(self, layer: Any, token_ids: NDArray[np.int32]) -> None:
        rows = torch.from_numpy(token_ids.astype(np.int64)).to(layer.weight.device)
        self._weight = layer.weight[rows]
        self._bias = None if layer.bias is None else layer.bias[rows]

    def __call__(self, hidden: Tensor) -> NDArray[np.float32]:
        return _to_numpy(torch.nn.functional.linear(hidden, self._weight, self._bias))


class Decoder:
    """The model and the requests it is answering; used by one thread, in inference mode.

    ``draft`` False is plain decoding: one token per forward pass. ``max_draft`` bounds the drafted
    tokens per pass; ``image_cache_size`` is a number of images.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        draft: bool = True,
        max_draft: int = 8,
        grammar_kind: GrammarKind = "table",
        image_cache_size: int = 16,
    ) -> None:
        self.checkpoint = checkpoint
        self.images = ImageFeatureCache(image_cache_size)
        vocabulary, end = checkpoint.vocabulary, checkpoint.end_token_id
        self._grammars: dict[Target, Grammar] = {
            target: grammar(grammar_kind, target, vocabulary, end)
            for target in TARGETS
            if target != "text"
        }
        candidates = np.unique(np.concatenate([g.tokens for g in self._grammars.values()]))
        # A model of one image size writes coordinates that are pixels of that size.
        drafter = Drafter(
            vocabulary,
            max_draft,
            grid_hw=checkpoint.input_hw,
            final_dot=checkpoint.profile.final_dot,
        )
        self._rules = AnswerRules(
            vocabulary, candidates, checkpoint.stop_token_ids, drafter if draft else None, max_draft
        )
        self._output = checkpoint.model.get_output_embeddings()
        self._candidate_output = _OutputRows(self._output, candidates)
        self._cache = KeyValueRows()
        self._rows: list[_Row] = []

    @property
    def running(self) -> int:
        """How many requests are under way."""
        return len(self._rows)

    def admit(self, job: Job) -> None:
        """Read a request's prompt, choose the first token and let it join.

        Whatever goes wrong concerns this request only: it gets an EngineError.
        """
        if job.cancelled:
            return
        started_at = time.perf_counter()
        try:
            row = self._prefill(job, started_at)
        except Exception as error:
            self._cache.wipe(len(self._rows))
            job.deliver(engine_error(error))
            _raise_if_fatal(error)
            return
        self._rows.append(row)
        self._report(row)
        self._drop_gone()

    def step(self) -> None:
        """One forward pass for all, after which every request has at least one token more.

        If the pass fails, all of them get an EngineError; the engine goes on.
        """
        self._drop_gone()
        if not self._rows:
            return
        drafts = [row.answer.draft() for row in self._rows]
        fed = [[*row.answer.pending, *draft] for row, draft in zip(self._rows, drafts, strict=True)]
        try:
            hidden = self._forward(fed)
            logits = self._candidate_output(hidden)
        except Exception as error:
            self.fail_all(engine_error(error))
            _raise_if_fatal(error)
            return
        for i, draft in enumerate(drafts):
            places = slice(len(fed[i]) - 1 - len(draft), len(fed[i]))
            constrained = self._rows[i].answer.constrained
            self._read(
                i, draft, logits[i, places] if constrained else self._all_logits(hidden[i, places])
            )
        self._drop_gone()

    def fail_all(self, error: EngineError) -> None:
        """Give every running request the error and forget it."""
        for row in self._rows:
            row.job.deliver(error)
        self._rows.clear()
        self._cache.clear()

    def _prefill(self, job: Job, started_at: float) -> _Row:
        request = job.request
        answer = self._answer(request)
        features = self._features(job)
        prompt = self.checkpoint.prompt(request.instruction, features, request.history)
        if (needed := len(prompt) + request.max_tokens) > self.checkpoint.max_positions:
            message = f"prompt and answer take {needed} positions, more than the model has"
            raise PromptRefusedError(message, "context_length_exceeded")
        hidden = self._read_prompt(prompt, features)
        answer.read(
            [], self._candidate_output(hidden) if answer.constrained else self._all_logits(hidden)
        )
        return _Row(
            job=job,
            answer=answer,
            prompt_tokens=len(prompt),
            position_offset=prompt.position_offset,
            length=len(prompt),
            queue_ms=_ms_between(job.submitted_at, started_at),
            prefill_ms=_ms_between(started_at, time.perf_counter()),
        )

    def _answer(self, request: GenerationRequest) -> Answer:
        choice = Choice(request.temperature, request.seed)
        rules = self._rules
        walk: Walk | None = None
        if request.target == "text":
            rules = replace(rules, drafter=None)
        elif request.constrained:
            budget = Budget(request.max_tokens, max_points=request.max_points)
            walk = self._grammars[request.target].walk(budget)
        return Answer(rules, walk, choice, request.max_tokens)

    def _features(self, job: Job) -> ImageFeatures:
        features = self.images.get(job.request.image_key)
        if features is None:
            # The patches are missing where the features were dropped since the request came.
            patches = job.patches or self.checkpoint.patches(job.request.image_hw3)
            features = self.checkpoint.encode_image(patches)
            self.images.put(job.request.image_key, features)
        return features

    def _read_prompt(self, prompt: Prompt, features: ImageFeatures) -> Tensor:
        """Fill the first free row; the hidden state (1, width) after the prompt's last token."""
        slots = torch.arange(len(prompt), device=self.checkpoint.device)[None]
        mask = self._cache.place(len(self._rows), slots, len(prompt))
        output = self.checkpoint.model.model(
            input_ids=prompt.input_ids,
            attention_mask=mask,
            position_ids=prompt.position_ids,
            **{self.checkpoint.cache_parameter: self._cache},
            use_cache=True,
            mm_encoder_outputs={"image": features.encoded},
        )
        last: Tensor = output.last_hidden_state[0, -1:]
        return last

    def _forward(self, fed: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states (rows, width, values) after each token fed; right of a row's own tokens
        they mean nothing."""
        device = self.checkpoint.device
        width = max(map(len, fed))
        lengths = [row.length for row in self._rows]
        ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in fed])
        slots = torch.tensor(lengths)[:, None] + torch.arange(width)
        offsets = torch.tensor([row.position_offset for row in self._rows])[:, None]
        mask = self._cache.place(0, slots.to(device), max(lengths) + width)
        output = self.checkpoint.model.model(
            input_ids=ids.to(device),
            attention_mask=mask,
            position_ids=(slots + offsets).to(device).expand(3, -1, -1),
            **{self.checkpoint.cache_parameter: self._cache},
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _all_logits(self, hidden: Tensor) -> NDArray[np.float32]:
        return _to_numpy(self._output(hidden))

    def _read(self, index: int, draft: list[int], logits: NDArray[np.float32]) -> None:
        row = self._rows[index]
        row.forward_passes += 1
        row.length += len(row.answer.pending)
        try:
            row.length += row.answer.read(draft, logits)
        except Exception as error:
            self._cache.wipe(index)
            row.job.cancelled = True
            row.job.deliver(engine_error(error))
            return
        self._report(row)

    def _report(self, row: _Row) -> None:
        text, tokens = row.answer.take_new()
        reason = row.answer.finish_reason
        usage = None if reason is None else _usage(row)
        row.job.deliver(Delta(text, tokens, reason, usage))

    def _drop_gone(self) -> None:
        """Forget finished and cancelled requests; the last rows move into the gaps."""
        for index in reversed(range(len(self._rows))):
            row = self._rows[index]
            if row.answer.finish_reason is None and not row.job.cancelled:
                continue
            last = self._rows.pop()
            if last is not row:
                self._cache.move(len(self._rows), index, last.length)
                self._rows[index] = last


def engine_error(error: Exception) -> EngineError:
    """The error as the protocol has it; the cause stays attached."""
    if isinstance(error, EngineError):
        return error
    wrapped = EngineError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _raise_if_fatal(error: Exception) -> None:
    """After an accelerator fault nothing more can be computed in this process."""
    if isinstance(error, torch.AcceleratorError):
        raise error


def _usage(row: _Row) -> Usage:
    return Usage(
        prompt_tokens=row.prompt_tokens,
        completion_tokens=len(row.answer.tokens),
        forward_passes=row.forward_passes,
        queue_ms=row.queue_ms,
        prefill_ms=row.prefill_ms,
        decode_ms=_ms_between(row.started_at, time.perf_counter()),
        drafts=row.answer.drafts.counts(),
        preprocess_ms=row.job.prepare_ms,
    )


def _ms_between(start: float, end: float) -> float:
    return (end - start) * 1e3


def _to_numpy(logits: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = logits.float().cpu().numpy()
    return array
