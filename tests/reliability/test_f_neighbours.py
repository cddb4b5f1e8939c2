"""The catalogue's section F: what others take. One client's large image, and what other programs
take of the machine. Ratios within a run are compared, generously."""

import asyncio
import resource
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import psutil
import pytest

from ..server.processes import scripted_server, wait_for
from .canary import png64
from .test_f_load import CAPACITY_PER_S, KEYS, QUEUE, SLOTS, good, load, port_of, question
from .wire import Answer, ask, body_of, gauge, request

SETTINGS = {"ops_port": "0", "max_running_prompts": str(SLOTS), "max_queued_requests": str(QUEUE)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, str]]:
    log = tmp_path_factory.mktemp("neighbours") / "log"
    with pytest.MonkeyPatch.context() as patch:
        # What is freed goes back to the system at once, and is seen.
        patch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))
        with scripted_server(log, api_keys=KEYS, **SETTINGS) as (process, (main, ops)):
            yield process, main, ops


async def one_by_one(port: int, count: int) -> list[float]:
    """How long small requests take, each of which must be answered."""
    shots = [await load.shoot(port, question(), time.perf_counter()) for _ in range(count)]
    assert len(good(shots)) == count
    return good(shots)


class Large(threading.Thread):
    """Asks about 50 megapixels, and for the mask in two forms."""

    def __init__(self, url: str) -> None:
        super().__init__()
        fields = {"image": png64(7071, 7071), "return": ["png", "rle"]}
        headers = [f"X-API-Key: {KEYS.split(',')[0]}"]
        self._url, self._asked = url, request(body=body_of("triangle", **fields), headers=headers)
        self.answer: Answer | None = None
        self.seconds = 0.0

    def run(self) -> None:
        began = time.perf_counter()
        self.answer = ask(self._url, self._asked)
        self.seconds = time.perf_counter() - began


def test_F3_a_large_image_among_small_ones(server: tuple[Any, str, str]) -> None:
    _, main, ops = server
    port, large = port_of(main), Large(main)
    alone = asyncio.run(one_by_one(port, 30))
    large.start()
    wait_for(lambda: gauge(ops, "simpleseg_in_flight") == 1)
    beside: list[float] = []
    while large.is_alive():
        beside += asyncio.run(one_by_one(port, 1))
    assert large.answer is not None
    assert large.answer.status == 200
    assert len(beside) > 5
    assert max(beside) < large.seconds / 2, "nobody waits for it"
    assert statistics.median(beside) < 3 * statistics.median(alone)


@contextmanager
def robbed(process: psutil.Process) -> Iterator[None]:
    """Of every 100 ms the process gets 5, as beside many others that want the CPU."""
    over = threading.Event()

    def rob() -> None:
        while not over.is_set():
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.095)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.005)

    robber = threading.Thread(target=rob)
    robber.start()
    try:
        yield
    finally:
        over.set()
        robber.join()


def test_F9_cpu_taken_by_others(server: tuple[Any, str, str]) -> None:
    """Of a load that it can do otherwise it refuses what it cannot do now, and loses nothing."""
    process, main, _ = server

    def loaded() -> tuple[int, int]:
        """How many were answered, and how many refused."""
        rate, port = 0.5 * CAPACITY_PER_S, port_of(main)
        shots = asyncio.run(load.open_loop(port, rate, 3, question()))
        assert {shot.code for shot in shots} <= {None, "overloaded"}
        return len(good(shots)), sum(shot.status == 503 for shot in shots)

    before, refused_before = loaded()
    with robbed(psutil.Process(process.pid)):
        during, refused = loaded()
    after, _ = loaded()
    assert 0 < during < before
    assert refused > refused_before
    assert after > 2 * during


HUGE = {"image": "A" * 20 * 2**20, "prompt": "short"}
UNREAD = (415, "image_type_unsupported")


def test_connections_do_not_keep_what_was_answered(server: tuple[Any, str, str]) -> None:
    process, main, _ = server
    headers = {"X-API-Key": KEYS.split(",")[0]}
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(httpx2.Client(base_url=main)) for _ in range(12)]
        held = []
        for client in clients:
            assert client.post("/segment", json=HUGE, headers=headers).status_code == UNREAD[0]
            held.append(psutil.Process(process.pid).memory_info().rss / 2**20)
        for client in clients:
            assert client.get("/v1/models", headers=headers).is_success
    assert held[-1] - held[0] < 80, "MiB, of eleven times 20"


@contextmanager
def confined(process: psutil.Process) -> Iterator[None]:
    """Nineteen in twenty bytes of the memory that the process could have are taken."""
    limit = process.memory_info().vms * 20 // 19
    process.rlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_F9_memory_taken_by_others(server: tuple[Any, str, str]) -> None:
    """Bodies for which there is no room are refused as in an overload; small ones are answered."""
    process, main, _ = server
    port, key = port_of(main), KEYS.split(",")[0]
    huge = load.Question.of(HUGE, key)

    async def beside_huge_ones() -> set[Any]:
        now = time.perf_counter()
        coming = [asyncio.create_task(load.shoot(port, huge, now)) for _ in range(5)]
        await one_by_one(port, 20)
        return {(shot.status, shot.code) for shot in await asyncio.gather(*coming)}

    assert asyncio.run(beside_huge_ones()) == {UNREAD}
    with confined(psutil.Process(process.pid)):
        refused = asyncio.run(beside_huge_ones())
    assert (503, "overloaded") in refused
    assert refused <= {(503, "overloaded"), UNREAD}
    assert asyncio.run(beside_huge_ones()) == {UNREAD}
