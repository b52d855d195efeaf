"""EM's ways to good optima: races, annealing, split-and-merge moves and acceleration, each by what it promises."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

import zipmix
from zipmix import InputError, Parameters, Prior
from zipmix.counts.store import as_counts
from zipmix.models.kernel import expectation, logs


@pytest.fixture(scope="module")
def clusters():
    """Six groups of rows that are far apart, and a start at which two components share a group and one holds two."""
    rng = np.random.default_rng(0)
    lam = np.full((6, 6), 1.0) + 30 * np.eye(6)
    z = np.repeat(np.arange(6), 40)
    bad = lam.copy()
    bad[0], bad[1] = (lam[0] + lam[1]) / 2, lam[2] * 1.05
    start = Parameters(torch.full((6,), 1 / 6), torch.full((6, 6), 0.9), torch.from_numpy(bad))
    return torch.from_numpy(rng.poisson(lam[z]).astype(float)), z, start


def test_split_and_merge_leaves_an_optimum_that_em_does_not(clusters):
    X, z, start = clusters
    stuck = zipmix.fit(X, 6, start=start, split_merge=0)
    moved = zipmix.fit(X, 6, start=start, split_merge=3)
    assert adjusted_rand_score(z, stuck.predict()) < 0.9
    assert adjusted_rand_score(z, moved.predict()) == 1.0
    assert moved.objective > stuck.objective + 100
    assert moved.restarts.objective_R[0] == stuck.objective
    assert moved.restarts.round_R.bincount().tolist() == [1, 20, 20, 20]
    assert moved.trace[-1] == moved.objective == moved.restarts.objective_R.max()
    assert moved.trace.isfinite().all()
    assert len(moved.trace) == len(moved.trace_seconds)
    # The best point came from a move, and its clock is that of the whole run.
    assert int(moved.restarts.objective_R.argmax()) > 0
    assert moved.trace_seconds[0] > 0
    assert (moved.trace.diff() >= -1e-9).all()


def test_ctrl_c_ends_the_moves_too(clusters, monkeypatch):
    X, _, start = clusters
    em = zipmix.METHODS["em"].__globals__
    steps, passes = [], em["squarem_step"]

    def stopped(*arguments):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return passes(*arguments)

    monkeypatch.setitem(em, "squarem_step", stopped)
    fitted = zipmix.fit(X, 6, start=start, split_merge=5)
    assert len(steps) == 3
    assert fitted.reason.startswith("interrupted by the user after 2 of")
    assert not fitted.converged
    assert fitted.n_iter == 2
    assert fitted.trace[-1] == fitted.objective


def test_a_start_of_another_shape_is_refused_as_a_start(clusters):
    X, _, start = clusters
    with pytest.raises(InputError, match=r"start must hold one point.*\(1, 1, 6\)"):
        zipmix.fit(X, 6, start=Parameters(*(value[None, None] for value in start)))
    with pytest.raises(InputError, match=r"start must hold one point.*\(0, 6\)"):
        zipmix.fit(X, 6, start=Parameters(*(value[None][:0] for value in start)))
    with pytest.raises(InputError, match=r"start\.lam must have shape"):
        zipmix.fit(X, 6, start=start._replace(lam=start.lam[:, :2]))


def test_an_empty_component_is_not_split():
    """Two kinds of rows and four components: under alpha = 1 two of them lose all their rows."""
    X = torch.tensor([[0.0, 0]] * 10 + [[1000, 1000]] * 10)
    prior = Prior(alpha=1.0)
    moved = zipmix.fit(X, 4, prior=prior, n_starts=3, split_merge=5)
    assert (moved.parameters.pi < 1e-9).any()
    assert moved.objective >= zipmix.fit(X, 4, prior=prior, n_starts=3, split_merge=0).objective


def test_moves_are_found_where_components_are_empty_or_more_than_rows():
    X = torch.tensor([[0.0, 3.0], [0.0, 3.0], [9.0, 0.0]])
    assert np.isfinite(zipmix.fit(X, 2, split_merge=2).objective)
    assert np.isfinite(zipmix.fit(X, 5, split_merge=2).objective)
    nothing = zipmix.fit(torch.zeros(4, 2), 3, prior=zipmix.FLAT, split_merge=2)
    # The flat Dirichlet of three components has density 2, and the data have probability 1.
    assert nothing.objective == pytest.approx(np.log(2), abs=1e-9)


def test_a_race_goes_on_with_the_best_and_reports_the_rest(clusters):
    X = clusters[0]
    settings = dict(n_starts=8, annealing=0, split_merge=0, init="prior")
    all_run = zipmix.fit(X, 6, race=None, **settings)
    race = zipmix.fit(X, 6, race=(4, 3), **settings)
    at_four = all_run.restarts.trace_TR[4]
    leaders = at_four.topk(3).indices.sort().values
    assert torch.equal(race.restarts.converged_R.nonzero()[:, 0], leaders)
    ends = race.restarts.objective_R, all_run.restarts.objective_R
    torch.testing.assert_close(ends[0][leaders], ends[1][leaders], rtol=1e-12, atol=0.0)
    others = [r for r in range(8) if r not in leaders]
    assert torch.equal(race.restarts.objective_R[others], at_four[others])
    assert (race.restarts.n_iter_R[others] == 4).all()
    assert race.restarts.left_R.nonzero()[:, 0].tolist() == others
    assert race.converged
    assert "5 of 8 runs were left behind after 4 iterations" in race.reason


def test_annealing_starts_with_responsibilities_in_proportion_to_powers():
    X, theta = zipmix.simulate(30, 3, 3, seed=1).X, zipmix.simulate(1, 3, 3, seed=2).parameters
    rows = [[zipmix.log_posterior(x[None], single(theta, k), zipmix.FLAT) for k in range(3)] for x in X]
    joint = theta.pi.log() + torch.tensor(rows)
    R_NK = (0.3 * joint).softmax(-1)
    tempered, _ = expectation(as_counts(X), logs(theta), power=0.3)
    torch.testing.assert_close(tempered.n, R_NK.sum(0))
    torch.testing.assert_close(tempered.s, R_NK.T @ X)


def single(theta, k):
    """Component k alone."""
    return Parameters(torch.ones(1), theta.omega[k : k + 1], theta.lam[k : k + 1])


def test_annealed_em_is_monotone_and_ends_at_a_fixed_point(clusters):
    X = clusters[0]
    fitted = zipmix.fit(X, 6, n_starts=3, annealing=10, split_merge=0, seed=4)
    again = zipmix.fit(X, 6, start=fitted.parameters, split_merge=0)
    assert again.objective == pytest.approx(fitted.objective, rel=1e-10)
    assert (fitted.trace.diff() >= -1e-9).all()


def test_acceleration_needs_fewer_passes_and_loses_nothing():
    """Twelve problems of many shapes: the median of the ratios of passes to 1e-7 of the optimum is 2.5 or more."""
    ratios = []
    for seed in range(12):
        n, d, k = 150 + 20 * seed, 3 + seed % 4, 2 + seed % 3
        X = zipmix.simulate(n, d, k, prior=Prior(1.5, 2.0, 2.0, 2.0 + seed % 3, 0.5), seed=seed).X
        plain, bold = (
            zipmix.fit(
                X,
                k,
                n_starts=3,
                annealing=0,
                race=None,
                split_merge=0,
                accelerate=fast,
                max_iter=4000,
                tolerance=1e-11,
                seed=seed,
            )
            for fast in (False, True)
        )
        goal = min(plain.objective, bold.objective)
        goal -= 1e-7 * abs(goal)
        passes = [int((fit.trace >= goal).to(torch.int8).argmax()) for fit in (plain, bold)]
        ratios.append(passes[0] / (2 * passes[1]))
        assert bold.objective >= plain.objective - 1e-7 * abs(plain.objective)
    assert np.median(ratios) >= 2.5


@pytest.mark.parametrize(
    "settings",
    [
        dict(annealing=-1),
        dict(annealing="none"),
        dict(split_merge=1.5),
        dict(race=(0, 3)),
        dict(race=(3, "a")),
        dict(race="no"),
        dict(race=3),
        dict(race=(1, 2, 3)),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, clusters):
    name = next(iter(settings))
    with pytest.raises(InputError, match=name):
        zipmix.fit(clusters[0], 2, **settings)
