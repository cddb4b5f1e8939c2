"""vLLM itself behind ``vllm_backend.Backend``: the only module that imports vllm.

Written for 0.26 to 0.33. Whatever moves between its versions is looked for here, and nowhere else:

- per-request counts of accepted drafts are there in 0.30 and not in 0.26 (None: the engine counts
  chunks);
- what replaces a Triton kernel on a CPU is registered with a dispatcher in 0.31 and not in 0.30
  (there a CPU build without Triton dies of a draft, so that drafting is off; CUDA is not
  concerned);
- what vLLM refuses of a request is a ValueError, or an error of its own that is none;
- a custom proposer has one contract throughout, and runs in the first model runner ("V1") in all.
"""

import json
import logging
import secrets
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
import vllm.v1.engine.utils
from prometheus_client import Metric
from transformers.utils.hub import cached_file
from vllm import AsyncEngineArgs, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError
from vllm.v1.metrics.prometheus import get_prometheus_registry
from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens

from simpleseg_server.engines import vllm_process
from simpleseg_server.engines.base import (
    DeathReason,
    EngineDeadError,
    EngineError,
    PromptRefusedError,
)
from simpleseg_server.engines.stages import stage
from simpleseg_server.engines.vllm_backend import (
    Adapter,
    Chunk,
    ChunkEnd,
    Generation,
    Launch,
    VllmOptions,
)
from simpleseg_server.supervision.deaths import oom_kills, reason_of

DRAFTER = "simpleseg_server.engines.drafter.ContourProposer"
logger = logging.getLogger("simpleseg")
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_ENDS = (None, *get_args(ChunkEnd))


class VllmBackend:
    """A vLLM engine, whose scheduler and model run in a child process.

    ``client`` is vLLM's ``EngineClient``, which another server may own: then this does not stop it,
    and leaves its metrics to that server.
    """

    def __init__(self, client: Any, launch: Launch, *, is_owner: bool) -> None:
        self._engine = client
        self._is_owner = is_owner
        self._is_shut_down = False
        self.running = 0
        # None where another server owns them, or this vLLM keeps them elsewhere.
        self._processes = _processes_of(client) if is_owner else ()
        self._oom_kills = oom_kills()
        self._max_model_len = launch.max_model_len
        # Clients of vLLM's own routes may name an image, and vLLM believes them: no name that they
        # can know may be one of ours.
        self._secret = secrets.token_hex(16)
        self._drafts = client.vllm_config.speculative_config is not None
        self._loras = {
            adapter.name: LoRARequest(adapter.name, number, adapter.path)
            for number, adapter in enumerate(launch.options.adapters, start=1)
        }

    @classmethod
    def start(cls, launch: Launch, **more: Any) -> "VllmBackend":
        """A vLLM of our own. Blocks for tens of seconds; ``shutdown`` blocks too. ``more`` are
        vLLM's own arguments, over ours."""
        with stage("vllm_config"):
            config = engine_args(launch, **more).create_engine_config()
        with stage("engine_process"), vllm_process.forked(vllm.v1.engine.utils):
            client = AsyncLLM.from_vllm_config(config)
        return cls(client, launch, is_owner=True)

    @property
    def is_dead(self) -> bool:
        return self._is_shut_down or bool(self._engine.errored)

    @property
    def process_ids(self) -> Sequence[int]:
        return [process.pid for process in self._processes if process.exitcode is None]

    @property
    def death_reason(self) -> DeathReason:
        codes = [process.exitcode for process in self._processes if process.exitcode]
        return reason_of(codes[0] if codes else None, oom_kills() - self._oom_kills)

    async def ready(self) -> None:
        """Wait until the processor for images is warm: it starts in a background thread, and its
        cache must not be used meanwhile. A server that owns the client has waited."""
        if self._is_owner:
            await self._engine.reset_mm_cache()

    async def generate(self, generation: Generation) -> AsyncGenerator[Chunk, None]:
        try:
            # Before the image has its tokens too: vLLM says of a long prompt only that it is wrong.
            self._check_fits(len(generation.prompt_ids), generation)
            prompt = await self._render(generation)
            prompt_tokens = len(prompt["prompt_token_ids"])
            self._check_fits(prompt_tokens, generation)
            outputs = self._engine.generate(
                prompt,
                sampling_params(generation),
                generation.request_id,
                lora_request=None
                if generation.adapter is None
                else self._loras[generation.adapter],
            )
            async with aclosing(outputs):
                with self._counted():
                    async for output in outputs:
                        yield self._chunk(output, prompt_tokens)
        except VllmDeadError as error:
            raise EngineDeadError("vLLM has died", self.death_reason) from error
        except EngineError:
            raise
        except Exception as error:
            message = f"vLLM: {type(error).__name__}: {error}"
            if isinstance(error, refusals()) and generation.client_grammar is not None:
                raise PromptRefusedError(message, "grammar_rejected") from error
            raise EngineError(message) from error

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def collect(self) -> Iterable[Metric]:
        if not self._is_owner:
            return ()
        metrics = get_prometheus_registry().collect()
        return (metric for metric in metrics if metric.name.startswith("vllm:"))

    async def abort(self, request_ids: Sequence[str]) -> None:
        if request_ids and not self.is_dead:
            await self._engine.abort(list(request_ids))

    def shutdown(self) -> None:
        self._is_shut_down = True
        engine, self._engine = self._engine, None
        if self._is_owner:
            engine.shutdown()  # not left to its __del__, which fails while the interpreter ends

    def _check_fits(self, prompt_tokens: int, generation: Generation) -> None:
        needed = prompt_tokens + generation.max_tokens
        if needed > self._max_model_len:
            message = f"prompt and answer take {needed} tokens, more than are served"
            raise PromptRefusedError(message, "context_length_exceeded")

    async def _render(self, generation: Generation) -> Any:
        """The prompt with the image preprocessed, off the event loop."""
        prompt = {
            "prompt_token_ids": list(generation.prompt_ids),
            "multi_modal_data": {"image": [generation.image]},
            "multi_modal_uuids": {"image": [f"{self._secret}-{generation.image_key}"]},
        }
        [rendered] = await self._engine.renderer.render_cmpl_async([prompt])
        return rendered

    def _chunk(self, output: Any, prompt_tokens: int) -> Chunk:
        completion = output.outputs[0]
        tokens = tuple(
            (token, places[token].logprob)
            for token, places in zip(completion.token_ids, completion.logprobs or (), strict=True)
        )
        reason = completion.finish_reason
        if reason not in _ENDS:
            raise EngineError(f"vLLM ended the answer with {reason!r}")
        drafted, accepted = self._drafted_and_accepted(completion)
        cached = getattr(output, "num_cached_tokens", None)
        return Chunk(tokens, prompt_tokens, reason, _queue_ms(output), accepted, drafted, cached)

    def _drafted_and_accepted(self, completion: Any) -> tuple[int | None, int | None]:
        if not self._drafts:
            return 0, 0
        counted = getattr(completion, "spec_decode_metrics", None)
        if counted is None:
            return None, None
        accepted = sum(accepted * steps for accepted, steps in enumerate(counted.histogram))
        return int(counted.num_draft_tokens), accepted


