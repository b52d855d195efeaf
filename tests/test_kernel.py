"""The kernel: held against the Pyro program, and against sums over every z and b written with `math` alone."""

import itertools
import math

import numpy as np
import pytest
import torch

from zipmix import InputError, Parameters, Prior, log_posterior
from zipmix.counts.store import as_counts
from zipmix.counts.table import as_table
from zipmix.models import kernel
from zipmix.models.parameters import check_prior
from zipmix.models.zip_mixture import log_density

NAN = float("nan")
FIELDS = kernel.Statistics._fields


def problem(seed):
    """A random table, point and prior; every other one with missing cells, now and then a whole row or column."""
    rng = np.random.default_rng(seed)
    N, D, K = rng.integers(1, 9), rng.integers(1, 5), rng.integers(1, 5)
    scale = 10.0 ** rng.uniform(-2, 3)
    lam = rng.gamma(0.5, 2 * scale, size=(K, D)) + 1e-6
    omega = rng.beta(0.6, 0.6, size=(K, D))
    z = rng.integers(K, size=N)
    X = rng.poisson(lam[z]) * (rng.random((N, D)) < omega[z]).astype(float)
    if seed % 2:
        X[rng.random((N, D)) < 0.3] = NAN
        if seed % 3 == 0:
            X[rng.integers(N)] = NAN
        if seed % 5 == 0:
            X[:, rng.integers(D)] = NAN
    alpha = rng.gamma(2.0, 1.0, size=K) + 0.1 if seed % 4 else rng.gamma(2.0) + 0.1
    prior = Prior(torch.as_tensor(alpha), *(float(v) for v in rng.gamma(2.0, 1.0, size=4) + 0.1))
    theta = Parameters(*(torch.from_numpy(v) for v in (rng.dirichlet(np.ones(K)), omega, lam)))
    return torch.from_numpy(X), theta, prior


def log(p):
    return math.log(p) if p > 0 else -math.inf


def log_sum(terms):
    top = max(terms)
    return top + math.log(math.fsum(math.exp(t - top) for t in terms)) if top > -math.inf else top


def log_cell(x, b, omega, lam):
    """log p(b, x | z) from equations (5) and (6); b is drawn, and x not looked at, where x is missing."""
    log_b = log(omega) if b else (math.log1p(-omega) if omega < 1 else -math.inf)
    if math.isnan(x):
        return log_b
    if not b:
        return log_b + (0.0 if x == 0 else -math.inf)
    return log_b - lam - math.lgamma(x + 1) + (x * log(lam) if x else 0.0)


def row_terms(row, pi, omega, lam):
    """log p(x, z, b) for every z and every b in {0, 1}^D."""
    for k in range(len(pi)):
        for b in itertools.product((0, 1), repeat=len(row)):
            cells = (log_cell(x, *args) for x, *args in zip(row, b, omega[k], lam[k], strict=True))
            yield k, b, log(pi[k]) + math.fsum(cells)


def brute_force(X, theta):
    """log p(x, z = k) of every row, and expected statistics: sums over every z and b."""
    rows, (pi, omega, lam) = X.tolist(), (field.tolist() for field in theta)
    K, D = len(pi), len(rows[0])
    joint = np.empty((len(rows), K))
    sums = {name: np.zeros((K, D)) for name in FIELDS[1:]} | {"n": np.zeros(K)}
    for i, row in enumerate(rows):
        terms = list(row_terms(row, pi, omega, lam))
        joint[i] = [log_sum([value for j, _, value in terms if j == k]) for k in range(K)]
        evidence = log_sum([value for *_, value in terms])
        for k, b, value in terms:
            weight = math.exp(value - evidence)
            sums["n"][k] += weight
            for d, x in enumerate(row):
                if not math.isnan(x):
                    for name, amount in (("c", 1), ("s", x), ("p", x > 0), ("m", b[d])):
                        sums[name][k, d] += weight * amount
    return joint, sums


def counts_of(X):
    return as_counts(as_table(X).X_ND)


