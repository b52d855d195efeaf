"""How the seconds of a pass grow with N, D, K and density: log-log curves with the exponents fitted to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from harness import Finding, Outcome, in_turns, seconds, spread, versions
from passes import counted, drawn
from record import RESULTS

from zipmix.models.kernel import expectation, logs

Sizes = dict[str, dict[str, Sequence[float]]]  # of each axis: what varies, and what is fixed

FIGURE = "scaling.png"
AXES: Sizes = {
    "N": dict(n=(12_500, 50_000, 200_000), d=(100,), k=(20,)),
    "D": dict(n=(50_000,), d=(25, 50, 100, 200, 400), k=(20,)),
    "K": dict(n=(50_000,), d=(100,), k=(5, 10, 20, 40, 80)),
    # Wide enough for products with the non-zeros to outweigh the softmax, which no zero shortens.
    "density": dict(n=(5_000,), d=(4_000,), k=(40,), density=(0.01, 0.03, 0.1, 0.3)),
}
LETTER = {"N": "n", "D": "d", "K": "k", "density": "density"}


def scaling(
    axes: dict[str, dict[str, Sequence[float]]] | None = None, repeats: int = 5, folder: Path = RESULTS
) -> Outcome:
    """Seconds of a pass along each axis, the others fixed; draws the figure into the folder."""
    rows, exponents = [], {}
    for axis, sizes in (axes or AXES).items():
        values = sizes[LETTER[axis]]
        fixed = {name: size[0] for name, size in sizes.items() if name != LETTER[axis]}
        runs = {}
        for value in values:
            X, theta = drawn(**fixed, **{LETTER[axis]: value})
            arguments = counted(sp.csr_array(X) if axis == "density" else X), logs(theta)
            runs[str(value)] = lambda arguments=arguments: seconds(lambda: expectation(*arguments))
        times = in_turns(runs, repeats)
        where = ", ".join(f"{name.upper() if len(name) == 1 else name} = {size:,}" for name, size in fixed.items())
        points = [
            {
                "along": axis,
                "value": value,
                **spread(times[str(value)]),
                "fixed": f"{where}, {'sparse' if axis == 'density' else 'dense'}",
                "versions": versions(("zipmix", "torch", "scipy")),
            }
            for value in values
        ]
        exponents[axis] = exponent(points)[0]
        rows += points
    draw(rows, folder / FIGURE)
    return Outcome(
        "Scaling: seconds of a pass along N, D, K and density",
        rows,
        [Finding(f"exponent of {axis}", value) for axis, value in exponents.items()],
        (
            "An exponent is below 1 where work that does not grow along its axis has a part in the time: filling a"
            " chunk with [X, 1[X > 0]] along K, the softmax along D and density.",
            f"![Seconds of a pass against N, D, K and density]({FIGURE})",
        ),
    )


def exponent(points: list[dict[str, Any]]) -> tuple[float, float]:
    """Slope and intercept of log seconds on log value, by least squares."""
    slope, intercept = np.polyfit(*(np.log([point[key] for point in points]) for key in ("value", "median_s")), 1)
    return float(slope), float(intercept)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The points of each axis with the quartiles and the fitted line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    names = list(dict.fromkeys(row["along"] for row in rows))
    figure = Figure(figsize=(3 * len(names), 3.4), layout="constrained")
    for axes, name in zip(np.ravel(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        points = [row for row in rows if row["along"] == name]
        values, medians = (np.array([point[key] for point in points]) for key in ("value", "median_s"))
        low, high = np.array([point["quartiles_s"] for point in points]).T
        slope, intercept = exponent(points)
        axes.errorbar(values, medians, (medians - low, high - medians), fmt="o", label="median, quartiles")
        axes.plot(values, np.exp(intercept) * values**slope, "--", label=f"{name}$^{{\\,{slope:.2f}}}$")
        axes.set(xscale="log", yscale="log", xlabel=name, title=points[0]["fixed"])
        axes.title.set_fontsize(9)
        axes.set_xticks(values, [f"{value:g}" if value < 1e4 else f"{value / 1e3:g}k" for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    figure.axes[0].set_ylabel("seconds of a pass")
    figure.savefig(path, dpi=120)
