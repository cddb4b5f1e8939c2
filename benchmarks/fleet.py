"""A fleet of a thousand GPUs, on paper: front ends, bytes, caches and failures.

    python benchmarks/fleet.py [--json] [--gpus 1000] [--set rate_per_gpu_s=9]

Every assumption is a field of ``Assumptions`` and can be set. Nothing here is measured on a GPU:
what this project has measured is marked, with where. Only the bound on an image's own replica is
simulated, by the server's own hashing (``affinity``); the rest is arithmetic.

With ``--json`` the last line printed is one object.
"""

import argparse
import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from provenance import provenance

from simpleseg_server.affinity import SLACK, affinity

DAY_S = 86_400.0


@dataclass(frozen=True)
class Assumptions:
    """``rate_per_gpu_s``: answers of one GPU, from the cost model of docs/sizing.md on a target's
    figures. ``front_end_core_ms``: of a core for a request, image decoded, without Ray (to be had
    from benchmarks/front_end.py). ``image_kb``: a photograph as it is sent. ``pixels``: what the
    model takes, 1,003,520 in the published processor. ``prompts_per_image``: questions that come
    about an image in a cache's lifetime. ``gpu_mtbf_h``: hours from one failure of a GPU, or of
    what it hangs on, to the next (Llama 3's report, arXiv 2407.21783: 419 interruptions of 16,384
    GPUs in 54 days, which is 50,700). ``restart_s``: from a failure to a replica that is ready.
    ``swap_s``: until a machine is replaced, where a restart is not enough, in ``swap_share`` of
    failures. ``answer_s``: an answer. ``rack_gpus`` fail together at ``rack_mtbf_h``.
    """

    gpus: int = 1000
    rate_per_gpu_s: float = 10.0
    answer_s: float = 4.0
    front_end_core_ms: float = 15.0
    cores_per_front_end: int = 8
    image_kb: float = 300.0
    pixels: int = 1_003_520
    nic_gbit_s: float = 25.0
    prompts_per_image: float = 4.0
    second_prompt_cost: float = 0.4
    gpu_mtbf_h: float = 50_700.0
    restart_s: float = 180.0
    swap_share: float = 0.2
    swap_s: float = 4 * 3600.0
    rack_gpus: int = 32
    rack_mtbf_h: float = 10 * 8760.0
    probe_s: float = 2.0


def front_ends(given: Assumptions) -> dict[str, float]:
    """How many, and what each carries. Bytes travel twice: a file in, pixels on to the engine."""
    rate = given.gpus * given.rate_per_gpu_s
    cores = rate * given.front_end_core_ms / 1e3
    number = math.ceil(cores / given.cores_per_front_end / 0.7)  # at 70 % of their cores
    file_gbit_s = rate * given.image_kb * 8e3 / 1e9
    pixel_gbit_s = rate * given.pixels * 3 * 8 / 1e9
    by_wire = math.ceil((file_gbit_s + pixel_gbit_s) / (given.nic_gbit_s * 0.7))
    return {
        "answers_per_s": rate,
        "front_ends_by_cores": number,
        "front_ends_by_wire": by_wire,
        "front_ends": max(number, by_wire),
        "gpus_per_front_end": given.gpus / max(number, by_wire),
        "files_in_gbit_s": round(file_gbit_s, 1),
        "pixels_on_gbit_s": round(pixel_gbit_s, 1),
        "pixels_into_a_gpu_gbit_s": round(pixel_gbit_s / given.gpus, 3),
    }


def caches(given: Assumptions) -> dict[str, float]:
    """What affinity saves: all but the first prompt on an image find it where it was."""
    later = 1 - 1 / given.prompts_per_image
    random_hit = later / given.gpus  # without affinity, where images are spread at random
    cost = 1 - later * (1 - given.second_prompt_cost)
    return {
        "hit_rate_with_affinity": round(later, 3),
        "hit_rate_without": round(random_hit, 5),
        "prefill_with_affinity": round(cost, 3),
        "moved_when_a_gpu_goes": round(1 / given.gpus, 5),
        "moved_in_an_update": 1.0,  # every replica is another one, and its cache is empty
        "beyond_own_share": round(spill(given), 3),
    }


def spill(given: Assumptions, images_per_gpu: int = 64) -> float:
    """The part of requests that find their own replica full and go elsewhere, where each image is
    asked about as often and replicas hold ``SLACK`` of their share."""
    among = min(given.gpus, 100)  # more change nothing but the time that this takes
    workers = [f"gpu-{number}" for number in range(among)]
    keys = [f"image-{number}" for number in range(among * images_per_gpu)]
    owners = Counter(max(workers, key=lambda one: affinity(one, key)) for key in keys)
    most = math.ceil(SLACK * images_per_gpu)
    return sum(max(0, count - most) for count in owners.values()) / len(keys)


def failures(given: Assumptions) -> dict[str, float]:
    """Of GPUs and racks: how often, how much is away, and what becomes of answers under way."""
    per_day = given.gpus * 24 / given.gpu_mtbf_h
    racks = math.ceil(given.gpus / given.rack_gpus)
    racks_per_day = racks * 24 / given.rack_mtbf_h
    away_s = given.restart_s + given.swap_share * given.swap_s
    lost_gpu_s = per_day * away_s + racks_per_day * given.rack_gpus * (
        given.restart_s + given.swap_s
    )
    under_way = given.rate_per_gpu_s * given.answer_s
    again = (per_day + racks_per_day * given.rack_gpus) * under_way
    spare = spares(given.gpus * (per_day / given.gpus) * away_s / DAY_S)
    return {
        "gpu_failures_per_day": round(per_day, 2),
        "rack_failures_per_day": round(racks_per_day, 4),
        "capacity_away": round(lost_gpu_s / (given.gpus * DAY_S), 6),
        "answers_begun_again_per_day": round(again, 1),
        "of_all_answers": again / (given.gpus * given.rate_per_gpu_s * DAY_S),
        "slowest_second_answer_s": given.probe_s + 2 * given.answer_s,
        "spare_gpus_for_1_in_10000": spare + given.rack_gpus,  # and one rack
    }


def spares(mean_away: float, risk: float = 1e-4) -> int:
    """The least number that more are away with at most this probability (Poisson)."""
    number, term = 0, math.exp(-mean_away)
    total = term
    while 1 - total > risk:
        number += 1
        term *= mean_away / number
        total += term
    return number


def fan_out(given: Assumptions, ends: int) -> dict[str, float]:
    """Connections and messages where every front end may ask every replica."""
    return {
        "connections": ends * given.gpus,
        "connections_of_a_front_end": given.gpus,
        "under_way_at_a_front_end": round(
            given.gpus * given.rate_per_gpu_s * given.answer_s / ends, 1
        ),
        "probes_per_s_where_each_asks_each": round(ends * given.gpus / given.probe_s, 1),
        "probes_per_s_through_one_controller": round((ends + given.gpus) / given.probe_s, 1),
    }


def calculate(given: Assumptions) -> dict[str, Any]:
    """Everything."""
    ends = front_ends(given)
    return {
        "assumptions": asdict(given),
        "front_ends": ends,
        "fan_out": fan_out(given, int(ends["front_ends"])),
        "caches": caches(given),
        "failures": failures(given),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", dest="given")
    options = parser.parse_args()
    found = provenance(model=None, inputs="assumptions") | calculate(
        assumed(options.given, options.gpus)
    )
    print(json.dumps(found) if options.json else json.dumps(found, indent=1))


def assumed(texts: list[str], gpus: int) -> Assumptions:
    """The assumptions with some of them replaced. Raises ValueError for an unknown name."""
    values: dict[str, Any] = {"gpus": gpus}
    kinds = {field.name: type(getattr(Assumptions(), field.name)) for field in fields(Assumptions)}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in kinds:
            raise ValueError(f"no assumption {name!r}: {', '.join(kinds)}")
        values[name] = kinds[name](value)
    return replace(Assumptions(), **values)


if __name__ == "__main__":
    main()
