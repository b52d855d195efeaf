"""EM: never downhill, at rest where the Pyro program's gradient is zero, and the same as its peers."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from zipmix import FLAT, METHODS, Parameters, Prior, load_data, simulate
from zipmix.inference.em import em
from zipmix.models.parameters import check_prior
from zipmix.models.zip_mixture import log_density

PLAIN = dict(annealing=0, race=None, split_merge=0)
BOUNDARY = Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=0.2)


def table(seed, n=50, d=3, k=3, missing=0.0):
    X = simulate(n, d, k, seed=seed).X
    X[torch.from_numpy(np.random.default_rng(seed).random((n, d)) < missing)] = torch.nan
    return X


def one_start(seed, K, D):
    return simulate(1, D, K, seed=1000 + seed).parameters


def gradient(X, theta, prior):
    """Of the Pyro program's log posterior, in log pi, logit omega and log lambda: its largest entry."""
    free = [field.clone().requires_grad_() for field in (theta.pi.log(), theta.omega.logit(), theta.lam.log())]
    point = Parameters(free[0].softmax(0), free[1].sigmoid(), free[2].exp())
    value = log_density(X, point, check_prior(prior, len(theta.pi)))
    return max(part.abs().max().item() for part in torch.autograd.grad(value, free))


def judged(fit):
    """log p(X, Theta | prior) of the Pyro program at the fit's parameters."""
    return log_density(fit.X, fit.parameters, check_prior(fit.prior, fit.n_components)).item()


@pytest.mark.parametrize("accelerate", [False, True])
def test_log_posterior_never_falls_in_1000_runs(accelerate):
    """20 tables of 50 starts each: priors inside and at the edge of what has a MAP, ML, missing cells, K over N."""
    n_runs = 0
    for seed in range(20):
        prior = (Prior(), BOUNDARY, Prior(alpha=3.0, a=1.0, b=5.0, e=4.0, f=2.0), FLAT)[seed % 4]
        X = table(seed, n=3 if seed in (6, 7) else 40, k=1 + seed % 4, missing=0.15 * (seed % 3 == 0))
        init = "kmeans++" if prior is FLAT else "prior"
        settings = dict(n_starts=50, init=init, accelerate=accelerate, max_iter=50 if accelerate else 100) | PLAIN
        trace_TR = em(X, 2 + seed % 4, prior=prior, seed=seed, **settings).restarts.trace_TR
        change = trace_TR.diff(dim=0)
        assert not (change < -1e-10 * trace_TR[:-1].abs()).any(), seed
        # A run is finite until it has ended, and goes somewhere.
        ended = trace_TR.isnan()
        assert not (ended[:-1] & ~ended[1:]).any()
        assert (trace_TR[1] > trace_TR[0]).double().mean() > 0.9
        n_runs += trace_TR.shape[1]
    assert n_runs == 1000


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize(
    ("seed", "prior", "missing"),
    [(0, Prior(), 0.0), (1, Prior(), 0.15), (2, Prior(alpha=2.0, a=3.0, b=1.5, e=5.0, f=1.0), 0.0)],
)
def test_gradient_of_the_pyro_program_vanishes_at_the_end(seed, prior, missing, accelerate):
    X = table(seed, n=100, missing=missing)
    start = one_start(seed, 3, 3)
    assert gradient(X, start, prior) > 1
    fit = em(X, 3, prior=prior, start=start, accelerate=accelerate, tolerance=1e-15, max_iter=5000)
    assert fit.converged
    # A gain below 1e-15 of 1e3 nats leaves a gradient of some 1e-6, the root of the gain times the curvature.
    assert gradient(X, fit.parameters, prior) < 1e-5


