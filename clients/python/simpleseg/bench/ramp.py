"""Finding capacity: raise the rate until goodput falls, then look between the last rates."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from simpleseg.bench.result import LoadResult

Measure = Callable[[float], Awaitable[LoadResult]]


@dataclass(frozen=True)
class Ramp:
    """From ``start`` requests per second, each step ``factor`` times the one before.

    A rate is sustained where at least ``sustained`` of its requests had good answers. The ramp ends
    when goodput is below ``fallen`` of the best so far, or after ``max_steps``; then ``refine``
    rates are tried between the highest that was sustained and the lowest above it that was not.
    """

    start: float
    factor: float = 1.5
    sustained: float = 0.95
    fallen: float = 0.9
    max_steps: int = 16
    refine: int = 2


async def climb(ramp: Ramp, measure: Measure) -> list[LoadResult]:
    """The results of all steps, in the order in which they were measured.

    Steps are independent: ``measure`` comes back when every request is answered.
    """
    results: list[LoadResult] = []
    rate = ramp.start
    while len(results) < ramp.max_steps and not _has_fallen(ramp, results):
        results.append(await measure(rate))
        rate *= ramp.factor
    for _ in range(ramp.refine):
        between = _between(ramp, results)
        if between is None:
            break
        results.append(await measure(between))
    return results


def capacity(ramp: Ramp, results: Sequence[LoadResult]) -> LoadResult | None:
    """The sustained step with the highest goodput; None where no rate was sustained."""
    kept = [result for result in results if result.good_share >= ramp.sustained]
    return max(kept, key=lambda result: result.goodput_per_s, default=None)


def _has_fallen(ramp: Ramp, results: Sequence[LoadResult]) -> bool:
    if not results:
        return False
    last, best = results[-1], max(result.goodput_per_s for result in results)
    is_sustained = last.good_share >= ramp.sustained
    return not is_sustained and last.goodput_per_s <= ramp.fallen * best


def _between(ramp: Ramp, results: Sequence[LoadResult]) -> float | None:
    """A rate below the lowest that was not sustained, and above those that were below it."""
    failed = [one.load.level for one in results if one.good_share < ramp.sustained]
    if not failed:
        return None
    below = [one.load.level for one in results if one.load.level < min(failed)]
    return math.sqrt(max(below) * min(failed)) if below else min(failed) / ramp.factor**2
