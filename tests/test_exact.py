"""exact: held against plain loops over every (z, b), quadrature, and itself in disguise."""

import itertools
import math

import arviz as az
import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from zipmix import METHODS, InputError, Prior, exact_posterior, log_evidence_exact, simulate
from zipmix.inference.evidence.exact import exact

NAN = float("nan")

PROBLEMS = {
    "two columns": ([[0, 3], [1, 0], [5, 0], [0, 0]], 2, Prior()),
    "three components": ([[0], [2], [0], [7], [1]], 3, Prior(alpha=0.7, a=1.3, b=0.8, e=2.5, f=0.3)),
    "more components than rows": ([[0, 1], [4, 0], [0, 0]], 5, Prior(alpha=2.0)),
    "missing cells": ([[0, NAN], [NAN, NAN], [3, 0], [0, 6], [1, NAN]], 2, Prior(a=0.5, b=3.0)),
    "unequal alpha": ([[0, 2], [1, 0], [6, 0], [0, 0]], 3, Prior(alpha=torch.tensor([0.4, 1.1, 3.0]).double())),
    "unequal alpha, missing": ([[0], [NAN], [0], [4], [1], [0]], 2, Prior(alpha=torch.tensor([0.2, 5.0]).double())),
    "large counts": ([[0, 1000], [3, 0], [900, 0]], 2, Prior(e=1.0, f=0.01)),
}


def brute_force(rows, K, prior):
    """Sums over every z in {1..K}^N and b in {0, 1}^(N x D) with plain loops; functionals as in Posterior."""
    N, D = len(rows), len(rows[0])
    alpha = [float(v) for v in np.broadcast_to(np.asarray(prior.alpha), K)]
    a, b, e, f = (float(v) for v in (prior.a, prior.b, prior.e, prior.f))
    lbeta = lambda x, y: math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)  # noqa: E731
    terms = []
    zero_cells = [(i, d) for i in range(N) for d in range(D) if rows[i][d] == 0]
    for z in itertools.product(range(K), repeat=N):
        sizes = [z.count(k) for k in range(K)]
        log_z = math.lgamma(sum(alpha)) - math.lgamma(sum(alpha) + N)
        log_z += sum(math.lgamma(alpha[k] + sizes[k]) - math.lgamma(alpha[k]) for k in range(K))
        for bits in itertools.product((0, 1), repeat=len(zero_cells)):
            b_of = dict(zip(zero_cells, bits, strict=True))
            log_p, omega, lam = log_z, {}, {}
            for k, d in itertools.product(range(K), range(D)):
                cells = [(i, d) for i in range(N) if z[i] == k and not math.isnan(rows[i][d])]
                on = [cell for cell in cells if b_of.get(cell, 1) == 1]
                total = sum(rows[i][d] for i, _ in on)
                m, off = len(on), len(cells) - len(on)
                log_p += lbeta(a + m, b + off) - lbeta(a, b)
                log_p += math.lgamma(e + total) - math.lgamma(e) + e * math.log(f) - (e + total) * math.log(f + m)
                log_p -= sum(math.lgamma(rows[i][d] + 1) for i, _ in on)
                omega[k, d], lam[k, d] = (a + m) / (a + b + m + off), (e + total) / (f + m)
            terms.append((log_p, z, b_of, omega, lam))
    top = max(term[0] for term in terms)
    mass = sum(math.exp(term[0] - top) for term in terms)
    out = {name: np.zeros((N, D)) for name in ("rate", "share", "predictive", "structural")}
    out |= {"coclustering": np.zeros((N, N)), "occupied": np.zeros(K)}
    for log_p, z, b_of, omega, lam in terms:
        weight = math.exp(log_p - top) / mass
        out["occupied"][len(set(z)) - 1] += weight
        for i in range(N):
            for j in range(N):
                out["coclustering"][i, j] += weight * (z[i] == z[j])
            for d in range(D):
                o, rate = omega[z[i], d], lam[z[i], d]
                out["rate"][i, d] += weight * rate
                out["share"][i, d] += weight * o
                out["predictive"][i, d] += weight * o * rate
                gone = math.isnan(rows[i][d])
                out["structural"][i, d] += weight * ((1 - o) if gone else 1 - b_of.get((i, d), 1))
    return top + math.log(mass), out