@pytest.mark.parametrize("seed", range(80))
def test_kernel_is_the_enumerated_pyro_program(seed):
    X, theta, prior = problem(seed)
    enumerated = log_density(X, theta, check_prior(prior, len(theta.pi))).item()
    assert log_posterior(X, theta, prior).item() == pytest.approx(enumerated, rel=1e-10)


@pytest.mark.parametrize("seed", range(80))
def test_kernel_is_a_sum_over_every_z_and_b(seed):
    X, theta, _ = problem(seed)
    joint, sums = brute_force(X, theta)
    tables = kernel.logs(theta)
    # A row of one component is 1e-10 of the largest: what is summed are logs of up to thousands.
    np.testing.assert_allclose(kernel.log_joint(counts_of(X), tables), joint, rtol=1e-10, atol=1e-10)
    statistics, log_likelihood = kernel.expectation(counts_of(X), tables)
    evidence = math.fsum(log_sum(row) for row in joint.tolist())
    assert log_likelihood.item() == pytest.approx(evidence, rel=1e-10, abs=1e-10)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(statistics, name), sums[name], rtol=1e-9, atol=1e-10, err_msg=name)


def test_batch_axes_are_points_one_by_one():
    X, theta, prior = problem(7)
    rng = np.random.default_rng(0)
    K, D = theta.omega.shape
    draws = rng.dirichlet(np.ones(K), size=(2, 3)), rng.random((2, 3, K, D)), rng.gamma(1.0, 3.0, size=(2, 3, K, D))
    batch = Parameters(*map(torch.from_numpy, draws))
    together, likelihood = kernel.expectation(counts_of(X), kernel.logs(batch))
    posterior = log_posterior(X, batch, prior)
    for index in itertools.product(range(2), range(3)):
        one = Parameters(*(field[index] for field in batch))
        alone, value = kernel.expectation(counts_of(X), kernel.logs(one))
        for name in FIELDS:
            np.testing.assert_allclose(getattr(together, name)[index], getattr(alone, name), rtol=1e-12)
        assert likelihood[index].item() == pytest.approx(value.item(), rel=1e-12)
        assert posterior[index].item() == pytest.approx(log_posterior(X, one, prior).item(), rel=1e-12)


@pytest.mark.parametrize("seed", [2, 3])
def test_statistics_of_shards_add(seed):
    X, theta, _ = problem(seed)
    X = torch.cat([X, X.flip(0), X])
    tables = kernel.logs(theta)
    whole, log_likelihood = kernel.expectation(counts_of(X), tables)
    shards = [kernel.expectation(counts_of(rows), tables) for rows in X.split(4)]
    assert sum(value for _, value in shards).item() == pytest.approx(log_likelihood.item(), rel=1e-12)
    for name in FIELDS:
        added = sum(getattr(statistics, name) for statistics, _ in shards)
        np.testing.assert_allclose(added, getattr(whole, name), rtol=1e-12, atol=1e-12)


EXTREME = {
    "omega 1": ([[0, 3], [2, 0]], [[1.0, 1.0], [0.5, 0.5]], [[2.0, 3.0], [1.0, 1.0]]),
    "omega 0 under zeros": ([[0, 3], [0, 1]], [[0.0, 0.5], [0.5, 0.5]], [[2.0, 3.0], [1.0, 1.0]]),
    "rate 0 under zeros": ([[0, 3], [0, 1]], [[0.5, 0.5], [1.0, 0.5]], [[0.0, 3.0], [0.0, 1.0]]),
    "rate 200 at zero": ([[0, 0], [0, 210]], [[1.0, 0.3], [0.999, 1.0]], [[200.0, 200.0], [200.0, 190.0]]),
    "rate 1e6 at zero": ([[0, 0]], [[1.0, 1.0], [1.0, 1.0]], [[1e6, 1e6], [2e6, 1e5]]),
    "counts of 1e6": ([[1_000_000, 0], [999_000, 1_000_003]], [[0.5, 0.5], [1.0, 0.9]], [[1e6, 2.0], [9.9e5, 1e6]]),
    "tiny rates": ([[1, 0], [0, 2]], [[0.5, 0.5], [1e-12, 0.9]], [[1e-300, 2.0], [1e-9, 1e-12]]),
    "one component impossible": ([[1, 0], [0, 2]], [[0.0, 0.5], [0.5, 0.5]], [[2.0, 3.0], [1.0, 1.0]]),
    "nothing observed": ([[NAN, NAN], [0, NAN]], [[0.0, 0.5], [1.0, 0.5]], [[2.0, 3.0], [0.0, 1.0]]),
}


