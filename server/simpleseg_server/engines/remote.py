"""The remote engine: a model that other servers run, behind the API of OpenAI's chat."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from simpleseg.retry import RetryBudget
from simpleseg_polygon.grammar import Budget
from simpleseg_polygon.prompts import TARGETS
from simpleseg_server.engines.base import (
    Capabilities,
    Delta,
    EngineAwayError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    GenerationRequest,
    PromptRefusedError,
)
from simpleseg_server.engines.dialects import Dialect, chat_request, takes_client_grammars
from simpleseg_server.engines.hedge import MOST_AT_ONCE, SHARE, Try, first_to_begin
from simpleseg_server.engines.image_urls import ImageUrls
from simpleseg_server.engines.item_limit import (
    MAX_ANSWER_TOKENS,
    ItemLimit,
    budget_beyond,
    item_limit,
)
from simpleseg_server.engines.picture import ImageFormat
from simpleseg_server.engines.remote_answer import RemoteAnswer
from simpleseg_server.engines.upstream_care import UpstreamCare
from simpleseg_server.engines.upstream_http import (
    RequestRefusedError,
    Timeouts,
    UpstreamBusyError,
    UpstreamClient,
    UpstreamError,
    UpstreamUnfitError,
)
from simpleseg_server.engines.upstreams import Address, Breaker, Upstream, choose
from simpleseg_server.engines.warm_up import warm_up_request
from simpleseg_server.pixels import EngineSize

logger = logging.getLogger("simpleseg_server")

_SPARE_CONNECTIONS = 8

Failures = dict[Upstream, UpstreamError | RequestRefusedError]


@dataclass(frozen=True)
class RemoteOptions:
    """Where the model runs and how it is asked.

    ``model`` is its id at the upstreams, None for the first one that they list; ``name`` is what
    clients see. ``api_keys`` is one key for all upstreams, or one for each. ``input_hw`` is the one
    image size of the model's training, if there was one: images are stretched to it before they are
    sent; others are scaled to ``max_pixels`` at most. ``logprobs`` False does without token
    probabilities, and so without scores. ``max_concurrency`` answers run at once, on all upstreams
    together. ``start_timeout_s`` is how long the start waits for a first upstream. After
    ``hedge_after_s`` without a first token another upstream is asked too.
    """

    upstreams: tuple[Address, ...]
    model: str | None = None
    name: str | None = None
    dialect: Dialect = "vllm"
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    input_hw: tuple[int, int] | None = None
    max_pixels: int = 2048 * 2048
    image_format: ImageFormat = "png"
    logprobs: bool = True
    max_concurrency: int = 32
    timeouts: Timeouts = Timeouts()
    probe_interval_s: float = 2.0
    start_timeout_s: float = 900.0
    failures_to_open: int = 3
    hedge_after_s: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where the options do not fit together."""
        if not self.upstreams:
            raise ValueError("the remote engine needs an upstream")
        if len({address.url for address in self.upstreams}) < len(self.upstreams):
            raise ValueError("an upstream is given twice")
        if len(self.api_keys) not in (0, 1, len(self.upstreams)):
            raise ValueError("give one API key, or one for each upstream")


