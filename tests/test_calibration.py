"""Simulation-based calibration and Geweke's test: the samplers pass, samplers with one wrong conditional fail.

Seeds are fixed. A right sampler passes at a p-value over 0.01, all quantities together; a broken one must fall below
1e-6, which chance does not reach.
"""

import itertools
from importlib import import_module

import numpy as np
import pytest
import torch
from scipy import stats

from zipmix import InputError, Prior, geweke, sbc
from zipmix.inference.calibration import ecdf_band, uniformity
from zipmix.inference.collapsed_gibbs import cell as right_cell
from zipmix.models.conjugate import complete_conditionals

# Small tables under the prior's own spread: every conditional matters, and chains forget their start in a few sweeps.
TINY = {"n_rows": 8, "n_features": 2, "n_components": 2, "prior": Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=0.2)}
SHORT = {"n_chains": 16, "n_warmup": 10, "n_draws": 9, "init": "prior"}
PASS, FAIL = 0.01, 1e-6


@pytest.mark.parametrize("method", ["gibbs", "collapsed_gibbs", "exact"])
def test_sbc_of_500_tables(method):
    settings = {"n_draws": 48} if method == "exact" else SHORT
    found = sbc(method, **TINY, n_replications=500, n_ranks=49, settings=settings, seed=1)
    assert found.rank_RQ.shape == (500, len(found.names))
    assert found.p_value > PASS, found.table()


@pytest.mark.parametrize("method", ["gibbs", "collapsed_gibbs"])
def test_geweke_of_500_runs(method):
    found = geweke(method, **TINY, n_replications=500, seed=1)
    assert found.p_value > PASS, dict(zip(found.names, found.z_Q.tolist(), strict=True))


def without_structural_zeros(statistics, prior):
    """lambda | z, b, X with every observed cell as an exposure, those with b = 0 too: Gamma(e + s, f + c)."""
    return complete_conditionals(statistics, prior)._replace(f=prior.f + statistics.c)


def with_counts_read_as_ones(x, cspm, prior):
    """p(x, b | z = k) given the other rows with p, their positive cells, in the place of s, the sum of their counts."""
    c, _, p, m = cspm
    return right_cell(x, np.stack([c, p, p, m]), prior)


MUTANTS = [
    ("gibbs", "complete_conditionals", without_structural_zeros),
    ("collapsed_gibbs", "cell", with_counts_read_as_ones),
]


@pytest.fixture(params=MUTANTS, ids=[f"{method}: {wrong.__name__}" for method, _, wrong in MUTANTS])
def broken(request, monkeypatch):
    method, name, wrong = request.param
    module = import_module(f"zipmix.inference.{method}")
    monkeypatch.setattr(module, name, wrong)
    return method


def test_a_broken_sampler_fails_sbc(broken):
    assert sbc(broken, **TINY, n_replications=150, n_ranks=49, settings=SHORT, seed=1).p_value < FAIL


def test_a_broken_sampler_fails_geweke(broken):
    assert geweke(broken, **TINY, n_replications=150, seed=1).p_value < FAIL


def test_sbc_of_nuts():
    settings = {"n_chains": 1, "n_warmup": 40, "n_draws": 36, "max_tree_depth": 6, "init": "prior"}
    tiny = {"n_rows": 5, "n_features": 1, "n_components": 2}
    found = sbc("pyro_nuts", **tiny, n_replications=12, n_ranks=10, settings=settings, seed=1)
    assert found.p_value > PASS, found.table()


# Overlapping components, on which a factorised q that holds on to one labelling is too sure of itself.
OVERLAP = {"n_rows": 30, "n_features": 1, "n_components": 2, "prior": Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=1.0)}


def test_sbc_shows_that_mean_field_posteriors_are_too_narrow():
    svi = sbc("pyro_svi", **OVERLAP, n_replications=24, n_ranks=49, settings={"n_steps": 120, "n_draws": 48}, seed=1)
    assert svi.p_value < FAIL, svi.table()
    assert svi.table()["width"]["sum pi^2"] < 0.8
    cavi = sbc("cavi", **OVERLAP, n_replications=60, n_ranks=49, settings={"n_starts": 1, "n_draws": 48}, seed=1)
    assert cavi.p_value < FAIL, cavi.table()
    exact = sbc("gibbs", **OVERLAP, n_replications=60, n_ranks=49, settings=SHORT | {"n_warmup": 100}, seed=1)
    assert exact.p_value > PASS, exact.table()


