"""Estimates of the evidence: held against the exact one; the sum over relabellings against plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from zipmix import (
    InputError,
    Parameters,
    Prior,
    fit,
    load_data,
    log_evidence_annealed,
    log_evidence_chib,
    log_evidence_exact,
    simulate,
)
from zipmix.counts.store import as_counts
from zipmix.inference.evidence.annealed import log_tempered
from zipmix.inference.evidence.chib import log_permanent, relabelled_log_density
from zipmix.models.conjugate import Conditionals

LOOSE = Prior(alpha=0.5, a=0.7, b=1.2, e=0.8, f=0.1)


def table(n, d, k, seed, missing=False):
    X = simulate(n, d, k, seed=seed).X
    if missing:
        X[torch.from_numpy(np.random.default_rng(seed).random((n, d)) < 0.2)] = torch.nan
    return X


PROBLEMS = [
    (table(8, 2, 2, 0), 2, Prior()),
    (table(8, 2, 2, 1, missing=True), 2, LOOSE),
    (table(7, 3, 3, 2), 3, Prior()),
    (table(9, 1, 2, 3), 2, LOOSE),
    (table(7, 2, 3, 4, missing=True), 3, Prior(alpha=3.0)),
    (table(6, 2, 1, 5), 1, Prior()),
]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_chib_agrees_with_the_exact_evidence(problem):
    """Independent exact draws give a standard error that can be trusted: 4 of them, and the half squared of bias."""
    X, K, prior = problem
    found = log_evidence_chib(fit(X, K, "exact", prior=prior, n_draws=6000), seed=3)
    assert found.error < 0.1
    assert found.log_evidence == pytest.approx(log_evidence_exact(X, K, prior), abs=4 * found.error + found.error**2)


@pytest.mark.parametrize("problem", PROBLEMS[:4])
def test_chib_agrees_from_gibbs_draws(problem):
    """Batch means of correlated draws: 4 standard errors."""
    X, K, prior = problem
    found = log_evidence_chib(fit(X, K, "gibbs", prior=prior, n_warmup=100, n_draws=1500))
    assert found.error < 0.15
    assert found.log_evidence == pytest.approx(log_evidence_exact(X, K, prior), abs=4 * found.error + found.error**2)


def test_chib_needs_no_switch_of_labels():
    """Chains that stay in one of K! equal modes miss log K! unless draws are averaged over relabellings."""
    X = torch.tensor([[0.0, 60], [55, 0], [62, 3], [2, 70], [0, 58], [49, 0]])
    gibbs = fit(X, 2, "gibbs", n_warmup=50, n_draws=1500, n_chains=1)
    larger = gibbs.draws.lam[0, :, 0, 0] > gibbs.draws.lam[0, :, 1, 0]
    assert larger.all() or not larger.any()
    found = log_evidence_chib(gibbs)
    assert found.error < math.log(2) / 8
    assert found.log_evidence == pytest.approx(log_evidence_exact(X, 2), abs=4 * found.error)


@pytest.mark.parametrize("problem", [*PROBLEMS, (table(7, 2, 2, 6), 2, Prior(alpha=torch.tensor([0.5, 4.0])))])
def test_annealing_agrees_with_the_exact_evidence(problem):
    """40 groups, all but independent: 4 standard errors."""
    X, K, prior = problem
    found = log_evidence_annealed(X, K, prior, n_groups=40, n_particles=50, seed=1)
    assert found.error < 0.06
    assert found.log_evidence == pytest.approx(log_evidence_exact(X, K, prior), abs=4 * found.error)


def test_both_agree_where_nothing_can_be_enumerated():
    """Real counts: components that differ by little and by much, where a bad path through the powers is found out."""
    X = load_data("nmes1988").X[:100]
    X[3, 2] = torch.nan
    chib = log_evidence_chib(fit(X, 3, "gibbs", n_warmup=200, n_draws=1000))
    annealed = log_evidence_annealed(X, 3, n_groups=10, n_particles=50)
    error = math.hypot(chib.error, annealed.error)
    assert error < 1
    assert chib.log_evidence == pytest.approx(annealed.log_evidence, abs=4 * error)
    assert fit(X, 3, "cavi").objective < annealed.log_evidence + 4 * annealed.error


def test_permanent_by_plain_loops():
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 40, size=(6, 5, 5)))
    for found, w in zip(log_permanent(weight), weight, strict=True):
        terms = [sum(w[k, p[k]].item() for k in range(5)) for p in itertools.permutations(range(5))]
        assert found.item() == pytest.approx(np.logaddexp.reduce(terms), rel=1e-12)


def test_relabelled_density_by_plain_loops():
    rng = np.random.default_rng(1)
    q = Conditionals(*(torch.from_numpy(rng.gamma(3.0, 1.0, size=s)) for s in [(2, 3)] + [(2, 3, 2)] * 4))
    pi, omega, lam = rng.dirichlet([1, 1, 1]), rng.random((3, 2)), rng.gamma(2.0, 1.0, size=(3, 2))
    found = relabelled_log_density(q, Parameters(*(torch.from_numpy(value) for value in (pi, omega, lam))))
    for s in range(2):
        terms = []
        for order in map(list, itertools.permutations(range(3))):
            density = stats.dirichlet.logpdf(pi[order], q.alpha[s])
            density += stats.beta.logpdf(omega[order], q.a[s], q.b[s]).sum()
            terms.append(density + stats.gamma.logpdf(lam[order], q.e[s], scale=1 / q.f[s]).sum())
        assert found[s].item() == pytest.approx(np.logaddexp.reduce(terms) - math.log(6), rel=1e-12)


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_tempered_likelihood_by_plain_loops(power):
    X = [[0, 2], [3, math.nan], [0, 0]]
    pi, omega, lam = [0.3, 0.7], [[0.2, 0.9], [0.6, 0.5]], [[3.0, 1.5], [0.4, 2.0]]
    total = 0.0
    for row in X:
        terms = 0.0
        for k in range(2):
            cells = 1.0
            for d, x in enumerate(row):
                if not math.isnan(x):
                    on = (omega[k][d] * stats.poisson.pmf(x, lam[k][d])) ** power
                    cells *= on + ((1 - omega[k][d]) ** power if x == 0 else 0.0)
            terms += pi[k] * cells
        total += math.log(terms)
    theta = Parameters(*(torch.tensor(value, dtype=torch.float64)[None] for value in (pi, omega, lam)))
    counts = as_counts(torch.tensor(X, dtype=torch.float64))
    assert log_tempered(counts, theta, power).item() == pytest.approx(total, rel=1e-12)


def test_extremes_stay_finite():
    X = torch.zeros(4, 3, dtype=torch.float64)
    X[0, 0], X[1] = 1e6, torch.nan
    found = log_evidence_annealed(X, 6, Prior(f=1e-6), n_groups=2, n_particles=3)
    assert math.isfinite(found.log_evidence)
    assert math.isfinite(found.error)


def test_seeds():
    X, K, prior = PROBLEMS[0]
    found = [log_evidence_annealed(X, K, prior, n_groups=2, n_particles=5, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_refuses_what_cannot_be_estimated():
    X = PROBLEMS[0][0]
    for method in ("em", "cavi"):
        with pytest.raises(InputError, match="draws from the posterior"):
            log_evidence_chib(fit(X, 2, method))
    unequal = fit(X, 2, "exact", prior=Prior(alpha=torch.tensor([1.0, 2.0])), n_draws=3)
    with pytest.raises(InputError, match="same for all components"):
        log_evidence_chib(unequal)
    with pytest.raises(InputError, match="at most 14 components"):
        log_evidence_chib(fit(X, 15, "gibbs", n_warmup=0, n_draws=2))
    with pytest.raises(InputError, match="conditional_ess"):
        log_evidence_annealed(X, 2, conditional_ess=1.0)
    with pytest.raises(InputError, match="conditional_ess must be a finite number > 0, got 'x'"):
        log_evidence_annealed(X, 2, conditional_ess="x")
    with pytest.raises(InputError, match=r"prior\.f is 0"):
        log_evidence_annealed(X, 2, Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=0.0))


def test_an_estimate_that_one_term_carries_says_so():
    """Digits have 64 columns: five draws and two particles cannot do, and no number is to look as if they could."""
    X = load_data("digits").X[:60]
    chib = log_evidence_chib(fit(X, 3, "gibbs", n_warmup=5, n_draws=5, n_chains=1))
    annealed = log_evidence_annealed(X[:10], 3, Prior(f=0.1), n_groups=2, n_particles=2, conditional_ess=0.1)
    for found in (chib, annealed):
        assert found.error > 0.5
        assert "neither it nor its error is to be trusted" in found.reason
    X, K, prior = PROBLEMS[0]
    assert "trusted" not in log_evidence_annealed(X, K, prior).reason
