"""The environment variables that vLLM reads on import, set where the user has not set them."""

import os

import torch

_EVERYWHERE = {
    "VLLM_NO_USAGE_STATS": "1",  # else it reports usage to its makers
    "VLLM_LOGGING_LEVEL": "WARNING",
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
    values = _EVERYWHERE | ({} if torch.cuda.is_available() else _ON_A_CPU)
    for name, value in values.items():
        os.environ.setdefault(name, value)
