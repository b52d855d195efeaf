"""How a benchmark is measured: contestants take turns in one process, and what counts are ratios of their medians.

A busy machine slows all that take turns alike, so a ratio survives where seconds do not. Every row of the results says
on which machine, with which versions, by which command and how often it was measured.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).parent
INSTALL = "pip install --constraint constraints.txt '.[bench]'"


class Contestant(NamedTuple):
    """One way to do the work of a case."""

    run: Callable[[], object]
    programs: tuple[str, ...] = ("torch",)  # distributions whose versions its row names
    share: float = 1.0  # how much of the work a run does; its time is divided by it
    note: str = ""


class Ratio(NamedTuple):
    """How many times faster one contestant is than another."""

    faster: str
    slower: str
    asked: float | None = None  # at least; None where nothing is asked


class Finding(NamedTuple):
    """One number that a case is about."""

    what: str
    measured: float
    asked: float | None = None
    at_most: bool = False  # the number asked for is an upper bound
    ratio: bool = False  # a ratio that must not fall: `make bench-check` measures it again

    @property
    def met(self) -> bool | None:
        """Whether what is asked is met; None where nothing is asked."""
        if self.asked is None:
            return None
        return self.measured <= self.asked if self.at_most else self.measured >= self.asked


class Outcome(NamedTuple):
    """What a case has found."""

    title: str
    rows: list[dict[str, Any]]  # of one table, each with the name of its contestant in front
    findings: list[Finding]
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # contestants that are not installed, each in a sentence


def available(makers: dict[str, Callable[[], Contestant]]) -> tuple[dict[str, Contestant], tuple[str, ...]]:
    """Contestants made ready, and a sentence on each whose program is not installed."""
    ready, left_out = {}, []
    for name, make in makers.items():
        try:
            ready[name] = make()
        except ModuleNotFoundError as error:
            if (HERE / f"{error.name}.py").exists():
                raise
            left_out.append(f"{name}: left out, {error.name} is not installed; {INSTALL}")
            print(left_out[-1], file=sys.stderr)
    return ready, tuple(left_out)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def in_turns(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """What each function returns, call by call, all of them in turn; a first round warms up and does not count."""
    found: dict[str, list[Any]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            value = function()
            if turn:
                found[name].append(value)
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and number of repeats."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"median_s": median, "quartiles_s": [low, high], "repeats": len(values)}


def compared(
    title: str,
    makers: dict[str, Callable[[], Contestant]],
    ratios: Sequence[Ratio],
    *,
    repeats: int,
    notes: tuple[str, ...] = (),
) -> Outcome:
    """Times contestants for the same work in turn, and divides their medians; those that are not there are left out."""
    contestants, left_out = available(makers)
    times = in_turns({name: lambda c=c: seconds(c.run) / c.share for name, c in contestants.items()}, repeats)
    rows = [
        {"contestant": name, **spread(times[name]), "versions": versions(c.programs), "note": c.note}
        for name, c in contestants.items()
    ]
    median = {row["contestant"]: row["median_s"] for row in rows}
    findings = [
        Finding(faster_than(r.faster, r.slower), median[r.slower] / median[r.faster], r.asked, ratio=True)
        for r in ratios
        if r.slower in median and r.faster in median
    ]
    return Outcome(title, rows, findings, notes, left_out)


def faster_than(faster: str, slower: str) -> str:
    """What a ratio is called in the results."""
    return f"{faster}: times faster than {slower}"


def versions(programs: Sequence[str]) -> dict[str, str]:
    """Versions of the distributions that are installed."""
    found = {}
    for name in programs:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Processor, cores, threads and memory in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return f"{_processor()}, {cores} cores used, {threads} threads, {memory:.0f} GB, Python {platform.python_version()}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


class Peak(NamedTuple):
    """A process of its own that has come to its end."""

    gb: float  # most resident memory
    seconds: float
    told: str  # what it has printed


PRINT_PEAK = "\nprint(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def alone(code: str) -> Peak:
    """Runs code in a process of its own, which can import the benchmarks (Linux only)."""
    first = f"import sys\nsys.path.insert(0, {str(HERE)!r})\n"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", first + code + PRINT_PEAK], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{code}\nended with status {done.returncode}:\n{done.stderr}")
    *told, kilobytes = done.stdout.splitlines()
    return Peak(1024 * float(kilobytes) / 1e9, time.perf_counter() - began, "\n".join(told))
