"""Figures of a study: who reached the best optimum and when, and how far from it every fit ended."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zipmix.comparison.figures import COLOURS, MARKERS, SMALLEST_GAP
from zipmix.study.summary import REACHED, Summary


def study_figures(summary: Summary) -> dict[str, Figure]:
    """The figures of a study's page, by name; none where nothing has been run."""
    if not any(one.runs for one in summary.outcomes):
        return {}
    figures = {}
    for name, plot, height in (
        ("reached", plot_reached, 4.2),
        ("gaps", plot_gaps, 1.4 + 0.75 * len(summary.standings)),
    ):
        figures[name], ax = plt.subplots(figsize=(8.4, height), layout="constrained")
        plot(summary, ax)
    return figures


def plot_reached(summary: Summary, ax: Axes) -> Axes:
    """Share of a method's fits within 0.1 nat of the best known after so much wall time; failures never get there."""
    runs = [run for one in summary.outcomes for run in one.runs]
    times = [run.seconds_to_best for run in runs if run.seconds_to_best is not None]
    first, last = min(times, default=1.0), max((run.seconds for run in runs if run.seconds is not None), default=1.0)
    edges = max(first, 1e-4) / 2, max(last, first) * 1.2
    for number, method in enumerate(summary.study.methods):
        own = [run.seconds_to_best for run in runs if run.method == method]
        at = np.sort([max(second, 1e-4) for second in own if second is not None])
        share = np.arange(1, len(at) + 1) / len(own)
        x, y = (
            np.concatenate([[edges[0]], at, [edges[1]]]),
            np.concatenate([[0], share, share[-1:] if len(at) else [0]]),
        )
        ax.step(x, y, where="post", color=COLOURS[number % len(COLOURS)], lw=1.8, label=method)
        ax.plot(at, share, MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)], ms=5)
    ax.set(
        xscale="log",
        xlim=edges,
        ylim=(-0.02, 1.05),
        xlabel="wall time since the first iteration (s)",
        ylabel=f"share of fits within {REACHED} nat of the best",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def plot_gaps(summary: Summary, ax: Axes) -> Axes:
    """Gap of every fit to the best known optimum, a row per method, cells side by side within it."""
    n = len(summary.outcomes)
    for number, method in enumerate(summary.study.methods):
        for place, one in enumerate(summary.outcomes):
            height = number + (0.6 * (place / max(n - 1, 1) - 0.5) if n > 1 else 0.0)
            for run in one.runs:
                if run.method != method:
                    continue
                gap = run.elbo_gap if run.elbo is not None else run.gap
                look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "ms": 6, "alpha": 0.85}
                if gap is not None:
                    ax.plot(max(gap, SMALLEST_GAP), height, MARKERS[number % len(MARKERS)], **look)
                else:
                    ax.plot(0.99, height, "x", color="#D55E00", ms=6, mew=2, transform=ax.get_yaxis_transform())
    ax.axvline(REACHED, color="#555555", lw=1, ls="--")
    ax.set(
        xscale="log", xlabel="gap to the best known (nats); ELBO for variational methods; dashed: 0.1 nat; x: failed"
    )
    ax.set_yticks(range(len(summary.study.methods)), summary.study.methods)
    ax.set_ylim(len(summary.study.methods) - 0.5, -0.5)
    ax.grid(axis="x", color="#DDDDDD", lw=0.6)
    return ax
