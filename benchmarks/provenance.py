"""What a result came from: the command, the model, what went in, the machine and the versions."""

import os
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from simpleseg.bench.hardware import hardware

ROOT = Path(__file__).resolve().parents[1]
SPEAKING_VARIABLES = ("OMP_NUM_THREADS",)


def provenance(*packages: str, model: str | None, inputs: str) -> dict[str, Any]:
    """What every result begins with; call it before the measuring, which is load itself. Of the
    packages those count that are installed."""
    return {
        "command": command(),
        "model": model,
        "inputs": inputs,
        "hardware": hardware(*filter(_is_installed, packages)),
    }


def command() -> str:
    """This process's command line, as it is typed in the repository's root."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    said = [f"{name}={os.environ[name]}" for name in SPEAKING_VARIABLES if name in os.environ]
    return " ".join([*said, shlex.join(["python", str(name), *sys.argv[1:]])])


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
