"""What a result was measured on, for every benchmark's output."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

CPU_FILE = Path("/proc/cpuinfo")


def hardware(*packages: str) -> dict[str, Any]:
    """The CPU's name, its cores, the load of the last minute, and versions of Python and of the
    packages named."""
    lines = CPU_FILE.read_text().splitlines() if CPU_FILE.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
