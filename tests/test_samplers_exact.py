"""Every sampler against the exact posterior, on tiny tables.

Each functional that `exact_posterior` reports is averaged over draws and must lie within 4 Monte-Carlo standard errors
of the exact value; the errors come from the effective sample size, by ArviZ.
"""

import itertools
import math

import arviz as az
import numpy as np
import pytest
import torch
from scipy import stats

import zipmix
from zipmix import Prior, exact_posterior, simulate

NAN = float("nan")

PROBLEMS = {
    "two columns": ([[0, 3], [1, 0], [5, 0], [0, 0]], 2, Prior()),
    "three components": ([[0], [2], [0], [7], [1]], 3, Prior(alpha=0.7, a=1.3, b=0.8, e=2.5, f=0.3)),
    "missing cells": ([[0, NAN], [NAN, NAN], [3, 0], [0, 6], [1, NAN]], 2, Prior(a=0.5, b=3.0)),
    "unequal alpha": ([[0, 2], [1, 0], [6, 0], [0, 0]], 2, Prior(alpha=torch.tensor([0.4, 3.0]).double())),
    "two groups": ([[0, 9, 0], [0, 12, 1], [7, 0, 0], [8, 0, 3], [0, 0, 0]], 2, Prior(alpha=1.0, e=1.0, f=0.2)),
    "more components than rows": ([[0, 1], [4, 0]], 3, Prior(alpha=2.0)),
}
SAMPLERS = {
    "gibbs": ("gibbs", {"n_chains": 16, "n_warmup": 100, "n_draws": 1000}),
    "tempering": ("gibbs", {"n_chains": 8, "n_warmup": 100, "n_draws": 1000, "n_temperatures": 4, "hottest": 6.0}),
    "collapsed_gibbs": ("collapsed_gibbs", {"n_chains": 16, "n_warmup": 50, "n_draws": 800}),
    "pyro_nuts": ("pyro_nuts", {"n_chains": 2, "n_warmup": 100, "n_draws": 150}),
}
CASES = [(sampler, name) for sampler in SAMPLERS for name in PROBLEMS]
# A gradient of the Pyro program takes as long as a sweep of all chains of the others.
CASES.remove(("pyro_nuts", "two groups"))


def functionals(X, draws):
    """What exact_posterior reports, given each draw of the parameters: (chain, draw, ...) by name.

    Cell by cell from equations (4) to (6), with z and b summed out given the draw.
    """
    pi, omega, lam = (value.numpy() for value in draws)
    N, K = len(X), pi.shape[-1]
    x = np.nan_to_num(X)[:, None]
    on = omega[..., None, :, :] * stats.poisson.pmf(x, lam[..., None, :, :])
    cell = on + (1 - omega[..., None, :, :]) * (x == 0)
    weight = pi[..., None, :] * np.where(np.isnan(X)[:, None], 1.0, cell).prod(-1)
    R = weight / weight.sum(-1, keepdims=True)
    off = np.where(np.isnan(X)[:, None], 1 - omega[..., None, :, :], np.where(x == 0, 1 - on / cell, 0.0))
    average = lambda table: np.einsum("csnk,cskd->csnd", R, table)  # noqa: E731
    # P(only the components of a set hold rows), and from it, by inclusion and exclusion, how many are occupied.
    within = {
        chosen: R[..., list(chosen)].sum(-1).prod(-1)
        for size in range(1, K + 1)
        for chosen in itertools.combinations(range(K), size)
    }
    occupied = np.zeros((*pi.shape[:2], K))
    for chosen in within:
        for subset, probability in within.items():
            if set(subset) <= set(chosen):
                occupied[..., len(chosen) - 1] += (-1) ** (len(chosen) - len(subset)) * probability
    rows, columns = np.triu_indices(N, 1)
    return {
        "coclustering_NN": (R[..., rows, :] * R[..., columns, :]).sum(-1),
        "occupied_K": occupied,
        "rate_ND": average(lam),
        "share_ND": average(omega),
        "predictive_ND": average(omega * lam),
        "structural_ND": (R[..., None] * off).sum(-2),
    }


def exact_functionals(X, K, prior):
    found = exact_posterior(X, K, prior)._asdict()
    rows, columns = np.triu_indices(len(X), 1)
    found["coclustering_NN"] = found["coclustering_NN"][rows, columns]
    return {name: value.numpy() for name, value in found.items() if name != "log_evidence"}


def scores(found, expected):
    """Distances from the exact values in Monte-Carlo standard errors; entries that never move apart, as they are."""
    flat = {name: found[name].reshape(*found[name].shape[:2], -1) for name in expected}
    values = np.concatenate(list(flat.values()), axis=-1)
    truth = np.concatenate([expected[name].ravel() for name in expected])
    names = [f"{name}[{j}]" for name in expected for j in range(expected[name].size)]
    moving = np.ptp(values, axis=(0, 1)) > 1e-9
    error = az.mcse(az.convert_to_dataset({"x": values[..., moving]}), method="mean")["x"].to_numpy()
    z = (values.mean((0, 1))[moving] - truth[moving]) / error
    still = values[0, 0][~moving] - truth[~moving]
    return dict(zip(np.array(names)[moving], z, strict=True)), still


@pytest.mark.parametrize(("sampler", "name"), CASES)
def test_within_four_standard_errors_of_exact(sampler, name):
    rows, K, prior = PROBLEMS[name]
    method, settings = SAMPLERS[sampler]
    fit = zipmix.fit(rows, K, method, prior=prior, seed=11, **settings)
    X = np.array(rows, dtype=float)
    z, still = scores(functionals(X, fit.draws), exact_functionals(X, K, prior))
    assert max(map(abs, z.values())) < 4, {name: value for name, value in z.items() if abs(value) >= 4}
    assert np.abs(still).max(initial=0) < 1e-9
    assert len(z) > 10


