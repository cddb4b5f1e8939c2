"""The vLLM engine: a Qwen-VL checkpoint on a GPU (or a CPU), many requests at once."""

import asyncio
import codecs
import itertools
import os
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

from prometheus_client import Metric

from simpleseg_polygon.drafts import Drafter
from simpleseg_polygon.grammar import ebnf
from simpleseg_polygon.prompts import TARGETS
from simpleseg_server.engines.base import (
    Capabilities,
    Delta,
    DraftCount,
    EngineDeadError,
    EngineError,
    FinishReason,
    GenerationRequest,
    TokenLogprob,
    Usage,
)
from simpleseg_server.engines.draft_count import DraftTally
from simpleseg_server.engines.drafter import contour_drafter
from simpleseg_server.engines.image_limits import ImageLimits, names_normalisation
from simpleseg_server.engines.item_limit import (
    MAX_ANSWER_TOKENS,
    ItemLimit,
    budget_beyond,
    item_limit,
    within,
)
from simpleseg_server.engines.picture import stretched
from simpleseg_server.engines.profiles import Profile, longest_context
from simpleseg_server.engines.prompting import Prompter
from simpleseg_server.engines.stages import stage
from simpleseg_server.engines.vllm_backend import (
    Backend,
    Chunk,
    Generation,
    Launch,
    VllmOptions,
)
from simpleseg_server.engines.warm_up import warm_up_request
from simpleseg_server.imports import without_collection
from simpleseg_server.supervision.vitals import Patience, Verdict, Vitals, with_children

ANSWERS_PER_TALLY = 16
_TAIL_TOKENS = 8  # more than a coordinate has
_BRIEF_CHARACTERS = 500  # 0.1 ms to tokenise
_BRIEF_PIXELS = 512 * 512  # 0.1 ms to copy


def start_vllm(launch: Launch) -> Backend:
    """The real vLLM; takes tens of seconds."""
    from simpleseg_server.engines import vllm_process

    vllm_process.begin()
    with stage("import_vllm"), without_collection():
        from simpleseg_server.engines.vllm_compat import VllmBackend

    return VllmBackend.start(launch)


