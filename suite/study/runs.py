"""Runs the cells of a study in parallel processes, and goes on where it was stopped.

    FOLDER/runs/CELL/         the folder that `zipmix compare` writes for the cell
    FOLDER/runs/CELL.json     the request of the cell, its traces, its warm-up: written last, so it says "done"
    FOLDER/study.json, study.html, figures/      the summary (page.py)

A cell is done when its record asks for the same as the study does now; other cells are run, those that failed too.
"""

import functools
import json
import os
import shlex
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from zipmix.comparison.comparison import compare
from zipmix.comparison.figures import running_median
from zipmix.comparison.report import plain, write_report
from zipmix.counts.checks import InputError
from zipmix.counts.whole_file import write_whole
from zipmix.files.data import load_data
from zipmix.inference import fit
from zipmix.inference.loop import progress_bar, time_budget
from zipmix.inference.result import Fit
from zipmix.models.zip_mixture import simulate
from zipmix.study.file import Cell, Study, as_prior, read_study
from zipmix.study.page import write_study
from zipmix.study.records import asked, is_done, record_file
from zipmix.study.workers import in_processes

# Seconds for which a method is tried on a tiny table, before anything is timed.
WARM_UP = 0.5


class Task(NamedTuple):
    """A cell as a process is given it."""

    cell: Cell
    study: Study
    runs: Path
    n_threads: int
    command: str


def run_study(
    path: str | Path, folder: str | Path | None = None, *, overwrite: bool = False, progress: bool = False
) -> Path:
    """Runs a study file; cells that are done already are kept.

    Processes are spawned: a script that calls this must do so under `if __name__ == "__main__":`.

    Args:
        path: of the .toml file, as file.py describes it.
        folder: where to write; results/NAME, with the name of the file, where None.
        overwrite: whether to run cells again that are done.
        progress: whether to show a progress bar.
    Returns:
        The path of study.html.
    Raises:
        InputError: a study that cannot be run, or a folder that holds something else.
    """
    path = Path(path)
    study, cells = read_study(path)
    folder = Path("results") / path.stem if folder is None else Path(folder)
    _check_folder(folder, path, cells)
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    n_processes = min(study.processes, len(cells))
    n_threads = max(1, (os.cpu_count() or 1) // n_processes)
    tasks = [
        Task(cell, study, runs, n_threads, _command(cell, study))
        for cell in cells
        if overwrite or not is_done(runs, cell, study)
    ]
    write_study(folder, study, cells, source=str(path))
    try:
        with progress_bar(len(cells), "study", enabled=progress) as advance:
            for _ in range(len(cells) - len(tasks)):
                advance()
            for outcome in in_processes(run_cell, tasks, n_processes=n_processes):
                if outcome.error is not None:
                    _record(outcome.task, {"failure": outcome.error})
                advance()
    finally:
        for task in tasks:
            _sweep(task)
        page = write_study(folder, study, cells, source=str(path))
    return page


def run_cell(task: Task) -> None:
    """Compares the methods on one cell and writes its folder and its record."""
    cell, study, runs, n_threads, command = task
    torch.set_num_threads(n_threads)
    warm = warm_up(study.methods)
    record_file(runs, cell).unlink(missing_ok=True)
    _sweep(task)
    try:
        compared = compare(
            load_data(cell.place),
            cell.n_components,
            methods=study.methods,
            prior=as_prior(study.prior),
            seed=cell.seed,
            n_starts=study.starts,
            n_chains=study.chains,
            settings=study.settings,
            held_out=study.held_out,
            budget=study.budget,
        )
    except InputError as error:
        _record(task, {"failure": str(error), "warm_up": warm})
        return
    folder = runs / cell.name
    write_report(compared._replace(command=command), folder, overwrite=True)
    traces = {name: climb(fitted) for name, fitted in compared.fits.items()}
    _record(task, {"failure": None, "warm_up": warm, "n_threads": n_threads, "traces": traces})


@functools.cache
def warm_up(methods: tuple[str, ...]) -> dict[str, float]:
    """Seconds that imports and each method's first call take in this process; no timed fit pays for them."""
    spent = {"imports": time.time() - psutil.Process().create_time()}
    X_ND = simulate(12, 2, 2, seed=0).X
    for name in methods:
        began = time.perf_counter()
        try:
            with time_budget(WARM_UP):
                fit(X_ND, 2, name)
        except Exception:  # reported by the fits of the study
            pass
        spent[name] = time.perf_counter() - began
    return spent


def climb(fitted: Fit) -> dict[str, list[float]]:
    """The best objective so far at every time that it rose: over all chains, and of a noisy ELBO the running median."""
    trace_T = fitted.trace.amax(0) if fitted.trace.ndim == 2 else fitted.trace
    if fitted.objective_error > 0 and len(trace_T):
        trace_T = running_median(trace_T)
    best_T = trace_T.nan_to_num(-torch.inf).cummax(0).values
    rose_T = torch.ones(len(best_T), dtype=torch.bool)
    rose_T[1:] = best_T[1:] > best_T[:-1]
    rose_T &= best_T.isfinite()
    return {"seconds": fitted.trace_seconds.double()[rose_T].tolist(), "objective": best_T[rose_T].tolist()}


def _record(task: Task, values: dict[str, Any]) -> None:
    record = plain({"asked": asked(task.cell, task.study)} | values)
    file = record_file(task.runs, task.cell)
    write_whole(file, lambda place: place.write_text(json.dumps(record, allow_nan=False) + "\n", encoding="utf-8"))


def _sweep(task: Task) -> None:
    """Removes what a process that was ended has left half-written."""
    for left in task.runs.glob(f".{task.cell.name}.*"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _check_folder(folder: Path, path: Path, cells: tuple[Cell, ...]) -> None:
    own = {path.resolve(), *(Path(cell.place).resolve() for cell in cells)}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is a file; choose a folder.")
    if folder.is_dir() and not (folder / "study.json").is_file():
        others = [place.name for place in folder.iterdir() if place.resolve() not in own]
        if others:
            raise InputError(f"--output: {folder} holds no study but {others[0]!r}; choose another folder.")


def _command(cell: Cell, study: Study) -> str:
    """The command that runs a cell alone."""
    words = ["zipmix", "compare", cell.place, "-k", str(cell.n_components), "--seed", str(cell.seed)]
    for name in study.methods:
        words += ["-m", name]
    words += ["--starts", str(study.starts), "--chains", str(study.chains), "--held-out", str(study.held_out)]
    if study.budget is not None:
        words += ["--budget", str(study.budget)]
    hyperparameters = {} if isinstance(study.prior, str) else study.prior
    words += ["--prior", "flat"] if study.prior == "flat" else []
    for name, value in hyperparameters.items():
        words += ["--prior", f"{name}={value}"]
    for method, own in study.settings.items():
        for name, value in own.items():
            words += ["--set", f"{method}.{name}={value}"]
    return shlex.join(words)
