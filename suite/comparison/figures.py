"""Figures: each function draws one on a matplotlib Axes (a new one where none is given) and returns it.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; methods differ by marker as well.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from zipmix.comparison.plates import plot_plates
from zipmix.comparison.verdict import interval
from zipmix.counts.store import as_dense
from zipmix.inference.registry import ABOUT
from zipmix.inference.restarts import Restarts
from zipmix.inference.result import Fit
from zipmix.models.cells import log_pmf
from zipmix.models.parameters import Parameters

if TYPE_CHECKING:
    from zipmix.comparison.comparison import Comparison

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#7F7F7F", "#B8A800")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")

# Gaps to an optimum below this, in nats, are drawn at it: they are rounding.
SMALLEST_GAP = 1e-8

# Parameters in a forest plot and columns in a figure of zeros beyond which nothing can be read.
FOREST_ROWS = 36
ZERO_COLUMNS = 30
ROOTOGRAMS = 12

# Counts that a rootogram shows, from 0 on.
ROOTOGRAM_BARS = 200


def plot_objective(fits: Mapping[str, Fit], ax: Axes | None = None) -> Axes:
    """How far each method still was from its best objective after so much wall time.

    Log posterior for point methods and samplers (mean of the chains, to the best of all methods); ELBO for variational
    methods, to their own best, since an ELBO and a log posterior are no one scale.

    Args:
        fits: by method.
    """
    ax = ax or _axes(6.4, 4.0)
    posterior = [f.trace.max().item() for f in fits.values() if not f.variational and f.trace.numel()]
    best = max(posterior, default=0.0)
    for number, (name, f) in enumerate(fits.items()):
        if not ABOUT[name].has_trace:
            continue
        trace_T = f.trace.mean(0) if f.trace.ndim == 2 else f.trace
        if f.objective_error > 0:
            trace_T = running_median(trace_T)
        target = max(trace_T.max().item(), f.objective) if f.variational else best
        seconds = f.trace_seconds.double().clone().numpy()
        if len(seconds) > 1:
            seconds[0] = seconds[1] / 2
        gap = (target - trace_T).clamp_min(SMALLEST_GAP).numpy()
        label = f"{name} (ELBO)" if f.variational else name
        every = max(1, len(gap) // 8)
        ax.loglog(seconds, gap, **_look(number), lw=1.4, ms=4.5, markevery=every, label=label, alpha=0.9)
    ax.set(xlabel="wall time (s)", ylabel="gap to the best objective (nats)")
    ax.legend()
    return ax


def plot_restarts(restarts: Restarts, ax: Axes | None = None) -> Axes:
    """The objective of every run against iterations, as the gap to the best of them (question 4c).

    Runs are the starts and the moves after them; dotted ones were left behind by a race.

    Args:
        restarts: of a fit.
    """
    ax = ax or _axes(6.4, 4.0)
    best = restarts.objective_R.max()
    gap_TR = (best - restarts.trace_TR).clamp_min(SMALLEST_GAP).numpy()
    reached, left = restarts.best_R, restarts.left_R & ~restarts.best_R
    for r, gap_T in enumerate(gap_TR.T):
        colour = COLOURS[0] if bool(reached[r]) else "#9A9A9A"
        ax.semilogy(gap_T, color=colour, lw=0.9, alpha=0.8, ls=":" if bool(left[r]) else "-")
    ax.plot([], [], color=COLOURS[0], label=f"reached the best optimum ({int(reached.sum())})")
    ax.plot([], [], color="#9A9A9A", label=f"ended at another one ({int((~reached & ~left).sum())})")
    if bool(left.any()):
        ax.plot([], [], color="#9A9A9A", ls=":", label=f"left behind ({int(left.sum())})")
    ax.set(xlabel="iteration", ylabel="gap to the best objective (nats)")
    ax.legend()
    return ax


def plot_affinity(affinity: Tensor, component: Tensor | None = None, ax: Axes | None = None) -> Axes:
    """P(z_i = z_j | X) as a heatmap, 0 white and 1 dark (question 4b).

    Args:
        affinity: (N, N).
        component: (N,) components in the order of the rows, whose edges are drawn.
    """
    ax = ax or _axes(4.2, 4.0)
    ax.imshow(affinity.numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    if component is not None:
        for edge in (component[1:] != component[:-1]).nonzero().flatten().tolist():
            ax.axhline(edge + 0.5, color="#D55E00", lw=0.6)
            ax.axvline(edge + 0.5, color="#D55E00", lw=0.6)
    ax.set(xlabel="row", ylabel="row", xticks=[], yticks=[])
    return ax


def plot_forest(
    points: Mapping[str, Parameters],
    draws: Mapping[str, Parameters],
    names: Sequence[str],
    parameter: str,
    ax: Axes | None = None,
) -> Axes:
    """A parameter of every component and column by every method: points, and 95 % intervals where there are draws.

    Args:
        points: by method, components in one order.
        draws: by method, in the same order.
        names: D names of columns.
        parameter: "omega" or "lam".
    """
    first: Tensor = getattr(next(iter(points.values())), parameter)
    K = len(first)
    shown_D = _telling(points, max(1, FOREST_ROWS // K))
    rows = [(k, d) for k in range(K) for d in shown_D]
    ax = ax or _axes(6.0, 1.2 + 0.3 * len(rows))
    for number, name in enumerate(points):
        at = np.arange(len(rows)) + (number - (len(points) - 1) / 2) * 0.7 / len(points)
        value = np.array([getattr(points[name], parameter)[k, d].item() for k, d in rows])
        look = _look(number) | {"ls": "none"}
        if name in draws:
            low_KD, high_KD = interval(getattr(draws[name], parameter))
            low = np.array([low_KD[k, d].item() for k, d in rows])
            high = np.array([high_KD[k, d].item() for k, d in rows])
            middle = getattr(draws[name], parameter).flatten(0, 1).median(0).values
            value = np.array([middle[k, d].item() for k, d in rows])
            ax.hlines(at, low, high, color=look["color"], lw=1.4)
        ax.plot(value, at, **look, ms=4, label=name)
    for k in range(1, K):
        ax.axhline(k * len(shown_D) - 0.5, color="#BBBBBB", lw=0.7)
    ax.set_yticks(range(len(rows)), [f"{k}  {_short(names[d])}" for k, d in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    if parameter == "lam":
        ax.set(xscale="log", xlabel=r"$\lambda_{kd}$, Poisson rate (counts)")
    else:
        ax.set(xlim=(-0.03, 1.03), xlabel=r"$\omega_{kd}$, share of the Poisson part")
    ax.set_ylabel("component and column")
    ax.legend()
    return ax


def plot_zeros(
    observed: Tensor,
    predicted: Mapping[str, Tensor],
    intervals: Mapping[str, Tensor],
    names: Sequence[str],
    ax: Axes | None = None,
) -> Axes:
    """Share of zeros per column as observed and as each method predicts it for a new table.

    Args:
        observed: (D,)
        predicted: (D,) by method.
        intervals: (2, D) of a replicated table, for methods with draws.
        names: D names of columns.
    """
    shown = _spaced(len(observed))
    ax = ax or _axes(max(5.0, 1.6 + 0.55 * len(shown)), 4.0)
    at = np.arange(len(shown))
    ax.hlines(observed.numpy()[shown], at - 0.38, at + 0.38, color="#222222", lw=2, label="observed")
    for number, (name, share) in enumerate(predicted.items()):
        x = at + (number - (len(predicted) - 1) / 2) * 0.6 / len(predicted)
        look = _look(number) | {"ls": "none"}
        if name in intervals:
            ax.vlines(x, *intervals[name].numpy()[:, shown], color=look["color"], lw=1.2)
        ax.plot(x, share.numpy()[shown], **look, ms=4.5, label=name)
    ax.set_xticks(at, [_short(names[d]) for d in shown], rotation=30 if len(shown) < 12 else 90, ha="right")
    ax.set(ylabel="share of zeros", xlabel="column")
    ax.legend()
    return ax


def plot_rootogram(fit: Fit, column: int, ax: Axes | None = None) -> Axes:
    """Hanging rootogram of one column: square roots of expected frequencies, with the observed ones hung from them.

    Kleiber and Zeileis (2016). Bars that miss the axis show counts that the model makes too rare or too frequent.
    Counts go up to the 99 % quantile of the column, and below 200.

    Args:
        fit: whose parameters predict.
        column: number of the column.
    """
    ax = ax or _axes(6.0, 3.6)
    x_N = as_dense(fit.X)[:, column]
    x_N = x_N[~x_N.isnan()]
    last = min(int(np.quantile(x_N.numpy(), 0.99)) + 2, ROOTOGRAM_BARS) if len(x_N) else 1
    counts = torch.arange(last, dtype=torch.float64)
    pi, omega, lam = fit.parameters
    p_KM = log_pmf(Parameters(pi, omega[:, column, None], lam[:, column, None]), counts).exp()
    expected = (len(x_N) * (pi[:, None] * p_KM).sum(0)).sqrt().numpy()
    observed = torch.bincount(x_N[x_N < last].long(), minlength=last).double().sqrt().numpy()
    ax.bar(counts.numpy(), observed, bottom=expected - observed, width=0.85, color="#B9CCE0", ec="#5F7F9F", lw=0.5)
    ax.plot(counts.numpy(), expected, "o-", color=COLOURS[4], ms=3.5, lw=1.3, label="expected")
    ax.axhline(0, color="#222222", lw=1)
    ax.set(xlabel=_short(fit.names[column]), ylabel=r"$\sqrt{\mathrm{frequency}}$")
    ax.legend()
    return ax


def plot_counts(X: Tensor, order: Tensor | None = None, ax: Axes | None = None) -> Axes:
    """The table as a heatmap on the scale of log(1 + x); missing cells are hatched grey.

    Args:
        X: (N, D) counts, NaN where missing.
        order: (N,) in which to draw the rows.
    """
    ax = ax or _axes(5.0, 4.2)
    table = X if order is None else X[order]
    image = ax.imshow(torch.log1p(table).numpy(), aspect="auto", cmap="viridis", interpolation="nearest")
    ax.set_facecolor("#BBBBBB")
    ax.figure.colorbar(image, ax=ax, label="log(1 + count)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="column", ylabel="row")
    return ax


def plot_structural_zeros(fit: Fit, ax: Axes | None = None) -> Axes:
    """Zeros of every column, cut into structural ones (b = 0) and zeros that the Poisson part gave.

    Args:
        fit: with its data.
    """
    X_ND = as_dense(fit.X)
    shown = _spaced(X_ND.shape[1])
    ax = ax or _axes(min(12.0, max(4.5, 1.6 + 0.5 * len(shown))), 3.6)
    at, observed = np.arange(len(shown)), (~X_ND.isnan()).sum(0).clamp_min(1).numpy()[shown]
    zero_ND = X_ND == 0
    structural = torch.where(zero_ND, fit.structural_zeros(), 0.0).sum(0).numpy()[shown] / observed
    zeros = zero_ND.sum(0).numpy()[shown] / observed
    ax.bar(at, structural, color=COLOURS[0], label="structural")
    ax.bar(at, zeros - structural, bottom=structural, color=COLOURS[1], label="of the Poisson part")
    ax.set_xticks(at, [_short(fit.names[d]) for d in shown], rotation=30 if len(shown) < 12 else 90, ha="right")
    ax.set(ylabel="share of the column", xlabel="column", ylim=(0, 1))
    ax.legend()
    return ax


def comparison_figures(comparison: "Comparison") -> dict[str, Figure]:
    """The figures of a report, by name."""
    c = comparison
    reference = c.fits[c.reference]
    figures = {"counts": _figure(plot_counts(c.data.X_ND, c.coclustering.rows, _axes(6.0, 3.6)))}
    if any(ABOUT[name].has_trace for name in c.fits):
        figures["objective"] = _figure(plot_objective(c.fits))
    if c.restarts_to_plot is not None:
        figures["restarts"] = _figure(plot_restarts(c.restarts_to_plot[1]))
    figures["coclustering"] = _coclustering_figure(c)
    figures["forest"] = _forest_figure(c)
    figures["zeros"] = _figure(plot_zeros(c.zeros.observed_D, c.zeros.predicted, c.zeros.intervals, c.data.names))
    figures["structural"] = _figure(plot_structural_zeros(reference))
    figures["rootograms"] = _rootogram_figure(reference)
    figures["model"] = _figure(plot_plates())
    return figures


def _rootogram_figure(fit: Fit) -> Figure:
    shown = _telling({fit.method: fit.parameters}, ROOTOGRAMS)
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.3 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat[len(shown) :]:
        ax.set_axis_off()
    for number, (ax, d) in enumerate(zip(axes.flat, shown, strict=False)):
        plot_rootogram(fit, d, ax)
        if number % columns:
            ax.set_ylabel("")
        if number:
            ax.get_legend().remove()
    return figure


def _coclustering_figure(c: "Comparison") -> Figure:
    n = len(c.coclustering.affinity)
    columns = min(n, 3)
    rows = -(-n // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 3.3 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    for ax, (name, affinity) in zip(axes.flat, c.coclustering.affinity.items(), strict=False):
        plot_affinity(affinity, c.coclustering.component_J, ax).set_title(name)
    return figure


def _forest_figure(c: "Comparison") -> Figure:
    K, D = next(iter(c.matched.values())).omega.shape
    rows = K * min(D, max(1, FOREST_ROWS // K))
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 1.4 + 0.32 * rows), sharey=True, layout="constrained")
    for ax, parameter in zip(axes, ("omega", "lam"), strict=True):
        plot_forest(c.matched, c.matched_draws, c.data.names, parameter, ax)
    axes[1].set_ylabel("")
    handles, labels = axes[0].get_legend_handles_labels()
    for ax in axes:
        ax.get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _spaced(n_columns: int) -> np.ndarray:
    """Numbers of columns to show, evenly spaced where there are too many to read."""
    return np.linspace(0, n_columns - 1, min(n_columns, ZERO_COLUMNS)).round().astype(int)


def _telling(points: Mapping[str, Parameters], n: int) -> list[int]:
    """The n columns in which components differ most, in the order of the table."""
    first = next(iter(points.values()))
    spread_D = (first.omega * first.lam).log1p().var(0, correction=0)
    return sorted(spread_D.argsort(descending=True)[:n].tolist())


def running_median(trace_T: Tensor, width: int = 25) -> Tensor:
    """The median of the last entries at every step: what a noisy trace says."""
    padded = torch.cat([trace_T[:1].expand(width - 1), trace_T])
    return padded.unfold(0, width, 1).median(-1).values


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def _short(name: str) -> str:
    """A name that fits on an axis and is no formula."""
    return (name if len(name) <= 16 else name[:15] + "…").replace("$", r"\$")


def _axes(width: float, height: float) -> Axes:
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    return ax


def _figure(ax: Axes) -> Figure:
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure
