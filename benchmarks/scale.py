"""What replicas on Ray Serve bring: throughput by their number, and requests lost when one goes.

    python benchmarks/scale.py [--quick] [--json] [--embedded]

Scripted engines stand in for GPUs: each gives ``AT_ONCE`` answers together and takes a fixed time
for them, so that two cores can hold 16. ``efficiency_at_N`` is the rate of N replicas by N times
that of one, with one front end; ``front_end_limit_per_s`` is its rate where answers take no time,
up to which the efficiency can hold. ``lost_on_replica_kill`` and ``lost_on_rolling_update`` count
accepted requests that got no answer while one of 4 replicas was killed, and while all replicas and
the front end were replaced. ``--embedded`` also asks 1 and 2 replicas with the shipped model.

With ``--json`` the last line printed is one object.
"""

import argparse
import json
import sys
from typing import Any

import ray_cluster as rays
from provenance import provenance

from simpleseg_server.ray_serve.application import BACKLOG, Plan, build_engine

AT_ONCE = 4
REPLICAS, QUICK_REPLICAS = (16, 8, 4, 2, 1), (2, 1)
SERVICE_S, QUICK_SERVICE_S = 4.0, 1.0
CYCLES = 4
IMAGES = 512
PACKAGES = ("ray", "aiohttp", "fastapi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="two replicas at most")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--embedded", action="store_true", help="the shipped model, too")
    options = parser.parse_args()
    figures = provenance(
        *PACKAGES,
        model="scripted, fixed service time" + (", simpleseg-demo" if options.embedded else ""),
        inputs=f"{IMAGES} images of 32x32 px, one prompt each",
    )
    with rays.cluster() as url:
        figures |= measure(url, quick=options.quick)
        if options.embedded:
            figures["embedded"] = embedded(url, seconds=10.0 if options.quick else 40.0)
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name}: {value}" for name, value in figures.items()))


def measure(url: str, *, quick: bool) -> dict[str, Any]:
    """Everything about scripted engines."""
    numbers = QUICK_REPLICAS if quick else REPLICAS
    service_s = QUICK_SERVICE_S if quick else SERVICE_S
    rates = {number: rate_of(url, number, service_s) for number in numbers}
    efficiency = {n: rate / (n * rates[1]) for n, rate in rates.items()}
    return {
        "service_s": service_s,
        "answers_at_once": AT_ONCE,
        "rate_per_s": {str(n): round(rate, 2) for n, rate in rates.items()},
        **{f"efficiency_at_{n}": round(efficiency[n], 3) for n in numbers if n > 1},
        "of_ideal": {str(n): round(r * service_s / (n * AT_ONCE), 3) for n, r in rates.items()},
        "front_end_limit_per_s": round(front_end_limit(url, max(numbers), 5 if quick else 15), 1),
        **faults(url),
    }


def rate_of(url: str, replicas: int, service_s: float) -> float:
    """Answers in a second of so many replicas, all of which always have something to do."""
    rays.deploy(_plan(replicas, "rates"), rays.scripted(service_s, AT_ONCE))
    with rays.Load(url, rays.bodies(IMAGES), BACKLOG * AT_ONCE * replicas) as load:
        load.wait_for(BACKLOG * AT_ONCE * replicas)
        rate = load.rate(CYCLES * service_s)
    _all_well(load)
    say(f"{replicas} replicas: {rate:.2f} answers in a second")
    return rate


def front_end_limit(url: str, replicas: int, seconds: float) -> float:
    """Answers in a second where an answer takes no time."""
    rays.deploy(_plan(replicas, "limit"), rays.scripted(0.0, AT_ONCE, tokens=1))
    with rays.Load(url, rays.bodies(IMAGES), 16) as load:
        load.wait_for(64)
        rate = load.rate(seconds)
    _all_well(load)
    say(f"one front end: {rate:.1f} answers in a second at most")
    return rate


def faults(url: str) -> dict[str, int]:
    """Requests lost, and those sent while it happened."""
    make, under_way = rays.scripted(0.5, AT_ONCE, is_marked=False), 12
    rays.deploy(_plan(4, "killed"), make)
    with rays.Load(url, rays.bodies(IMAGES), under_way) as killed:
        killed.wait_for(2 * under_way)
        rays.kill_an_engine()
        killed.wait_for(len(killed.answers) + 20 * under_way)
    rays.deploy(_plan(2, "before"), make)
    with rays.Load(url, rays.bodies(IMAGES), under_way // 2) as updated:
        updated.wait_for(under_way)
        rays.deploy(_plan(2, "after"), make)
        updated.wait_for(len(updated.answers) + 2 * under_way)
    return {
        "lost_on_replica_kill": killed.lost,
        "requests_at_replica_kill": len(killed.answers),
        "lost_on_rolling_update": updated.lost,
        "requests_at_rolling_update": len(updated.answers),
    }


def embedded(url: str, seconds: float) -> dict[str, float]:
    """Answers in a second of the shipped model, by the number of replicas."""
    rates = {}
    for replicas in (1, 2):
        plan = Plan(
            settings={"engine": "embedded", "playground": False},
            min_engines=replicas,
            max_engines=replicas,
            revision=f"embedded {replicas}",
        )
        rays.deploy(plan, build_engine)
        with rays.Load(url, rays.bodies(IMAGES), 16) as load:
            load.wait_for(32)
            rates[replicas] = load.rate(seconds)
        _all_well(load)
        say(f"{replicas} embedded replicas: {rates[replicas]:.2f} answers in a second")
    speedup = rates[2] / rates[1]
    return {"1": round(rates[1], 2), "2": round(rates[2], 2), "speedup": round(speedup, 2)}


def _plan(replicas: int, revision: str) -> Plan:
    settings = {"max_batch": AT_ONCE, "max_queued_requests": 1000, "playground": False}
    return Plan(settings=settings, min_engines=replicas, max_engines=replicas, revision=revision)


def _all_well(load: rays.Load) -> None:
    """Raises RuntimeError where not every request was answered: a rate of refusals is none."""
    if set(load.statuses) != {200}:
        raise RuntimeError(f"answers by status: {dict(load.statuses)}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