@pytest.mark.parametrize(("seed", "missing"), [(0, 0.0), (3, 0.15), (5, 0.15), (8, 0.0)])
def test_pyro_map_ends_at_the_same_objective(seed, missing):
    X = table(seed, n=80, k=2, missing=missing)
    start = em(X, 2, init="kmeans++", seed=seed, n_starts=1, max_iter=2).parameters
    ours, theirs = em(X, 2, start=start), METHODS["pyro_map"](X, 2, start=start)
    assert ours.converged
    assert theirs.converged
    assert ours.objective == pytest.approx(theirs.objective, rel=0, abs=1e-6)
    assert ours.objective > judged(em(X, 2, start=start, max_iter=1)) + 1e-3
    for mine, other in zip(ours.parameters, theirs.parameters, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("column", range(6))
def test_maximum_likelihood_of_one_column_is_that_of_statsmodels(column):
    import statsmodels.api as sm

    data = load_data("nmes1988")
    y = data.X[:, column].numpy()
    peer = sm.ZeroInflatedPoisson(y, np.ones_like(y)).fit(method="bfgs", disp=0, maxiter=500, gtol=1e-7)
    fit = em(y[:, None], 1, prior=FLAT, n_starts=1)
    inflate, log_rate = peer.params
    assert fit.objective == pytest.approx(peer.llf, rel=1e-10)
    assert fit.parameters.omega.item() == pytest.approx(1 / (1 + math.exp(inflate)), abs=1e-6)
    assert fit.parameters.lam.item() == pytest.approx(math.exp(log_rate), abs=1e-6)


def test_mode_of_a_table_of_one_row_and_no_zero_has_a_closed_form():
    """K = 1 and x > 0 everywhere: m = n, so the MAP is that of a Beta and a Gamma posterior."""
    prior = Prior(alpha=1.5, a=2.0, b=3.0, e=2.5, f=0.5)
    X = torch.tensor([[3.0, 1.0], [5.0, 2.0], [1.0, 1.0]])
    fit = em(X, 1, prior=prior, n_starts=2)
    np.testing.assert_allclose(fit.parameters.pi, [1.0])
    np.testing.assert_allclose(fit.parameters.omega, [[(2 + 3 - 1) / (2 + 3 + 3 - 2)] * 2], rtol=1e-12)
    np.testing.assert_allclose(fit.parameters.lam, [[(2.5 + 9 - 1) / (0.5 + 3), (2.5 + 4 - 1) / (0.5 + 3)]], rtol=1e-12)


@pytest.mark.parametrize("max_iter", [1, 2, 5, 2000])
def test_beliefs_and_objective_belong_to_the_parameters(max_iter):
    """However early EM is stopped, nothing is one M-step older than the rest."""
    X = table(4, missing=0.1)
    fit = em(X, 3, seed=2, n_starts=3, init="prior", max_iter=max_iter)
    assert fit.objective == pytest.approx(judged(fit), rel=1e-12)
    assert fit.trace[-1].item() == pytest.approx(fit.objective, rel=1e-12)
    pi, omega, lam = (field.numpy() for field in fit.parameters)
    x = np.nan_to_num(X.numpy())[:, None]
    cell = omega * stats.poisson.pmf(x, lam) + (1 - omega) * (x == 0)
    weight = pi * np.where(np.isnan(X.numpy())[:, None], 1.0, cell).prod(-1)
    np.testing.assert_allclose(fit.responsibilities(), weight / weight.sum(1, keepdims=True), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(fit.score_samples(), np.log(weight.sum(1)), rtol=1e-10)
    assert (fit.predict().numpy() == weight.argmax(1)).all()


def test_restart_table_tells_of_every_start():
    X = table(9, n=60)
    fit = em(X, 3, seed=1, n_starts=12, **PLAIN)
    rows = fit.restarts.table()
    assert list(rows.columns) == ["objective", "gap", "n_iter", "converged", "left_behind", "round"]
    assert sorted(rows.index) == list(range(12))
    assert (rows.objective.diff().dropna() <= 0).all()
    assert rows.gap.iloc[0] == 0
    assert rows.objective.iloc[0] == fit.objective
    np.testing.assert_allclose(rows.gap, fit.objective - rows.objective)
    assert fit.restarts.n_best == (rows.gap <= 1e-6 * (1 + abs(fit.objective))).sum()
    for r in range(12):
        alone = fit.restarts.trace_TR[:, r]
        alone = alone[~alone.isnan()]
        assert len(alone) == rows.n_iter[r] + 1
        assert alone[-1].item() == pytest.approx(rows.objective[r], rel=1e-12)
    best = rows.index[0]
    assert (fit.n_iter, fit.converged) == (rows.n_iter[best], rows.converged[best])
    assert not rows.left_behind.any()
    assert (rows["round"] == 0).all()
    assert fit.restarts.summary() == f"{fit.restarts.n_best} of 12 starts reached the best optimum"


@pytest.mark.parametrize("accelerate", [False, True])
def test_starts_in_one_batch_do_not_know_of_each_other(accelerate):
    X = table(9, n=60)
    points = [one_start(seed, 3, 3) for seed in range(4)]
    together = Parameters(*map(torch.stack, zip(*points, strict=True)))
    settings = dict(accelerate=accelerate, max_iter=40)
    batch = em(X, 3, start=together, **settings).restarts
    for r, point in enumerate(points):
        alone = em(X, 3, start=point, **settings)
        assert alone.n_iter == batch.n_iter_R[r]
        np.testing.assert_allclose(batch.trace_TR[: alone.n_iter + 1, r], alone.trace, rtol=1e-10)


def test_more_starts_keep_the_first_ones():
    X = table(9)
    few, many = (em(X, 3, seed=4, n_starts=n, max_iter=3).restarts.trace_TR for n in (2, 7))
    np.testing.assert_allclose(many[:, :2], few, rtol=1e-12)


@pytest.mark.parametrize("init", ["kmeans++", "small-em", "prior"])
def test_seed_decides_the_starts(init):
    X = table(9)
    one, same, other = (em(X, 3, seed=s, n_starts=2, init=init, max_iter=2).trace[0].item() for s in (4, 4, 5))
    assert one == same
    assert one != other


def test_acceleration_ends_where_plain_em_ends_and_sooner():
    X = table(0, n=200)
    start = one_start(0, 3, 3)
    fast, plain = (em(X, 3, start=start, accelerate=accelerate, tolerance=1e-14) for accelerate in (True, False))
    assert fast.objective == pytest.approx(plain.objective, abs=1e-7)
    # An accelerated iteration is two passes.
    assert 2 * fast.n_iter < 0.8 * plain.n_iter


def test_order_of_components_rows_and_columns_does_not_matter():
    """Components come heaviest first, whatever the order in which a start has them."""
    X, start = table(3, missing=0.1), one_start(3, 3, 3)
    straight = em(X, 3, start=start)
    assert (straight.parameters.pi.diff() <= 0).all()
    k, d = torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0])
    moved = Parameters(start.pi[k], start.omega[k][:, d], start.lam[k][:, d])
    turned = em(X.flip(0)[:, d], 3, start=moved)
    assert turned.objective == pytest.approx(straight.objective, rel=1e-10)
    np.testing.assert_allclose(turned.parameters.lam, straight.parameters.lam[:, d], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(turned.responsibilities(), straight.responsibilities().flip(0), atol=1e-4)


def test_row_that_is_all_missing_changes_pi_alone():
    """It is drawn from the prior predictive: omega and lambda do not hear of it, and with alpha = 1 nor does pi."""
    X, start = table(3), one_start(3, 3, 3)
    prior = Prior(alpha=1.0)
    nothing = torch.full((5, 3), torch.nan, dtype=torch.float64)
    with_it, without = (em(rows, 3, prior=prior, start=start, tolerance=1e-15) for rows in (torch.cat([X, nothing]), X))
    assert with_it.objective == pytest.approx(without.objective, rel=1e-12)
    for one, other in zip(with_it.parameters, without.parameters, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_not_to_converge_is_reported():
    fit = em(table(2), 3, n_starts=4, max_iter=1)
    assert not fit.converged
    assert fit.n_iter == 1
    assert "4 of 4 runs reached max_iter = 1" in fit.reason


@pytest.mark.parametrize("prior", [BOUNDARY, FLAT])
@pytest.mark.parametrize("accelerate", [False, True])
def test_modes_on_the_boundary(prior, accelerate):
    """More components than distinct rows, an all-zero column and one without zeros."""
    X = torch.tensor([[0.0, 4.0], [0.0, 4.0], [0.0, 40.0], [0.0, 41.0]])
    fit = em(X, 4, prior=prior, n_starts=10, accelerate=accelerate, tolerance=1e-14)
    assert math.isfinite(fit.objective)
    assert all(field.isfinite().all() for field in fit.parameters)
    used = fit.responsibilities().sum(0) > 1e-6
    # No structural zero is seen in the second column, and the first has a rate of 0, or omega 0.
    np.testing.assert_allclose(fit.parameters.omega[used, 1], 1, rtol=1e-6)
    zero_D = fit.parameters.omega[used, 0] * fit.parameters.lam[used, 0]
    np.testing.assert_allclose(zero_D, 0, atol=1e-4)
    np.testing.assert_allclose(fit.parameters.pi.sum(), 1)
    if prior is FLAT:
        best = max(_two_poissons(split) for split in ([4, 4], [4, 4, 40, 41]))
        assert fit.objective >= best - 1e-6


def _two_poissons(column):
    """Log likelihood of the second column if two components hold its low and high counts."""
    low, high = np.array([4, 4]), np.array([40, 41])
    split = stats.poisson.logpmf(low, 4).sum() + stats.poisson.logpmf(high, 40.5).sum() + 4 * math.log(0.5)
    return split if len(column) == 2 else stats.poisson.logpmf(column, np.mean(column)).sum()
