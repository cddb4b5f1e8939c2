"""Whether tests notice when a guard is gone: ``python tests/reliability/mutations.py [NAME...]``.

Each guard of ``mutations.toml`` is removed from a copy of the sources, and the tests that are to
notice are run on it; before, they must pass with it in place, or their failure would show nothing.
The last line says how many were caught; the exit status is 1 below 90 %, and where a guard's line
is not found exactly once. Tests that stall for ``STALL_S`` have noticed too.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("grammars", "clients/python", "server", "training")
COPIED = (*SOURCES, "tests", "benchmarks", "examples", "pyproject.toml")
STALL_S = 300
TARGET = 0.9


def copied(folder: Path) -> None:
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def run(folder: Path, tests: str) -> bool:
    """Whether the tests pass. Raises RuntimeError where none was run."""
    paths = os.pathsep.join(str(folder / name) for name in SOURCES)
    environ = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    arguments = [*command, "-m", "not slow and not vllm", *shlex.split(tests)]
    try:
        ended = subprocess.run(
            arguments, cwd=folder, env=environ, capture_output=True, text=True, timeout=STALL_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    if ended.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest {tests}: {ended.stdout[-500:]}{ended.stderr[-500:]}")
    return ended.returncode == 0


@cache
def passes_unharmed(folder: Path, tests: str) -> bool:
    return run(folder, tests)


def is_caught(folder: Path, mutation: Mapping[str, str]) -> bool:
    """Whether the tests notice. Raises ValueError for a guard that is not there, or twice, or whose
    tests fail anyway."""
    path = folder / mutation["file"]
    text = path.read_text()
    if text.count(mutation["guard"]) != 1:
        raise ValueError(f"{text.count(mutation['guard'])} times in {mutation['file']}")
    if not passes_unharmed(folder, mutation["tests"]):
        raise ValueError("its tests fail with it in place")
    path.write_text(text.replace(mutation["guard"], mutation["without"]))
    try:
        return not run(folder, mutation["tests"])
    finally:
        path.write_text(text)


def mutations() -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_name("mutations.toml").read_text())


def main(names: list[str]) -> int:
    chosen = {name: one for name, one in mutations().items() if not names or name in names}
    caught, faults = 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copied(folder)
        for name, mutation in chosen.items():
            try:
                found = is_caught(folder, mutation)
            except (ValueError, RuntimeError) as error:
                faults += 1
                print(f"FAULT   {name}: {error}", flush=True)
                continue
            caught += found
            print(f"{'caught ' if found else 'MISSED '} {name}", flush=True)
    print(f"{caught} of {len(chosen)} removed guards were noticed, {faults} not tried")
    return int(faults > 0 or caught < TARGET * len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
