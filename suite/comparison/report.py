"""A comparison as one folder: report.html, comparison.json, fits/*.nc, the figures and the tables.

report.html is one file: styles, figures and numbers inside, readable without network or script.
"""

import base64
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zipmix.comparison.comparison import Comparison, assemble
from zipmix.comparison.held_out import HeldOut, Score
from zipmix.comparison.tables import as_csv, as_latex, as_markdown, comparison_tables
from zipmix.comparison.verdict import LEVEL, interval
from zipmix.counts.checks import InputError
from zipmix.files.data import Data
from zipmix.models.parameters import Parameters, Prior
from zipmix.outputs import refuse_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1

# Matplotlib settings of every figure.
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "svg.hashsalt": "zipmix",
    "savefig.facecolor": "white",
}


def write_report(comparison: Comparison, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a comparison as a folder, all of it or nothing.

    Args:
        comparison: what `zipmix.compare` returned.
        folder: where to write; made with its parents.
        overwrite: whether a comparison that the folder holds may be replaced; other files in it stay.
    Returns:
        The path of report.html.
    Raises:
        InputError: the folder exists, or cannot be written.
    """
    from zipmix.comparison.figures import comparison_figures

    folder = Path(folder)
    refuse_folder(folder, overwrite=overwrite)
    place = folder.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        fresh = scratch / "new"
        (fresh / "fits").mkdir(parents=True)
        for name, fitted in comparison.fits.items():
            fitted.save(fresh / "fits" / f"{name}.nc")
        pictures = draw(lambda: comparison_figures(comparison), fresh / "figures")
        (fresh / "tables").mkdir()
        for name, table in comparison_tables(comparison).items():
            for suffix, written in ((".csv", as_csv), (".md", as_markdown), (".tex", as_latex)):
                (fresh / "tables" / f"{name}{suffix}").write_text(written(table), encoding="utf-8")
        record = as_record(comparison)
        (fresh / "comparison.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (fresh / "report.html").write_text(render(comparison, record, pictures), encoding="utf-8")
        _put(fresh, place, scratch / "old")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder / "report.html"


def _put(fresh: Path, folder: Path, old: Path) -> None:
    """Moves what is fresh into the folder and what it replaces into old; on failure everything goes back."""
    if not folder.exists():
        os.replace(fresh, folder)
        return
    old.mkdir()
    names = sorted(entry.name for entry in fresh.iterdir())
    try:
        for name in names:
            if (folder / name).exists():
                os.replace(folder / name, old / name)
            os.replace(fresh / name, folder / name)
    except BaseException:
        for name in names:
            if (folder / name).exists() and not (fresh / name).exists():
                os.replace(folder / name, fresh / name)
            if (old / name).exists():
                os.replace(old / name, folder / name)
        raise


def read_comparison(folder: str | Path) -> Comparison:
    """The comparison that a folder holds, from its fits: nothing is fitted again.

    Raises:
        InputError: the folder holds no comparison, or not its fits.
    """
    from zipmix.inference.result import load

    folder = Path(folder)
    file = folder / "comparison.json"
    if not file.is_file():
        raise InputError(f"folder: {folder} holds no comparison.json; name a folder that `zipmix compare` wrote.")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        methods = [row["method"] for row in record["methods"]]
        data = record["data"]
        prior = Prior(*(torch.tensor(record["prior"][name], dtype=torch.float64) for name in Prior._fields))
        keep = {name: record[name] for name in ("seed", "command", "seconds", "failures")}
        scores = {row["method"]: _held_out(row["held_out"]) for row in record["methods"] if row["held_out"]}
        versions, machine = record["versions"], record["machine"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"folder: {file} is not a comparison of zipmix ({error!r}).") from None
    for name in methods:
        if not (folder / "fits" / f"{name}.nc").is_file():
            raise InputError(
                f"folder: {folder} is without fits/{name}.nc, from which the report is written; make the fits again "
                f"by `{keep['command']}`."
            )
    fits = {name: load(folder / "fits" / f"{name}.nc") for name in methods}
    first = next(iter(fits.values()))
    labels = tuple(data["labels"]) if data["labels"] is not None else None
    compared = assemble(
        Data(first.X, first.names, labels, data["source"], first.row_names),
        fits,
        keep["failures"],
        prior=prior,
        seed=keep["seed"],
        command=keep["command"],
        scores=scores,
        memory={row["method"]: row["memory"] for row in record["methods"] if row["memory"] is not None},
        seconds=keep["seconds"],
    )
    return compared._replace(versions=versions, machine=machine)


def as_record(comparison: Comparison) -> dict[str, Any]:
    """Every number of a comparison as plain containers, fit for JSON: NaN and infinity become null."""
    c = comparison
    X_ND = c.data.X_ND
    return plain(
        {
            "schema": SCHEMA,
            "command": c.command,
            "seconds": c.seconds,
            "seed": c.seed,
            "versions": c.versions,
            "machine": c.machine,
            "data": {
                "source": c.data.source,
                "n_rows": X_ND.shape[0],
                "names": c.data.names,
                "labels": c.data.labels,
                "missing": int(X_ND.isnan().sum()),
                "share_of_zeros": c.zeros.observed_D,
                "mean": X_ND.nanmean(0),
                "largest": X_ND.nan_to_num(0.0).amax(0),
            },
            "n_components": c.n_components,
            "prior": c.prior._asdict(),
            "reference": c.reference,
            "verdict": c.verdict._asdict(),
            "methods": [
                {
                    **row._asdict(),
                    "loo": row.loo._asdict() if row.loo else None,
                    "settings": _settings(c.fits[row.method].settings),
                    "parameters": c.matched[row.method]._asdict(),
                    "intervals": _intervals(c.matched_draws.get(row.method)),
                    "restarts": _restarts(c, row.method),
                    "memory": c.memory.get(row.method),
                    "held_out": _scores(c.scores.get(row.method)),
                }
                for row in c.summaries
            ],
            "failures": c.failures,
            "evidence": {name: found._asdict() for name, found in c.evidence.items()},
            "zeros": {"predicted": c.zeros.predicted, "intervals": c.zeros.intervals, "level": LEVEL},
        }
    )


def render(comparison: Comparison, record: dict[str, Any], pictures: dict[str, str]) -> str:
    """report.html as text.

    Args:
        comparison: what is reported.
        record: its numbers, of as_record.
        pictures: figures as data URLs, by name.
    """
    return page(
        "report.html",
        c=comparison,
        record=record,
        pictures=pictures,
        alt=_alternatives(comparison),
        tables=comparison_tables(comparison),
    )


def page(template: str, **values: Any) -> str:
    """A template filled in; what users named is text in it, never markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("zipmix", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(**values)


def draw(figures: Callable[[], dict[str, "Figure"]], folder: Path) -> dict[str, str]:
    """Writes figures as PNG and SVG and returns them as data URLs.

    Args:
        figures: what draws them, by name, in the style of reports.
        folder: made if need be.
    """
    import matplotlib
    from matplotlib import pyplot as plt

    folder.mkdir(exist_ok=True)
    pictures = {}
    # A backend without windows, and the user's own backend and figures left as they were.
    with matplotlib.rc_context(STYLE), plt.ioff():
        backend = matplotlib.get_backend()
        plt.switch_backend("agg")
        try:
            for name, figure in figures().items():
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
                content = io.BytesIO()
                figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
                (folder / f"{name}.png").write_bytes(content.getvalue())
                pictures[name] = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
                plt.close(figure)
        finally:
            plt.switch_backend(backend)
    return pictures


def _alternatives(c: Comparison) -> dict[str, str]:
    """Descriptions of the figures, for readers who do not see them."""
    gaps = ", ".join(f"{row.method} {row.gap:.2g}" for row in c.summaries)
    times = ", ".join(f"{row.method} {row.seconds:.2f} s" for row in c.summaries)
    method, restarts = c.restarts_to_plot or ("", None)
    largest = {name: (share - c.zeros.observed_D).abs().max().item() for name, share in c.zeros.predicted.items()}
    zeros = ", ".join(f"{name} {gap:.3f}" for name, gap in largest.items())
    shares = ", ".join(f"{name} {x:.3f}" for name, x in zip(c.data.names, c.zeros.observed_D.tolist(), strict=True))
    return {
        "model": "Graphical model: pi from alpha_0; omega from a_0 and b_0; lambda from e_0 and f_0; z from pi; "
        "b from z and omega; the observed x from b, z and lambda.",
        "objective": "Gap to the best objective against wall time. At the end, gaps of the log posterior in nats: "
        f"{gaps}. Time: {times}.",
        "restarts": f"Objective of {method} against iterations: {restarts.summary()}." if restarts else "",
        "coclustering": "Heatmaps of the probability that two rows share a component, one per method: "
        f"{', '.join(c.fits)}. Adjusted Rand index with {c.reference}: "
        + ", ".join(f"{row.method} {row.agreement or 0.0:.3f}" for row in c.summaries)
        + ".",
        "forest": "omega and lambda of every component and column by every method, with 95 % intervals for "
        f"{', '.join(c.matched_draws) or 'none'}; the numbers are in the table of parameters.",
        "counts": f"Heatmap of log(1 + count), rows in the order of the components of {c.reference}; the numbers are "
        "in the table of columns.",
        "structural": f"Zeros of every column by {c.reference}, cut into structural ones and those of the Poisson "
        f"part. Shares of zeros in all: {shares}.",
        "rootograms": f"Hanging rootograms of the columns by {c.reference}: square roots of expected frequencies with "
        "the observed ones hung from them.",
        "zeros": f"Share of zeros per column, observed and predicted. Largest difference: {zeros}.",
    }


def _scores(held: HeldOut | None) -> dict[str, Any] | None:
    return None if held is None else {name: part._asdict() if part else None for name, part in held._asdict().items()}


def _held_out(record: dict[str, Any]) -> HeldOut:
    """The inverse of _scores; null was a standard error that there was not."""

    def read(part: dict[str, Any] | None) -> Score | None:
        return (
            None
            if part is None
            else Score(part["mean"], math.nan if part["error"] is None else part["error"], part["n"])
        )

    return HeldOut(read(record["rows"]), read(record["cells"]))


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the starting points, which the seed gives again."""
    return {
        name: f"{len(torch.atleast_2d(value.pi))} common starting point(s)" if isinstance(value, Parameters) else value
        for name, value in settings.items()
    }


def _intervals(draws: Parameters | None) -> dict[str, Tensor] | None:
    return None if draws is None else {name: interval(value) for name, value in draws._asdict().items()}


def _restarts(c: Comparison, method: str) -> dict[str, Any] | None:
    restarts = c.fits[method].restarts
    if restarts is None:
        return None
    return {
        "objective": restarts.objective_R,
        "n_iter": restarts.n_iter_R,
        "converged": restarts.converged_R,
        "left_behind": restarts.left_R,
        "round": restarts.round_R,
        "n_best": restarts.n_best,
    }


def plain(value: Any) -> Any:
    """Plain containers, fit for JSON: tensors as lists, NaN and infinity as None."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
