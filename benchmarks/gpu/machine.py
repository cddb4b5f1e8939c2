"""The accelerator behind a result: its name, driver, software, and how fast it reads memory."""

import shutil
import subprocess
import time
from typing import Any

import torch

COPIES = 20
BUFFER_BYTES = {"cuda": 2 * 2**30, "cpu": 2**28}


def accelerator(device: str) -> dict[str, Any]:
    """The GPU and its driver, where there is one, and the versions of torch and vLLM."""
    import vllm

    found: dict[str, Any] = {"torch": torch.__version__, "vllm": vllm.__version__}
    if device != "cuda":
        return found | {"gpu": None}
    return found | {
        "gpu": torch.cuda.get_device_name(),
        "gpu_memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "driver": _driver(),
        "cuda": torch.version.cuda,
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, stdout=subprocess.PIPE, text=True).stdout.strip() or None


def read_bandwidth(device: str) -> float:
    """Bytes a second of the fastest of some copies on the device: what is read and what is written
    both count, as they share the same memory."""
    source = torch.ones(BUFFER_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    fastest = float("inf")
    for _ in range(COPIES):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        fastest = min(fastest, time.perf_counter() - began)
    rate = 2 * source.numel() / fastest
    del source, target
    if device == "cuda":
        torch.cuda.empty_cache()
    return rate


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
