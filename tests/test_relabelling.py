"""Relabelling draws: Stephens' loss by plain loops over all relabellings, and what it does for R-hat and ESS."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from zipmix import InputError, Parameters, Prior, fit, simulate
from zipmix.inference.labels import mixing, relabel, reorder


def responsibilities(X, theta):
    """By plain loops, with scipy's Poisson."""
    pi, omega, lam = (value.numpy() for value in theta)
    R = np.zeros((len(X), len(pi)))
    for i, k in itertools.product(range(len(X)), range(len(pi))):
        cells = omega[k] * stats.poisson.pmf(X[i], lam[k]) + (1 - omega[k]) * (X[i] == 0)
        R[i, k] = pi[k] * cells.prod()
    return R / R.sum(1, keepdims=True)


def point_of(draws, c, s):
    return Parameters(*(value[c, s] for value in draws))


def draws_around(seed, spread, n_draws=3):
    """Draws near one point, the components of each in an order of its own; the wider, the less near."""
    rng = np.random.default_rng(seed)
    simulation = simulate(12, 2, 3, prior=Prior(f=0.2), seed=seed)
    pi, omega, lam = (value.numpy() for value in simulation.parameters)
    size, n = (1, n_draws, *lam.shape), 1 / spread**2
    draws = Parameters(
        torch.from_numpy(rng.dirichlet(n * pi + 0.1, size=(1, n_draws))),
        torch.from_numpy(rng.beta(n * omega + 0.1, n * (1 - omega) + 0.1, size=size)),
        torch.from_numpy(rng.gamma(n, lam / n, size=size)),
    )
    return simulation.X, reorder(draws, torch.from_numpy(np.argsort(rng.random((1, n_draws, 3)), axis=-1)))


@pytest.mark.parametrize("seed", range(6))
def test_no_relabelling_of_three_draws_is_better(seed):
    """All (3!)^3 joint relabellings: the loss at the end is the least of all, and is what it says it is."""
    X, draws = draws_around(seed, spread=0.1)
    found = relabel(draws, X, point_of(draws, 0, 0))
    R = [responsibilities(X.numpy(), point_of(draws, 0, s)) for s in range(3)]

    def loss(orders):
        ordered = np.stack([r[:, order] for r, order in zip(R, orders, strict=True)])
        return (ordered * np.log(np.maximum(ordered, 1e-300) / np.maximum(ordered.mean(0), 1e-300))).sum()

    every = itertools.product(itertools.permutations(range(3)), repeat=3)
    best = min(loss([list(order) for order in orders]) for orders in every)
    own = loss([order.tolist() for order in found.order[0]])
    assert found.divergence[-1].item() == pytest.approx(own, rel=1e-9, abs=1e-9)
    assert own == pytest.approx(best, rel=1e-9, abs=1e-9)
    for s in range(3):
        expected = reorder(point_of(draws, 0, s), found.order[0, s])
        for one, other in zip(point_of(found.draws, 0, s), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("seed", range(6))
def test_every_draw_is_as_close_to_the_mean_as_it_can_be(seed):
    """Also where draws have little in common: the loss never rises, and no draw has a better order at the end."""
    X, draws = draws_around(seed, spread=1.0, n_draws=30)
    unrelated = simulate(12, 2, 3, seed=seed + 100).parameters
    found = relabel(draws, X, unrelated)
    assert len(found.divergence) > 2
    assert (found.divergence.diff() <= 1e-12).all()
    R = np.stack([responsibilities(X.numpy(), point_of(found.draws, 0, s)) for s in range(30)])
    log_mean = np.log(R.mean(0))
    for r in R:
        others = [-(r[:, order] * log_mean).sum() for order in map(list, itertools.permutations(range(3)))]
        assert -(r * log_mean).sum() <= min(others) + 1e-9


def test_r_hat_and_ess_recover_when_labels_are_undone():
    """Draws of one component order, shuffled at random: relabelling gives the order back, up to one permutation."""
    X = np.random.default_rng(0).poisson(np.repeat([2.0, 15, 50], 25)[:, None], size=(75, 3))
    gibbs = fit(X, 3, "gibbs", n_warmup=100, n_draws=300, n_chains=4)
    shuffle = torch.from_numpy(np.argsort(np.random.default_rng(1).random((4, 300, 3)), axis=-1))
    # One order per chain, as chains that do not switch have; a quarter of the draws are shuffled on top.
    shuffle[:, 75:] = shuffle[:, :1]
    mixed = reorder(gibbs.draws, shuffle)
    found = relabel(mixed, X, gibbs.parameters)
    table = mixing(mixed, found.draws)
    assert list(table.index) == ["pi", "omega", "lam"]
    assert table.loc["lam", "rhat_before"] > 1.3
    assert (table["rhat_after"] < 1.05).all()
    # 1200 draws that are all but independent, once their labels are.
    assert (table["ess_after"] > 400).all()
    assert table.loc["lam", "ess_before"] < 100
    rates = found.draws.lam.mean(-1)
    assert (rates.std((0, 1)) < 2).all()


def test_memory_of_the_chains_is_left_alone():
    X = simulate(10, 2, 2, seed=0).X
    draws = fit(X, 2, "gibbs", n_warmup=0, n_draws=10, n_chains=2).draws
    copies = [value.clone() for value in draws]
    relabel(draws, X, point_of(draws, 0, 0))
    assert all(torch.equal(value, copy) for value, copy in zip(draws, copies, strict=True))


def test_refuses_a_table_of_other_columns():
    draws = fit([[1.0, 2], [0, 3]], 2, "gibbs", n_warmup=0, n_draws=4, n_chains=1).draws
    with pytest.raises(InputError, match="2 columns"):
        relabel(draws, [[1.0]], point_of(draws, 0, 0))
