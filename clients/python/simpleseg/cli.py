"""The command line: `simpleseg serve`, `simpleseg segment`, `simpleseg eval`.

Nothing heavy is imported before the command that needs it runs.
"""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx2
import numpy as np
import typer
from numpy.typing import NDArray

from simpleseg import __version__
from simpleseg.client import AsyncSimpleSeg
from simpleseg.errors import SimpleSegError
from simpleseg.protocol import SegmentOptions
from simpleseg.results import Segmentation, overlay, region_of
from simpleseg.schema import Result, Task
from simpleseg_polygon.codec import format_box, format_region
from simpleseg_polygon.geometry import Box

if TYPE_CHECKING:
    from fastapi import FastAPI

    from simpleseg_server.config import Settings
    from simpleseg_server.sources import Loaded

IN_PROCESS = "http://simpleseg.invalid"  # never resolved: requests to it stay in this process
ANSWER_TIMEOUT_S = 600.0

app = typer.Typer(
    help="Segment images with a vision-language model that writes polygons.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class EngineName(StrEnum):
    """What runs the model. ``auto`` is vLLM where it is installed and a GPU is there, else
    ``embedded``."""

    auto = "auto"
    embedded = "embedded"
    vllm = "vllm"
    remote = "remote"


class Failure(Exception):
    """A message for the user, printed as one line without a traceback."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


EngineOption = Annotated[EngineName, typer.Option(help="What runs the model.")]
ModelOption = Annotated[
    str | None,
    typer.Option(help="A checkpoint's folder or Hugging Face id.", show_default="the demo model"),
]
UrlOption = Annotated[
    str | None, typer.Option(help="Ask this server instead of running the model here.")
]


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


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every setting of the server in place of its ``**options``."""
    from simpleseg_server.options import parameters

    own = inspect.signature(command)
    named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    vars(command)["__signature__"] = own.replace(parameters=[*named, *parameters()])
    return command


@app.command()
@_with_settings
def serve(
    *,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A TOML file of settings; also SIMPLESEG_CONFIG."),
    ] = None,
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
    from simpleseg_server.keys import KeyRing

    loaded = _load_settings(config, options)
    with _settings_errors():
        KeyRing(loaded.settings)
    if check_config:
        typer.echo(loaded.render())
        return
    with _extra("server"):
        from simpleseg_server.serving import run
    failures: list[str] = []

    def fail() -> None:
        failures.append("the model could not be loaded: see the log above")

    with _settings_errors():
        run(loaded.settings, lambda stop: _application(loaded.settings, stop), fail)
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
        async with _connection(url, model, EngineName.embedded) as client:
            return await client.segment(image, phrase, timeout=ANSWER_TIMEOUT_S, **options)

    results = asyncio.run(ask())
    for result in results:
        typer.echo(json.dumps(as_object(result)) if as_json else as_line(result))
    if output is not None:
        overlay(results).save(output)
        typer.echo(f"wrote {output}", err=True)


@app.command("eval")
def evaluate(
    data: Annotated[str, typer.Option(help="demo-single, demo-multi or demo-hard.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    limit: Annotated[int, typer.Option(min=1, help="How many cases.")] = 500,
    engine: EngineOption = EngineName.embedded,
    url: UrlOption = None,
    model: ModelOption = None,
    failures: Annotated[
        Path | None, typer.Option(help="Draw the worst answers into this picture.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the metrics as one JSON object, last.")
    ] = False,
) -> None:
    """Measure answers on held-out data: IoU, boxes, tokens, latency, and the baselines."""
    with _extra("training"):
        from simpleseg_training import evaluate as evaluation
        from simpleseg_training.pictures import failures_sheet

    async def measure() -> tuple[dict[str, float], list[evaluation.Judged]]:
        loop = asyncio.get_running_loop()
        async with _connection(url, model, engine) as client:

            def answer(image_hw3: NDArray[np.uint8], phrase: str, task: Task) -> evaluation.Reply:
                asked = client.respond(image_hw3, phrase, task=task, timeout=ANSWER_TIMEOUT_S)
                response = asyncio.run_coroutine_threadsafe(asked, loop).result()
                return evaluation.Reply(
                    text=answer_text(response.results[0]),
                    completion_tokens=response.usage.completion_tokens,
                    forward_passes=response.usage.forward_passes,
                    milliseconds=response.timings_ms["total"],
                )

            # The evaluation asks and waits; it has a thread of its own, so that the loop is free.
            return await asyncio.to_thread(evaluation.run, data, split, limit, answer, _progress)

    try:
        metrics, judged = asyncio.run(measure())
    except ValueError as error:
        raise Failure(str(error)) from error
    if failures is not None:
        failures_sheet(judged).save(failures)
    if not as_json:
        typer.echo("\n".join(f"{name:<20} {value:.4g}" for name, value in metrics.items()))
    else:
        typer.echo(json.dumps({"data": data, "split": split, **metrics}))


def answer_text(result: Result) -> str:
    """What the server understood, in the polygon language; "" for an answer it could not use.

    >>> answer_text(Result(index=0, status="empty", finish_reason="stop", polygons=[]))
    '[]'
    """
    if result.status == "invalid":
        return ""
    if result.boxes is not None:
        boxes = [format_box(Box(*box)) for box in result.boxes]
        return boxes[0] if len(boxes) == 1 else f"[{', '.join(boxes)}]"
    return format_region(region_of(result))


def _progress(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        typer.echo(f"{done} of {total}", err=True)


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


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Name the extra to install where an import inside needs a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Failure(
            f"{error.name} is not installed; this command needs: "
            f"pip install 'simpleseg-server[{name}]'"
        ) from error


@contextmanager
def _settings_errors() -> Iterator[None]:
    """Turn what is wrong with a setting into a Failure with status 2 that names it."""
    from simpleseg_server.config import ConfigError

    try:
        yield
    except ConfigError as error:
        raise Failure(f"settings: {error}", status=2) from error


def _load_settings(file: Path | None, options: Mapping[str, Any]) -> "Loaded":
    from simpleseg_server.sources import load

    with _settings_errors():
        return load(os.environ, file, options)


def _application(settings: "Settings", on_failure: Callable[[], None]) -> "FastAPI":
    """The server as an ASGI application, not yet started."""
    needs_none = settings.engine == "remote" and settings.model is None
    # First, since importing the engine takes seconds.
    checkpoint = None if needs_none else _checkpoint(settings.model)
    with _extra("server"):
        from simpleseg_server.app import create_app
        from simpleseg_server.engines.choose import make_engine
    try:
        made = make_engine(
            settings.engine,
            checkpoint,
            max_batch=settings.max_batch,
            draft=settings.draft,
            vllm_options=settings.vllm_options(),
            upstreams=settings.remote_options(),
        )
    except ValueError as error:
        raise Failure(str(error)) from error
    return create_app(settings, made, on_engine_failure=on_failure)


def _checkpoint(model: str | None) -> str:
    """The folder or hub id to load; the demo model that ships with the server for None."""
    import simpleseg_server

    if model is None:
        folder = Path(simpleseg_server.__file__).parent / "demo_model"
        if not (folder / "config.json").is_file():
            raise Failure("this build ships no demo model; name a checkpoint with --model")
        return str(folder)
    looks_local = model.startswith((".", "~", os.sep)) or Path(model).exists()
    folder = Path(model).expanduser()
    if looks_local and not (folder / "config.json").is_file():
        raise Failure(f"{model} is not a checkpoint folder: it has no config.json")
    return str(folder) if looks_local else model


@asynccontextmanager
async def _connection(
    url: str | None, model: str | None, engine: EngineName
) -> AsyncIterator[AsyncSimpleSeg]:
    """A client of the server at ``url``, or of a server inside this process, without a socket."""
    if url is not None:
        async with AsyncSimpleSeg(url) as client:
            yield client
        return
    with _extra("server"):
        from transformers.utils.logging import disable_progress_bar
    disable_progress_bar()
    failed = asyncio.Event()
    loaded = _load_settings(None, {"model": model, "engine": engine.value})
    application = _application(loaded.settings.without_access(), failed.set)
    async with application.router.lifespan_context(application):
        transport = httpx2.ASGITransport(app=application)
        async with httpx2.AsyncClient(transport=transport) as http:
            while (await http.get(f"{IN_PROCESS}/readyz")).status_code != 200:
                if failed.is_set():
                    raise Failure("the model could not be loaded: see the log above")
                await asyncio.sleep(0.05)
            yield AsyncSimpleSeg(IN_PROCESS, http_client=http)


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
