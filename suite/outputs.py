"""What the command line prints, and files written whole or not at all."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zipmix.counts.checks import InputError
from zipmix.counts.whole_file import write_whole

if TYPE_CHECKING:
    from rich.console import Group

    from zipmix.comparison.comparison import Comparison
    from zipmix.inference.result import Fit

# Columns of a table that are printed beside one another.
PRINTED_COLUMNS = 12

# What of the table of methods fits in a terminal; the report has all of it.
PRINTED_HEADERS = ("method", "log posterior", "gap (nats)", "ELBO", "matched", "time (s)", "converged")


def refuse_files(paths: Sequence[Path | None], *, overwrite: bool) -> None:
    """Refuses files that cannot be written, before any work is done; None stands for a file that is not requested.

    Raises:
        InputError: one exists or is a folder, its folder cannot be written, or two are the same.
    """
    requested = [path for path in paths if path is not None]
    for number, path in enumerate(requested):
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file.")
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already; choose another name, or add --overwrite.")
        if path.resolve() in [other.resolve() for other in requested[:number]]:
            raise InputError(f"{path} is to be written twice; give each file a name of its own.")
        _refuse_place(path)


def refuse_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuses a folder that a comparison cannot be written to, before any work is done.

    Raises:
        InputError: it is a file, holds anything without overwrite or anything but a comparison with it, or lies where
            nothing can be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"folder: {folder} is a file; choose a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise InputError(f"folder: {folder} exists already; choose another folder, or add --overwrite.")
        if not (folder / "comparison.json").is_file():
            raise InputError(f"folder: {folder} holds no comparison, so it is not replaced; choose another folder.")
    _refuse_place(folder)


def _refuse_place(path: Path) -> None:
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    try:
        # The only way to know is to try: not every file system says what it allows.
        os.rmdir(tempfile.mkdtemp(dir=parent))
    except OSError:
        raise InputError(f"{path} cannot be written in {parent}; choose another place.") from None


def write_csv(path: Path, frame: Any) -> None:
    """Writes a pandas frame as CSV; the index only where it has a name."""
    write_whole(path, lambda place: frame.to_csv(place, index=frame.index.name is not None))


def fit_summary(fit: "Fit") -> "Group":
    """A fit in a terminal: how it ended, and its components."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    word = "ELBO" if fit.variational else "log posterior"
    state = "converged" if fit.converged else "not converged"
    head = f"{fit.method}: {word} {fit.objective:.6f}, {state} after {fit.n_iter} iterations, {fit.seconds:.2f} s"
    lines: list[Any] = [Text(head, style="bold"), Text(fit.reason)]
    if fit.restarts is not None and len(fit.restarts.objective_R) > 1:
        lines.append(Text(fit.restarts.summary()))
    pi, omega, lam = fit.parameters
    shown = range(min(len(fit.names), PRINTED_COLUMNS))
    for title, value, form in (
        ("omega, share of the Poisson part", omega, "{:.3f}"),
        ("lambda, Poisson rate", lam, "{:.3g}"),
    ):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("component", justify="right")
        table.add_column("weight", justify="right")
        for d in shown:
            table.add_column(Text(fit.names[d]), justify="right")
        for k in range(fit.n_components):
            table.add_row(str(k), f"{pi[k]:.3f}", *(form.format(value[k, d].item()) for d in shown))
        lines += [Text(), table]
    if len(fit.names) > PRINTED_COLUMNS:
        lines.append(Text(f"... and {len(fit.names) - PRINTED_COLUMNS} more columns: --save keeps them all"))
    return Group(*lines)


def comparison_table(comparison: "Comparison") -> "Group":
    """A comparison in a terminal: the verdict, and a row per method."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from zipmix.comparison.tables import methods_table

    _, headers, rows = methods_table(comparison)
    shown = [number for number, header in enumerate(headers) if header in PRINTED_HEADERS]
    table = Table(box=None, pad_edge=False)
    for number in shown:
        table.add_column(headers[number], justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[number] for number in shown))
    verdict = [Text(f"• {sentence}") for sentence in comparison.verdict.sentences]
    return Group(*verdict, Text(), table)
