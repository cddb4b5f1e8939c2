"""The command line: `simpleseg serve`, `segment`, `batch`, `eval`, `calibrate`, `bench`, `train`,
`data`, `annotate`, `doctor`.

Nothing heavy is imported before the command that needs it runs.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from simpleseg import __version__
from simpleseg.cli_annotate import annotate
from simpleseg.cli_batch import batch
from simpleseg.cli_bench import bench
from simpleseg.cli_data import data
from simpleseg.cli_doctor import doctor
from simpleseg.cli_measure import calibrate, evaluate
from simpleseg.cli_support import (
    ANSWER_TIMEOUT_S,
    ConfigOption,
    EngineName,
    Failure,
    ModelOption,
    UrlOption,
    application_of,
    connection,
    extra,
    load_settings,
    settings_errors,
    with_settings,
)
from simpleseg.cli_train import train
from simpleseg.errors import SimpleSegError
from simpleseg.protocol import SegmentOptions
from simpleseg.results import Segmentation, overlay

app = typer.Typer(
    help="Segment images with a vision-language model that writes polygons.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(batch)
app.command("eval")(evaluate)
app.command()(calibrate)
app.command()(annotate)
app.add_typer(data, name="data")
app.command()(train)
app.command()(bench)
app.command()(with_settings(doctor))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"simpleseg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    pass


@app.command()
@with_settings
def serve(
    *,
    config: ConfigOption = None,
    check_config: Annotated[
        bool,
        typer.Option("--check-config", help="Print the settings in effect, secrets masked; stop."),
    ] = False,
    **options: Any,
) -> None:
    """Start the HTTP server. It is ready when GET /readyz answers 200.

    Every option is also a variable, SIMPLESEG_MAX_PROMPTS, and a line of the file, max_prompts = 8.
    An option comes before a variable, a variable before the file. An unknown setting is an error.
    """
    from simpleseg_server.children import none_after_failure
    from simpleseg_server.engines.choose import begin_early
    from simpleseg_server.imports import without_collection
    from simpleseg_server.keys import KeyRing
    from simpleseg_server.sources import forget_secrets

    loaded = load_settings(config, options)
    with settings_errors():
        KeyRing(loaded.settings)
    if check_config:
        typer.echo(loaded.render())
        return
    failures: list[str] = []

    def fail() -> None:
        failures.append("the model could not be loaded: see the log above")

    forget_secrets(os.environ)
    with none_after_failure():
        with extra("server"), without_collection():
            begin_early(loaded.settings.engine, is_supervised=loaded.settings.supervise)
            from simpleseg_server.serving import run
        with settings_errors():
            run(loaded.settings, lambda stop: application_of(loaded.settings, stop), fail)
    if failures:
        raise Failure(failures[0])


@app.command()
def segment(
    image: Annotated[str, typer.Argument(help="A picture's path.")],
    phrase: Annotated[list[str], typer.Argument(help="What to find: 'the left dog'.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw the regions into this picture.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per phrase.")] = False,
    url: UrlOption = None,
    model: ModelOption = None,
    max_points: Annotated[int | None, typer.Option(min=3, help="Most vertices.")] = None,
) -> None:
    """Segment what each PHRASE names in IMAGE."""
    options: SegmentOptions = {} if max_points is None else {"max_points": max_points}

    async def ask() -> list[Segmentation]:
        async with connection(url, model, EngineName.embedded) as client:
            return await client.segment(image, phrase, timeout=ANSWER_TIMEOUT_S, **options)

    results = asyncio.run(ask())
    for result in results:
        typer.echo(json.dumps(as_object(result)) if as_json else as_line(result))
    if output is not None:
        overlay(results).save(output)
        typer.echo(f"wrote {output}", err=True)


def as_object(result: Segmentation) -> dict[str, Any]:
    """A result as JSON values; coordinates are normalised to [0, 1]."""
    return {
        "prompt": result.prompt,
        "status": result.status,
        "score": result.score,
        "bbox": result.bbox,
        "polygons": result.polygons,
        "points": result.point_count,
        "image": {"width": result.size_hw.width, "height": result.size_hw.height},
        "timings_ms": dict(result.timings_ms),
        "warnings": [warning.model_dump() for warning in result.warnings],
        "request_id": result.request_id,
    }


def as_line(result: Segmentation) -> str:
    """A result in words: ``the left dog: ok, score 0.91, 24 points, 143 ms``."""
    parts = [f"{result.prompt}: {result.status}"]
    if result.score is not None:
        parts.append(f"score {result.score:.2f}")
    parts.append(f"{result.point_count} points")
    parts.append(f"{result.timings_ms['total']:.0f} ms")
    return ", ".join(parts)


def main() -> None:
    """Run the command line; expected failures end with one line on standard error and status 1, or
    2 where the settings are wrong."""
    try:
        app()
    except Failure as error:
        typer.echo(f"simpleseg: {error}", err=True)
        sys.exit(error.status)
    except SimpleSegError as error:
        sys.exit(f"simpleseg: {error}")
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        sys.exit(f"simpleseg: {named}")


if __name__ == "__main__":
    main()
