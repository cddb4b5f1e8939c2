"""Drafts of nothing, of structure, of structure and digits; the grammar off and on: six ways to the
same answers, by turns in one run, in the embedded engine."""

import asyncio
import statistics
from dataclasses import replace
from itertools import product
from typing import Any, Literal, get_args

from drafting_engines import (
    DATA,
    DEMO_MODEL,
    PACKAGES,
    SPLIT,
    WARM_UP,
    Answer,
    answer,
    requests,
    steps_per_token,
)
from provenance import provenance

from simpleseg_polygon.drafts import Drafter
from simpleseg_server.engines.transformers import TransformersEngine

Mode = Literal["off", "structure", "structure and digits"]
Way = tuple[Mode, bool]
"""What is drafted, and whether the grammar is on."""


def measure_modes(limit: int) -> dict[str, Any]:
    """Steps, time and agreement of every way."""
    said = provenance(*PACKAGES, model="simpleseg-demo, float32", inputs=f"{DATA} {SPLIT}")
    answers = asyncio.run(_answers(limit))
    plain = answers["off", True]
    rows = {_name(way): _row(found, plain) for way, found in answers.items()}
    return {"engine": "modes", **said, "of": limit, "ways": rows}


async def _answers(limit: int) -> dict[Way, list[Answer]]:
    engines = {mode: TransformersEngine(DEMO_MODEL, draft=mode != "off") for mode in get_args(Mode)}
    ways: list[Way] = list(product(engines, (False, True)))
    answers: dict[Way, list[Answer]] = {way: [] for way in ways}
    try:
        for mode, engine in engines.items():
            await engine.start()
            if mode == "structure":
                _draft_structure_alone(engine)
        for number, request in enumerate(requests(WARM_UP + limit)):
            at = number % len(ways)
            for mode, constrained in (*ways[at:], *ways[:at]):
                asked = replace(request, constrained=constrained)
                answers[mode, constrained].append(await answer(engines[mode], asked))
    finally:
        for engine in engines.values():
            await engine.close()
    return {way: found[WARM_UP:] for way, found in answers.items()}


def _draft_structure_alone(engine: TransformersEngine) -> None:
    """Which no option does, since it is never the better choice."""
    decoder = engine._decoder
    assert decoder is not None
    checkpoint = decoder.checkpoint
    drafter = Drafter(
        checkpoint.vocabulary,
        digits=0,
        grid_hw=checkpoint.input_hw,
        final_dot=checkpoint.profile.final_dot,
    )
    decoder._rules = replace(decoder._rules, drafter=drafter)


def _name(way: Way) -> str:
    mode, constrained = way
    return f"drafts {mode}, grammar {'on' if constrained else 'off'}"


def _row(found: list[Answer], plain: list[Answer]) -> dict[str, Any]:
    p50 = statistics.median(one.seconds for one in found)
    return {
        "p50_ms": round(1e3 * p50, 1),
        "p50_over_plain": round(p50 / statistics.median(one.seconds for one in plain), 3),
        "steps_per_token": steps_per_token(found),
        "same_as_plain": sum(a.text == b.text for a, b in zip(found, plain, strict=True)),
    }
