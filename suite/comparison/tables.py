"""The tables of a comparison as text: for the page, the terminal, and files in CSV, Markdown and LaTeX (booktabs)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from zipmix.comparison.verdict import interval

if TYPE_CHECKING:
    from zipmix.comparison.comparison import Comparison


class TextTable(NamedTuple):
    """Headers and rows of text; the first column names the row."""

    caption: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def comparison_tables(comparison: "Comparison") -> dict[str, TextTable]:
    """All tables of a report, by name; those with nothing to say are left out."""
    made = {
        "methods": methods_table(comparison),
        "predictions": predictions_table(comparison),
        "evidence": evidence_table(comparison),
        "restarts": restarts_table(comparison),
        "columns": columns_table(comparison),
        "parameters": parameters_table(comparison),
    }
    return {name: table for name, table in made.items() if table.rows}


def methods_table(c: "Comparison") -> TextTable:
    """Optimum, agreement, mixing and cost of every method; those that failed stand last."""
    known = c.data.labels is not None
    rows: list[tuple[str, ...]] = [
        (
            row.method,
            f"{row.log_posterior:.4f}",
            f"{row.gap:.2g}",
            number(row.elbo, ".2f"),
            number(row.agreement, ".3f"),
            *((number(row.label_agreement, ".3f"),) if known else ()),
            number(row.rhat_raw, ".3f"),
            number(row.rhat_matched, ".3f"),
            number(row.ess_per_second, ".3g"),
            f"{row.seconds:.2f}",
            number(c.memory[row.method] / 2**20 if row.method in c.memory else None, ".0f"),
            "yes" if row.converged else "no",
        )
        for row in c.summaries
    ]
    headers = (
        "method",
        "log posterior",
        "gap (nats)",
        "ELBO",
        "ARI",
        *(("ARI labels",) if known else ()),
        "R-hat",
        "matched",
        "ESS/s",
        "time (s)",
        "memory (MiB)",
        "converged",
    )
    rows += [(name, *[""] * (len(headers) - 2), "failed") for name in c.failures]
    return TextTable("Methods", headers, rows)


def predictions_table(c: "Comparison") -> TextTable:
    """Log scores out of sample: PSIS-LOO, and held-out rows and cells."""
    rows = []
    for row in c.summaries:
        held = c.scores.get(row.method)
        if row.loo is None and held is None:
            continue
        scored = [held.rows, held.cells] if held else [None, None]
        rows.append(
            (
                row.method,
                f"{row.loo.elpd:.1f} ± {row.loo.se:.1f}" if row.loo else "",
                str(row.loo.n_bad) if row.loo else "",
                *(f"{part.mean:.4f} ± {part.error:.4f}" if part else "" for part in scored),
            )
        )
    return TextTable("Predictions", ("method", "elpd LOO", "k > 0.7", "held-out rows", "held-out cells"), rows)


def evidence_table(c: "Comparison") -> TextTable:
    """Estimates of log p(X | K, prior)."""
    rows = [
        (name, f"{found.log_evidence:.2f}", f"{found.error:.2g}" if found.error else "", found.reason)
        for name, found in c.evidence.items()
    ]
    return TextTable("Evidence", ("estimate", "log evidence", "standard error", "how"), rows)


def restarts_table(c: "Comparison") -> TextTable:
    """What the runs of every method with several of them came to: its starts, and the moves after them.

    The median, the worst and the iterations are those of the runs that were not left behind.
    """
    rows = []
    for name, fitted in c.fits.items():
        restarts = fitted.restarts
        if restarts is None or len(restarts.objective_R) < 2:
            continue
        objective_R = restarts.objective_R[~restarts.left_R]
        rows.append(
            (
                name,
                str(int((restarts.round_R == 0).sum())),
                str(int((restarts.round_R > 0).sum())),
                str(len(objective_R)),
                str(restarts.n_best),
                f"{objective_R.max().item():.4f}",
                f"{objective_R.median().item():.4f}",
                f"{objective_R.min().item():.4f}",
                f"{restarts.n_iter_R[~restarts.left_R].double().median().item():.0f}",
            )
        )
    columns = ("method", "starts", "moves", "ran to the end", "reached the best", "best", "median", "worst")
    return TextTable("Restarts", (*columns, "median iterations"), rows)


def columns_table(c: "Comparison") -> TextTable:
    """The columns of the data at a glance."""
    rows = []
    X_ND = c.data.X_ND
    for d, name in enumerate(c.data.names):
        x_N = X_ND[:, d]
        x_N = x_N[~x_N.isnan()]
        missing = len(X_ND) - len(x_N)
        if not len(x_N):
            rows.append((name, "", "", "", "", "", str(missing)))
            continue
        mean, variance = x_N.mean().item(), x_N.var(correction=0).item()
        rows.append(
            (
                name,
                f"{mean:.3f}",
                f"{variance:.3f}",
                f"{math.exp(-mean):.3f}",
                f"{(x_N == 0).double().mean().item():.3f}",
                f"{x_N.max().item():.0f}",
                str(missing),
            )
        )
    headers = ("column", "mean", "variance", "zeros by one Poisson", "zeros", "largest", "missing")
    return TextTable("Columns", headers, rows)


def parameters_table(c: "Comparison") -> TextTable:
    """Weight, omega and lambda of every component and column by every method, with intervals where there are draws."""
    rows = []
    for method, theta in c.matched.items():
        draws = c.matched_draws.get(method)
        edges = None if draws is None else [interval(value) for value in draws]
        for k in range(c.n_components):
            for d, name in enumerate(c.data.names):
                values = (theta.pi[k], theta.omega[k, d], theta.lam[k, d])
                cells = []
                for place, (value, form) in enumerate(zip(values, (".4f", ".4f", ".4g"), strict=True)):
                    cells.append(format(value.item(), form))
                    index = (k,) if place == 0 else (k, d)
                    cells.append(
                        "" if edges is None else " – ".join(format(edge[index].item(), form) for edge in edges[place])
                    )
                rows.append((method, str(k), name, *cells))
    headers = (
        "method",
        "component",
        "column",
        "weight",
        "weight 95 %",
        "omega",
        "omega 95 %",
        "lambda",
        "lambda 95 %",
    )
    return TextTable("Parameters", headers, rows)


def as_csv(table: TextTable) -> str:
    """The table as CSV."""
    return _frame(table).to_csv(index=False)


def as_markdown(table: TextTable) -> str:
    """The table in GitHub's Markdown."""
    lines = [table.headers, ("---",) + ("---:",) * (len(table.headers) - 1), *table.rows]
    return "\n".join("| " + " | ".join(_markdown(cell) for cell in line) + " |" for line in lines) + "\n"


def as_latex(table: TextTable) -> str:
    """The table in LaTeX, with the rules of booktabs."""
    frame = _frame(table)
    alignment = "l" + "r" * (len(table.headers) - 1)
    styler = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    text: str = styler.to_latex(hrules=True, column_format=alignment, caption=table.caption)
    for sign, written in LATEX.items():
        text = text.replace(sign, written)
    return text


# Signs that LaTeX prints as others in its default font encoding, or does not know.
LATEX = {"±": "$\\pm$", "–": "--", "<": "$<$", ">": "$>$", "|": "$|$"}


def number(value: float | None, form: str) -> str:
    """A number as text; nothing where there is none."""
    return "" if value is None or math.isnan(value) else format(value, form)


def _frame(table: TextTable) -> pd.DataFrame:
    return pd.DataFrame(table.rows, columns=list(table.headers))


def _markdown(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
