"""The real vLLM engine on answers that are replayed: what drafting saves where weights are random.

Random weights write noise, so each answer is forced to be the outline of an object in a held-out
scene, token by token, inside vLLM (``replay_worker.py``). Everything else is what the server runs:
the engine module, the grammar, log-probabilities, the image, the drafts and their verification.

    python benchmarks/gpu/replay.py --model FOLDER --mode off|structure|digits [--json]

One mode a process, since vLLM starts once in each. The last line printed with ``--json`` is one
object. For each number of answers under way: latency by percentiles, answers a second, steps
(forward passes of the whole batch) and ``steps_per_token`` (passes of an answer by its tokens);
``floor_share`` is the time that reading the weights once a step takes at the bandwidth measured
here, by the time that all answers took. ``texts_exact`` and ``passes_as_predicted`` count answers
that came out as forced, and that took the passes that replaying the drafts without a model gives.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
# The hook is in the first model runner, which drafting needs anyway.
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"

from machine import accelerator, read_bandwidth  # noqa: E402

from simpleseg.bench.hardware import hardware  # noqa: E402
from simpleseg_polygon.codec import format_region  # noqa: E402
from simpleseg_polygon.contour import region_from_mask  # noqa: E402
from simpleseg_polygon.drafts import count_passes  # noqa: E402
from simpleseg_polygon.grammar import max_tokens_for  # noqa: E402
from simpleseg_polygon.prompts import instruction  # noqa: E402
from simpleseg_server.engines import vllm_environment  # noqa: E402
from simpleseg_server.engines.base import GenerationRequest, Usage  # noqa: E402
from simpleseg_server.engines.prompting import Prompter  # noqa: E402
from simpleseg_server.engines.vllm import VllmEngine  # noqa: E402
from simpleseg_server.engines.vllm_backend import Backend, Launch, VllmOptions  # noqa: E402
from simpleseg_training.cases import Case, load_cases  # noqa: E402

MODES = ("off", "structure", "digits")
STRUCTURE_PROPOSER = "replay_worker.StructureProposer"
EXTENSION = "replay_worker.ReplayExtension"
ID_END = "#"
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Answer:
    """A scene's question and the outline that is forced; ``ids`` end with the end token."""

    case: Case
    text: str
    ids: list[int]


@dataclass(frozen=True)
class Timing:
    name: str
    seconds: float
    text: str
    usage: Usage


def make_answers(model: str, count: int, size_px: int, epsilon: float) -> list[Answer]:
    """Outlines of the objects in held-out scenes, simplified as the paper does."""
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    end = Prompter(model).end_token_id
    answers = []
    for case in load_cases("demo-multi", "test", count, size_px):
        region = region_from_mask(case.mask_hw, epsilon_ratio=epsilon, min_part_area_px=8)
        text = format_region(region) + "."
        answers.append(Answer(case, text, [*tokenizer.encode(text).ids, end]))
    return answers