@pytest.mark.parametrize("name", EXTREME)
@pytest.mark.parametrize("pi", [[0.3, 0.7], [0.0, 1.0]])
def test_extreme_values(name, pi):
    X, omega, lam = (torch.tensor(v, dtype=torch.float64) for v in EXTREME[name])
    theta = Parameters(torch.tensor(pi, dtype=torch.float64), omega, lam)
    joint, sums = brute_force(X, theta)
    found = kernel.log_joint(counts_of(X), kernel.logs(theta)).numpy()
    possible = joint > -math.inf
    # x log lambda - lambda - log x! is a difference of logs of size x log x, which sets what rounding leaves.
    largest = X.nan_to_num().max().item()
    rounding = 1e-10 + 1e-15 * largest * math.log(largest + 1)
    np.testing.assert_allclose(found[possible], joint[possible], rtol=1e-10, atol=rounding)
    assert (found[~possible] < -1e14).all()
    statistics, log_likelihood = kernel.expectation(counts_of(X), kernel.logs(theta))
    evidence = math.fsum(log_sum(row) for row in joint.tolist())
    assert log_likelihood.item() == pytest.approx(evidence, rel=1e-10, abs=rounding)
    for field in FIELDS:
        exact = getattr(statistics, field)
        np.testing.assert_allclose(exact, sums[field], rtol=2 * rounding, atol=rounding, err_msg=field)


def test_row_that_no_component_allows_gives_finite_numbers():
    """log p is -infinity; it is held far below what any count can lead to, so that nothing turns into NaN."""
    theta = Parameters(torch.tensor([0.5, 0.5]), torch.zeros(2, 1), torch.ones(2, 1))
    X = torch.tensor([[3.0], [0.0]])
    R_NK, log_likelihood_N = kernel.responsibilities(kernel.log_joint(counts_of(X), kernel.logs(_double(theta))))
    np.testing.assert_allclose(R_NK.sum(-1), 1)
    assert log_likelihood_N.isfinite().all()
    assert log_likelihood_N[0] < -1e14
    assert log_likelihood_N[1].item() == pytest.approx(0, abs=1e-12)


def test_points_off_the_support_are_refused():
    X = [[1, 0]]
    good = _double(Parameters(torch.ones(1), torch.full((1, 2), 0.5), torch.ones(1, 2)))
    bad = {
        r"parameters\.omega must lie in \[0, 1\], got values from 0\.5 to 1\.5": good._replace(
            omega=torch.tensor([[0.5, 1.5]])
        ),
        r"parameters\.lam must be finite and >= 0, got values from -1 to 1": good._replace(
            lam=torch.tensor([[1.0, -1.0]])
        ),
        r"parameters\.lam must be finite and >= 0, got NaN": good._replace(lam=torch.tensor([[1.0, NAN]])),
        r"parameters\.pi must be >= 0 and sum to 1, got the sum 0\.5": good._replace(pi=torch.tensor([0.5])),
        r"parameters\.lam must have shape \(1, 2\), got \(1, 3\)": good._replace(lam=torch.ones(1, 3)),
        r"parameters must be a zipmix\.Parameters\(pi, omega, lam\), got tuple": tuple(good),
    }
    for words, point in bad.items():
        with pytest.raises(InputError, match=words):
            log_posterior(X, point)


def _double(theta):
    return Parameters(*(field.double() for field in theta))
