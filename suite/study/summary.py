"""What a study found: methods ranked, timed and counted over all cells, from the records that these have left.

Methods are ranked within each cell by the log posterior at their point, ties sharing their mean rank; points within
0.1 nat of the best optimum known for the data and K are ties, and a method that failed is last. Times count from the
first iteration to 0.1 nat below the best known log posterior, or for variational methods the best known ELBO.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import rankdata

from zipmix.comparison.report import plain
from zipmix.study.file import Cell, Study
from zipmix.study.records import asked, read_record

SCHEMA = 1

# Nats below the best optimum known within which a method has reached it.
REACHED = 0.1


class Run(NamedTuple):
    """One method on one cell."""

    method: str
    failure: str | None  # why there is no fit
    log_posterior: float | None
    gap: float | None  # to the best known for these data and K
    elbo: float | None
    elbo_gap: float | None
    held_out: float | None  # mean log score of held-out rows
    seconds: float | None  # of the fit
    reached: bool  # whether it ended within 0.1 nat of the best known, on the scale of its own objective
    seconds_to_best: float | None  # None: not reached
    converged: bool
    reason: str
    rank: float
    rank_held_out: float | None


class Outcome(NamedTuple):
    """One cell."""

    cell: Cell
    state: str  # "done", "failed" or "not run"
    failure: str | None
    page: str | None  # relative path
    density_digits: float | None
    map_digits: float | None
    seconds: float | None  # of the whole comparison
    warm_up: dict[str, float]
    n_threads: int | None
    runs: tuple[Run, ...]


class Optimum(NamedTuple):
    """The best known for one data set and K, over all methods and seeds."""

    data: str
    n_components: int
    log_posterior: float | None
    log_posterior_by: tuple[str, ...]  # methods that came within 0.1 nat
    elbo: float | None
    elbo_by: tuple[str, ...]


class Standing(NamedTuple):
    """One method over all cells that were run."""

    method: str
    n_runs: int
    n_failed: int
    n_not_converged: int
    n_reached: int  # within 0.1 nat of the best known
    mean_rank: float | None
    mean_rank_held_out: float | None
    seconds: float | None  # median of a fit
    seconds_to_best: float | None  # median over the runs that reached it
    warm_up: float | None  # median over processes, of the first call


class Summary(NamedTuple):
    """A study as far as it has been run."""

    study: Study
    source: str  # the study file
    outcomes: tuple[Outcome, ...]
    optima: tuple[Optimum, ...]
    standings: tuple[Standing, ...]
    versions: dict[str, str]
    machine: str


def summarise(folder: Path, study: Study, cells: tuple[Cell, ...], *, source: str) -> Summary:
    """Reads what the cells have left and compares it."""
    found = [_read(folder, study, cell) for cell in cells]
    best = {(cell.data, cell.n_components): _best(found, cell) for cell in cells}
    outcomes = tuple(_outcome(one, study, best[one.cell.data, one.cell.n_components]) for one in found)
    first: dict[str, Any] = next((one.comparison for one in found if one.comparison), {"versions": {}, "machine": ""})
    return Summary(
        study=study,
        source=source,
        outcomes=outcomes,
        optima=tuple(_optimum(outcomes, *key, *value) for key, value in best.items()),
        standings=tuple(_standing(outcomes, method) for method in study.methods),
        versions=first["versions"],
        machine=first["machine"],
    )


class Found(NamedTuple):
    """The files of a cell."""

    cell: Cell
    record: dict[str, Any] | None
    comparison: dict[str, Any] | None
    page: str | None


def _read(folder: Path, study: Study, cell: Cell) -> Found:
    runs = folder / "runs"
    record = read_record(runs, cell)
    if record is None or record["asked"] != asked(cell, study):
        return Found(cell, None, None, None)
    if record["failure"] is not None:
        return Found(cell, record, None, None)
    try:
        comparison = json.loads((runs / cell.name / "comparison.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Found(cell, None, None, None)
    written = next(name for name in ("report.html", "comparison.json") if (runs / cell.name / name).is_file())
    return Found(cell, record, comparison, f"runs/{cell.name}/{written}")


def _best(found: list[Found], cell: Cell) -> tuple[float | None, float | None]:
    """The best log posterior and ELBO known for the data and K of a cell."""
    rows = [
        row
        for one in found
        if one.comparison and (one.cell.data, one.cell.n_components) == (cell.data, cell.n_components)
        for row in one.comparison["methods"]
    ]
    return tuple(  # type: ignore[return-value]
        max((row[name] for row in rows if row[name] is not None), default=None) for name in ("log_posterior", "elbo")
    )


def _outcome(one: Found, study: Study, best: tuple[float | None, float | None]) -> Outcome:
    if one.record is None:
        return Outcome(one.cell, "not run", None, None, None, None, None, {}, None, ())
    failure, comparison = one.record["failure"], one.comparison or {"methods": [], "failures": {}}
    rows = {row["method"]: row for row in comparison["methods"]}
    runs = [_run(name, rows.get(name), comparison["failures"].get(name, failure), one, best) for name in study.methods]
    ranks = _ranks([_not_reached(run.gap) for run in runs])
    scores = _ranks([math.inf if run.held_out is None else -run.held_out for run in runs])
    scored = any(run.held_out is not None for run in runs)
    verdict = comparison.get("verdict", {})
    return Outcome(
        cell=one.cell,
        state="failed" if failure is not None else "done",
        failure=failure,
        page=one.page,
        density_digits=verdict.get("density_digits"),
        map_digits=verdict.get("map_digits"),
        seconds=comparison.get("seconds"),
        warm_up=one.record.get("warm_up", {}),
        n_threads=one.record.get("n_threads"),
        runs=tuple(
            run._replace(rank=rank, rank_held_out=score if scored else None)
            for run, rank, score in zip(runs, ranks, scores, strict=True)
        ),
    )


def _run(
    method: str, row: dict[str, Any] | None, failure: str | None, one: Found, best: tuple[float | None, float | None]
) -> Run:
    if row is None:
        why = failure or "no fit was left"
        return Run(method, why, None, None, None, None, None, None, False, None, False, why, math.nan, None)
    best_posterior, best_elbo = best
    held_out = (row.get("held_out") or {}).get("rows")
    variational = row["elbo"] is not None
    target = best_elbo if variational else best_posterior
    own = _gap(target, row["elbo"] if variational else row["log_posterior"])
    reached = own is not None and own <= REACHED
    assert one.record is not None
    return Run(
        method=method,
        failure=None,
        log_posterior=row["log_posterior"],
        gap=_gap(best_posterior, row["log_posterior"]),
        elbo=row["elbo"],
        elbo_gap=_gap(best_elbo, row["elbo"]),
        held_out=held_out["mean"] if held_out else None,
        seconds=row["seconds"],
        reached=reached,
        seconds_to_best=_time_to(one.record["traces"][method], target) if reached else None,
        converged=row["converged"],
        reason=row["reason"],
        rank=math.nan,
        rank_held_out=None,
    )


def _gap(best: float | None, value: float | None) -> float | None:
    return None if best is None or value is None else best - value


def _time_to(trace: dict[str, list[float]], target: float | None) -> float | None:
    """Seconds at which a trace first came within 0.1 nat of the target."""
    if target is None:
        return None
    pairs = zip(trace["seconds"], trace["objective"], strict=True)
    return next((second for second, objective in pairs if objective >= target - REACHED), None)


def _not_reached(gap: float | None) -> float:
    """A gap as it is ranked: 0 where the best is reached, infinite where there is none."""
    return math.inf if gap is None else 0.0 if gap <= REACHED else gap


def _ranks(values: list[float]) -> list[float]:
    return [float(rank) for rank in rankdata(values, method="average")]


def _optimum(
    outcomes: tuple[Outcome, ...], data: str, K: int, log_posterior: float | None, elbo: float | None
) -> Optimum:
    runs = [run for one in outcomes if (one.cell.data, one.cell.n_components) == (data, K) for run in one.runs]

    def by(gap: Callable[[Run], float | None]) -> tuple[str, ...]:
        close = [run.method for run in runs if (value := gap(run)) is not None and value <= REACHED]
        return tuple(dict.fromkeys(close))

    return Optimum(data, K, log_posterior, by(lambda run: run.gap), elbo, by(lambda run: run.elbo_gap))


def _standing(outcomes: tuple[Outcome, ...], method: str) -> Standing:
    runs = [run for one in outcomes for run in one.runs if run.method == method]
    fits = [run for run in runs if run.failure is None]
    return Standing(
        method=method,
        n_runs=len(runs),
        n_failed=len(runs) - len(fits),
        n_not_converged=sum(not run.converged for run in fits),
        n_reached=sum(run.reached for run in fits),
        mean_rank=_mean(run.rank for run in runs),
        mean_rank_held_out=_mean(run.rank_held_out for run in runs),
        seconds=_median(run.seconds for run in fits),
        seconds_to_best=_median(run.seconds_to_best for run in fits),
        warm_up=_median(dict.fromkeys(one.warm_up[method] for one in outcomes if method in one.warm_up)),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def as_record(summary: Summary) -> dict[str, Any]:
    """Every number of a study as plain containers, fit for JSON; the structure is schemas/study.schema.json."""
    return plain(
        {
            "schema": SCHEMA,
            "source": summary.source,
            "study": summary.study._asdict(),
            "versions": summary.versions,
            "machine": summary.machine,
            "methods": [standing._asdict() for standing in summary.standings],
            "optima": [optimum._asdict() for optimum in summary.optima],
            "cells": [
                outcome._asdict() | {"cell": outcome.cell._asdict(), "runs": [run._asdict() for run in outcome.runs]}
                for outcome in summary.outcomes
            ],
        }
    )