def _processes_of(client: Any) -> Sequence[Any]:
    resources = getattr(client.engine_core, "resources", None)
    return tuple(getattr(getattr(resources, "engine_manager", None), "processes", ()))


def model_and_options(client: Any) -> tuple[str, VllmOptions]:
    """The checkpoint that an ``EngineClient`` runs, and those of its settings that concern us."""
    config = client.vllm_config
    served = config.model_config.served_model_name
    processor = config.model_config.multimodal_config.mm_processor_kwargs or {}
    return config.model_config.model, VllmOptions(
        name=served if isinstance(served, str) else served[0],
        max_model_len=config.model_config.max_model_len,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        max_pixels=processor.get("max_pixels"),
        trust_remote_code=config.model_config.trust_remote_code,
    )


def engine_args(launch: Launch, **more: Any) -> Any:
    """vLLM's arguments for our options; ``more`` are its own, over ours."""
    options = launch.options
    image: dict[str, int] = {"count": 1}
    if launch.image_hw is not None:
        image |= {"height": launch.image_hw[0], "width": launch.image_hw[1]}
    arguments: dict[str, Any] = {
        "model": launch.model,
        "dtype": options.dtype,
        "quantization": options.quantization,
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_model_len": launch.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "trust_remote_code": options.trust_remote_code,
        "limit_mm_per_prompt": {"image": image, "video": 0},
        "structured_outputs_config": {"backend": "xgrammar"},
        # Compiling and capturing graphs pays on a GPU only.
        "enforce_eager": not torch.cuda.is_available(),
    }
    if not torch.cuda.is_available():
        # 0.32's kernel for a CPU takes strided queries and keys, which latent attention (Kimi-VL)
        # gives it, for dense ones, and rotates what is another token's.
        arguments["compilation_config"] = {"custom_ops": ["-rotary_embedding"]}
    if not launch.names_normalisation and _is_argument("mm_device_do_normalize"):
        # 0.32 normalises next to the model, by the file alone: without these entries, not at all.
        arguments["mm_device_do_normalize"] = False
    if launch.image_arguments:
        arguments["mm_processor_kwargs"] = dict(launch.image_arguments)
    if options.adapters:
        # In 0.32's code for a CPU, tokens without an adapter take that of the last slot where any
        # token has one: there is one slot more, which stays empty.
        empty = 0 if torch.cuda.is_available() else 1
        arguments |= {
            "enable_lora": True,
            "max_loras": len(options.adapters) + empty,
            "max_lora_rank": max(map(_lora_rank, options.adapters)),
        }
    if options.draft and supports_drafting():
        arguments["speculative_config"] = {
            "method": "custom_class",
            "model": DRAFTER,
            "num_speculative_tokens": options.max_draft,
        }
        if _is_argument("per_request_spec_decode_metrics"):
            arguments["per_request_spec_decode_metrics"] = "summary"
    return AsyncEngineArgs(**(arguments | more))


