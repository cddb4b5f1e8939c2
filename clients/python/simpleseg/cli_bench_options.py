"""The options of `simpleseg bench`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class EndpointName(StrEnum):
    """Where requests go."""

    segment = "segment"
    chat = "chat"


class Arrivals(StrEnum):
    """How requests of an open loop are spaced."""

    poisson = "poisson"
    constant = "constant"


class FormatName(StrEnum):
    """How images are encoded."""

    png = "png"
    jpeg = "jpeg"


BaseUrlOption = Annotated[
    str | None,
    typer.Option("--base-url", "--url", help="A running server; else one is started."),
]
EndpointOption = Annotated[
    EndpointName, typer.Option(help="POST /segment, or OpenAI's chat of any server.")
]
StreamOption = Annotated[bool, typer.Option("--stream", help="Ask for streams.")]
FieldsOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=JSON", help="A field of every request: max_points=24."),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        help="demo-single, demo-multi, demo-hard, packaged, a folder, or a file as `batch` "
        "reads it.",
        show_default="demo-multi if the extra training is there, else packaged",
    ),
]
PhrasesOption = Annotated[
    list[str] | None, typer.Option(help="What to find in every image of a folder.")
]
QuestionsOption = Annotated[int, typer.Option(min=1, help="How many questions of the data.")]
SizesOption = Annotated[
    list[str] | None, typer.Option(metavar="WxH", help="Scale images; several take turns.")
]
ImageFormatOption = Annotated[
    FormatName, typer.Option("--format", help="Of images that are drawn or scaled.")
]
ReuseOption = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of requests about an image asked about lately."),
]
ConcurrencyOption = Annotated[
    str | None, typer.Option(metavar="N[,N...]", help="Closed loop: users at once.")
]
RateOption = Annotated[
    str | None, typer.Option(metavar="R[,R...]", help="Open loop: requests per second.")
]
ArrivalsOption = Annotated[Arrivals, typer.Option(help="How an open loop spaces them.")]
RampOption = Annotated[
    bool, typer.Option("--ramp", help="Raise --rate until goodput falls. Needs --slo-ms.")
]
SloMsOption = Annotated[
    float | None, typer.Option(min=0, help="The latency that a good answer keeps to.")
]
SustainedOption = Annotated[
    float, typer.Option(min=0, max=1, help="Share of good answers that sustains a rate.")
]
DurationOption = Annotated[float, typer.Option(help="Seconds that count, of each load.")]
WarmupOption = Annotated[float, typer.Option(min=0, help="Seconds before, not counted.")]
RequestsOption = Annotated[
    int | None, typer.Option(min=1, help="Requests that count, in place of --duration.")
]
TimeoutOption = Annotated[float, typer.Option(help="Seconds that a request may take.")]
GoldenIouOption = Annotated[
    float,
    typer.Option(min=0, max=1, help="Least IoU with a question's first answer; 1: the same."),
]
TruthIouOption = Annotated[float, typer.Option(min=0, max=1, help="Least IoU with the truth.")]
SeedOption = Annotated[int, typer.Option(help="Of arrivals and order.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="STEM", help="Write STEM.json, .md and .png."),
]
NoteOption = Annotated[str | None, typer.Option(help="A remark, kept in the outputs.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="Loads of seconds.")]
AsJsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, last.")]
