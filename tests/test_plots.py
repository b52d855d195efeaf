"""Figures show the numbers they are given: values are read back from what was drawn."""

from collections.abc import Iterator
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.patches import Circle, Rectangle
from scipy import stats

import zipmix
from zipmix.comparison.figures import SMALLEST_GAP
from zipmix.inference.result import Fit


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return zipmix.fit(zipmix.simulate(120, 3, 2, seed=8).X, 2, n_starts=5, seed=1)


def test_the_plate_diagram_has_every_variable_and_hyperparameter() -> None:
    ax = zipmix.plot_plates()
    circles = [patch for patch in ax.patches if isinstance(patch, Circle)]
    squares = [patch for patch in ax.patches if type(patch) is Rectangle]
    assert len(circles) == 6
    assert len(squares) == 5
    shaded = [circle for circle in circles if circle.get_facecolor()[:3] != (1.0, 1.0, 1.0)]
    labels = {text.get_position(): text.get_text() for text in ax.texts}
    assert [labels[circle.center] for circle in shaded] == ["$x_{id}$"]


def test_functions_draw_on_the_axes_they_are_given(fitted: Fit) -> None:
    _, (first, second, third) = plt.subplots(1, 3)
    assert fitted.restarts is not None
    assert zipmix.plot_restarts(fitted.restarts, first) is first
    assert zipmix.plot_affinity(fitted.affinity(), ax=second) is second
    assert zipmix.plot_structural_zeros(fitted, third) is third


def test_restart_curves_are_gaps_to_the_best(fitted: Fit) -> None:
    runs = fitted.restarts
    assert runs is not None
    ax = zipmix.plot_restarts(runs)
    drawn = [line for line in ax.lines if len(line.get_ydata())]
    best = runs.objective_R.max()
    for line, trace in zip(drawn, runs.trace_TR.T, strict=True):
        expected = np.maximum((best - trace).numpy(), SMALLEST_GAP)
        assert np.allclose(line.get_ydata(), expected, equal_nan=True)
    # Dotted is what was left behind and did not reach the best; the legend counts all.
    dotted = [line.get_linestyle() == ":" for line in drawn]
    assert dotted == (runs.left_R & ~runs.best_R).tolist()
    assert 0 < sum(dotted) < len(dotted)
    counted = [int(text.get_text().split("(")[1].rstrip(")")) for text in ax.get_legend().get_texts()]
    assert counted == [runs.n_best, len(drawn) - runs.n_best - sum(dotted), sum(dotted)]


def test_the_rootogram_shows_the_marginal_distribution(fitted: Fit) -> None:
    ax = zipmix.plot_rootogram(fitted, 1)
    expected = next(line.get_ydata() for line in ax.lines if line.get_label() == "expected")
    pi, omega, lam = (value.numpy() for value in fitted.parameters)
    counts = np.arange(len(expected))
    pmf = sum(
        pi[k] * ((counts == 0) * (1 - omega[k, 1]) + omega[k, 1] * stats.poisson.pmf(counts, lam[k, 1]))
        for k in range(2)
    )
    assert np.allclose(expected, np.sqrt(120 * pmf))
    heights = [bar.get_height() ** 2 for bar in ax.patches]
    assert heights == pytest.approx([int((fitted.X[:, 1] == count).sum()) for count in counts])


def test_structural_zeros_and_others_add_up_to_the_zeros(fitted: Fit) -> None:
    ax = zipmix.plot_structural_zeros(fitted)
    tops = [bar.get_y() + bar.get_height() for bar in ax.patches[3:]]
    assert tops == pytest.approx((fitted.X == 0).double().mean(0).tolist())


def test_the_forest_shows_every_method_at_its_value(fitted: Fit) -> None:
    other = fitted.parameters._replace(lam=fitted.parameters.lam * 2)
    ax = zipmix.plot_forest({"em": fitted.parameters, "other": other}, {}, fitted.names, "lam")
    drawn = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert np.allclose(drawn["em"], fitted.parameters.lam.flatten().numpy())
    assert np.allclose(drawn["other"], 2 * drawn["em"])


def test_gaps_against_time_fall_to_the_smallest(fitted: Fit) -> None:
    ax = zipmix.plot_objective({"em": fitted})
    gap = ax.lines[0].get_ydata()
    assert gap[-1] == pytest.approx(SMALLEST_GAP)
    assert (np.diff(gap) <= 1e-7).all()


def test_missing_cells_are_drawn_as_missing() -> None:
    X = torch.tensor([[0.0, 3.0], [torch.nan, 1.0]], dtype=torch.float64)
    ax = zipmix.plot_counts(X)
    drawn = np.ma.getmaskarray(ax.images[0].get_array())
    assert drawn.tolist() == [[False, False], [True, False]]


def test_drawing_changes_no_fit(fitted: Fit) -> None:
    seconds = torch.arange(len(fitted.trace), dtype=torch.float64)
    zipmix.plot_objective({"em": replace(fitted, trace_seconds=seconds)})
    assert torch.equal(seconds, torch.arange(len(fitted.trace), dtype=torch.float64))


def test_many_columns_are_thinned() -> None:
    wide = zipmix.fit(zipmix.simulate(20, 90, 1, seed=0).X, 1, n_starts=1, max_iter=5)
    ax = zipmix.plot_structural_zeros(wide)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert len(labels) == 30
    assert labels[-1] == "x89"
    tops = [bar.get_y() + bar.get_height() for bar in ax.patches[30:]]
    assert tops[-1] == pytest.approx((wide.X[:, 89] == 0).double().mean().item())
