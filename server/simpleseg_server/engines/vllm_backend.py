"""What the vLLM engine asks of vLLM, in our terms: options in, prompts in, chunks of tokens out.

``vllm_compat.py`` implements it on the real vLLM; tests also implement it without.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from PIL import Image
from prometheus_client import Metric

from simpleseg_server.engines.base import ClientGrammar, DeathReason

ChunkEnd = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, served as a model ``name`` of its own; ``path`` is a folder or a hub id.

    >>> Adapter.parse("birds=/adapters/birds")
    Adapter(name='birds', path='/adapters/birds')
    """

    name: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "Adapter":
        """Raises ValueError unless the text is ``NAME=PATH``."""
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise ValueError("an adapter is given as NAME=PATH")
        return cls(name, path)


@dataclass(frozen=True)
class VllmOptions:
    """How vLLM runs a model.

    ``name`` is the model id that clients see, None for the checkpoint's own. ``dtype`` and
    ``quantization`` are vLLM's own names; ``max_model_len`` bounds prompt and answer together, in
    tokens, and is lowered to what the model has positions for; ``max_num_seqs`` is how many answers
    are decoded together; ``max_pixels`` scales larger images down further than the checkpoint
    would. ``gpu_memory_utilization`` is the share of a GPU's memory that vLLM takes.
    ``adapters`` are served beside the model. ``draft`` False is plain decoding;
    ``max_draft`` bounds the drafted tokens per step. ``trust_remote_code`` runs Python code that
    comes with the checkpoint.
    """

    name: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    tensor_parallel_size: int = 1
    max_model_len: int = 16384
    max_num_seqs: int = 32
    max_pixels: int | None = None
    gpu_memory_utilization: float = 0.9
    adapters: tuple[Adapter, ...] = ()
    draft: bool = True
    max_draft: int = 8
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Launch:
    """What a backend is started with; ``max_model_len`` is within the model's positions.

    ``image_hw`` is the one size of all images, if there is one; ``image_arguments`` are what the
    image processor is given over its own files, ``names_normalisation`` whether those files say
    what pixels are normalised by.
    """

    model: str
    options: VllmOptions
    max_model_len: int
    image_hw: tuple[int, int] | None
    image_arguments: Mapping[str, int] = field(default_factory=dict)
    names_normalisation: bool = True


@dataclass(frozen=True)
class Generation:
    """One prompt on its way to vLLM. ``prompt_ids`` hold one placeholder for the image, and
    ``image_key`` is the image's identity in every cache. ``grammar`` is EBNF, None for none or
    a client's.
    ``end_token_id`` ends the answer, besides what the checkpoint's files say. ``adapter`` is the
    name of one."""

    request_id: str
    prompt_ids: Sequence[int]
    image: Image.Image
    image_key: str
    max_tokens: int
    grammar: str | None
    temperature: float
    seed: int | None
    end_token_id: int
    client_grammar: ClientGrammar | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Chunk:
    """What one step, or several that came together, wrote: (token id, log-probability) in order.

    ``prompt_tokens`` counts the image's; ``end`` is None but in the last chunk, which alone knows
    ``queue_ms``, how many tokens were ``drafted`` for the answer and how many of its tokens were
    ``accepted`` drafts (None: not counted). ``cached_tokens`` are the prompt's that were computed
    before.
    """

    tokens: tuple[tuple[int, float], ...]
    prompt_tokens: int
    end: ChunkEnd | None = None
    queue_ms: float = 0.0
    accepted: int | None = None
    drafted: int | None = None
    cached_tokens: int | None = None


class Backend(Protocol):
    """A running vLLM. ``is_dead`` is True once it can never answer again."""

    @property
    def is_dead(self) -> bool: ...

    @property
    def running(self) -> int:
        """Requests that are past this process, with those that schedule and compute."""
        ...

    @property
    def process_ids(self) -> Sequence[int]:
        """The processes that schedule and compute, where they are ours."""
        ...

    @property
    def death_reason(self) -> DeathReason:
        """How one of them ended."""
        ...

    async def ready(self) -> None:
        """Wait for what starts in the background."""
        ...

    def generate(self, generation: Generation) -> AsyncGenerator[Chunk, None]:
        """Closing it aborts the request. Raises EngineError, EngineDeadError where it is dead."""
        ...

    def collect(self) -> Iterable[Metric]:
        """vLLM's own Prometheus metrics, untouched; none where vLLM's own server shows them."""
        ...

    async def abort(self, request_ids: Sequence[str]) -> None:
        """End these requests: each gets a last chunk with ``end`` 'abort'."""
        ...

    def shutdown(self) -> None:
        """Stop for good; blocks for some seconds. A vLLM that belongs to another server goes on."""
        ...
