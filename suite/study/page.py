"""The summary of a study as files: study.json, and study.html, which is one file readable without network or script."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zipmix.comparison.report import draw, page
from zipmix.comparison.tables import TextTable, number
from zipmix.comparison.verdict import SAME_DIGITS
from zipmix.counts.checks import InputError
from zipmix.counts.whole_file import write_whole
from zipmix.study.file import Cell, Study
from zipmix.study.summary import REACHED, Outcome, Summary, as_record, summarise


def write_study(folder: Path, study: Study, cells: Iterable[Cell], *, source: str) -> Path:
    """Writes study.json and study.html from what the cells of a study have left; returns the path of the page."""
    from zipmix.study.figures import study_figures

    summary = summarise(folder, study, tuple(cells), source=source)
    record = as_record(summary)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_whole(folder / "study.json", lambda place: place.write_text(text, encoding="utf-8"))
    pictures = draw(lambda: study_figures(summary), folder / "figures")
    html = render(summary, record, pictures)
    write_whole(folder / "study.html", lambda place: place.write_text(html, encoding="utf-8"))
    return folder / "study.html"


def rewrite_study(folder: str | Path) -> Path:
    """Writes the summary of a study's folder again; returns the path of the page.

    Raises:
        InputError: the folder holds no study.
    """
    file = Path(folder) / "study.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record["study"].items()
        }
        study, cells = Study(**values), tuple(Cell(**entry["cell"]) for entry in record["cells"])
        source = record["source"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"folder: {file} is not a study of zipmix ({error!r}).") from None
    return write_study(Path(folder), study, cells, source=source)


def render(summary: Summary, record: dict[str, Any], pictures: dict[str, str]) -> str:
    """study.html as text.

    Args:
        summary: what is reported.
        record: its numbers, of as_record.
        pictures: figures as data URLs, by name.
    """
    return page(
        "study.html",
        s=summary,
        record=record,
        pictures=pictures,
        alt=alternatives(summary),
        sentences=sentences(summary),
        tables={"methods": methods_table(summary), "optima": optima_table(summary), "cells": cells_table(summary)},
        runs=runs_table(summary),
        links={name_of(one): one.page for one in summary.outcomes if one.page},
        reached=REACHED,
        command=shlex.join(["zipmix", "compare", summary.source]),
    )


def sentences(summary: Summary) -> list[str]:
    """What the study found, in sentences."""
    ran = [one for one in summary.outcomes if one.state != "not run"]
    sentences = []
    ranked = sorted(
        (row for row in summary.standings if row.mean_rank is not None), key=lambda row: row.mean_rank or 0.0
    )
    if ranked:
        order = ", ".join(f"{row.method} {row.mean_rank:.2f}" for row in ranked)
        sentences.append(f"Mean rank by log posterior over {len(ran)} cells, 1 is best: {order}.")
    timed = [row for row in summary.standings if row.n_reached]
    if timed:
        fast = ", ".join(
            f"{row.method} in {row.n_reached} of {row.n_runs} ({number(row.seconds_to_best, '.2g') or '?'} s)"
            for row in sorted(timed, key=lambda row: (-row.n_reached, row.seconds_to_best or 0.0))
        )
        sentences.append(f"Within {REACHED} nat of the best optimum known, and the median time to it: {fast}.")
        never = [row.method for row in summary.standings if not row.n_reached and row.n_failed < row.n_runs]
        if never:
            sentences.append(
                f"Never within {REACHED} nat: {', '.join(never)}; samplers draw from the posterior and seek no optimum."
            )
    digits = [one.density_digits for one in ran if one.density_digits is not None]
    if digits:
        sentences.append(
            "Hand derivation and autodiff agree on log p(X, Theta) at EM's optimum to at least "
            f"{min(digits):.1f} digits in all of {len(digits)} cells."
        )
    same = [one.map_digits >= SAME_DIGITS for one in ran if one.map_digits is not None]
    if same:
        sentences.append(
            f"From the same start, EM and autodiff MAP ended at the same optimum in {sum(same)} of {len(same)} cells."
        )
    failed = [f"{row.method} {row.n_failed}" for row in summary.standings if row.n_failed]
    if failed:
        sentences.append(f"Failed, and ranked last there: {', '.join(failed)}.")
    unsettled = [
        f"{row.method} {row.n_not_converged} of {row.n_runs}" for row in summary.standings if row.n_not_converged
    ]
    if unsettled:
        sentences.append(f"Not converged: {', '.join(unsettled)}.")
    left = len(summary.outcomes) - len(ran)
    if left:
        sentences.append(f"{left} of {len(summary.outcomes)} cells are not run yet; run the same command again.")
    return sentences


def methods_table(summary: Summary) -> TextTable:
    """A row per method, the best mean rank first."""
    headers = (
        "method", "mean rank", "rank held out", f"within {REACHED} nat", f"s to {REACHED} nat", "s per fit", "failed",
        "not converged", "warm-up (s)",
    )  # fmt: skip
    rows = [
        (
            row.method,
            number(row.mean_rank, ".2f"),
            number(row.mean_rank_held_out, ".2f"),
            f"{row.n_reached} of {row.n_runs}",
            number(row.seconds_to_best, ".3g"),
            number(row.seconds, ".3g"),
            str(row.n_failed),
            str(row.n_not_converged),
            number(row.warm_up, ".2g"),
        )
        for row in sorted(summary.standings, key=lambda row: (row.mean_rank is None, row.mean_rank))
    ]
    return TextTable("Methods", headers, rows)


def optima_table(summary: Summary) -> TextTable:
    """The best known per data set and K."""
    headers = ("data", "K", "best log posterior", "found by", "best ELBO", "found by")
    rows = [
        (
            best.data,
            str(best.n_components),
            number(best.log_posterior, ".4f"),
            ", ".join(best.log_posterior_by),
            number(best.elbo, ".2f"),
            ", ".join(best.elbo_by),
        )
        for best in summary.optima
    ]
    return TextTable("Best known optima", headers, rows)


def cells_table(summary: Summary) -> TextTable:
    """A row per cell, which links to its report."""
    headers = ("cell", "data", "K", "seed", "state", "failed methods", "time (s)", "reason")
    rows = [
        (
            name_of(one),
            one.cell.data,
            str(one.cell.n_components),
            str(one.cell.seed),
            one.state,
            ", ".join(run.method for run in one.runs if run.failure is not None),
            number(one.seconds, ".1f"),
            one.failure or "",
        )
        for one in summary.outcomes
    ]
    return TextTable("Cells", headers, rows)


def runs_table(summary: Summary) -> TextTable:
    """A row per method and cell."""
    headers = (
        "cell", "method", "log posterior", "gap (nats)", "ELBO", "ELBO gap", "held out", "rank", f"s to {REACHED} nat",
        "time (s)", "ended",
    )  # fmt: skip
    rows = [
        (
            name_of(one),
            run.method,
            number(run.log_posterior, ".4f"),
            number(run.gap, ".2g"),
            number(run.elbo, ".2f"),
            number(run.elbo_gap, ".2g"),
            number(run.held_out, ".4f"),
            number(run.rank, ".3g"),
            number(run.seconds_to_best, ".3g"),
            number(run.seconds, ".3g"),
            f"failed: {run.failure}" if run.failure is not None else run.reason,
        )
        for one in summary.outcomes
        for run in one.runs
    ]
    return TextTable("All fits", headers, rows)


def name_of(outcome: Outcome) -> str:
    """A cell's name, which is also its folder's."""
    return outcome.cell.name


def alternatives(summary: Summary) -> dict[str, str]:
    """Descriptions of the figures, for readers who do not see them."""
    gaps = ", ".join(
        f"{row.method} {number(worst, '.2g') or 'none'}"
        for row in summary.standings
        for worst in [max((gap for gap in gaps_of(summary, row.method)), default=None)]
    )
    shares = ", ".join(
        f"{row.method} {row.n_reached} of {row.n_runs}, median {number(row.seconds_to_best, '.2g') or 'no'} s"
        for row in summary.standings
    )
    return {
        "reached": f"Share of fits within {REACHED} nat of the best known against wall time, by method. {shares}.",
        "gaps": f"Gap of every fit to the best known optimum, by method and cell. Largest gaps in nats: {gaps}.",
    }


def gaps_of(summary: Summary, method: str) -> list[float]:
    """Gaps of a method's fits, on the scale of its own objective."""
    runs = [run for one in summary.outcomes for run in one.runs if run.method == method]
    gaps = [run.elbo_gap if run.elbo is not None else run.gap for run in runs]
    return [gap for gap in gaps if gap is not None]
