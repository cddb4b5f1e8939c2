"""The ways to a mask that are compared: each a process of its own, asked from this one."""

import asyncio
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx2
import psutil
from drafting_engines import DEMO_MODEL, SIZE_PX
from PIL import Image

from simpleseg_polygon.grammar import Budget, ebnf
from simpleseg_polygon.prompts import instruction
from simpleseg_training.cases import Case

SideName = Literal["reference", "vllm_serve", "embedded", "vllm", "remote"]
NEEDS_VLLM: frozenset[SideName] = frozenset({"vllm_serve", "vllm", "remote"})

MAX_TOKENS = 1024
UNDER_WAY = 16
START_S = 300
HERE = Path(__file__).parent
MODEL_NAME = "simpleseg-demo"
# What the in-process engine sets for itself (engines/vllm_environment.py), for vLLM's own server.
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class Question:
    """A case as a client has it: the image as a file, base64."""

    case: Case
    png: str

    @classmethod
    def of(cls, case: Case) -> "Question":
        buffer = io.BytesIO()
        Image.fromarray(case.image_hw3).save(buffer, "PNG")
        return cls(case, base64.b64encode(buffer.getvalue()).decode())

    @property
    def instruction(self) -> str:
        return instruction("region", self.case.phrase)


class Side(Protocol):
    """``ask`` gives the answer's COCO RLE, by as many requests at once as the caller likes;
    ``pids`` are the processes behind it, whose children count too."""

    @property
    def pids(self) -> tuple[int, ...]: ...

    async def ask(self, question: Question) -> dict[str, Any]: ...


class ReferenceSide:
    """``reference.py``, one request at a time, however many wait."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()
        self.pids: tuple[int, ...] = (process.pid,)

    async def ask(self, question: Question) -> dict[str, Any]:
        asked = {"png": question.png, "instruction": question.instruction}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps(asked).encode() + b"\n")
            rle: dict[str, Any] = json.loads(await self._process.stdout.readline())["rle"]
        return rle


class VllmServeSide:
    """vLLM's own server, with our grammar in every request; the mask is made here."""

    def __init__(self, http: httpx2.AsyncClient, pid: int) -> None:
        from reference import rle_of  # brings transformers

        self._http = http
        self.pids: tuple[int, ...] = (pid,)
        self._rle_of: Callable[[str, int, int], dict[str, Any]] = rle_of

    async def ask(self, question: Question) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{question.png}"}}
        content = [image, {"type": "text", "text": question.instruction}]
        body = {
            "model": MODEL_NAME,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0.0,
            "structured_outputs": {"grammar": ebnf("region", Budget(MAX_TOKENS))},
        }
        answer = await self._http.post("/v1/chat/completions", json=body)
        text = answer.raise_for_status().json()["choices"][0]["message"]["content"]
        return await asyncio.to_thread(self._rle_of, text, *question.case.mask_hw.shape)


class OurSide:
    """``POST /segment`` of this project's server, whatever its engine."""

    def __init__(self, http: httpx2.AsyncClient, *pids: int) -> None:
        self._http = http
        self.pids = pids

    async def ask(self, question: Question) -> dict[str, Any]:
        body = {
            "image": {"base64": question.png},
            "prompts": [question.case.phrase],
            "return": ["rle"],
            "max_tokens": MAX_TOKENS,
        }
        answer = await self._http.post("/segment", json=body)
        rle: dict[str, Any] = answer.raise_for_status().json()["results"][0]["rle"]
        return rle


@asynccontextmanager
async def reference_side(threads: int) -> AsyncIterator[Side]:
    words = [str(HERE / "reference.py"), "--model", str(DEMO_MODEL), "--threads", str(threads)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        limit=2**24,
    )
    assert process.stdout is not None
    try:
        if not await process.stdout.readline():
            raise SystemExit("the reference did not start")
        yield ReferenceSide(process)
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def vllm_serve_side(log: Path) -> AsyncIterator[tuple[Side, str]]:
    """vLLM's server with the settings of the engine in process, and its URL."""
    port = free_port()
    image = {"image": {"count": 1, "width": SIZE_PX, "height": SIZE_PX}, "video": 0}
    arguments = {
        "--model": str(DEMO_MODEL),
        "--served-model-name": MODEL_NAME,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": "float32",
        "--max-model-len": "8192",
        "--max-num-seqs": str(UNDER_WAY),
        "--limit-mm-per-prompt": json.dumps(image),
        "--structured-outputs-config": '{"backend": "xgrammar"}',
    }
    # `vllm serve` itself, without the command that asks for a distribution of exactly that name.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
    command += ["--enforce-eager", *(word for pair in arguments.items() for word in pair)]
    url = f"http://127.0.0.1:{port}"
    with running(command, log, VLLM_ENVIRONMENT) as process:
        await answering(f"{url}/health", process, log)
        async with client(url) as http:
            yield VllmServeSide(http, process.pid), url


@asynccontextmanager
async def our_side(
    engine: str, log: Path, options: Sequence[str] = (), upstreams: Sequence[int] = ()
) -> AsyncIterator[Side]:
    """``simpleseg serve`` with an engine; ``upstreams`` are the processes that it asks."""
    port = free_port()
    command = [sys.executable, "-m", "simpleseg.cli", "serve", "--engine", engine]
    command += ["--port", str(port), "--max-batch", str(UNDER_WAY)]
    command += ["--max-running-prompts", str(UNDER_WAY), *options]
    url = f"http://127.0.0.1:{port}"
    with running(command, log, {"HF_HUB_OFFLINE": "1"}) as process:
        await answering(f"{url}/readyz", process, log)
        async with client(url) as http:
            yield OurSide(http, process.pid, *upstreams)


def client(url: str) -> httpx2.AsyncClient:
    # A side waits while the others are asked; its server closes what is not used for 5 s.
    limits = httpx2.Limits(max_connections=2 * UNDER_WAY, keepalive_expiry=2.0)
    return httpx2.AsyncClient(base_url=url, timeout=START_S, limits=limits)


@contextmanager
def running(
    command: Sequence[str], log: Path, more: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server and its children, which are in a process group of their own."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=os.environ | more, start_new_session=True
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def cpu_seconds(side: Side) -> float:
    """CPU time so far of this process, the side's, and their children."""
    return time.process_time() + sum(map(tree_seconds, side.pids))


def tree_seconds(pid: int, but: int | None = None) -> float:
    """CPU time so far of a process and its children, without one of them."""
    root = psutil.Process(pid)
    processes = [one for one in (root, *root.children(recursive=True)) if one.pid != but]
    times = [one.cpu_times() for one in processes]
    return sum(one.user + one.system for one in times)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def answering(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a server answers 200."""
    deadline = time.monotonic() + START_S
    async with httpx2.AsyncClient() as http:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if (await http.get(url)).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.2)
    raise SystemExit(f"{url} did not answer:\n{log.read_text()[-2000:]}")
