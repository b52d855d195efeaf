"""What happens in the process of the solution: it is confined, the file is run, and calls are answered."""

import contextlib
import inspect
import io
import os
import pickle
import signal
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix import coursework
from zipmix.checker.source import Source, clean, failure, statements, where

# Seconds of processor time after which a process ends even if nobody is left to end it.
CPU_SECONDS = 600

# Functions that are looked for: names of the arguments they must take, and of those they may.
Wanted = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


class Unfit(Exception):
    """What a function returned cannot be sent on; the sentence says what it is."""


class Limits(NamedTuple):
    """What student code may use."""

    seconds: float  # per call, and for running the file
    gib: float  # of memory beyond that at the start


def serve(
    connection: Connection,
    other_end: Connection,
    source: Source,
    wanted: Wanted,
    limits: Limits,
    definitions_only: bool,
    forked: bool,
) -> None:
    """The child: runs the file, then answers calls until the pipe is closed."""
    if forked:
        # Files and sockets of the process at work are none of the solution's business.
        other_end.close()
        os.closerange(3, connection.fileno())
        os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    torch.set_num_threads(1)
    _confine(limits)
    connection.send_bytes(pickle.dumps(True))
    solution = _Solution(source, definitions_only)
    names = {name: function for name, function in solution.functions.items() if name in wanted}
    found = {name: (where(f), *_fit_arguments(f, *wanted[name])) for name, f in names.items()}
    others = [f"{name} ({where(f)})" for name, f in solution.functions.items() if name not in wanted]
    loaded = {"functions": found, "others": others, "error": solution.error, "printed": clean(solution.printed)}
    connection.send_bytes(pickle.dumps(pack(loaded)))
    while True:
        try:
            request = unpack(pickle.loads(connection.recv_bytes()))
        except EOFError:
            return
        connection.send_bytes(_answer(solution, request, wanted))


