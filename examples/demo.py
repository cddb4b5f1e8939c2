"""Start the server, segment the sample pictures through POST /segment, and print a table.

Run by ``make demo``. The samples are ``examples/images/*.png``; ``samples.json`` there lists them:
``[{"image": "scene-0.png", "phrase": "the red ring", "truth_rle": {"size": [h, w],
"counts": "..."}}]``. Overlays and the server's log are written to ``demo-output/``.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from simpleseg import Segmentation, SimpleSeg
from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import Rle, rle_to_mask

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "examples/images"
OUTPUT = ROOT / "demo-output"
START_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Sample:
    """One picture, what to look for in it, and the region that is right."""

    image: Path
    phrase: str
    truth: Rle


def load_samples(folder: Path) -> list[Sample]:
    """The samples that ``samples.json`` in ``folder`` lists."""
    entries = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    return [
        Sample(
            folder / entry["image"],
            entry["phrase"],
            Rle.from_coco(entry["truth_rle"]),
        )
        for entry in entries
    ]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running_server(log: Path, arguments: Sequence[str] = ()) -> Iterator[str]:
    """The base URL of a server of our own, which is stopped at the end.

    Raises RuntimeError, naming the log, where the server stops or is not ready in time.
    """
    port = free_port()
    command = [sys.executable, "-m", "simpleseg.cli", "serve", "--port", str(port), *arguments]
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, server, log)
            yield url
        finally:
            _stop(server)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server stopped with status {server.returncode}: see {log}")
        try:
            if httpx2.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx2.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready after {START_TIMEOUT_S:.0f} s: see {log}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


HEADER = ("image", "phrase", "status", "score", "points", "ms", "IoU")
LAYOUT = "{:<14} {:<44} {:<9} {:>5} {:>6} {:>7} {:>5}"


def row(sample: Sample, result: Segmentation) -> str:
    """One line of the table: outcome, cost, and agreement with the shipped truth."""
    return LAYOUT.format(
        sample.image.name,
        sample.phrase,
        result.status,
        "-" if result.score is None else f"{result.score:.2f}",
        result.point_count,
        f"{result.timings_ms['total']:.0f}",
        f"{iou(result.mask(), rle_to_mask(sample.truth)):.2f}",
    )


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    samples = load_samples(IMAGES)
    started = time.monotonic()
    with running_server(OUTPUT / "server.log") as url, SimpleSeg(url, timeout=300) as client:
        print(f"server ready at {url} after {time.monotonic() - started:.1f} s\n")
        print(LAYOUT.format(*HEADER))
        for number, sample in enumerate(samples):
            result = client.segment(sample.image, sample.phrase)
            result.overlay().save(OUTPUT / f"{number:02d}-{sample.image.stem}.png")
            print(row(sample, result), flush=True)
    print(f"\n{len(samples)} overlays are in {OUTPUT.relative_to(ROOT)}/")


if __name__ == "__main__":
    main()
