"""The layout keeps its promises: arrows point down only, no two files import each other, counts/ knows no model."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("counts", "models", "inference", "suite")  # from the bottom up
ENGINE = FOLDERS[:3]
LONGEST_FILE, LONGEST_FUNCTION = 350, 60
MODEL = {"omega", "lam", "lambd", "lambda_", "pi", "rho", "alpha", "gate", "Prior", "Parameters", "Statistics", "Logs"}
WORDS = {"omega", "lambda"}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its import name."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = [*path.relative_to(root / folder).with_suffix("").parts]
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(["zipmix", *([] if folder == "suite" else [folder]), *parts])] = path
    return found


def imports(module: str, path: Path) -> Iterator[str]:
    """Modules that a file imports, those within functions and under TYPE_CHECKING included."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def folder_of(module: str) -> int:
    """How high the folder of a module stands."""
    second = [*module.split("."), ""][1]
    return FOLDERS.index(second) if second in FOLDERS else len(FOLDERS) - 1


def upward(root: Path) -> list[str]:
    """Imports of a higher folder."""
    return [
        f"{module} imports {used}"
        for module, path in modules(root).items()
        for used in imports(module, path)
        if used.split(".")[0] == "zipmix" and folder_of(used) > folder_of(module)
    ]


def cycles(root: Path) -> list[str]:
    """Files that import each other, directly or through others; the lazy index of public names is left out."""
    known = {module: path for module, path in modules(root).items() if module != "zipmix"}
    graph = {
        module: {used if used in known else used.rpartition(".")[0] for used in imports(module, path)}
        & (known.keys() - {module})
        for module, path in known.items()
    }
    found = []
    for first in sorted(graph):
        # Modules before the first are left out, so that a cycle is found once.
        paths, seen = [[first]], set()
        while paths:
            way = paths.pop(0)
            if first in graph[way[-1]]:
                found.append(" -> ".join([*way, first]))
                break
            ahead = {used for used in graph[way[-1]] if used > first} - seen
            seen |= ahead
            paths += [[*way, used] for used in sorted(ahead)]
    return found


def names_of_the_model(root: Path) -> list[str]:
    """Names in the code and words in the docstrings of counts/ that belong to the model."""
    found = []
    for path in sorted((root / "counts").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [getattr(node, key, None) for key in ("id", "attr", "arg", "name", "asname")]
            parts = {part for name in names if isinstance(name, str) for part in (name, *name.split("_"))} & MODEL
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                parts |= set(re.findall(r"\w+", ast.get_docstring(node) or "")) & WORDS
            found += [f"{path.name}:{getattr(node, 'lineno', 1)} {part}" for part in sorted(parts)]
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
                if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    continue
                if re.search(r"^\s*Long because", ast.get_docstring(node) or "", re.MULTILINE):
                    continue
                # The signature and the docstring are not counted.
                code = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                body = node.end_lineno - code[0].lineno + 1
                if body > LONGEST_FUNCTION:
                    found.append(f"{path.relative_to(root)}: {node.name} has {body} lines")
    return found


@pytest.mark.parametrize("check", [upward, cycles, names_of_the_model, long])
def test_the_layout_keeps_its_promises(check):
    assert check(ROOT) == []


@pytest.mark.parametrize(
    ("check", "file", "text"),
    [
        (upward, "counts/a.py", "def f():\n    from zipmix.models.b import g\n"),
        (upward, "inference/a.py", "import zipmix.comparison.report\n"),
        (upward, "models/a.py", "from ..inference import b\n"),
        (upward, "counts/a.py", "import zipmix\n"),
        (cycles, "models/a.py", "from zipmix.models import b\n"),
        (cycles, "models/a.py", "from .b import g\n"),
        (cycles, "models/a.py", "if TYPE_CHECKING:\n    from zipmix.models.b import g\n"),
        (cycles, "models/a.py", "def f():\n    from zipmix.models.c import g\n"),
        (names_of_the_model, "counts/a.py", "def f(omega_KD):\n    return 1\n"),
        (names_of_the_model, "counts/a.py", "x = y.prior if y else Prior\n"),
        (names_of_the_model, "counts/a.py", "def log_omega():\n    return 1\n"),
        (names_of_the_model, "counts/a.py", '"""Rows times lambda."""\n'),
        (long, "inference/a.py", "x = 1\n" * 351),
        (long, "models/a.py", "def f():\n" + "    x = 1\n" * 61),
        (long, "models/a.py", 'def f():\n    """Not said: Long because."""\n' + "    x = 1\n" * 61),
    ],
)
def test_a_broken_promise_is_found(check, file, text, tmp_path):
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / "models/b.py").write_text("from zipmix.models.a import x\n" if check is cycles else "g = 1\n")
    (tmp_path / "models/c.py").write_text("from zipmix.models.b import g\n")
    assert check(tmp_path) == []
    (tmp_path / file).write_text(text)
    assert len(check(tmp_path)) == 1


def test_a_long_function_may_state_its_reason(tmp_path):
    (tmp_path / "models").mkdir()
    text = 'def f():\n    """Does it.\n\n    Long because every case stands in it.\n    """\n' + "    x = 1\n" * 61
    (tmp_path / "models/a.py").write_text(text)
    assert long(tmp_path) == []


def test_the_package_ships_its_types_and_runs_as_a_module():
    assert files("zipmix").joinpath("py.typed").is_file()
    done = subprocess.run([sys.executable, "-m", "zipmix", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"zipmix {version('zipmix')}\n")
