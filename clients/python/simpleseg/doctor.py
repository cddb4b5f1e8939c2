"""What `simpleseg doctor` looks at, a function for each check.

Each says what it found and, where that keeps a server from starting, what to do. What is heavy is
imported only where it is installed.
"""

import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, metadata, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import Requirement
from pydantic import TypeAdapter

from simpleseg import __version__
from simpleseg.cli_support import Failure, application_of, checkpoint_of
from simpleseg.client import SimpleSeg
from simpleseg.errors import SimpleSegError
from simpleseg.protocol import READY_PATH, read_answer, request_of
from simpleseg.schema import Health, Version

if TYPE_CHECKING:
    from simpleseg_server.config import Settings
    from simpleseg_server.sources import Loaded

DISTRIBUTION = "simpleseg-server"
DEVELOPERS = frozenset({"docs", "test"})
"""Extras that no user needs."""
_SHOWN = ("torch", "transformers", "vllm", "fastapi", "uvicorn", "numpy", "pillow", "httpx2")
_TOLD_ALWAYS = ("host", "port", "engine")
_SERVER_TIMEOUT_S = 5.0
_SMI = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
_OBJECT = TypeAdapter(dict[str, Any])

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """One finding: ``problem`` keeps a server from starting, ``note`` is for the user to judge.

    ``fix`` is what to do, a command where there is one; ``facts`` are the same for programs.
    """

    name: str
    status: Status
    detail: str
    fix: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


def install_command(name: str) -> str:
    """
    >>> install_command("otel")
    "pip install 'simpleseg-server[otel]'"
    """
    return f"pip install '{DISTRIBUTION}[{name}]'"


def versions() -> Check:
    """This package, Python, the system, and the packages that decide what can be served."""
    found = {name: number for name in _SHOWN if (number := _version(name)) is not None}
    system = f"{platform.system()} {platform.machine()}"
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    return Check(
        "versions",
        "ok",
        f"simpleseg {__version__}, Python {platform.python_version()}, {system}; {listed}",
        facts={"simpleseg": __version__, "python": platform.python_version(), "packages": found},
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def lacks(texts: list[str], name: str) -> list[str]:
    """What an extra adds and is not there, of requirements as a package's metadata has them.

    >>> lacks(["numpy>=1", "nowhere>=2; extra == 'x'", "numpy>=99; extra == 'x'"], "x")
    ['nowhere', 'numpy>=99']
    """
    wanted = [Requirement(text) for text in texts]
    own = [one for one in wanted if one.marker and one.marker.evaluate({"extra": name})]
    own = [one for one in own if one.marker and not one.marker.evaluate({"extra": ""})]
    return [missing for one in own if (missing := _unmet(one))]


def _unmet(wanted: Requirement) -> str | None:
    there = _version(wanted.name)
    if there is None:
        return wanted.name
    fits = wanted.specifier.contains(there, prereleases=True)
    return None if fits else f"{wanted.name}{wanted.specifier}"


def extras() -> Check:
    """Which extras are complete; only what serves is a problem where it is not."""
    try:
        stated = metadata(DISTRIBUTION)
    except PackageNotFoundError:
        return Check("extras", "note", f"{DISTRIBUTION} runs from its sources, not installed")
    texts = stated.get_all("Requires-Dist") or []
    names = [name for name in stated.get_all("Provides-Extra") or [] if name not in DEVELOPERS]
    missing = {name: lacks(texts, name) for name in names}
    complete = [name for name in names if not missing[name]]
    detail = f"complete: {', '.join(complete) or 'none'}"
    if others := [name for name in names if missing[name] and name != "server"]:
        detail += f"; for more, {install_command('EXTRA')} with {', '.join(others)}"
    facts = {"missing": missing}
    if missing.get("server"):
        detail += f"; server lacks {', '.join(missing['server'])}"
        return Check("extras", "problem", detail, install_command("server"), facts)
    return Check("extras", "ok", detail, facts=facts)


def gpu() -> Check:
    """The GPUs that the driver and torch see."""
    driver, seen, build = _from_driver(), *_from_torch()
    facts = {"driver": driver, "torch": seen, "torch_build": build}
    if seen:
        return Check("gpu", "ok", f"torch sees {', '.join(seen)}", facts=facts)
    if driver and build is not None:
        detail = f"the driver sees {', '.join(driver)}; torch {build} does not"
        fix = "install the build of torch for this driver's CUDA, as pytorch.org describes"
        return Check("gpu", "note", detail, fix, facts)
    if driver:
        return Check("gpu", "ok", f"the driver sees {', '.join(driver)}", facts=facts)
    return Check("gpu", "note", "none: the model runs on the CPU", facts=facts)


def _from_driver() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        run = subprocess.run(
            [program, *_SMI], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in run.stdout.splitlines() if line.strip()]


def _from_torch() -> tuple[list[str], str | None]:
    """The GPUs and which build it is; None where there is no torch."""
    if find_spec("torch") is None:
        return [], None
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(i) for i in range(count)], str(torch.__version__)


