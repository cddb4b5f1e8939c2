"""What the commands share: the options they have in common, the server inside this process, and
failures in one line."""

import asyncio
import inspect
import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack

import httpx2
import typer

from simpleseg.async_client import AsyncSimpleSeg
from simpleseg.retry import RetryBudget

if TYPE_CHECKING:
    from fastapi import FastAPI

    from simpleseg_server.config import Settings
    from simpleseg_server.engines.base import Engine
    from simpleseg_server.sources import Loaded

IN_PROCESS = "http://simpleseg.invalid"  # never resolved: requests to it stay in this process
ANSWER_TIMEOUT_S = 600.0


class EngineName(StrEnum):
    """What runs the model. ``auto`` is vLLM where it is installed and a GPU is there, else
    ``embedded``."""

    auto = "auto"
    embedded = "embedded"
    vllm = "vllm"
    remote = "remote"


class ClientOptions(TypedDict, total=False):
    """What a command may want of its client."""

    timeout: float
    max_retries: int
    retry_budget: RetryBudget


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
RayOption = Annotated[
    bool, typer.Option("--ray", help="Spread the images over workers, on Ray Data (extra ray).")
]
WorkersOption = Annotated[int, typer.Option(min=1, help="With --ray: processes, each with models.")]
ShardSizeOption = Annotated[
    int, typer.Option(min=1, help="With --ray: images in a file of answers.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A TOML file of settings; also SIMPLESEG_CONFIG."),
]


@contextmanager
def extra(name: str) -> Generator[None]:
    """Name the extra to install where an import inside needs a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Failure(
            f"{error.name} is not installed; this command needs: "
            f"pip install 'simpleseg-server[{name}]'"
        ) from error


@contextmanager
def settings_errors() -> Generator[None]:
    """Turn what is wrong with a setting into a Failure with status 2 that names it."""
    from simpleseg_server.config import ConfigError

    try:
        yield
    except ConfigError as error:
        raise Failure(f"settings: {error}", status=2) from error


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every setting of the server in place of its ``**options``."""
    from simpleseg_server.options import parameters

    own = inspect.signature(command)
    named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    vars(command)["__signature__"] = own.replace(parameters=[*named, *parameters()])
    return command


def load_settings(file: Path | None, options: Mapping[str, Any]) -> "Loaded":
    from simpleseg_server.sources import load

    with settings_errors():
        return load(os.environ, file, options)


def application_of(settings: "Settings", on_failure: Callable[[], None]) -> "FastAPI":
    """The server as an ASGI application, not yet started."""
    from simpleseg_server.imports import without_collection

    engine = engine_of(settings)
    with extra("server"), without_collection():
        from simpleseg_server.app import create_app

    return create_app(settings, engine, on_engine_failure=on_failure)


def engine_of(settings: "Settings") -> "Engine":
    """The engine that the settings name, not yet started. Raises Failure."""
    needs_none = settings.engine == "remote" and settings.model is None
    # First, since importing the engine takes seconds.
    checkpoint = None if needs_none else checkpoint_of(settings.model)
    with extra("server"):
        from simpleseg_server.engines.choose import make_engine
    try:
        with extra("server"):
            return make_engine(
                settings.engine,
                checkpoint,
                max_batch=settings.max_batch,
                draft=settings.draft,
                vllm_options=settings.vllm_options(),
                upstreams=settings.remote_options(),
                supervision=settings.supervision(),
            )
    except ValueError as error:
        raise Failure(str(error)) from error


def checkpoint_of(model: str | None) -> str:
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
async def connection(
    url: str | None, model: str | None, engine: EngineName, **options: Unpack[ClientOptions]
) -> AsyncGenerator[AsyncSimpleSeg]:
    """A client of the server at ``url``, or of a server inside this process, without a socket."""
    if url is not None:
        async with AsyncSimpleSeg(url, **options) as client:
            yield client
        return
    with extra("server"):
        from transformers.utils.logging import disable_progress_bar
    disable_progress_bar()
    failed = asyncio.Event()
    loaded = load_settings(None, {"model": model, "engine": engine.value})
    application = application_of(loaded.settings.without_access(), failed.set)
    async with application.router.lifespan_context(application):
        transport = httpx2.ASGITransport(app=application)
        async with httpx2.AsyncClient(transport=transport) as http:
            while (await http.get(f"{IN_PROCESS}/readyz")).status_code != 200:
                if failed.is_set():
                    raise Failure("the model could not be loaded: see the log above")
                await asyncio.sleep(0.05)
            yield AsyncSimpleSeg(IN_PROCESS, http_client=http, **options)