# The bands.


def least_tail(ranks, n_ranks):
    counts = [sum(rank < i for rank in ranks) for i in range(1, n_ranks)]
    tails = [
        2 * min(stats.binom.cdf(k, len(ranks), i / n_ranks), stats.binom.sf(k - 1, len(ranks), i / n_ranks))
        for i, k in enumerate(counts, start=1)
    ]
    return min(tails)


def test_p_value_is_that_of_all_outcomes():
    """4 ranks out of 4: all 256 outcomes by hand; the p-value is the share that is no more likely by its least tail."""
    outcomes = list(itertools.product(range(4), repeat=4))
    least = np.array([least_tail(ranks, 4) for ranks in outcomes])
    for ranks, tail in zip(outcomes[::7], least[::7], strict=True):
        expected = np.mean(least <= tail * (1 + 1e-9))
        assert uniformity(torch.tensor(ranks), 4) == pytest.approx(expected, abs=1e-9)


def test_bands_hold_the_ecdf_of_uniform_ranks_as_often_as_they_say():
    lower, upper = ecdf_band(100, 20, 0.9)
    rng = np.random.default_rng(0)
    ranks = rng.integers(20, size=(4000, 100))
    ecdf = (ranks[:, None] < np.arange(1, 20)[:, None]).mean(-1)
    inside = ((ecdf >= lower - 1e-9) & (ecdf <= upper + 1e-9)).all(1).mean()
    # Counts are whole, so the bands are a little wide; 4 Monte-Carlo standard errors below, and not 0.05 above.
    assert 0.9 - 4 * np.sqrt(0.9 * 0.1 / 4000) < inside < 0.95


def test_ranks_that_pile_up_are_not_uniform():
    ends = torch.tensor([0, 9] * 40)
    assert uniformity(ends, 10) < 1e-6
    assert uniformity(torch.full((80,), 5), 10) < 1e-6
    assert uniformity(torch.arange(80) % 10, 10) > 0.5


# What the harness refuses, and how it stops.


@pytest.mark.parametrize(
    ("method", "settings", "error", "words"),
    [
        ("em", {"n_starts": 1}, InputError, "'em' has none"),
        ("gibs", {}, InputError, "method must be one of"),
        ("gibbs", {"n_chain": 2}, TypeError, "no setting 'n_chain'"),
        ("gibbs", {"n_chains": 1, "n_warmup": 0, "n_draws": 5}, InputError, "needs 48 draws per fit.*give 5"),
    ],
)
def test_refuses_methods_and_settings_that_cannot_be_ranked(method, settings, error, words):
    with pytest.raises(error, match=words):
        sbc(method, **TINY, n_replications=2, n_ranks=49, settings=settings)


@pytest.mark.parametrize("harness", [sbc, geweke])
def test_one_replication_is_too_few(harness):
    with pytest.raises(InputError, match="n_replications must be a whole number >= 2, got 1"):
        harness("gibbs", **TINY, n_replications=1)


@pytest.mark.parametrize("harness", [sbc, geweke])
def test_ctrl_c_returns_the_replications_so_far(harness, monkeypatch):
    module = import_module("zipmix.inference.gibbs")
    original, calls = module.complete_conditionals, []

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == 100:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "complete_conditionals", pressed)
    settings = SHORT if harness is sbc else {}
    found = harness("gibbs", **TINY, n_replications=500, settings=settings)
    assert found.interrupted
    n_done = len(found.rank_RQ) if harness is sbc else found.n_replications
    assert 2 <= n_done < 50
    assert len(calls) < 200
    assert 0 < found.p_value <= 1


def test_same_seed_same_ranks():
    settings = SHORT | {"n_draws": 5}
    first, again, other = (
        sbc("gibbs", **TINY, n_replications=3, settings=settings, n_ranks=49, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(first.rank_RQ, again.rank_RQ)
    assert not torch.equal(first.rank_RQ, other.rank_RQ)