def test_tempering_crosses_between_modes_where_plain_chains_stay():
    """Rows can be split by either column; no chain at temperature 1 leaves the split it starts with.

    How often the first two rows belong together is known exactly.
    """
    X = np.array([[30, 30], [30, 3], [3, 30], [3, 3], [31, 30], [30, 4], [4, 30], [3, 3]], dtype=float)
    K, prior = 2, Prior(alpha=1.0, a=2.0, b=1.0, e=1.0, f=0.1)
    first_column = torch.tensor([[30.0, 16], [3, 16]]).double()
    lam = torch.stack([first_column, first_column, first_column.flip(1), first_column.flip(1)])
    start = zipmix.Parameters(torch.full((4, 2), 0.5).double(), torch.full((4, 2, 2), 0.9).double(), lam)
    plain_CS, tempered_CS = (
        functionals(
            X,
            zipmix.fit(
                X, K, "gibbs", prior=prior, n_warmup=300, n_draws=2000, start=start, n_temperatures=T, hottest=40.0
            ).draws,
        )["coclustering_NN"][..., 0]
        for T in (1, 8)
    )
    together = exact_posterior(X, K, prior).coclustering_NN[0, 1].item()
    assert (plain_CS.mean(1) > 0.99).tolist() == [True, True, False, False]
    assert (plain_CS.mean(1) < 0.01).tolist() == [False, False, True, True]
    error = float(az.mcse(tempered_CS, method="mean"))
    assert tempered_CS.mean() == pytest.approx(together, abs=4 * error)
    assert error < 0.03
    assert np.abs(tempered_CS.mean(1) - together).max() < 0.15


# A sampler that shares nothing with the library: every z_i and b_id on its own, in plain loops, from `random` alone.


def slow_gibbs(rows, K, prior, n_draws, rng):
    """Gibbs with z and b explicit, neither summed out of the other: z_i | b, then b_id | z_i, then the parameters."""
    N, D = len(rows), len(rows[0])
    alpha = [float(value) for value in np.broadcast_to(np.asarray(prior.alpha), K)]
    a, b0, e, f = (float(value) for value in prior[1:])
    seen = [[not math.isnan(x) for x in row] for row in rows]
    z = [rng.randrange(K) for _ in range(N)]
    b = [[1 if x > 0 else rng.randrange(2) for x in row] for row in rows]
    draws = []
    for _ in range(n_draws):
        n, c, m, s = [0] * K, *([[0.0] * D for _ in range(K)] for _ in range(3))
        for i in range(N):
            n[z[i]] += 1
            for d in range(D):
                if seen[i][d]:
                    c[z[i]][d] += 1
                    m[z[i]][d] += b[i][d]
                    s[z[i]][d] += b[i][d] * rows[i][d]
        gammas = [rng.gammavariate(alpha[k] + n[k], 1.0) for k in range(K)]
        pi = [g / sum(gammas) for g in gammas]
        omega = [[rng.betavariate(a + m[k][d], b0 + c[k][d] - m[k][d]) for d in range(D)] for k in range(K)]
        lam = [[rng.gammavariate(e + s[k][d], 1 / (f + m[k][d])) for d in range(D)] for k in range(K)]
        draws.append((pi, omega, lam))
        for i in range(N):
            weights = []
            for k in range(K):
                weight = pi[k]
                for d in (d for d in range(D) if seen[i][d]):
                    if b[i][d]:
                        x = rows[i][d]
                        weight *= omega[k][d] * math.exp(-lam[k][d]) * lam[k][d] ** x / math.factorial(int(x))
                    else:
                        weight *= 1 - omega[k][d]
                weights.append(weight)
            z[i] = rng.choices(range(K), weights)[0]
            for d in range(D):
                if seen[i][d] and rows[i][d] == 0:
                    on = omega[z[i]][d] * math.exp(-lam[z[i]][d])
                    b[i][d] = int(rng.random() < on / (on + 1 - omega[z[i]][d]))
    return zipmix.Parameters(*(torch.tensor(value, dtype=torch.float64) for value in zip(*draws, strict=True)))


@pytest.mark.parametrize("missing", [False, True])
def test_agrees_with_a_slow_sampler_with_explicit_z_and_b(missing):
    """12 rows, too many for a table of exact values by hand: both averages carry Monte-Carlo error."""
    import random

    X = simulate(12, 2, 2, seed=8).X
    if missing:
        X[3, 0] = X[7, 1] = X[8] = NAN
    rng = random.Random(4)
    chains = [slow_gibbs(X.tolist(), 2, Prior(), 4000, rng) for _ in range(2)]
    slow = zipmix.Parameters(*(torch.stack(fields)[:, 200:] for fields in zip(*chains, strict=True)))
    fast = zipmix.fit(X, 2, "gibbs", seed=2, n_warmup=200, n_draws=4000).draws
    for name, value in functionals(X.numpy(), slow).items():
        ours = functionals(X.numpy(), fast)[name]
        errors = [az.mcse(az.convert_to_dataset({"x": v}), method="mean")["x"].to_numpy() for v in (value, ours)]
        error = np.hypot(*errors)
        gap = np.abs(value.mean((0, 1)) - ours.mean((0, 1)))
        assert (gap <= 4 * error + 1e-12).all(), (name, gap / error)
