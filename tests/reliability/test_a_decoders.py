"""Section A of the catalogue: decoders that die, hang or want too much; many images at once."""

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image

from simpleseg_server.config import Settings
from simpleseg_server.image_intake import ImageIntake
from simpleseg_server.pixels import EngineSize
from simpleseg_server.telemetry import Metrics

from . import image_files as make
from .canary import Canary, started, unharmed
from .image_bombs import decoders, post, refusal


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    """Its decoders have little time and memory, and decode what came before as well."""
    limits = {
        "max_decode_cpu_s": "0.3",
        "max_decoder_bytes": str(200 * 2**20),
        "max_decoded_image_bytes": "0",
    }
    with started(tmp_path_factory.mktemp("strict"), **limits) as canary:
        yield canary


@pytest.fixture
def strict(strict_server: Canary) -> Iterator[Canary]:
    """One whose decoders are broken: as many are there afterwards, and the server is the same."""
    pid, count = strict_server.process.pid, len(decoders(strict_server))
    with unharmed(strict_server):
        strict_server.may_restart = True
        yield strict_server
    assert strict_server.process.pid == pid
    assert strict_server.process.is_running()
    assert len(decoders(strict_server)) == count


def deaths(canary: Canary) -> dict[str, float]:
    """Decoders that files have ended, by reason."""
    pattern = r'simpleseg_decoder_deaths_total\{reason="(\w+)"\} ([\d.]+)'
    return {reason: float(count) for reason, count in re.findall(pattern, canary.metrics())}


def test_A10_jpeg_of_a_thousand_scans(strict: Canary) -> None:
    before = deaths(strict)
    assert refusal(post(strict, make.scans_bomb(3000, 1000))) == (422, "image_decode_timeout")
    assert deaths(strict) == before, "it was not tried"
    assert refusal(post(strict, make.scans_bomb(5000, 50))) == (422, "image_decode_timeout")
    assert deaths(strict).get("timeout") == before.get("timeout", 0) + 1


def with_stopped_decoders(canary: Canary, then: Any) -> httpx2.Response:
    """The answer about an image whose decoder is stopped; ``then`` is done to it meanwhile."""
    stopped = decoders(canary)
    for process in stopped:
        process.suspend()
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(post, canary, make.encoded(make.noise()))
        while "simpleseg_in_flight 1.0" not in canary.metrics():
            time.sleep(0.01)
        time.sleep(0.3)  # admitted it is; a decoder has it a little later
        then(stopped)
        return answer.result()


def test_A24_a_decoder_dies(strict: Canary) -> None:
    for number in (signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT):
        before = deaths(strict).get("crash", 0)

        def end(stopped: list[psutil.Process], number: int = number) -> None:
            for process in stopped:
                process.send_signal(number)
                with suppress(psutil.NoSuchProcess):  # where it needed no waking
                    process.resume()

        answer = with_stopped_decoders(strict, end)
        assert refusal(answer) == (422, "image_decode_failed")
        assert post(strict, make.encoded(make.noise())).status_code == 200
        assert deaths(strict)["crash"] == before + 1


def test_A24_a_decoder_hangs(strict: Canary) -> None:
    """It is ended when its time is over, if not by its own clock."""

    answer = with_stopped_decoders(strict, lambda _: None)
    assert refusal(answer) == (422, "image_decode_timeout")
    for process in decoders(strict):
        process.resume()
    assert strict.segment().status_code == 200


def test_A24_a_decoder_wants_memory(strict: Canary) -> None:
    before = [process.pid for process in decoders(strict)]
    answer = post(strict, make.encoded(Image.new("RGB", (7000, 7000))))
    assert refusal(answer) == (422, "image_decode_failed")
    assert [process.pid for process in decoders(strict)] == before


def test_A24_what_forks_decoders_dies(strict: Canary) -> None:
    [nursery], old = strict.process.children(), decoders(strict)
    nursery.kill()
    assert strict.segment().status_code == 200
    assert not {one.pid for one in decoders(strict)} & {one.pid for one in old}
    _, left = psutil.wait_procs(old, timeout=30)
    assert not left


def test_A24_no_decoder_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    with started(tmp_path) as canary:
        alive = canary.process.children(recursive=True)
        assert len(alive) > 2
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(post, canary, make.scans_bomb(7000, 50))
            while "simpleseg_in_flight 1.0" not in canary.metrics():
                time.sleep(0.01)
            canary.process.kill()
            with pytest.raises(httpx2.TransportError):
                answer.result()
        _, left = psutil.wait_procs(alive, timeout=30)
        assert not left


def test_A28_one_image_ten_thousand_times() -> None:
    """All are decoded, and never more pixels at once than the limit lets."""
    data = make.encoded(make.noise(8, 8))
    settings = Settings(max_image_pixels=64, max_pixels_in_flight=3 * 64, max_decoded_image_bytes=0)
    taken: list[int] = []

    async def all_at_once(intake: ImageIntake) -> list[str]:
        async def one() -> str:
            image = await intake.decode(data, EngineSize(10**6), "image")
            taken.append(intake.budget.taken)
            return image.key

        return await asyncio.gather(*(one() for _ in range(10_000)))

    with ThreadPoolExecutor(2) as workers:
        intake = ImageIntake(settings, workers, Metrics())
        keys = asyncio.run(all_at_once(intake))
    intake.close()
    assert len(set(keys)) == 1
    assert 0 < max(taken) <= settings.max_pixels_in_flight
