"""Which engine a name means, and how it is made from the options of the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from simpleseg_server.engines.base import Engine
from simpleseg_server.engines.profiles import Profile, known_profile
from simpleseg_server.imports import without_collection
from simpleseg_server.supervision.vitals import Patience

if TYPE_CHECKING:
    from simpleseg_server.engines.remote import RemoteOptions
    from simpleseg_server.engines.vllm_backend import Adapter

EngineKind = Literal["auto", "embedded", "vllm", "remote"]
_PRELOADED = "simpleseg_server.engines.embedded_preload"


@dataclass(frozen=True)
class Supervision:
    """How an engine is kept running; see ``supervision.supervisor``."""

    patience: Patience
    spare: bool = False


def is_vllm_installed() -> bool:
    return find_spec("vllm") is not None


def best_engine() -> tuple[EngineKind, str]:
    """What ``auto`` is, and why: vLLM where it is installed and a GPU is there, else embedded."""
    if not is_vllm_installed():
        return "embedded", "vLLM is not installed"
    import torch

    if not torch.cuda.is_available():
        return "embedded", "torch sees no GPU"
    return "vllm", "vLLM is installed and torch sees a GPU"


def begin_early(kind: EngineKind, *, is_supervised: bool = False) -> None:
    """Start what ``make_engine`` will need and what can run beside the imports until then."""
    if kind == "vllm" and is_vllm_installed():
        from simpleseg_server.engines import vllm_process

        vllm_process.begin()
    is_embedded = kind == "embedded" or (kind == "auto" and not is_vllm_installed())
    if is_embedded and is_supervised:
        from simpleseg_server.supervision.process import preload

        preload(_PRELOADED)


@without_collection()
def make_engine(
    kind: EngineKind,
    checkpoint: str | None,
    *,
    max_batch: int | None = None,
    draft: bool = True,
    vllm_options: Mapping[str, Any] | None = None,
    upstreams: Mapping[str, Any] | None = None,
    supervision: Supervision | None = None,
) -> Engine:
    """An engine that has loaded nothing yet (for vLLM on a CPU, and for an embedded engine that is
    supervised, a process begins to import what it needs).

    ``vllm_options`` are fields of ``VllmOptions``; ``adapters`` are given as ``NAME=PATH``.
    ``upstreams`` are arguments of ``remote_options``. Only the remote engine does without a
    checkpoint.

    Raises ValueError for the options of another engine, where vLLM is not installed, and for a
    checkpoint that the engine cannot run, or not without code that nobody has allowed.
    """
    if kind == "remote":
        return _remote_engine(checkpoint, max_batch, upstreams or {}, vllm_options or {})
    if upstreams and upstreams.get("upstreams"):
        raise ValueError("only the remote engine has upstreams; use --engine remote")
    assert checkpoint is not None
    kind = best_engine()[0] if kind == "auto" else kind
    if kind == "vllm":
        if supervision is not None and supervision.spare:
            raise ValueError("only the embedded engine has a spare; use --engine embedded")
        return _vllm_engine(checkpoint, max_batch, draft, vllm_options or {}, supervision)
    if vllm_options:
        names = ", ".join(sorted(vllm_options))
        raise ValueError(f"the embedded engine has no option {names}; use --engine vllm")
    if known_profile(checkpoint).needs_vllm:
        raise ValueError(f"the embedded engine cannot run {checkpoint}; use --engine vllm")
    if supervision is None:
        return _Embedded(checkpoint, max_batch, draft)()
    return _supervised_embedded(checkpoint, max_batch, draft, supervision)


@dataclass(frozen=True)
class _Embedded:
    """Makes an embedded engine, also in another process."""

    checkpoint: str
    max_batch: int | None
    draft: bool

    def __call__(self) -> Engine:
        from simpleseg_server.engines.transformers import TransformersEngine

        if self.max_batch is None:
            return TransformersEngine(self.checkpoint, draft=self.draft)
        return TransformersEngine(self.checkpoint, draft=self.draft, max_batch=self.max_batch)


def _supervised_embedded(
    checkpoint: str, max_batch: int | None, draft: bool, supervision: Supervision
) -> Engine:
    from simpleseg_server.supervision.process import ProcessEngine, preload
    from simpleseg_server.supervision.supervisor import SupervisedEngine

    preload(_PRELOADED)
    return SupervisedEngine(
        lambda most: ProcessEngine(_Embedded(checkpoint, most, draft), supervision.patience),
        max_batch=max_batch,
        spare=supervision.spare,
    )


def _vllm_engine(
    checkpoint: str,
    max_batch: int | None,
    draft: bool,
    given: Mapping[str, Any],
    supervision: Supervision | None,
) -> Engine:
    if not is_vllm_installed():
        raise ValueError(
            "vllm is not installed; on a CUDA host: pip install 'simpleseg-server[server,vllm]'"
        )
    trusted = bool(given.get("trust_remote_code"))
    known_profile(checkpoint).require(checkpoint, trust_remote_code=trusted)
    begin_early("vllm")
    from simpleseg_server.engines.vllm import VllmEngine
    from simpleseg_server.engines.vllm_backend import VllmOptions

    values = dict(given)
    if "adapters" in values:
        values["adapters"] = _adapters(values["adapters"], Profile.load(checkpoint).name)
    options = VllmOptions(draft=draft, **values)

    patience = None if supervision is None else supervision.patience

    def make(most: int | None) -> Engine:
        sized = options if most is None else replace(options, max_num_seqs=most)
        return VllmEngine(checkpoint, sized, patience=patience)

    if supervision is None:
        return make(max_batch)
    from simpleseg_server.supervision.supervisor import SupervisedEngine

    return SupervisedEngine(make, max_batch=max_batch)


def _adapters(texts: Sequence[str], model: str) -> "tuple[Adapter, ...]":
    """Raises ValueError where two models would have one name."""
    from simpleseg_server.engines.vllm_backend import Adapter

    adapters = tuple(map(Adapter.parse, texts))
    names = [model, *(adapter.name for adapter in adapters)]
    if len(set(names)) < len(names):
        raise ValueError("the model and each adapter need a name of their own")
    return adapters


def _remote_engine(
    checkpoint: str | None,
    max_batch: int | None,
    upstreams: Mapping[str, Any],
    vllm_options: Mapping[str, Any],
) -> Engine:
    if vllm_options:
        names = ", ".join(sorted(vllm_options))
        raise ValueError(f"the remote engine has no option {names}; give it to the upstreams")
    from simpleseg_server.engines.remote import RemoteEngine

    options = remote_options(**upstreams)
    if checkpoint is not None:
        profile = Profile.load(checkpoint)
        most = profile.max_pixels or options.max_pixels
        options = replace(options, name=profile.name, input_hw=profile.input_hw, max_pixels=most)
    if max_batch is not None:
        options = replace(options, max_concurrency=max_batch)
    return RemoteEngine(options)


def remote_options(
    *, upstreams: Sequence[str] = (), first_token_s: float, idle_s: float, **values: Any
) -> "RemoteOptions":
    """``upstreams`` are ``URL`` or ``URL,WEIGHT``; the others are fields of ``RemoteOptions``."""
    from simpleseg_server.engines.remote import RemoteOptions
    from simpleseg_server.engines.upstream_http import Timeouts
    from simpleseg_server.engines.upstreams import Address

    return RemoteOptions(
        upstreams=tuple(map(Address.parse, upstreams)),
        timeouts=Timeouts(first_token_s=first_token_s, idle_s=idle_s),
        **values,
    )
