"""Commands that make training data: `simpleseg data refcoco`, `miniature`, `contours`."""

import json
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simpleseg.cli_support import Failure, extra

if TYPE_CHECKING:
    from simpleseg_training.contours import Contours
    from simpleseg_training.refcoco import SetName

data = typer.Typer(help="Make instruction pairs from data sets.", no_args_is_help=True)


class Kind(StrEnum):
    """``sft`` recombines text, point, box and region; ``rl`` asks for regions and holds the
    truth."""

    sft = "sft"
    rl = "rl"


class Convention(StrEnum):
    """``edges`` as this project draws, ``released`` as the paper's released script."""

    edges = "edges"
    released = "released"


class Order(StrEnum):
    """In which order a ring's vertices are written."""

    clockwise = "clockwise"
    counter_clockwise = "counter-clockwise"
    unordered = "unordered"


ConventionOption = Annotated[
    Convention,
    typer.Option(help="Outlines along pixel edges, or as the paper's released script makes them."),
]
OrderOption = Annotated[
    Order, typer.Option(help="Order of the vertices: the paper's, or an ablation.")
]
EpsilonOption = Annotated[
    float,
    typer.Option(min=0, max=0.5, help="Tolerance of outlines, as a share of their perimeter."),
]


def contours_of(convention: Convention, order: Order, epsilon: float) -> "Contours":
    """How masks become labels, from the options."""
    from simpleseg_training.contours import CONVENTIONS, ORDERS, Contours

    return Contours(
        next(name for name in CONVENTIONS if name == convention.value),
        next(name for name in ORDERS if name == order.value),
        epsilon,
    )


@data.command()
def refcoco(
    root: Annotated[Path, typer.Argument(help="REFER's data folder: refcoco/, images/, ...")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="A .jsonl, .parquet or .tar (shards) file.")
    ],
    kind: Annotated[Kind, typer.Option(help="Pairs to imitate, or prompts with truth.")] = Kind.sft,
    sets: Annotated[
        str, typer.Option(help="Separated by commas; refcocog:google names who split it.")
    ] = "refcoco,refcoco+,refcocog,refclef",
    split: Annotated[str, typer.Option(help="train, val, test, testA, testB or testC.")] = "train",
    images: Annotated[
        Path | None, typer.Option(help="The folder of pictures.", show_default="REFER's places")
    ] = None,
    pairs_per_phrase: Annotated[
        int | None, typer.Option(min=1, show_default="2 for sft, 1 for rl")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many pairs.")] = None,
    convention: ConventionOption = Convention.edges,
    order: OrderOption = Order.clockwise,
    epsilon: EpsilonOption = 0.005,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws and the shuffling.")] = 0,
) -> None:
    """Make pairs from RefCOCO, RefCOCO+, RefCOCOg and RefCLEF, as REFER publishes them.

    Training references are left out where another set holds their picture out. The last line
    printed is one JSON object: how many were written, and left out why.
    """
    with extra("training"):
        from simpleseg_training import refcoco_pairs as pairs
        from simpleseg_training.records import write_records
    try:
        chosen = [_named_set(name) for name in sets.split(",")]
        references, passed = pairs.collect(root, chosen, split, images)
        wanted = pairs.Wanted(
            "sft" if kind is Kind.sft else "rl",
            pairs_per_phrase,
            limit,
            contours_of(convention, order, epsilon),
            seed,
        )
        made = pairs.make_records(references, wanted, passed, counter("references"))
        count = write_records(made, out)
    except ValueError as error:
        raise Failure(str(error)) from error
    typer.echo(
        json.dumps({"written": count, "references": len(references), "left_out": asdict(passed)})
    )


def _named_set(text: str) -> "tuple[SetName, str | None]":
    from simpleseg_training.refcoco import SETS

    name, _, by = text.strip().partition(":")
    for known in SETS:
        if name == known:
            return known, by or None
    raise ValueError(f"no set named {name!r}: use {', '.join(SETS)}")


@data.command()
def miniature(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    scenes: Annotated[int, typer.Option(min=6, help="Pictures in each set.")] = 12,
) -> None:
    """Write a small RefCOCO family of drawn scenes in REFER's files, to rehearse with."""
    with extra("training"):
        from simpleseg_training.miniature import write_miniature
    write_miniature(folder, scenes)
    typer.echo(f"wrote {folder}", err=True)


@data.command()
def contours(
    data: Annotated[str, typer.Option(help="As of `simpleseg eval`.")] = "demo-multi",
    split: Annotated[str, typer.Option(help="train, val, test, or a set's testA, ...")] = "val",
    limit: Annotated[int, typer.Option(min=1, help="How many cases.")] = 200,
    epsilons: Annotated[
        str, typer.Option(help="Tolerances, as shares of the perimeter.")
    ] = "0,0.001,0.002,0.005,0.01,0.02",
    convention: ConventionOption = Convention.edges,
    size: Annotated[int, typer.Option(min=32, help="Side of drawn scenes, in pixels.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, last.")] = False,
) -> None:
    """The upper bound: how well contours themselves fit at each tolerance, and their tokens."""
    with extra("training"):
        from simpleseg_training.cases import load_cases
        from simpleseg_training.contour_bound import as_markdown, contour_bound
    try:
        tolerances = [float(number) for number in epsilons.split(",")]
        how = contours_of(convention, Order.clockwise, 0.0).convention
        rows = contour_bound(load_cases(data, split, limit, size), tolerances, how)
    except ValueError as error:
        raise Failure(str(error)) from error
    typer.echo(json.dumps({"data": data, "rows": rows}) if as_json else as_markdown(rows))


def counter(things: str) -> Callable[[int, int], None]:
    """Tells of progress on standard error, a line every thousand and at the end."""

    def tell(done: int, total: int) -> None:
        if done % 1000 == 0 or done == total:
            typer.echo(f"{done} of {total} {things}", err=True)

    return tell