def _confine(limits: Limits) -> None:
    """Limits of memory and time; no input; nothing written where the checker writes."""
    os.environ["MPLBACKEND"] = "Agg"
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    sys.stdin = io.StringIO()
    if not hasattr(os, "setsid"):
        return
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # only Linux tells the size of a process here
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        limit = size + int(limits.gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _Solution:
    """The solution's functions, after its statements were run one by one."""

    def __init__(self, source: Source, definitions_only: bool):
        self.functions: dict[str, Callable[..., Any]] = dict(source.functions)
        self.error = source.broken
        self.files = frozenset(
            [name for name, _ in source.pieces]
            + [f.__code__.co_filename for f in self.functions.values() if hasattr(f, "__code__")]
        )
        self.printed = ""
        if not source.pieces:
            return
        if source.folder:
            sys.path.insert(0, source.folder)
            os.chdir(source.folder)
        module = types.ModuleType("zipmix_solution")
        sys.modules[module.__name__] = module
        with _caught() as printed:
            for statement in statements(source):
                if definitions_only and not statement.defines:
                    continue
                try:
                    exec(statement.code, module.__dict__)
                except BaseException as error:
                    # A constant made from what was left out is missing for good reason.
                    if not (definitions_only and statement.is_constant):
                        self.error = self.error or failure(error, self.files)
        self.printed = printed.getvalue()
        self.functions = {
            name: value
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ != "zipmix.coursework"
            and value.__code__.co_filename in self.files
        }


def _fit_arguments(
    function: Callable[..., Any], required: tuple[str, ...], optional: tuple[str, ...]
) -> tuple[tuple[str, ...], str]:
    """The names of the arguments to call with, and what is wrong with them."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return required, ""
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    names = [name for name, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    used = required + tuple(name for name in optional if name in names or takes_all)
    try:
        signature.bind(**dict.fromkeys(used))
    except TypeError:
        given, asked = ", ".join(map(str, signature.parameters.values())), ", ".join(required)
        return used, f"has the arguments ({clean(given)}) where ({asked}) are required, by these names"
    return used, ""


def _answer(solution: _Solution, request: dict[str, Any], wanted: Wanted) -> bytes:
    name = request["name"]
    function = solution.functions[name]
    used, _ = _fit_arguments(function, *wanted[name])
    arguments = {key: value for key, value in request["arguments"].items() if key in used}
    if request["single"]:
        arguments = _single(arguments)
    reply = {"value": None, "error": "", "error_name": "", "where": ""}
    torch.manual_seed(0)
    with _caught() as printed, _replaced(function, name, list(wanted), request) as substituted:
        try:
            value = function(**arguments)
            reply["value"] = pack(value if request["points"] is None else log_densities(value, request["points"]))
        except Unfit as error:
            reply["error"], reply["error_name"] = str(error), "unfit"
        except BaseException as error:
            reply["where"], reply["error"] = failure(error, solution.files)
            reply["error_name"] = type(error).__name__
    return pickle.dumps(reply | {"printed": clean(printed.getvalue(), 80), "substituted": substituted})


@contextlib.contextmanager
def _replaced(function: Callable[..., Any], name: str, names: list[str], request: dict[str, Any]) -> Any:
    """Puts the project's own functions in the place of the solution's other ones."""
    home = getattr(inspect.unwrap(function), "__globals__", {})
    before = {n: home[n] for n in [*names, "initialize_em"] if n != name and callable(home.get(n))}
    instead = dict(before)
    if not request["own"]:
        instead = {n: getattr(coursework, n) for n in before}
    if request["noisy"] and "elbo" in instead:
        instead["elbo"] = _noisy(instead["elbo"])
    home.update(instead)
    try:
        yield bool(before) and not request["own"]
    finally:
        home.update(before)


def _noisy(elbo: Callable[..., Any]) -> Callable[..., Any]:
    """The ELBO with the rounding of a float32 sum: every second value is a little too low."""
    calls = 0

    def noisy(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        value = elbo(*args, **kwargs)
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        return value - (calls % 2) * value.abs() * 4 * torch.finfo(torch.float32).eps

    return noisy


def log_densities(distribution: Any, points: list[Tensor]) -> Any:
    """The log density of a distribution at points.

    Raises:
        Unfit: it is no distribution.
    """
    if not callable(getattr(distribution, "log_prob", None)):
        raise Unfit(f"returns a value of type {type(distribution).__name__} where a torch distribution is required")
    # Points at the edge of the support are tried on purpose.
    base = distribution
    while base is not None:
        base._validate_args = False
        base = getattr(base, "base_dist", None)
    return [distribution.log_prob(point) for point in points]


def pack(value: Any) -> Any:
    """The value as numbers, strings, lists and dictionaries; an array is a tuple of its type, shape and bytes.

    Raises:
        Unfit: it holds anything else.
    """
    if isinstance(value, Tensor):
        dense = value.detach().to("cpu").to_dense()
        # NumPy has no bfloat16 and its like.
        return pack((dense.float() if dense.is_floating_point() and dense.itemsize < 4 else dense).numpy())
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return pack(value.tolist())
        if value.dtype.kind not in "fiub":
            kind = "complex numbers" if value.dtype.kind == "c" else f"an array of {value.dtype}"
            raise Unfit(f"returns {kind} where real numbers are required")
        # torch has no unsigned numbers but bytes.
        plain = np.ascontiguousarray(value, dtype=np.float64 if value.dtype.kind == "u" else None)
        return plain.dtype.str, value.shape, plain.tobytes()
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): pack(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(entry) for entry in value]
    raise Unfit(f"returns a value of type {type(value).__name__}, which is neither a tensor nor a plain container")


def unpack(value: Any) -> Any:
    """What was packed, arrays as tensors.

    Raises:
        ValueError: it was not packed by pack.
    """
    if isinstance(value, tuple):
        kind, shape, content = value
        return torch.from_numpy(np.frombuffer(content, kind).reshape(shape).astype(np.dtype(kind).newbyteorder("=")))
    if isinstance(value, dict):
        return {key: unpack(entry) for key, entry in value.items()}
    return [unpack(entry) for entry in value] if isinstance(value, list) else value


def _single(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype == torch.float64:
        return value.float()
    if isinstance(value, dict):
        return {key: _single(entry) for key, entry in value.items()}
    return value


class _Capped(io.StringIO):
    """Keeps the first part of what is printed."""

    def write(self, text: str) -> int:
        if self.tell() < 10_000:
            super().write(text)
        return len(text)


@contextlib.contextmanager
def _caught() -> Any:
    printed = _Capped()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield printed
