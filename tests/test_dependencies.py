"""Which package may import which: a package imports only what stands below it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PACKAGES = {
    "simpleseg_polygon": ROOT / "grammars/simpleseg_polygon",
    "simpleseg": ROOT / "clients/python/simpleseg",
    "simpleseg_server": ROOT / "server/simpleseg_server",
    "simpleseg_training": ROOT / "training/simpleseg_training",
}

ALLOWED = {
    "simpleseg_polygon": {"simpleseg_polygon"},
    "simpleseg": {"simpleseg_polygon", "simpleseg"},
    "simpleseg_server": {"simpleseg_polygon", "simpleseg", "simpleseg_server"},
    "simpleseg_training": {"simpleseg_polygon", "simpleseg_training"},
}

LAZY = {
    # The command line starts the server, data and the evaluation, each when its command is run.
    "simpleseg/cli.py": {"simpleseg_server"},
    "simpleseg/cli_support.py": {"simpleseg_server"},
    "simpleseg/cli_annotate.py": {"simpleseg_training"},
    "simpleseg/cli_data.py": {"simpleseg_training"},
    "simpleseg/bench/questions.py": {"simpleseg_training"},
    "simpleseg/cli_measure.py": {"simpleseg_training"},
    "simpleseg/cli_train.py": {"simpleseg_training"},
    "simpleseg/cli_doctor.py": {"simpleseg_server"},
    "simpleseg/doctor.py": {"simpleseg_server"},
}

HEAVY = ("torch", "vllm", "transformers", "fastapi", "cv2")


def _imported_names(node: ast.AST) -> Iterator[str]:
    """The top-level names that one import statement names; relative imports stay inside."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name.split(".")[0]
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module.split(".")[0]


def imports(source: str) -> list[tuple[str, int, bool]]:
    """Every import in ``source`` as (top-level name, line, whether it is not run on import)."""
    found: list[tuple[str, int, bool]] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        found.extend((name, getattr(node, "lineno", 0), lazy) for name in _imported_names(node))
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        inside = inside or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def violations(package: str, label: str, source: str) -> list[str]:
    """The imports of our own packages in ``source`` that point against the direction."""
    forbidden = set(PACKAGES) - ALLOWED[package]
    return [
        f"{label}:{line} imports {name}"
        for name, line, lazy in imports(source)
        if name in forbidden and not (lazy and name in LAZY.get(label, set()))
    ]


def _modules() -> Iterator[tuple[str, str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            yield package, f"{package}/{path.relative_to(folder)}", path


def test_every_import_points_down() -> None:
    modules = list(_modules())
    assert {package for package, _, _ in modules} == set(PACKAGES)
    assert [
        violation
        for package, label, path in modules
        for violation in violations(package, label, path.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("package", "label", "source", "count"),
    [
        ("simpleseg_polygon", "simpleseg_polygon/x.py", "import simpleseg", 1),
        ("simpleseg_polygon", "simpleseg_polygon/x.py", "def f():\n  import simpleseg_server", 1),
        ("simpleseg", "simpleseg/x.py", "from simpleseg_polygon.codec import parse_region", 0),
        ("simpleseg", "simpleseg/cli.py", "from simpleseg_server import app", 1),
        ("simpleseg", "simpleseg/cli.py", "def f():\n  from simpleseg_server import app", 0),
        ("simpleseg", "simpleseg/cli.py", "if TYPE_CHECKING:\n  import simpleseg_server", 0),
        ("simpleseg", "simpleseg/x.py", "def f():\n  from simpleseg_server import app", 1),
        ("simpleseg_server", "simpleseg_server/x.py", "import simpleseg_training.export", 1),
        ("simpleseg_training", "simpleseg_training/x.py", "import simpleseg.client", 1),
        ("simpleseg_training", "simpleseg_training/x.py", "from . import scenes", 0),
    ],
)
def test_the_check_finds_what_it_should(package: str, label: str, source: str, count: int) -> None:
    assert len(violations(package, label, source)) == count


def test_only_one_module_imports_vllm() -> None:
    importing = {
        label
        for _, label, path in _modules()
        for name, _, _ in imports(path.read_text(encoding="utf-8"))
        if name == "vllm"
    }
    assert importing <= {"simpleseg_server/engines/vllm_compat.py"}


def test_opentelemetry_is_imported_by_one_module_and_only_where_it_is_used() -> None:
    importing = {
        (label, lazy)
        for _, label, path in _modules()
        for name, _, lazy in imports(path.read_text(encoding="utf-8"))
        if name == "opentelemetry"
    }
    assert importing == {("simpleseg_server/tracing.py", True)}


def test_the_sdk_imports_nothing_heavy() -> None:
    code = f"import sys, simpleseg; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
