"""Which engine a name means, and how it is made from the options of the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from simpleseg_server.engines.base import Engine
from simpleseg_server.engines.profiles import Profile, known_profile
from simpleseg_server.imports import without_collection

if TYPE_CHECKING:
    from simpleseg_server.engines.remote import RemoteOptions
    from simpleseg_server.engines.vllm_backend import Adapter

EngineKind = Literal["auto", "embedded", "vllm", "remote"]


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


def begin_early(kind: EngineKind) -> None:
    """Start what ``make_engine`` will need and what can run beside the imports until then."""
    if kind == "vllm" and is_vllm_installed():
        from simpleseg_server.engines import vllm_process

        vllm_process.begin()


@without_collection()
def make_engine(
    kind: EngineKind,
    checkpoint: str | None,
    *,
    max_batch: int | None = None,
    draft: bool = True,
    vllm_options: Mapping[str, Any] | None = None,
    upstreams: Mapping[str, Any] | None = None,
) -> Engine:
    """An engine that has loaded nothing yet (for vLLM on a CPU, a process begins to import it).

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
        return _vllm_engine(checkpoint, max_batch, draft, vllm_options or {})
    if vllm_options:
        names = ", ".join(sorted(vllm_options))
        raise ValueError(f"the embedded engine has no option {names}; use --engine vllm")
    if known_profile(checkpoint).needs_vllm:
        raise ValueError(f"the embedded engine cannot run {checkpoint}; use --engine vllm")
    from simpleseg_server.engines.transformers import TransformersEngine

    if max_batch is None:
        return TransformersEngine(checkpoint, draft=draft)
    return TransformersEngine(checkpoint, draft=draft, max_batch=max_batch)


def _vllm_engine(
    checkpoint: str, max_batch: int | None, draft: bool, given: Mapping[str, Any]
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
    if max_batch is not None:
        options = replace(options, max_num_seqs=max_batch)
    return VllmEngine(checkpoint, options)


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
