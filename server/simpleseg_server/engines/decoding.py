"""Continuous batching: requests join and leave between steps, each with drafts of its own.

A step is one forward pass over every request under way. Each row reads the tokens chosen since its
last pass, then its draft; the logits after each of them tell how far the draft is what the model
would have said. Rows are ragged: padded on the right, each with its own length, slots and rotary
positions, so that nothing of one request depends on which others run with it.

Of a prompt that begins as an earlier one on the same image did, only the rest is read, in the first
step of its row: so prompts on one image join together and cost the others no pass.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from simpleseg_server.engines.image_cache import CachedImage, ImageCache, ReadPrompt
from simpleseg_server.engines.kv_rows import KeyValueRows

_LONGEST_REST = 32
"""Tokens of a prompt's rest that a step takes on: every other row is padded to as many."""


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
    """A request under way; ``length`` slots of its cache row hold tokens that are certain.

    ``position_offset`` is what the rotary position of its next token is ahead of its place.
    ``drafted`` are the tokens guessed to follow the pending ones.
    ``cached_tokens`` of the prompt had been read before. ``joined_at`` is when the engine took the
    request on, ``began_at`` when the answer's first token was chosen.
    """

    job: Job
    answer: Answer
    prompt: Sequence[int]
    joined_at: float
    length: int = 0
    cached_tokens: int = 0
    position_offset: int = 0
    began_at: float = 0.0
    forward_passes: int = 0
    drafted: list[int] = field(default_factory=list)

    @property
    def unread(self) -> Sequence[int]:
        """The rest of the prompt."""
        return self.prompt[self.length :]

    @property
    def pending(self) -> list[int]:
        """What the model has to read before the next token can be chosen."""
        return [*self.unread, *self.answer.pending]

    def draft(self) -> None:
        self.drafted = [] if self.unread else self.answer.draft()

    def read(self, logits: NDArray[np.float32]) -> None:
        """Take what the model has read and choose the tokens that follow."""
        self.forward_passes += not self.unread
        self.length += len(self.pending)
        self.length += self.answer.read(self.drafted, logits)
        self.began_at = self.began_at or time.perf_counter()


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
    tokens per pass; ``image_cache_size`` is a number of images, ``prompt_cache_bytes`` bounds what
    is kept of the prompts on them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        draft: bool = True,
        max_draft: int = 8,
        grammar_kind: GrammarKind = "table",
        image_cache_size: int = 16,
        prompt_cache_bytes: int = 512 * 2**20,
    ) -> None:
        self.checkpoint = checkpoint
        self.images = ImageCache(image_cache_size, prompt_cache_bytes)
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
        """Let a request join. Unless most of its prompt has been read before, read it now and
        choose the first token.

        Whatever goes wrong concerns this request only: it gets an EngineError.
        """
        if job.cancelled:
            return
        try:
            row = self._join(job, time.perf_counter())
        except Exception as error:
            self._cache.wipe(len(self._rows))
            job.deliver(engine_error(error))
            _raise_if_fatal(error)
            return
        self._rows.append(row)
        if not row.unread:
            self._report(row)
            self._drop_gone()

    def step(self) -> None:
        """One forward pass for all, after which every request has at least one token more.

        If the pass fails, all of them get an EngineError; the engine goes on.
        """
        self._drop_gone()
        for index, row in enumerate(self._rows):
            with self._alone(index):
                row.draft()
        self._drop_gone()
        if not self._rows:
            return
        fed = [[*row.pending, *row.drafted] for row in self._rows]
        try:
            hidden = self._forward(fed)
            logits = self._candidate_output(hidden)
        except Exception as error:
            self.fail_all(engine_error(error))
            _raise_if_fatal(error)
            return
        for i, row in enumerate(self._rows):
            places = slice(len(fed[i]) - 1 - len(row.drafted), len(fed[i]))
            with self._alone(i):
                constrained = row.answer.constrained
                row.read(logits[i, places] if constrained else self._all_logits(hidden[i, places]))
                self._report(row)
        self._drop_gone()

    def fail_all(self, error: EngineError) -> None:
        """Give every running request the error and forget it."""
        for row in self._rows:
            row.job.deliver(error)
        self._rows.clear()
        self._cache.clear()

    def _join(self, job: Job, joined_at: float) -> _Row:
        """The request in the first free row, which holds as much of its prompt as is known."""
        request, checkpoint = job.request, self.checkpoint
        answer = self._answer(request)
        image = self._image(job)
        visual_tokens = checkpoint.visual_tokens(image.features)
        ids = checkpoint.prompt_ids(request.instruction, visual_tokens, request.history)
        if (needed := len(ids) + request.max_tokens) > checkpoint.max_positions:
            message = f"prompt and answer take {needed} positions, more than the model has"
            raise PromptRefusedError(message, "context_length_exceeded")
        beginning = tuple(ids[: checkpoint.image_end(ids)])
        known = self.images.prompt(image, beginning)
        if known is None:
            row = _Row(job, answer, ids, joined_at)
            self._read_whole(row, image, beginning)
            return row
        length = known.shared(ids)
        self._cache.paste(len(self._rows), known.states, length)
        row = _Row(job, answer, ids, joined_at, length, length, known.position_offset)
        if len(row.unread) > _LONGEST_REST:
            self._read_rest(row)
        return row

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

    def _image(self, job: Job) -> CachedImage:
        image = self.images.get(job.request.image_key)
        if image is not None:
            return image
        # The patches are missing where the image was dropped since the request came.
        patches = job.patches or self.checkpoint.patches(job.request.image_hw3)
        return self.images.put(job.request.image_key, self.checkpoint.encode_image(patches))

    def _read_whole(self, row: _Row, image: CachedImage, beginning: tuple[int, ...]) -> None:
        """Read a prompt in a pass of its own, choose the first token and keep what was read."""
        prompt = self.checkpoint.prompt(row.prompt, image.features)
        row.position_offset = prompt.position_offset
        row.read(self._logits(row, self._read_prompt(prompt, image.features)))
        states = self._cache.copy(len(self._rows), len(prompt))
        self.images.keep(image, beginning, ReadPrompt(row.prompt, states, prompt.position_offset))

    def _read_rest(self, row: _Row) -> None:
        """Read a long rest of a prompt in a pass of its own, and choose the first token."""
        hidden = self._run([row], len(self._rows), [row.pending])
        row.read(self._logits(row, hidden[0, -1:]))

    def _logits(self, row: _Row, hidden: Tensor) -> NDArray[np.float32]:
        return (self._candidate_output if row.answer.constrained else self._all_logits)(hidden)

    def _read_prompt(self, prompt: Prompt, features: ImageFeatures) -> Tensor:
        """Fill the first free row; the hidden state (1, width) after the prompt's last token."""
        slots = torch.arange(len(prompt), device=self.checkpoint.device)[None]
        mask = self._cache.place(len(self._rows), slots, len(prompt))
        hidden = self.checkpoint.read(
            prompt.input_ids, prompt.position_ids, mask, self._cache, features
        )
        return hidden[0, -1:]

    def _forward(self, fed: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states (rows, width, values) after each token fed to the requests under way; right
        of a row's own tokens they mean nothing."""
        return self._run(self._rows, 0, fed)

    def _run(self, rows: Sequence[_Row], first: int, fed: Sequence[Sequence[int]]) -> Tensor:
        """The same for any requests, which have the cache's rows from ``first`` on."""
        device = self.checkpoint.device
        width = max(map(len, fed))
        lengths = [row.length for row in rows]
        ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in fed])
        slots = torch.tensor(lengths)[:, None] + torch.arange(width)
        offsets = torch.tensor([row.position_offset for row in rows])[:, None]
        mask = self._cache.place(first, slots.to(device), max(lengths) + width)
        positions = (slots + offsets).to(device).expand(3, -1, -1)
        return self.checkpoint.read(ids.to(device), positions, mask, self._cache)

    def _all_logits(self, hidden: Tensor) -> NDArray[np.float32]:
        return _to_numpy(self._output(hidden))

    @contextmanager
    def _alone(self, index: int) -> Iterator[None]:
        """Whatever goes wrong inside concerns this row's request only: it gets an EngineError."""
        try:
            yield
        except Exception as error:
            job = self._rows[index].job
            self._cache.wipe(index)
            job.cancelled = True
            job.deliver(engine_error(error))

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
        prompt_tokens=len(row.prompt),
        completion_tokens=len(row.answer.tokens),
        forward_passes=row.forward_passes,
        queue_ms=_ms_between(row.job.submitted_at, row.joined_at),
        prefill_ms=_ms_between(row.joined_at, row.began_at),
        decode_ms=_ms_between(row.began_at, time.perf_counter()),
        drafts=row.answer.drafts.counts(),
        preprocess_ms=row.job.prepare_ms,
        cached_tokens=row.cached_tokens,
    )


def _ms_between(start: float, end: float) -> float:
    return (end - start) * 1e3


def _to_numpy(logits: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = logits.float().cpu().numpy()
    return array
