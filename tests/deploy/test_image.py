"""The Dockerfile: what it pins, and that the pins are what the project asks for.

`make image-check` builds it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
REQUIREMENTS = ROOT / "deploy/requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
_STAGE = re.compile(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", re.MULTILINE | re.DOTALL)
STAGES: dict[str, str] = dict(_STAGE.findall(DOCKERFILE))


def _pins(name: str) -> dict[str, str]:
    """Names and exact versions of a file, each with hashes."""
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})+)$", text, re.M)
    assert len(entries) == len(re.findall(r"^[\w.-]+", text, re.M))
    return {canonicalize_name(package): version for package, version, _ in entries}


def _asked() -> Iterator[Requirement]:
    yield from map(Requirement, PROJECT["dependencies"])
    yield from map(Requirement, PROJECT["optional-dependencies"]["server"])


def test_the_image_has_what_the_project_asks_for() -> None:
    pins = _pins("cpu")
    torch = re.search(r"^ARG TORCH_VERSION=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert torch is not None
    assert f"TORCH ?= torch=={torch[1]}\n" in (ROOT / "Makefile").read_text()
    assert "torch" not in pins
    for requirement in _asked():
        name = canonicalize_name(requirement.name)
        version = torch[1] if name == "torch" else pins[name]
        assert requirement.specifier.contains(version), requirement
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in pins)


def test_the_tools_of_the_build_are_pinned() -> None:
    assert {"hatchling", "cyclonedx-bom"} <= _pins("build").keys()
    for line in re.findall(r"pip .*?install.*?(?=\n[^ ]|\n {4}&&)", DOCKERFILE, re.DOTALL):
        assert "--require-hashes" in line or "--no-deps" in line, line


@pytest.mark.vllm
def test_vllm_s_image_gets_what_vllm_does_not_bring() -> None:
    (distribution,) = set(packages_distributions()["vllm"])
    brought = _with_dependencies(Requirement(distribution))
    lacking = {canonicalize_name(one.name) for one in _asked()} - brought
    assert lacking == _pins("vllm").keys()
    for name in lacking:
        assert _with_dependencies(Requirement(name)) - {name} <= brought


def _with_dependencies(requirement: Requirement) -> set[str]:
    """All that comes along with a package, by the metadata of what is installed here."""
    found: set[str] = set()
    waiting = [requirement]
    seen: set[str] = set()
    while waiting:
        one = waiting.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        found.add(canonicalize_name(one.name))
        extras = [{"extra": extra} for extra in ("", *one.extras)]
        with suppress(PackageNotFoundError):
            asked = map(Requirement, requires(one.name) or [])
            waiting += [r for r in asked if r.marker is None or any(map(r.marker.evaluate, extras))]
    return found


def test_base_images_are_pinned() -> None:
    images = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", DOCKERFILE, re.MULTILINE))
    assert all(re.search(r":v?\d+\.\d+\.\d+[\w.-]*$", image) for image in images.values())
    for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        assert base == "scratch" or base in STAGES or base.strip("${}") in images, base


@pytest.mark.parametrize("stage", ["cpu", "vllm"])
def test_an_image_runs_without_root_and_tells_its_health(stage: str) -> None:
    body = STAGES[stage]
    assert re.findall(r"^USER (\S+)$", body, re.MULTILINE) == ["10001:10001"]
    last_run = max(body.rindex("\nRUN "), body.find("\nCOPY "))
    assert body.index("\nUSER ") > last_run
    health = re.search(r"urlopen\('http://127\.0\.0\.1:(\d+)/readyz'", body)
    assert health is not None
    assert f"SIMPLESEG_OPS_PORT={health[1]}\n" in body
    assert re.search(r'^ENTRYPOINT \["simpleseg"\]$', body, re.MULTILINE)


def test_the_default_image_is_the_one_for_a_cpu() -> None:
    assert list(STAGES)[-1] == "cpu"


def test_every_file_that_the_wheel_needs_gets_into_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    let_in = {line[1:] for line in lines if line.startswith("!")}
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    wheel = hatch["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], hatch["version"]["path"]]
    needed += [PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"]
    for path in needed:
        assert any(path == one or path.startswith(f"{one}/") for one in let_in), path
    assert all((ROOT / one).exists() for one in let_in)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say() -> None:
    command = [str(HADOLINT), str(ROOT / "Dockerfile")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "")