@pytest.mark.parametrize("name", PROBLEMS)
def test_brute_force_over_all_z_and_b(name):
    rows, K, prior = PROBLEMS[name]
    log_evidence, expected = brute_force(rows, K, prior)
    found = exact_posterior(rows, K, prior)
    assert log_evidence_exact(rows, K, prior) == pytest.approx(log_evidence, rel=1e-10)
    assert found.log_evidence == pytest.approx(log_evidence, rel=1e-10)
    for field, value in (
        ("coclustering", found.coclustering_NN),
        ("occupied", found.occupied_K),
        ("rate", found.rate_ND),
        ("share", found.share_ND),
        ("predictive", found.predictive_ND),
        ("structural", found.structural_ND),
    ):
        np.testing.assert_allclose(value.numpy(), expected[field], rtol=1e-10, atol=1e-12, err_msg=field)


@pytest.mark.parametrize(
    ("column", "prior"),
    [
        ([0, 0, 2, 5, 0, 1], Prior()),
        ([0, 0, 0], Prior(a=1.0, b=3.0, e=2.0, f=0.9)),
        ([4, NAN, 0, 3], Prior(a=3.0, b=1.0, e=4.0, f=2.0)),
    ],
)
def test_quadrature_over_omega_and_lambda(column, prior):
    seen = np.array([x for x in column if not math.isnan(x)])

    def integrand(omega, lam):
        pmf = (1 - omega) * (seen == 0) + omega * stats.poisson.pmf(seen, lam)
        return pmf.prod() * stats.beta.pdf(omega, prior.a, prior.b) * stats.gamma.pdf(lam, prior.e, scale=1 / prior.f)

    value, error = integrate.dblquad(integrand, 0, 60, 0, 1, epsabs=1e-13, epsrel=1e-8)
    # quad's own bound on its error, and the mass of the prior beyond 60, set the tolerance.
    tolerance = error / value + stats.gamma.sf(60, prior.e, scale=1 / prior.f) + 1e-9
    assert math.exp(log_evidence_exact(np.array(column)[:, None], 1, prior)) == pytest.approx(value, rel=tolerance)


def test_unequal_alpha_tends_to_equal_alpha():
    """Labellings and partitions are two enumerations; they meet where the alphas do."""
    X = simulate(7, 2, 3, seed=3).X
    nearly = torch.tensor([1.5, 1.5, 1.5 + 1e-11], dtype=torch.float64)
    for by_partition, by_labelling in zip(
        exact_posterior(X, 3, Prior()), exact_posterior(X, 3, Prior(alpha=nearly)), strict=True
    ):
        np.testing.assert_allclose(by_partition, by_labelling, rtol=1e-9, atol=1e-12)


def test_missing_cell_is_predicted_by_ratios_of_evidences():
    """p(x_id = v | rest) = p(rest, v) / p(rest): sums to 1, and its mean is predictive_ND."""
    prior = Prior(alpha=1.0, a=2.0, b=1.0, e=2.0, f=1.0)
    rows = np.array([[0.0, 2], [3, 0], [1, NAN], [0, 0]])
    without = log_evidence_exact(rows, 2, prior)
    values = np.arange(80)
    ratios = []
    for v in values:
        rows[2, 1] = v
        ratios.append(math.exp(log_evidence_exact(rows, 2, prior) - without))
    rows[2, 1] = NAN
    assert sum(ratios) == pytest.approx(1, abs=1e-9)
    assert values @ np.array(ratios) == pytest.approx(
        exact_posterior(rows, 2, prior).predictive_ND[2, 1].item(), rel=1e-8
    )


def test_evidences_of_all_tables_sum_to_one():
    """p(X) is a distribution over X: what is left out is the tail of the prior predictive distribution."""
    prior = Prior(alpha=1.0, a=2.0, b=1.0, e=3.0, f=6.0)
    cells = range(16)
    total = sum(math.exp(log_evidence_exact([[x], [y]], 2, prior)) for x in cells for y in cells)
    # A cell is over 15 with less than the negative binomial's tail, in either of two rows.
    assert 1 - 2 * stats.nbinom.sf(15, 3, 6 / 7) <= total <= 1 + 1e-12


def test_one_row_has_a_closed_form():
    """N = 1: K does not matter, and x has a zero-inflated negative binomial distribution."""
    prior = Prior(alpha=0.5, a=1.5, b=2.5, e=2.0, f=0.5)
    for x in (0, 1, 8):
        pmf = 1.5 / 4 * stats.nbinom.pmf(x, 2.0, 0.5 / 1.5) + (2.5 / 4 if x == 0 else 0)
        for K in (1, 2, 9):
            assert log_evidence_exact([[x]], K, prior) == pytest.approx(math.log(pmf), rel=1e-12)