class ReplayEngine:
    """The vLLM engine with the extension in its worker."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._vllm: Any = None
        more: dict[str, Any] = {"worker_extension_cls": EXTENSION, **options.vllm}
        self.engine = VllmEngine(
            options.model,
            VllmOptions(
                dtype=options.dtype,
                draft=options.mode != "off",
                max_num_seqs=max(options.concurrency),
                max_model_len=options.max_model_len,
            ),
            start_backend=lambda launch: self._start(launch, more),
        )

    def _start(self, launch: Launch, more: dict[str, Any]) -> Backend:
        vllm_environment.prepare()
        from simpleseg_server.engines.vllm_compat import VllmBackend, engine_args

        if self._options.mode == "structure":
            ours = engine_args(launch).speculative_config
            more = more | {"speculative_config": ours | {"model": STRUCTURE_PROPOSER}}
        backend = VllmBackend.start(launch, **more)
        self._vllm = backend._engine
        return backend

    async def call(self, method: str, *arguments: Any) -> Any:
        [result] = await self._vllm.collective_rpc(method, args=arguments)
        return result


def predicted_passes(options: argparse.Namespace, answers: Sequence[Answer]) -> list[int]:
    """Passes of every answer by the proposer itself, without a model."""
    if options.mode == "off":
        return [len(answer.ids) for answer in answers]
    draft = _offline_draft(options)
    return [count_passes(draft, answer.ids).passes for answer in answers]


def _offline_draft(options: argparse.Namespace) -> Callable[[Sequence[int]], list[int]]:
    from replay_worker import StructureProposer

    from simpleseg_server.engines.drafter import ContourProposer

    model = SimpleNamespace(
        model=options.model, trust_remote_code=False, max_model_len=options.max_model_len
    )
    drafts = SimpleNamespace(num_speculative_tokens=VllmOptions().max_draft)
    config = SimpleNamespace(model_config=model, speculative_config=drafts)
    kind = StructureProposer if options.mode == "structure" else ContourProposer
    proposer = kind(config)
    prompt = Prompter(options.model).ids("Output the polygon of it.")

    def draft(so_far: Sequence[int]) -> list[int]:
        row = np.array([[*prompt, *so_far]], np.int32)
        [tokens] = proposer.propose([so_far[-1:]], np.array([row.shape[1]], np.int32), row)
        return tokens

    return draft


async def ask(engine: VllmEngine, answer: Answer, name: str, image_key: str) -> Timing:
    request = GenerationRequest(
        request_id=f"{name}{ID_END}",
        image_hw3=answer.case.image_hw3,
        image_key=image_key,
        instruction=instruction("region", answer.case.phrase),
        target="region",
        max_tokens=max_tokens_for("region", answer.text.count("[") + 2),
    )
    began = time.perf_counter()
    text = ""
    async for delta in engine.generate(request):
        text += delta.text
        if delta.usage is not None:
            return Timing(name, time.perf_counter() - began, text, delta.usage)
    raise RuntimeError("an answer without an end")


async def run_level(
    replay: ReplayEngine, answers: Sequence[Answer], under_way: int, count: int
) -> tuple[float, list[Timing], dict[str, Any]]:
    """``count`` answers, ``under_way`` at a time, each on an image that no cache knows."""
    slots = asyncio.Semaphore(under_way)

    async def one(number: int) -> Timing:
        at = number % len(answers)
        async with slots:
            key = f"{replay_key(under_way)} {number}"
            return await ask(replay.engine, answers[at], str(at), key)

    await replay.call("replay_counts")
    began = time.perf_counter()
    timings = await asyncio.gather(*(one(number) for number in range(count)))
    return time.perf_counter() - began, timings, await replay.call("replay_counts")


def replay_key(under_way: int) -> str:
    return f"replay {under_way} {time.time_ns()}"


def figures_of(
    seconds: float,
    timings: Sequence[Timing],
    counted: dict[str, Any],
    answers: Sequence[Answer],
    predicted: Sequence[int],
    floor_s: float,
) -> dict[str, Any]:
    latency = {
        f"p{at}_ms": round(float(np.percentile([t.seconds * 1e3 for t in timings], at)), 2)
        for at in PERCENTILES
    }
    passes = {name: count[0] for name, count in counted["counts"].items()}
    expected = [predicted[int(name.partition(ID_END)[0])] for name in passes]
    tokens = sum(len(answers[int(timing.name)].ids) for timing in timings)
    drafted = sum(count[1] for count in counted["counts"].values())
    decode = sum(t.usage.decode_ms for t in timings)
    return {
        "answers": len(timings),
        "seconds": round(seconds, 3),
        "masks_per_s": round(len(timings) / seconds, 3),
        **latency,
        "decode_p50_ms": round(float(np.median([t.usage.decode_ms for t in timings])), 2),
        "prefill_p50_ms": round(float(np.median([t.usage.prefill_ms for t in timings])), 2),
        "tokens": tokens,
        "steps": counted["steps"],
        "passes": sum(passes.values()),
        "steps_per_token": round(sum(passes.values()) / tokens, 4),
        "drafted": drafted,
        "accepted_of_drafted": round((tokens - sum(passes.values())) / drafted, 4)
        if drafted
        else None,
        "decode_ms_per_pass": round(decode / max(1, sum(passes.values()) - len(timings)), 3),
        "floor_share": round(counted["steps"] * floor_s / seconds, 4),
        "texts_exact": sum(t.text == answers[int(t.name)].text for t in timings),
        "passes_as_predicted": sum(
            one == other for one, other in zip(passes.values(), expected, strict=True)
        ),
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    answers = make_answers(options.model, options.answers, options.image_px, options.epsilon)
    predicted = predicted_passes(options, answers)
    sizes = json.loads((Path(options.model) / "sizes.json").read_text())
    bandwidth = read_bandwidth(options.device)
    floor_s = sizes["step_bytes"] / bandwidth
    began = time.perf_counter()
    replay = ReplayEngine(options)
    await replay.engine.start()
    started_s = time.perf_counter() - began
    try:
        forced = {str(at): answer.ids for at, answer in enumerate(answers)}
        await replay.call("replay_answers", forced)
        levels = {}
        for under_way in options.concurrency:
            count = max(options.least, 4 * under_way)
            await run_level(replay, answers, under_way, under_way)  # compiles what it compiles
            level = await run_level(replay, answers, under_way, count)
            levels[str(under_way)] = figures_of(*level, answers, predicted, floor_s)
            print(f"{options.mode}, {under_way} under way: {levels[str(under_way)]}", flush=True)
    finally:
        await replay.engine.close()
    return {
        "mode": options.mode,
        "scale": sizes["scale"],
        "step_bytes": sizes["step_bytes"],
        "bandwidth_gb_per_s": round(bandwidth / 1e9, 1),
        "floor_ms_per_step": round(floor_s * 1e3, 4),
        "start_s": round(started_s, 1),
        "tokens_per_answer": round(sum(len(a.ids) for a in answers) / len(answers), 1),
        "under_way": levels,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The real vLLM engine on replayed answers.")
    parser.add_argument("--model", required=True, help="a folder that make_checkpoint.py wrote")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--answers", type=int, default=64, help="different answers")
    parser.add_argument("--least", type=int, default=24, help="answers asked at each level")
    parser.add_argument("--image-px", type=int, default=448)
    parser.add_argument("--epsilon", type=float, default=0.005, help="of the outlines' simplifying")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--vllm", type=json.loads, default={}, help="more of vLLM's arguments")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last")
    parser.add_argument("--quick", action="store_true", help="few answers, 1 and 2 under way")
    options = parser.parse_args()
    if options.quick:
        options.concurrency, options.answers, options.least = [1, 2], 6, 6
    figures = asyncio.run(measure(options))
    figures["hardware"] = hardware("transformers") | accelerator(options.device)
    figures["command"] = " ".join(sys.argv)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