def settings_in_effect(loaded: "Loaded") -> Check:
    """The settings that somebody gave, secrets masked, and those that decide who is served."""
    names = [*dict.fromkeys((*_TOLD_ALWAYS, *loaded.origins))]
    lines = [line for line in loaded.render().splitlines() if _name_in(line) in names]
    settings = loaded.settings
    facts = {"in_effect": lines}
    detail = "; ".join(lines)
    if not settings.has_keys and not _is_local(settings.host):
        fix = "set api_keys_file, or keep the port from whoever should not be served"
        return Check("settings", "note", f"{detail}; no API keys: everybody is served", fix, facts)
    return Check("settings", "ok", detail, facts=facts)


def _name_in(line: str) -> str:
    return line.removeprefix("# ").partition(" ")[0]


def _is_local(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def model(settings: "Settings") -> Check:
    """The checkpoint: where it is, what it is, and whether it fits into memory."""
    if settings.engine == "remote" and settings.model is None:
        return Check("model", "ok", "the upstreams'")
    try:
        path = checkpoint_of(settings.model)
    except Failure as error:
        return Check("model", "problem", str(error), "name a checkpoint's folder with --model")
    try:
        return _folder_model(Path(path), settings) if Path(path).is_dir() else _hub_model(path)
    except (OSError, ValueError) as error:
        return Check("model", "problem", f"{path}: {error}", "repair or replace the checkpoint")


def _hub_model(name: str) -> Check:
    facts = {"id": name, "cached": _is_cached(name), **_profile(name)}
    if facts["cached"]:
        return Check("model", "ok", f"{name}, in the cache of Hugging Face", facts=facts)
    detail = f"{name} is no folder here: the start downloads it from Hugging Face"
    return Check("model", "note", detail, f"to have it before: hf download {name}", facts)


def _is_cached(name: str) -> bool:
    if find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _profile(path: str) -> dict[str, Any]:
    """What the server would know of the checkpoint; its files are read by transformers."""
    if find_spec("transformers") is None:
        return {}
    from simpleseg_server.engines.profiles import known_profile

    profile = known_profile(path)
    names = ("name", "input_hw", "dtype", "needs_vllm", "needs_remote_code")
    return {name: getattr(profile, name) for name in names}


def _folder_model(folder: Path, settings: "Settings") -> Check:
    """Raises OSError and ValueError where a file of it cannot be read."""
    config = _OBJECT.validate_json((folder / "config.json").read_bytes())
    files = (file for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind))
    size, kind = sum(file.stat().st_size for file in files), config.get("model_type")
    facts = {"path": str(folder), "model_type": kind, "weight_bytes": size, **_profile(str(folder))}
    if not size and settings.engine != "remote":
        fix = "put the weights (*.safetensors) beside config.json"
        return Check("model", "problem", f"{folder} has no weights", fix, facts)
    named = "the demo model" if settings.model is None else str(folder)
    detail = f"{named}, {kind}, {size / 2**20:.0f} MiB of weights"
    if settings.model is None:
        detail += "; it knows drawn scenes, not photographs"
    free = _available_memory()
    if free is not None and free < size:
        detail += f"; more than the {free / 2**20:.0f} MiB of memory that are free"
        return Check("model", "note", detail, "on the CPU, take a smaller one", facts)
    return Check("model", "ok", detail, facts=facts)


