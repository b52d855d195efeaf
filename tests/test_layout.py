"""The layout keeps its promises: arrows point down only, no two files import each other, counts/ knows no model."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("counts", "models", "inference", "suite")  # from the bottom up
ENGINE = FOLDERS[:3]
LONGEST_FILE, LONGEST_FUNCTION = 350, 60
MODEL = {"omega", "lam", "lambd", "lambda_", "pi", "rho", "alpha", "gate", "Prior", "Parameters", "Statistics", "Logs"}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its import name."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = [*path.relative_to(root / folder).with_suffix("").parts]
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(["zipmix", *([] if folder == "suite" else [folder]), *parts])] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, those within functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(module: str) -> int:
    """How high the folder of a module stands."""
    second = [*module.split("."), ""][1]
    return FOLDERS.index(second) if second in FOLDERS else len(FOLDERS) - 1


def upward(root: Path) -> list[str]:
    """Imports of a higher folder."""
    return [
        f"{module} imports {used}"
        for module, path in modules(root).items()
        for used in imports(path)
        if used.split(".")[0] == "zipmix" and folder_of(used) > folder_of(module)
    ]


def mutual(root: Path) -> list[str]:
    """Pairs of files that import each other; the lazy index of public names is none of them."""
    known = modules(root)
    graph = {
        module: {name for used in imports(path) for name in (used, used.rpartition(".")[0])} & set(known) - {module}
        for module, path in known.items()
    }
    return [
        f"{one} and {other}"
        for one, used in graph.items()
        for other in used
        if one < other and one in graph[other] and "zipmix" not in (one, other)
    ]


def names_of_the_model(root: Path) -> list[str]:
    """Names in the code of counts/ that belong to the model."""
    found = []
    for path in sorted((root / "counts").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None)
            parts = {name, name.split("_")[0]} if isinstance(name, str) else set()
            if parts & MODEL:
                found.append(f"{path.name}:{node.lineno} {name}")
    return found


def long(root: Path) -> list[str]:
    """Files of the engine over their limit, and functions whose code is."""
    found = []
    for folder in ENGINE:
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text()
            n_lines = len(text.splitlines())
            if n_lines > LONGEST_FILE:
                found.append(f"{path.relative_to(root)} has {n_lines} lines")
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.FunctionDef) or "Long because" in (ast.get_docstring(node) or ""):
                    continue
                # The signature and the docstring are not counted.
                code = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                body = node.end_lineno - code[0].lineno + 1
                if body > LONGEST_FUNCTION:
                    found.append(f"{path.relative_to(root)}: {node.name} has {body} lines")
    return found


@pytest.mark.parametrize("check", [upward, mutual, names_of_the_model, long])
def test_the_layout_keeps_its_promises(check):
    assert check(ROOT) == []


@pytest.mark.parametrize(
    ("check", "file", "text"),
    [
        (upward, "counts/a.py", "def f():\n    from zipmix.models.b import g\n"),
        (upward, "inference/a.py", "import zipmix.comparison.report\n"),
        (mutual, "models/a.py", "from zipmix.models import b\n"),
        (names_of_the_model, "counts/a.py", "def f(omega_KD):\n    return 1\n"),
        (names_of_the_model, "counts/a.py", "x = y.prior if y else Prior\n"),
        (long, "inference/a.py", "x = 1\n" * 351),
        (long, "models/a.py", "def f():\n" + "    x = 1\n" * 61),
    ],
)
def test_a_broken_promise_is_found(check, file, text, tmp_path):
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / "models/b.py").write_text("from zipmix.models.a import x\n" if check is mutual else "g = 1\n")
    assert check(tmp_path) == []
    (tmp_path / file).write_text(text)
    assert len(check(tmp_path)) == 1


def test_the_package_ships_its_types_and_runs_as_a_module():
    assert files("zipmix").joinpath("py.typed").is_file()
    done = subprocess.run([sys.executable, "-m", "zipmix", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"zipmix {version('zipmix')}\n")