def test_what_is_all_missing_has_evidence_one():
    assert log_evidence_exact([[NAN, NAN]] * 6, 3) == pytest.approx(0, abs=1e-12)


def test_co_clustering_of_empty_rows_is_the_prior():
    found = exact_posterior([[NAN]] * 5, 4, Prior(alpha=0.3)).coclustering_NN
    expected = np.full((5, 5), 1.3 / (4 * 0.3 + 1))
    np.fill_diagonal(expected, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_order_of_rows_and_columns_does_not_matter():
    X = simulate(8, 3, 2, seed=1).X
    X[2, 1] = NAN
    rows, columns = torch.randperm(8, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1])
    straight, turned = exact_posterior(X, 2), exact_posterior(X[rows][:, columns], 2)
    assert turned.log_evidence == pytest.approx(straight.log_evidence, rel=1e-12)
    np.testing.assert_allclose(turned.coclustering_NN, straight.coclustering_NN[rows][:, rows], rtol=1e-10)
    np.testing.assert_allclose(turned.rate_ND, straight.rate_ND[rows][:, columns], rtol=1e-10)


def test_one_component_takes_any_number_of_rows():
    """K = 1 is one partition; where no cell is 0 its evidence is Beta times Gamma-Poisson."""
    column = np.random.default_rng(0).poisson(30, size=500)
    n, total = len(column), int(column.sum())
    expected = special.betaln(2 + n, 2) - special.betaln(2, 2) - special.gammaln(column + 1).sum()
    expected += special.gammaln(2 + total) - special.gammaln(2) + 2 * math.log(0.5) - (2 + total) * math.log(0.5 + n)
    assert (column > 0).all()
    assert log_evidence_exact(column[:, None], 1) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("n_rows", "K", "prior", "words"),
    [
        (100, 2, Prior(), "partitions"),
        (13, 6, Prior(), "partitions"),
        (13, 4, Prior(alpha=torch.tensor([1.0, 1, 1, 2])), "labellings"),
        (5000, 3, Prior(), "partitions"),
    ],
)
def test_refuses_what_takes_too_long_and_says_how_long(n_rows, K, prior, words):
    with pytest.raises(InputError, match=rf"X has {n_rows} rows.*{words}.*terms.*log_evidence_chib"):
        log_evidence_exact(np.ones((n_rows, 2)), K, prior)


def test_refuses_the_flat_prior():
    with pytest.raises(InputError, match=r"prior\.f is 0"):
        log_evidence_exact([[1]], 1, Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=0.0))


@pytest.mark.parametrize("name", ["two columns", "missing cells", "unequal alpha"])
def test_draws_come_from_the_exact_posterior(name):
    """Draws are independent, so their means are within 4 standard errors sd / sqrt(S) of brute force."""
    rows, K, prior = PROBLEMS[name]
    fit = METHODS["exact"](rows, K, prior=prior, seed=5, n_draws=20_000)
    _, expected = brute_force(rows, K, prior)
    R_SNK = np.stack([_responsibilities(np.array(rows), *point) for point in _points(fit.draws)])
    for field, table in (
        ("rate", fit.draws.lam[0]),
        ("share", fit.draws.omega[0]),
        ("predictive", fit.draws.lam[0] * fit.draws.omega[0]),
    ):
        # Rao-Blackwellised over z_i given the draw.
        values = np.einsum("snk,skd->snd", R_SNK, table.numpy())
        error = values.std(0) / math.sqrt(len(values))
        assert (np.abs(values.mean(0) - expected[field]) < 4 * error).all(), field
    assert fit.draws.pi.shape == (1, 20_000, K)
    assert float(az.ess(fit.trace.numpy())) > 15_000


def test_labels_of_draws_are_permuted_at_random():
    fit = exact([[0], [30], [31], [0]], 2, n_draws=4000)
    first_is_large = (fit.draws.lam[0, :, 0, 0] > fit.draws.lam[0, :, 1, 0]).double().mean().item()
    assert first_is_large == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(4000))


def _points(draws):
    return zip(draws.pi[0].numpy(), draws.omega[0].numpy(), draws.lam[0].numpy(), strict=True)


def _responsibilities(X, pi, omega, lam):
    pmf = omega * stats.poisson.pmf(np.nan_to_num(X)[:, None], lam) + (1 - omega) * (X[:, None] == 0)
    weight = pi * np.where(np.isnan(X)[:, None], 1.0, pmf).prod(-1)
    return weight / weight.sum(-1, keepdims=True)
