"""Our load generator beside NVIDIA's aiperf, on the same server in the same conditions.

    make bench-aiperf      # installs aiperf into an environment of its own, and runs this
    python benchmarks/load_aiperf.py --aiperf PATH [--base-url URL | --trivial] [--quick] [--json]

Both ask `POST /v1/chat/completions` for streams, with the same bodies (packaged scenes), by the
same number of users, and take turns, so that both see what else the machine does. The server is one
with the shipped model, or with ``--trivial`` that of ``load_ceiling.py``, whose streams take the
same time always. aiperf's time to first token ends with the first piece of content, as ours does,
and its inter token latency is our time per token after the first.

With ``--json`` the last line printed is one object: for each figure the median over the rounds of
``ours`` and ``aiperf``, and ``ratio``, the median over the rounds of aiperf's over ours with its
least and greatest; beside them ``ours_spread``, our own greatest over our least: the noise.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from load_ceiling import trivial_server
from provenance import provenance

import simpleseg_server
from simpleseg.bench.load import Load, run_load
from simpleseg.bench.questions import Question, load_questions
from simpleseg.bench.servers import identity, own_server
from simpleseg.bench.wire import Target

TOKENIZER = Path(simpleseg_server.__file__).parent / "demo_model"
# Ours, and aiperf's name for it and its field.
FIGURES = {
    "latency_p50_ms": ("request_latency", "p50"),
    "latency_mean_ms": ("request_latency", "avg"),
    "first_token_p50_ms": ("time_to_first_token", "p50"),
    "per_token_mean_ms": ("inter_token_latency", "avg"),
    "requests_per_s": ("request_throughput", "avg"),
    "output_tokens_per_s": ("output_token_throughput", "avg"),
}


def ours(target: Target, questions: Sequence[Question], users: int, count: int) -> dict[str, float]:
    result = run_load(target, questions, Load("closed", users, requests=count, warmup_s=0))
    if sum(sample.is_right for sample in result.samples) != count:
        raise SystemExit(f"not every answer was right: {result.errors} {result.flaws}")
    times = result.times_ms()
    latency, first, each = (
        times[name] or {} for name in ("latency_ms", "first_token_ms", "per_token_ms")
    )
    return {
        "latency_p50_ms": latency["p50"],
        "latency_mean_ms": latency["mean"],
        "first_token_p50_ms": first["p50"],
        "per_token_mean_ms": each["mean"],
        "requests_per_s": result.requests_per_s,
        "output_tokens_per_s": result.tokens_per_s,
    }


def aiperf(
    program: str, target: Target, questions: Sequence[Question], users: int, count: int
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "asked.jsonl"
        asked.write_text("".join(f"{target.body(one).decode()}\n" for one in questions))
        command = [program, "profile", "--model", str(target.model), "--url", target.base_url]
        command += ["--endpoint-type", "chat", "--streaming", "--input-file", str(asked)]
        command += ["--custom-dataset-type", "raw-payload", "--ui", "none"]
        command += ["--dataset-sampling-strategy", "sequential", "--concurrency", str(users)]
        command += ["--request-count", str(count), "--use-server-token-count"]
        command += ["--tokenizer", str(TOKENIZER), "--no-server-metrics", "--no-gpu-telemetry"]
        command += ["--export-level", "summary", "--artifact-dir", folder]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        found = list(Path(folder).rglob("profile_export_aiperf.json"))
        if run.returncode or not found:
            raise SystemExit(f"aiperf failed:\n{(run.stdout + run.stderr)[-3000:]}")
        told = json.loads(found[0].read_text())
    if told["request_count"]["avg"] != count:
        raise SystemExit(f"aiperf counts {told['request_count']['avg']} answers of {count}")
    return {name: told[metric][field] for name, (metric, field) in FIGURES.items()}


def compared(rounds: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """By figure: medians, their ratios by round, and how much our own figure moved."""
    found = {}
    for name in FIGURES:
        mine, theirs = ([pair[who][name] for pair in rounds] for who in (0, 1))
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        found[name] = {
            "ours": round(statistics.median(mine), 2),
            "aiperf": round(statistics.median(theirs), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_least": round(min(ratios), 3),
            "ratio_greatest": round(max(ratios), 3),
            "ours_spread": round(max(mine) / min(mine), 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--aiperf", required=True, help="the program, in its own environment")
    parser.add_argument("--base-url", help="a running server")
    parser.add_argument("--trivial", action="store_true", help="a server that costs nothing")
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--requests", type=int, default=44, help="each, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of 11 requests")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    options = parser.parse_args()
    count, rounds = (11, 1) if options.quick else (options.requests, options.rounds)
    questions, users = load_questions("packaged"), options.users
    given = nullcontext(options.base_url)
    own = trivial_server() if options.trivial else given if options.base_url else own_server([])
    model = "trivial" if options.trivial else None if options.base_url else "simpleseg-demo"
    said = provenance("aiohttp", model=model, inputs="packaged scenes")
    with own as url:
        server = {"model": "trivial"} if options.trivial else identity(url, None)
        target = Target(url, "chat", stream=True, model=server["model"])
        ours(target, questions, users, len(questions))  # warm up
        pairs = [
            (
                ours(target, questions, users, count),
                aiperf(options.aiperf, target, questions, users, count),
            )
            for _ in range(rounds)
        ]
    figures = compared(pairs)
    for name, figure in figures.items():
        print(f"{name:<20} {figure}")
    if options.json:
        told = subprocess.run([options.aiperf, "--version"], capture_output=True, text=True)
        asked = {"users": users, "requests": count, "rounds": rounds}
        facts = {**said, "server": server, "aiperf": told.stdout.strip(), **asked}
        print(json.dumps({**facts, "figures": figures}))


if __name__ == "__main__":
    main()