class VllmEngine:
    """Qwen2.5-VL or Qwen3-VL from a checkpoint directory or hub id, run by vLLM; see the Engine
    protocol.

    The grammar is the polygon language's EBNF, bounded in items; it allows one item more than the
    request, and the answer is closed when the model begins that one: so ``length`` is said where,
    and only where, the model wanted to go on. A log-probability is normalised among the tokens that
    the grammar allows, at temperature 1. Images are known to vLLM by ``image_key`` alone, so a
    second prompt on an image uses what is cached of the first.

    ``Usage.forward_passes`` is exact, but for drafted answers that end by the budget: there steps
    whose output arrives together count as one. Those have no
    ``Usage.drafts``, since vLLM counts when it ends an answer. vLLM does not say what was drafted:
    of one answer in ``ANSWERS_PER_TALLY`` it is drafted again here, which costs a tenth of a
    millisecond a step. Of the others, and where the counts differ from vLLM's, the kind is
    ``unknown``.

    >>> engine = VllmEngine("path/to/checkpoint", VllmOptions(dtype="bfloat16"))  # loads nothing
    """

    def __init__(
        self,
        model_path: str | Path,
        options: VllmOptions | None = None,
        *,
        start_backend: Callable[[Launch], Backend] = start_vllm,
        patience: Patience | None = None,
    ) -> None:
        """With ``patience``, ``check_health`` also finds a vLLM that is stuck, if called often."""
        self._path = str(model_path)
        self._options = options or VllmOptions()
        self._start_backend = start_backend
        self._model: _ServedModel | None = None
        self._backend: Backend | None = None
        self._running: set[str] = set()
        self._begun = itertools.count()
        self._is_closed = False
        self._vitals: Vitals | None = None
        if patience is not None:
            running = self._in_process
            self._vitals = Vitals(self._process_ids, running, patience, has_heart=False)
        self._stuck: Verdict | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Raises EngineError before the engine has started."""
        if self._model is None:
            raise EngineError("the engine has not started")
        return self._model.capabilities

    async def start(self) -> None:
        """Load the model, then answer one request of every task, and one with every adapter: that
        builds the grammars, runs the vision tower, compiles what vLLM compiles for
        log-probabilities, and loads the adapters."""
        try:
            with stage("tokenizer"):
                self._model = await asyncio.to_thread(_ServedModel, self._path, self._options)
            self._backend = await self._loaded(self._model.launch)
            with stage("image_processor"):
                await self._backend.ready()
            with stage("warm_up"):
                await self._warm_up()
        except Exception as error:
            await self.close()
            if isinstance(error, EngineError):
                raise
            raise EngineError(f"cannot serve {self._path} with vLLM: {error}") from error

    async def _loaded(self, launch: Launch) -> Backend:
        loading = asyncio.ensure_future(asyncio.to_thread(self._start_backend, launch))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            # Nothing stops a thread: what it still starts is there for ``close`` to stop.
            self._backend = await loading
            raise

    async def _warm_up(self) -> None:
        capabilities = self.capabilities
        requests = [warm_up_request(target, capabilities.input_hw) for target in TARGETS]
        for request in [
            *requests,
            *(replace(requests[0], adapter=a) for a in capabilities.adapters),
        ]:
            async with aclosing(self.generate(request)) as deltas:
                async for _ in deltas:
                    pass

    async def close(self) -> None:
        """Stop; running requests get EngineDeadError. Idempotent."""
        backend, was_closed = self._backend, self._is_closed
        self._is_closed = True
        if backend is None or was_closed:
            return
        if self._stuck is None:
            await backend.abort(list(self._running))
        else:
            self._kill()
        await asyncio.to_thread(backend.shutdown)

    def _process_ids(self) -> Sequence[int]:
        return () if self._backend is None else self._backend.process_ids

    def _in_process(self) -> int:
        return 0 if self._backend is None else self._backend.running

    def _kill(self) -> None:
        """It would not hear that it is asked to stop, and its memory is needed."""
        for pid in with_children(self._process_ids()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def check_health(self) -> None:
        """Raise EngineDeadError where vLLM has died, never began or is stuck."""
        if self._backend is None:
            raise EngineDeadError("the engine has not started")
        if self._stuck is None and self._vitals is not None and not self._is_closed:
            self._stuck = self._vitals.check()
        if self._stuck is not None:
            raise EngineDeadError(f"vLLM is stuck: {self._stuck}", self._stuck)
        if self._is_closed or self._backend.is_dead:
            raise EngineDeadError("vLLM has stopped", self._backend.death_reason)

    def collect(self) -> Iterable[Metric]:
        """vLLM's own Prometheus metrics."""
        return () if self._backend is None else self._backend.collect()

    def tokenize(self, text: str) -> list[int]:
        assert self._model is not None
        return self._model.prompter.text_ids(text)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the iterator aborts it. Raises EngineError."""
        self.check_health()
        backend, model = self._backend, self._model
        assert backend is not None
        assert model is not None
        began = time.perf_counter()
        limit = item_limit(request, model.capabilities.max_tokens, counts_tokens=True)
        if _is_brief(request, model.capabilities.input_hw):
            generation = model.generation(request, limit)
        else:
            generation = await asyncio.to_thread(model.generation, request, limit)
        drafter = model.drafter if next(self._begun) % ANSWERS_PER_TALLY == 0 else None
        answer = _AnswerReader(model.prompter.vocabulary, limit, began, drafter)
        self._running.add(generation.request_id)
        try:
            async with aclosing(backend.generate(generation)) as chunks:
                async for chunk in chunks:
                    if self._vitals is not None:
                        self._vitals.progress()
                    delta = answer.read(chunk)
                    yield delta
                    if delta.finish_reason is not None:
                        return
            raise EngineError("vLLM ended the stream without a reason")
        except EngineError as error:
            # Whatever a request dies of while the engine stops, it dies of that.
            if self._is_closed and not isinstance(error, EngineDeadError):
                raise EngineDeadError("the engine has stopped") from error
            raise
        finally:
            self._running.discard(generation.request_id)


def _is_brief(request: GenerationRequest, input_hw: tuple[int, int] | None) -> bool:
    """Whether the request is put in vLLM's terms in less time than another thread takes to begin:
    then it has little text to tokenise, and a small image that need not be scaled."""
    height, width = request.image_hw3.shape[:2]
    is_small = height * width <= _BRIEF_PIXELS and input_hw in (None, (height, width))
    return is_small and not request.history and len(request.instruction) <= _BRIEF_CHARACTERS


class _ServedModel:
    """What of a checkpoint is known without its weights."""

    def __init__(self, path: str, options: VllmOptions) -> None:
        profile = Profile.load(path)
        trusted = options.trust_remote_code
        self.prompter = Prompter(path, profile, trust_remote_code=trusted)
        self.drafter = (
            contour_drafter(self.prompter, profile, options.max_draft) if options.draft else None
        )
        images = ImageLimits.of(path, profile, options.max_pixels)
        positions = longest_context(path, trust_remote_code=trusted)
        self.launch = Launch(
            model=path,
            options=options,
            max_model_len=min(positions, options.max_model_len),
            image_hw=profile.input_hw,
            image_arguments=images.arguments,
            names_normalisation=names_normalisation(path),
        )
        self.capabilities = Capabilities(
            engine="vllm",
            model=options.name or profile.name,
            targets=TARGETS,
            max_tokens=min(MAX_ANSWER_TOKENS, profile.max_tokens, self.launch.max_model_len),
            max_concurrency=options.max_num_seqs,
            max_pixels=images.max_pixels,
            input_hw=profile.input_hw,
            client_grammars=True,
            calibrations=profile.calibration,
            adapters=tuple(adapter.name for adapter in options.adapters),
        )

    def generation(self, request: GenerationRequest, limit: ItemLimit | None) -> Generation:
        """The request in vLLM's terms. Raises EngineError for a budget that holds no answer."""
        grammar = None
        if limit is not None:
            grammar = ebnf(request.target, budget_beyond(request.target, limit.items))
        return Generation(
            # Unique, since vLLM refuses an id that is still running.
            request_id=f"{request.request_id}-{secrets.token_hex(4)}",
            prompt_ids=self.prompter.ids(request.instruction, request.history),
            image=stretched(request.image_hw3, self.capabilities.input_hw),
            image_key=request.image_key,
            max_tokens=request.max_tokens,
            grammar=grammar,
            temperature=request.temperature,
            seed=request.seed,
            end_token_id=self.prompter.end_token_id,
            client_grammar=request.client_grammar,
            adapter=request.adapter,
        )


