"""Reads a solution: a Python file, a notebook, or functions at hand; and says where in it a function or line is."""

import ast
import json
import re
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zipmix.counts.checks import InputError


class Statement(NamedTuple):
    """One top-level statement of a solution."""

    code: types.CodeType
    defines: bool  # an import, a function, a class or a constant
    is_constant: bool


class Source(NamedTuple):
    """A solution, read but not run."""

    name: str  # what to call it
    folder: str | None  # where it lies, for its own imports and files
    is_notebook: bool
    pieces: tuple[tuple[str, str], ...]  # name to compile under, and text: the file, or its code cells
    broken: tuple[str, str] | None  # place and sentence of the first cell with a syntax error
    functions: dict[str, Callable[..., Any]]  # functions at hand


def read_source(path: str | Path) -> Source:
    """Reads a .py or .ipynb file.

    Raises:
        InputError: no such file, another kind of file, or a syntax error; with the line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"solution: there is no file {path}.")
    if path.suffix not in (".py", ".ipynb"):
        raise InputError(f"solution: {path} is neither a Python file (.py) nor a notebook (.ipynb).")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"solution: {path} is not text in UTF-8; save it again as such.") from None
    if path.suffix == ".py":
        if error := _syntax_error(path.name, text):
            raise InputError(f"solution: {': '.join(error)}.")
        return Source(path.name, str(path.resolve().parent), False, ((path.name, text),), None, {})
    good, broken = [], None
    for name, cell in _cells(path, text):
        error = _syntax_error(name, cell)
        if error is None:
            good.append((name, cell))
        broken = broken or error
    return Source(path.name, str(path.resolve().parent), True, tuple(good), broken, {})


def from_functions(functions: Mapping[str, Callable[..., Any]], name: str) -> Source:
    """A solution from functions at hand."""
    return Source(name, None, False, (), None, dict(functions))


def _syntax_error(name: str, text: str) -> tuple[str, str] | None:
    """Place and sentence of what keeps a text from being Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return f"{name}, line {line}", f"this is not Python ({getattr(error, 'msg', error)})"
    except (RecursionError, MemoryError):
        return f"{name}, line 1", "this is nested too deeply to be read"
    return None


def _cells(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """The code cells of a notebook: "code cell 3" is the third one that holds code."""
    try:
        notebook = json.loads(text)
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        texts = ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"solution: {path} is not a notebook of format 4; open it in Jupyter and save it again."
        ) from None
    for number, cell in enumerate(texts, start=1):
        if re.match(r"\s*%%(?!time|timeit|capture|prun)", cell):  # a cell of another language
            continue
        name = f"{path.name}, code cell {number}"
        if _syntax_error(name, cell):
            # Magics and shell commands are no Python; an empty statement keeps line numbers and blocks whole.
            cell = "\n".join(re.sub(r"^(\s*)[%!?].*", r"\1pass", line) for line in cell.splitlines())
        yield name, cell


def statements(source: Source) -> Iterator[Statement]:
    """The top-level statements in order, compiled."""
    for name, text in source.pieces:
        tree = ast.parse(text)
        flags = _futures(tree)
        for node in tree.body:
            module = ast.Module([node], type_ignores=[])
            code = compile(module, name, "exec", flags=flags, dont_inherit=True)
            yield Statement(code, _defines(node), isinstance(node, (ast.Assign, ast.AnnAssign)))


def _futures(tree: ast.Module) -> int:
    import __future__

    names = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for alias in node.names
    ]
    return sum(getattr(__future__, name).compiler_flag for name in names if hasattr(__future__, name))


def _defines(node: ast.stmt) -> bool:
    if isinstance(node, (ast.If, ast.Try)):
        handlers = [inner for handler in getattr(node, "handlers", []) for inner in handler.body]
        return all(_defines(inner) for inner in [*node.body, *node.orelse, *handlers])
    if isinstance(node, ast.Pass):
        return True
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
        return True
    if isinstance(node, ast.Expr):
        return "set_default_dtype" in ast.unparse(node.value)[:40]
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        calls = [call for call in ast.walk(node.value) if isinstance(call, ast.Call)]
        return all(_harmless(call) for call in calls)
    return False


def _harmless(call: ast.Call) -> bool:
    """Whether a call makes a constant: float(...), math.log(...), torch.tensor(...), but not torch.load(...)."""
    name = ast.unparse(call.func)
    root, *rest = name.split(".")
    if rest and rest[-1] in ("load", "save", "fromfile", "loadtxt", "genfromtxt"):
        return False
    return name in ("float", "int", "bool", "str", "tuple", "list", "dict", "set", "range") or (
        bool(rest) and root in ("math", "torch", "np", "numpy", "scipy")
    )


def where(function: Callable[..., Any]) -> str:
    """File or cell, and line, of a function."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    return place(code.co_filename, code.co_firstlineno) if code else ""


def place(file_name: str, line: int) -> str:
    """A place in the source, for messages; only the last part of a path is shown."""
    cell = re.search(r"ipykernel_\d+|^<ipython-input-(\d+)", file_name)
    if cell:
        return f"notebook cell, line {line}"
    name = file_name if ", code cell " in file_name else Path(file_name).name
    return f"{name}, line {line}"


def failure(error: BaseException, files: frozenset[str]) -> tuple[str, str]:
    """An exception as (place, sentence): the last line of the solution that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in files]
    at = place(own[-1].filename, own[-1].lineno or 0) if own else ""
    if isinstance(error, NotImplementedError):
        return at, "is not written yet (NotImplementedError)"
    try:
        text = clean(str(error))
    except BaseException:  # an exception of the solution's own may fail to say what it is
        text = ""
    return at, f"raises {type(error).__name__}" + (f": {text}" if text else "")


def clean(text: str, length: int = 200) -> str:
    """Text of a solution fit for a terminal: one line, no control characters, not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else line[: length - 3] + "..."