class RemoteEngine:
    """A model behind OpenAI-compatible servers (vLLM, SGLang, LMDeploy); see the Engine protocol.

    Several upstreams serve the same model. Requests on one image go to the same upstream while its
    load is fair; a request that fails before its first token is tried on another, and one in ten
    that are slow to begin, if wanted, on two at once. Upstreams that
    fail are left alone and tried again, with a request of every task, until they answer;
    ``check_health`` raises EngineAwayError while there is none left.

    ``length`` and the log-probabilities mean what they mean in ``VllmEngine``: the grammar allows
    one item more than the request. With the dialect ``none`` there is no grammar, and answers may
    be malformed. ``Usage.forward_passes`` counts the pieces in which an answer came.

    >>> options = RemoteOptions((Address("http://127.0.0.1:8000"),))
    >>> engine = RemoteEngine(options)  # connects to nothing yet
    """

    def __init__(self, options: RemoteOptions) -> None:
        self._options = options
        keys = options.api_keys or ("",)
        keys = keys * len(options.upstreams) if len(keys) == 1 else keys
        self._upstreams = [
            Upstream(address, key or None, Breaker(threshold=options.failures_to_open))
            for address, key in zip(options.upstreams, keys, strict=True)
        ]
        self._client: UpstreamClient | None = None
        self._care: UpstreamCare | None = None
        self._model = options.model
        self._capabilities: Capabilities | None = None
        self._slots = asyncio.Semaphore(options.max_concurrency)
        self._urls = ImageUrls(
            EngineSize(options.max_pixels, options.input_hw), options.image_format
        )
        self._hedges = RetryBudget(MOST_AT_ONCE, SHARE)
        self._is_closed = False

    @property
    def capabilities(self) -> Capabilities:
        """Raises EngineError before the engine has started."""
        if self._capabilities is None:
            raise EngineError("the engine has not started")
        return self._capabilities

    async def start(self) -> None:
        """Wait for an upstream that answers a request of every task.

        Raises EngineError where all of them refuse what they are asked, or none came in time.
        """
        options = self._options
        self._client = UpstreamClient(
            options.max_concurrency + _SPARE_CONNECTIONS, options.timeouts
        )
        self._care = UpstreamCare(
            self._upstreams,
            self._admit,
            self._client.check,
            interval_s=options.probe_interval_s,
            misses=options.failures_to_open,
        )
        try:
            await self._care.begin(
                timeout_s=options.start_timeout_s, grace_s=options.timeouts.connect_s
            )
        except BaseException:
            await self.close()
            raise
        self._capabilities = self._common_capabilities()

    async def close(self) -> None:
        """Stop; running requests get EngineDeadError. Idempotent."""
        self._is_closed = True
        if self._care is not None:
            await self._care.end()
        if self._client is not None:
            await self._client.close()

    def check_health(self) -> None:
        """Raise EngineDeadError where the engine is closed or has not started, EngineAwayError
        where no upstream answers."""
        if self._is_closed or self._capabilities is None:
            raise EngineDeadError("the engine is not running")
        if not any(upstream.is_available for upstream in self._upstreams):
            raise EngineAwayError("no upstream answers")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta, None]:
        """Stream the answer; closing the iterator cancels it upstream. Raises EngineError."""
        self.check_health()
        began = time.perf_counter()
        _bounds(request, self.capabilities.max_tokens)  # raises where no answer is possible
        failures: Failures = {}
        async with self._slots:
            if self._is_closed:  # while it waited
                raise EngineDeadError("the engine has stopped")
            while upstream := choose(self._upstreams, request.image_key, failures):
                has_begun = False
                try:
                    upstream, answer = await self._begun(upstream, request, began, failures)
                    async with aclosing(answer) as deltas:
                        async for delta in deltas:
                            has_begun = True
                            yield delta
                    return
                except RequestRefusedError as error:
                    if has_begun or not self._is_longer_elsewhere(upstream, error):
                        raise _as_the_prompts_fault(request, error) from error
                    failures[upstream] = error
                except UpstreamError as error:
                    failures[upstream] = error
                    self._take_note(upstream, error)
                    if has_begun:
                        raise EngineError(f"the answer broke off: {error}") from error
        broken = [error for error in failures.values() if isinstance(error, UpstreamError)]
        refused = [error for error in failures.values() if isinstance(error, RequestRefusedError)]
        if refused and not broken:
            raise _as_the_prompts_fault(request, refused[-1]) from refused[-1]
        raise self._no_answer(broken)

    async def _begun(
        self, upstream: Upstream, request: GenerationRequest, began: float, failures: Failures
    ) -> tuple[Upstream, AsyncGenerator[Delta, None]]:
        """The answer to listen to, and whose it is. What another one died of is in ``failures``."""
        after_s = self._options.hedge_after_s
        if after_s is None:
            return upstream, self._answer(upstream, request, began)
        tries = [Try(upstream, self._answer(upstream, request, began))]
        try:
            if not await tries[0].settles_within(after_s):
                spare = choose(self._upstreams, request.image_key, {*failures, upstream})
                if spare is not None and self._hedges.take():
                    tries.append(Try(spare, self._answer(spare, request, began)))
                    tries[:] = await first_to_begin(*tries)
            else:
                self._hedges.give()
            for loser in tries[1:]:
                await self._drop(loser, failures)
        except BaseException:
            await asyncio.gather(*(one.close() for one in tries))
            raise
        return tries[0].upstream, tries[0].deltas()

    async def _drop(self, loser: Try, failures: Failures) -> None:
        """Hang up; where it failed by itself, take note."""
        if not loser.has_failed:
            await loser.close()
            return
        try:
            async for _ in loser.deltas():
                pass
        except RequestRefusedError as error:
            failures[loser.upstream] = error
        except UpstreamError as error:
            failures[loser.upstream] = error
            self._take_note(loser.upstream, error)

    def _is_longer_elsewhere(self, upstream: Upstream, error: RequestRefusedError) -> bool:
        """Whether the request is too long for this upstream, and may not be for another one."""
        longest = max(one.max_model_len or 0 for one in self._upstreams if one.is_available)
        return _is_too_long(error) and longest > (upstream.max_model_len or 0)

    async def _answer(
        self, upstream: Upstream, request: GenerationRequest, began: float
    ) -> AsyncGenerator[Delta, None]:
        """The answer of one upstream."""
        assert self._client is not None
        options = self._options
        limit, budget = _bounds(request, MAX_ANSWER_TOKENS)
        image_url = await self._image_url(request)
        body = chat_request(
            options.dialect, upstream.model, request, image_url, budget, logprobs=options.logprobs
        )
        answer = RemoteAnswer(
            limit, began, time.perf_counter(), waits_for_counts=options.dialect != "none"
        )
        with upstream.counted():
            async with aclosing(self._client.chat(upstream, body)) as events:
                async for event in events:
                    delta = answer.read(event)
                    if delta is not None:
                        yield delta
                    if delta is not None and delta.finish_reason is not None:
                        upstream.succeed()
                        return
        if not answer.is_complete:
            raise UpstreamError(f"{upstream.address.url} ended before the answer did")
        upstream.succeed()
        yield answer.last()

    async def _image_url(self, request: GenerationRequest) -> str:
        try:
            return await self._urls.of(request)
        except (ValueError, OSError) as error:
            raise EngineError(f"the image cannot be sent: {error}") from error

    def _take_note(self, upstream: Upstream, error: UpstreamError) -> None:
        if self._is_closed:
            raise EngineDeadError("the engine has stopped") from error
        logger.warning("upstream failed: %s", error)
        if isinstance(error, UpstreamBusyError):
            upstream.refuse_for(error.retry_after_s)
        else:
            upstream.fail(decisive=error.decisive)

    def _no_answer(self, failures: Sequence[UpstreamError]) -> EngineError:
        """What a request dies of that no upstream began to answer."""
        if self._is_closed:
            return EngineDeadError("the engine has stopped")
        busy = [error for error in failures if isinstance(error, UpstreamBusyError)]
        if busy:
            waits = [one.retry_after_s for one in busy if one.retry_after_s is not None]
            return EngineOverloadedError("all upstreams are busy", min(waits, default=None))
        if not any(upstream.is_available for upstream in self._upstreams):
            return EngineAwayError("no upstream answers")
        return EngineError("; ".join(map(str, failures)))

    async def _admit(self, upstream: Upstream) -> None:
        """Learn what an upstream serves, and have it answer one request of every task: that builds
        its grammars. Raises EngineError."""
        assert self._client is not None
        served = await self._client.models(upstream)
        model = next((one for one in served if one.id == (self._model or one.id)), None)
        if model is None:
            raise self._serves_another(upstream)
        upstream.model, upstream.max_model_len = model.id, model.max_model_len
        try:
            for target in TARGETS:
                request = warm_up_request(target, self._options.input_hw)
                async with aclosing(self._answer(upstream, request, 0.0)) as deltas:
                    async for _ in deltas:
                        pass
        except UpstreamBusyError as error:
            upstream.refuse_for(error.retry_after_s)
        except RequestRefusedError as error:
            raise UpstreamUnfitError(f"{error}: {error.detail}") from error
        if self._model not in (None, model.id):  # another one came first meanwhile
            raise self._serves_another(upstream)
        self._model = model.id

    def _serves_another(self, upstream: Upstream) -> UpstreamUnfitError:
        return UpstreamUnfitError(f"{upstream.address.url} does not serve {self._model}")

    def _common_capabilities(self) -> Capabilities:
        """What all upstreams that are there serve."""
        options = self._options
        lengths = [one.max_model_len for one in self._upstreams if one.max_model_len is not None]
        height, width = options.input_hw or (0, 0)
        return Capabilities(
            engine="remote",
            model=options.name or _public_name(self._model or ""),
            targets=TARGETS,
            max_tokens=min([MAX_ANSWER_TOKENS, *lengths]),
            max_concurrency=options.max_concurrency,
            max_pixels=height * width or options.max_pixels,
            input_hw=options.input_hw,
            logprobs=options.logprobs,
            client_grammars=takes_client_grammars(options.dialect),
        )