def _available_memory() -> int | None:
    """In bytes; None where the system does not tell."""
    file = Path("/proc/meminfo")
    if not file.exists():
        return None
    pairs = (line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return next((int(value.split()[0]) * 1024 for n, value in pairs if n == "MemAvailable"), None)


def engine(settings: "Settings") -> Check:
    """Goes the way of ``simpleseg serve`` up to the point where the model would be loaded."""
    try:
        application_of(settings, lambda: None)
    except Failure as error:
        return Check("engine", "problem", str(error), _command_in(str(error)))
    except (ImportError, OSError) as error:  # a package that is there and cannot be loaded
        fix = f"install it anew: pip install --force-reinstall {_package_in(error)}"
        return Check("engine", "problem", f"{type(error).__name__}: {error}", fix)
    from simpleseg_server.engines.choose import best_engine

    if settings.engine != "auto":
        detail = f"{settings.engine}, as asked for"
        return Check("engine", "ok", detail, facts={"engine": settings.engine})
    kind, why = best_engine()
    return Check("engine", "ok", f"auto is {kind}: {why}", facts={"engine": kind, "why": why})


def _command_in(message: str) -> str | None:
    """
    >>> _command_in("x is not installed; this command needs: pip install 'a[b]'")
    "pip install 'a[b]'"
    """
    start = message.find("pip install")
    return None if start < 0 else message[start:]


def _package_in(error: Exception) -> str:
    name = getattr(error, "name", None)
    return name.partition(".")[0] if isinstance(name, str) else "the package named"


def ports(settings: "Settings") -> Check:
    """Whether the server could listen where the settings say."""
    if find_spec("uvicorn") is None:
        return Check("ports", "note", "not looked at before the extra server is installed")
    from simpleseg_server.config import ConfigError
    from simpleseg_server.serving import bind

    wanted = [("port", settings.host, settings.port)]
    if settings.ops_port is not None:
        wanted.append(("ops_port", settings.ops_host, settings.ops_port))
    try:
        for name, host, port in wanted:
            bind(host, port, name).close()
    except ConfigError as error:
        fix = "stop what listens there, or choose another with --port or --ops-port"
        return Check("ports", "problem", str(error), fix)
    return Check("ports", "ok", ", ".join(f"{host}:{port}" for _, host, port in wanted) + " free")


def server(url: str) -> Check:
    """Whether the server at ``url`` is ready, and takes the key of SIMPLESEG_API_KEY."""
    try:
        with SimpleSeg(url, timeout=_SERVER_TIMEOUT_S, max_retries=0) as client:
            read_answer(client.send(request_of("GET", READY_PATH)), Health)
            told = read_answer(client.send(request_of("GET", "/version")), Version)
            names = [served.id for served in client.models()]
    except SimpleSegError as error:
        return Check("server", "problem", f"{url}: {error}", _advice(error))
    detail = f"{url} is ready: {', '.join(names)} by {told.engine}, version {told.version}"
    return Check("server", "ok", detail, facts=told.model_dump())


def _advice(error: Exception) -> str:
    advice = {
        "ServerUnreachableError": "start it with simpleseg serve, or correct the URL",
        "AuthenticationError": "put the key into SIMPLESEG_API_KEY",
        "ServiceUnavailableError": "wait until it has loaded; if it stays so, read its log",
    }
    return advice.get(type(error).__name__, "see its log")