def _is_argument(name: str) -> bool:
    """Whether this vLLM has an engine argument of the name."""
    return name in AsyncEngineArgs.__dataclass_fields__


def supports_drafting() -> bool:
    """Whether this vLLM takes a proposer of ours; else it runs without drafts, and says so."""
    if find_spec("vllm.v1.spec_decode.custom_class_proposer") is not None:
        return True
    logger.warning("drafting is off: this vLLM takes no custom proposer")
    return False


def samples_drafts_rightly() -> bool:
    """Whether drafts leave the distribution of sampled answers alone; mends it where it knows how.

    For the process that runs the model. Without Triton, 0.32 spreads each request's temperature
    over its drafts into a copy that is thrown away, and samples with uninitialised memory (vLLM
    issue 55005).
    """
    if torch.cuda.is_available() or _spreads_over_drafts():
        return True
    if find_spec("vllm.triton_utils.dispatcher") is None:
        return False
    dispatcher: Any = import_module("vllm.triton_utils.dispatcher")
    dispatcher.register_kernels({"vllm.v1.sample.rejection_sampler.expand_kernel": _spread})
    return _spreads_over_drafts()


def _spread(
    output: torch.Tensor,
    values: torch.Tensor,
    ends: torch.Tensor,
    replace_from: float,
    replace_to: float,
    longest: int | None = None,
) -> None:
    """Fill ``output`` with each of ``values`` up to its end; the arguments are vLLM's kernel's."""
    counts = torch.diff(ends, prepend=ends.new_zeros(1)).long()
    replaced = torch.where(values == replace_from, replace_to, values)
    output.copy_(replaced.to(output.dtype).repeat_interleave(counts))


def _spreads_over_drafts() -> bool:
    """Whether the values of two requests reach one and two drafted tokens."""
    try:
        spread = expand_batch_to_tokens(
            torch.tensor([0.5, 2.0]), torch.tensor([1, 3], dtype=torch.int32), 3
        )
    except Exception:  # no implementation for this machine is registered
        logger.exception("vLLM cannot spread temperatures over drafts")
        return False
    return bool(spread.tolist() == [0.5, 2.0, 2.0])


def refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that it does not take."""
    if find_spec("vllm.exceptions") is None:
        return (ValueError,)
    module = import_module("vllm.exceptions")
    return (ValueError, getattr(module, "VLLMValidationError", ValueError))


def sampling_params(generation: Generation) -> SamplingParams:
    """One token's log-probability each, deltas, and no text: the answer is spelled on our side."""
    return SamplingParams(
        temperature=generation.temperature,
        seed=generation.seed,
        max_tokens=generation.max_tokens,
        stop_token_ids=[generation.end_token_id],
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=_structured_outputs(generation),
    )


def _structured_outputs(generation: Generation) -> StructuredOutputsParams | None:
    if generation.client_grammar is not None:
        brought = generation.client_grammar
        return StructuredOutputsParams(**{brought.kind: brought.value})
    if generation.grammar is not None:
        return StructuredOutputsParams(grammar=generation.grammar)
    return None


def _lora_rank(adapter: Adapter) -> int:
    """The least rank that vLLM knows and the adapter fits in."""
    file = cached_file(adapter.path, "adapter_config.json")
    rank = int(json.loads(Path(str(file)).read_text())["r"])
    return next((known for known in _LORA_RANKS if known >= rank), rank)


def _queue_ms(output: Any) -> float:
    """The wait in vLLM's own queue; 0 where it keeps no statistics."""
    times = getattr(output, "metrics", None)
    if times is None or not times.scheduled_ts:
        return 0.0
    return max(0.0, float(times.scheduled_ts - times.queued_ts) * 1e3)