def _as_the_prompts_fault(request: GenerationRequest, error: RequestRefusedError) -> EngineError:
    """What of the prompt an upstream refused: it took a short one without a history before."""
    if _is_too_long(error):
        return PromptRefusedError(str(error), "context_length_exceeded")
    if request.client_grammar is not None:
        return PromptRefusedError(str(error), "grammar_rejected")
    if request.history:
        return PromptRefusedError(str(error), "conversation_unsupported")
    return PromptRefusedError(str(error), "prompt_refused")


def _is_too_long(error: RequestRefusedError) -> bool:
    return "context length" in error.detail.lower()  # as vLLM, SGLang and OpenAI say it


def _bounds(request: GenerationRequest, most_tokens: int) -> tuple[ItemLimit | None, Budget | None]:
    """Raises EngineError where no answer fits the request."""
    limit = item_limit(request, most_tokens)
    return limit, None if limit is None else budget_beyond(request.target, limit.items)


def _public_name(model: str) -> str:
    """A model's id without the folder that a server was given for it.

    >>> _public_name("/models/birds/"), _public_name("sthui/SimpleSeg-Qwen2.5-VL")
    ('birds', 'sthui/SimpleSeg-Qwen2.5-VL')
    """
    return PurePosixPath(model).name if model.startswith(("/", "./")) else model
