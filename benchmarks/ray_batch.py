"""Is every image of a large batch answered exactly once, whoever is killed?

    python benchmarks/ray_batch.py [--images 10000] [--quick] [--json]

`simpleseg annotate` and `simpleseg batch` go through the images with `--ray` and two workers. When
a third of the shards is there, one worker is killed; when two thirds are there, the command itself,
which then is given again. Models that cost nothing: the parts of ``ray_parts.py``, and a server
whose engine answers after 20 ms.

With ``--json`` the last line printed is one object with ``annotate`` and ``batch``. Of each:
``lost`` and ``twice``, images that the shards lack or have more than once; ``shards_kept``, those
that were there when the command was killed and were not written again; ``seconds``, of both runs
together. Of ``annotate`` also ``identical``: whether pairs, counts and contact sheet are to the
byte those of a run in one process without Ray, which nobody disturbed. Needs the extra ray.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import ray
from overload_server import serving
from provenance import provenance
from ray_parts import SIZE_PX, picture

WORKERS = 2
COMMAND = [sys.executable, "-m", "simpleseg.cli"]
PARTS = ["--detector", "python:ray_parts.detector", "--segmenter", "python:ray_parts.Part"]


class Cluster:
    """A Ray of this process, where our commands find the parts beside this script."""

    def __init__(self) -> None:
        started = ray.init(
            address="local",
            num_cpus=WORKERS,
            include_dashboard=False,
            object_store_memory=2**28,
            log_to_driver=False,
        )
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        address = started.address_info["gcs_address"]
        self._environ = os.environ | {"PYTHONPATH": path, "RAY_ADDRESS": address}

    def run(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*COMMAND, *arguments], env=self._environ, stdout=sys.stderr)

    def kill_a_worker(self) -> None:
        """The one that worked most."""
        processes = psutil.Process().children(recursive=True)
        workers = [one for one in processes if "_Worker" in " ".join(one.cmdline())]
        max(workers, key=lambda one: one.cpu_times().user).kill()

    def disturbed(self, arguments: list[str], shards: Path, count: int) -> dict[str, Any]:
        """The command killed in part and as a whole, and given again."""
        began = time.perf_counter()
        command = [*arguments, "--ray", "--workers", str(WORKERS)]
        first = self.run(command)
        killed_at = wait_for_shards(first, shards, count // 3)
        self.kill_a_worker()
        stopped_at = wait_for_shards(first, shards, 2 * count // 3)
        first.kill()
        assert first.wait() == -signal.SIGKILL
        kept = written(shards)
        assert self.run(command).wait() == 0
        now = written(shards)
        return {
            "shards": len(now),
            "shards_when_a_worker_was_killed": killed_at,
            "shards_when_the_command_was_killed": stopped_at,
            "shards_kept": sum(now.get(name) == when for name, when in kept.items()),
            "seconds": round(time.perf_counter() - began, 1),
        }


def written(shards: Path) -> dict[str, int]:
    """When each was."""
    return {path.name: path.stat().st_mtime_ns for path in shards.glob("part-*")}


def wait_for_shards(process: subprocess.Popen[bytes], shards: Path, count: int) -> int:
    while (there := len(written(shards))) < count:
        assert process.poll() is None, "the command ended before it could be killed"
        time.sleep(0.02)
    return there


def tally(shards: Path, name: str, wanted: set[str]) -> dict[str, int]:
    """How often the shards have what they should have once."""
    lines = (line for path in shards.glob("part-*") for line in path.read_text().splitlines())
    found = Counter(json.loads(line)[name] for line in lines)
    twice = sum(times > 1 for times in found.values())
    return {"images": len(found), "lost": len(wanted - found.keys()), "twice": twice}


def annotate(cluster: Cluster, folder: Path, wanted: set[str], size: int) -> dict[str, Any]:
    begin = ["annotate", str(folder / "images"), "--labels", "square", *PARTS, "-o"]
    whole, out = folder / "whole", folder / "annotated"
    began = time.perf_counter()
    assert cluster.run([*begin, str(whole)]).wait() == 0
    alone_s = round(time.perf_counter() - began, 1)
    command = [*begin, str(out), "--shard-size", str(size)]
    result = cluster.disturbed(command, out / "shards", -(-len(wanted) // size))
    same = [
        (out / name).read_bytes() == (whole / name).read_bytes()
        for name in ("pairs.jsonl", "counts.json", "contact-sheet.html")
    ]
    found = tally(out / "shards", "image", wanted)
    return {**found, **result, "identical": all(same), "seconds_without_ray": alone_s}


def batch(cluster: Cluster, folder: Path, wanted: set[str], size: int, port: int) -> dict[str, Any]:
    out = folder / "answers"
    command = ["batch", str(folder / "images"), "the square", "-o", str(out)]
    command += ["--url", f"http://127.0.0.1:{port}", "--shard-size", str(size)]
    result = cluster.disturbed(command, out, -(-len(wanted) // size))
    return {**tally(out, "custom_id", wanted), **result}


def main() -> None:
    parser = argparse.ArgumentParser(description="Exactly once, whoever is killed.")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--shard-size", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="400 images, 16 in a shard")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    options = parser.parse_args()
    count, size = (400, 16) if options.quick else (options.images, options.shard_size)
    about = f"{count} PNG of {SIZE_PX} x {SIZE_PX}, {size} in a shard, {WORKERS} workers"
    result: dict[str, Any] = provenance("ray", "pyarrow", model=None, inputs=about)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        wanted = {f"{number:06}.png" for number in range(count)}
        for number, file in enumerate(sorted(wanted)):
            picture(number).save(folder / "images" / file)
        # The server is a fork of this process, which must have no threads of Ray's then.
        with serving(folder / "log", max_running_prompts=16) as server:
            cluster = Cluster()
            result["annotate"] = annotate(cluster, folder, wanted, size)
            result["batch"] = batch(cluster, folder, wanted, size, server.port)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