class _AnswerReader:
    """Turns the chunks of one answer into deltas."""

    def __init__(
        self,
        vocabulary: Mapping[int, bytes],
        limit: ItemLimit | None,
        began: float,
        drafter: Drafter | None,
    ) -> None:
        self._vocabulary = vocabulary
        self._limit = limit
        self._began = began
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drafter = drafter
        self._drafts = DraftTally()
        self._ids: list[int] = []
        self._first_at = began
        self._chunks = 0
        self._completion_tokens = 0

    def read(self, chunk: Chunk) -> Delta:
        """Raises EngineError where vLLM gave the request up."""
        if chunk.end == "abort":
            raise EngineError("vLLM aborted the request")
        if chunk.tokens:
            self._chunks += 1
        if self._chunks <= 1:
            self._first_at = time.perf_counter()
        self._count_drafts(chunk)
        text, tokens = self._spell(chunk)
        reason: FinishReason | None = chunk.end
        if self._limit is not None and self._limit.is_cut:
            reason = "length"
        if reason is None:
            return Delta(text, tokens)
        text += self._decoder.decode(b"", True)
        return Delta(text, tokens, reason, self._usage(chunk))

    def _spell(self, chunk: Chunk) -> tuple[str, tuple[TokenLogprob, ...]]:
        """The chunk's text and the tokens that are wholly in it, without the end token; other
        control tokens spell nothing."""
        ends = chunk.end == "stop" and bool(chunk.tokens)
        written = chunk.tokens[:-1] if ends else chunk.tokens
        text, tokens, count = within(self._limit, map(self._piece, written))
        is_cut = self._limit is not None and self._limit.is_cut
        self._completion_tokens += count + (ends and not is_cut)
        return text, tokens

    def _piece(self, token: tuple[int, float]) -> tuple[str, TokenLogprob]:
        spelled = self._vocabulary.get(token[0], b"")
        text = self._decoder.decode(spelled)
        return text, TokenLogprob(spelled.decode("utf-8", "replace"), token[1])

    def _count_drafts(self, chunk: Chunk) -> None:
        """Take the chunk as one step's: what it begins with of the draft was right."""
        written = [token for token, _ in chunk.tokens]
        if self._drafter is not None and self._ids:
            drafted = self._drafter.draft(self._ids)
            pairs = zip(drafted, written, strict=False)
            right = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            before = b"".join(map(self._spelled, self._ids[-_TAIL_TOKENS:]))
            self._drafts.add(before, [self._spelled(token) for token in drafted], right)
        self._ids += written

    def _spelled(self, token: int) -> bytes:
        return self._vocabulary.get(token, b"")

    def _draft_counts(self, chunk: Chunk) -> tuple[DraftCount, ...]:
        if not chunk.drafted or chunk.accepted is None:
            return ()
        rejected = chunk.drafted - chunk.accepted
        if (self._drafts.accepted, self._drafts.rejected) == (chunk.accepted, rejected):
            return self._drafts.counts()
        return (DraftCount("unknown", chunk.accepted, rejected),)

    def _decode_steps(self, chunk: Chunk) -> int:
        """Every step but the prefill's writes one token and the drafts that it accepted."""
        if chunk.accepted is None:
            return max(0, self._chunks - 1)
        return max(0, self._completion_tokens - 1 - chunk.accepted)

    def _usage(self, chunk: Chunk) -> Usage:
        now = time.perf_counter()
        before_decode = (self._first_at - self._began) * 1e3
        return Usage(
            prompt_tokens=chunk.prompt_tokens,
            completion_tokens=self._completion_tokens,
            forward_passes=self._decode_steps(chunk),
            queue_ms=min(chunk.queue_ms, before_decode),
            prefill_ms=max(0.0, before_decode - chunk.queue_ms),
            decode_ms=(now - self._first_at) * 1e3,
            drafts=self._draft_counts(chunk),
            cached_tokens=chunk.cached_tokens,
        )
