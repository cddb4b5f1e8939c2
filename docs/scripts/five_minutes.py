"""Go a new user's way from ``git clone`` to a mask in a script of their own, and write it down.

    python docs/scripts/five_minutes.py [REPOSITORY]

Clones REPOSITORY (this checkout, as far as it is committed) into an empty folder, installs it into
a new environment, and runs what ``docs/five-minutes.md`` then shows: every command with its output
and its time. Nothing is shortened but pip's output and long lines. The picture goes to
``docs/figures/five-minutes.png``.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/five-minutes.md"
PICTURE = ROOT / "docs/figures/five-minutes.png"
PORT = 8000
LONGEST_LINE = 160
SCRIPT = """\
from simpleseg import SimpleSeg

with SimpleSeg("http://127.0.0.1:8000") as client:
    result = client.segment("examples/images/scene-04.png", "the hexagon")

mask = result.mask()  # numpy, bool
print(result.status, result.polygons)
print(mask.shape, mask.sum(), "pixels")
result.overlay().save("mine.png")
"""
COMMANDS = (
    'git clone --quiet "$REPOSITORY" simpleseg-server && cd simpleseg-server',
    "python3.11 -m venv .venv && . .venv/bin/activate",
    "pip install torch==2.13.0 -e '.[server]'",
    "simpleseg doctor",
    "simpleseg serve > server.log 2>&1 &",
    "until curl -sf http://127.0.0.1:8000/readyz; do sleep 1; done",
    f"cat > mine.py <<'END'\n{SCRIPT}END",
    "python mine.py",
    "kill %1; wait %1 || true",
)
MARK = "@@@"


@dataclass(frozen=True)
class Step:
    """A command, what it printed, and how long it took."""

    command: str
    output: str
    seconds: float


def main() -> None:
    repository = sys.argv[1] if len(sys.argv) > 1 else str(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        steps = go(repository, Path(folder))
        shutil.copy(Path(folder) / "simpleseg-server/mine.png", PICTURE)
    PAGE.write_text(page(steps), encoding="utf-8")
    print(f"{sum(step.seconds for step in steps):.0f} s; wrote {PAGE.relative_to(ROOT)}")


def go(repository: str, folder: Path) -> list[Step]:
    """Run the commands in one shell. Raises CalledProcessError, with the output so far, where one
    of them fails."""
    port = free_port()
    commands = [command.replace(f":{PORT}", f":{port}") for command in COMMANDS]
    if port != PORT:
        commands = [
            c.replace("simpleseg serve", f"simpleseg serve --port {port}") for c in commands
        ]
    mark = f'echo; echo "{MARK} $EPOCHREALTIME"'  # curl ends no line
    lines = ["set -e -o pipefail"]
    for command in commands:
        lines += [mark, command]
    lines.append(mark)
    script = "\n".join(lines)
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    run = subprocess.run(
        ["bash", "-m", "-c", script],  # -m: jobs, as a terminal has them
        cwd=folder,
        env=environ | {"REPOSITORY": repository},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if run.returncode:
        raise SystemExit(f"status {run.returncode}\n{run.stdout[-4000:]}")
    return list(steps_in(run.stdout.replace(str(folder), "~"), commands))


def free_port() -> int:
    """8000, or another where something listens there already."""
    for port in (PORT, 0):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = listener.getsockname()[1]
            return found
    raise SystemExit("no port is free")


def steps_in(output: str, commands: list[str]) -> Iterator[Step]:
    _, *parts = re.split(rf"^{MARK} ", output, flags=re.MULTILINE)
    times = [float(part.partition("\n")[0]) for part in parts]
    texts = [part.partition("\n")[2] for part in parts]
    for i, command in enumerate(commands):
        text = of_pip(texts[i]) if command.startswith("pip") else texts[i]
        yield Step(command, shortened(text), times[i + 1] - times[i])


def of_pip(output: str) -> str:
    """How much was installed, instead of the hundreds of lines that say where it came from."""
    installed = re.findall(r"^Successfully installed (.+)$", output, re.MULTILINE)
    count = len(installed[-1].split()) if installed else 0
    return f"[...]\nSuccessfully installed [... {count} packages]\n"


def shortened(text: str) -> str:
    lines = (line.rstrip() for line in text.strip().splitlines())
    return "\n".join(x if len(x) <= LONGEST_LINE else x[:LONGEST_LINE] + " [...]" for x in lines)


def page(steps: list[Step]) -> str:
    total = sum(step.seconds for step in steps)
    shown = "\n".join(
        f"$ {step.command}\n" + (f"{step.output}\n" if step.output else "") for step in steps
    )
    rows = "\n".join(f"| {_in_table(step.command)} | {step.seconds:.1f} |" for step in steps)
    return TEMPLATE.format(total=total, machine=machine(), shown=shown.rstrip(), rows=rows)


def _in_table(command: str) -> str:
    first = command.splitlines()[0].replace("|", "\\|")
    return f"`{first}`"


def machine() -> str:
    code = "import hardware, json; print(json.dumps(hardware.hardware()))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "benchmarks")},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(run.stdout)
    return (
        f"{told['cores']} cores of an {told['cpu']} without a GPU, Python {told['python']}; load "
        f"{told['load_1min']} at the end, so other programs ran beside it"
    )


TEMPLATE = """\
# From git clone to a mask

Made by `python docs/scripts/five_minutes.py`, which clones the repository into an empty folder,
runs these commands one after the other, and writes down what they print. Only pip's output and very
long lines are shortened. `$REPOSITORY` is wherever you have the repository from, here a folder of
the same machine.

It took {total:.0f} seconds on {machine}.
pip took a build of torch without CUDA; the default one on Linux is gigabytes larger.

```text
{shown}
```

![The picture that the script drew](figures/five-minutes.png)

| command | seconds |
|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
