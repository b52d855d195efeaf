"""Complete conditionals: log joint of the Pyro program less their log density does not depend on the variable."""

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

from zipmix import Parameters, Prior, simulate
from zipmix.counts.store import as_counts
from zipmix.inference.parallel_tempering import tempered_logs, tempered_statistics
from zipmix.models.conjugate import as_distributions, complete_conditionals
from zipmix.models.kernel import Statistics, log_joint, logs, responsibilities, rho
from zipmix.models.parameters import check_prior
from zipmix.models.zip_mixture import zip_mixture

CASES = [
    (2, Prior(), False),
    (3, Prior(alpha=0.6, a=0.5, b=1.7, e=0.8, f=2.0), False),
    (2, Prior(alpha=torch.tensor([0.3, 4.0]).double(), a=3.0, b=0.4), True),
]


def problem(K, missing, seed=0):
    X, z, b, theta = simulate(9, 3, K, seed=seed)
    if missing:
        X[torch.from_numpy(np.random.default_rng(seed).random(X.shape) < 0.25)] = torch.nan
    return X, z, b.double(), theta


def program(X, z, b, theta, prior, power=1.0):
    """log p(pi, omega, lambda) + log p(z | pi) + power * log p(b, x | z, omega, lambda), site by site from Pyro.

    b of a missing cell, which is nothing to infer from, is left out, that is summed out.
    """
    values = theta._asdict() | {"z": z[:, None], "b": b}
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(zip_mixture, data=values)).get_trace(X, *X.shape, prior)
        trace.compute_log_prob()
    site = {name: trace.nodes[name]["log_prob"] for name in ("pi", "omega", "lam", "z", "b", "x")}
    cells = site["b"][~X.isnan()].sum() + site["x"].sum()
    return sum(site[name].sum() for name in ("pi", "omega", "lam", "z")) + power * cells


def counted(X, z, b, K):
    """Sufficient statistics of (z, b), row by row."""
    n, (c, s, p, m) = torch.zeros(K).double(), torch.zeros(4, K, X.shape[1]).double()
    for i, k in enumerate(z.tolist()):
        n[k] += 1
        for d in (d for d in range(X.shape[1]) if not X[i, d].isnan()):
            for table, value in zip((c, s, p, m), (1.0, X[i, d], X[i, d] > 0, b[i, d]), strict=True):
                table[k, d] += value
    return Statistics(n, c, s, p, m)


def somewhere(K, D, seed):
    rng = np.random.default_rng(seed)
    values = rng.dirichlet(np.ones(K)), rng.beta(1, 1, size=(K, D)), rng.gamma(1.0, 3.0, size=(K, D))
    return Parameters(*(torch.from_numpy(value) for value in values))


@pytest.mark.parametrize(("K", "prior", "missing"), CASES)
@pytest.mark.parametrize("power", [1.0, 0.3])
@pytest.mark.parametrize("name", ["pi", "omega", "lam"])
def test_parameters_given_the_rest(K, prior, missing, power, name):
    X, z, b, theta = problem(K, missing)
    prior = check_prior(prior, K)
    statistics = tempered_statistics(counted(X, z, b, K), torch.tensor(power, dtype=torch.float64))
    families = dict(zip(Parameters._fields, as_distributions(complete_conditionals(statistics, prior)), strict=True))
    differences = []
    for seed in range(20):
        value = getattr(somewhere(K, 3, seed), name)
        log_p = program(X, z, b, theta._replace(**{name: value}), prior, power)
        differences.append((log_p - families[name].log_prob(value).sum()).item())
    assert np.ptp(differences) < 1e-10 * max(1, abs(differences[0]))


@pytest.mark.parametrize(("K", "prior", "missing"), CASES)
@pytest.mark.parametrize("power", [1.0, 0.3])
def test_b_given_the_rest(K, prior, missing, power):
    """One zero at a time: the difference of the program's log joint at b = 1 and b = 0 is the log odds of rho."""
    X, z, b, theta = problem(K, missing)
    prior = check_prior(prior, K)
    share = rho(tempered_logs(logs(theta), torch.tensor(power, dtype=torch.float64)))
    zeros = (X == 0).nonzero().tolist()
    assert len(zeros) > 5
    for i, d in zeros:
        at = []
        for value in (0.0, 1.0):
            b_ND = b.clone()
            b_ND[i, d] = value
            at.append(program(X, z, b_ND, theta, prior, power))
        odds = share[z[i], d] / (1 - share[z[i], d])
        assert (at[1] - at[0]).item() == pytest.approx(odds.log().item(), abs=1e-10)


@pytest.mark.parametrize(("K", "prior", "missing"), CASES)
@pytest.mark.parametrize("power", [1.0, 0.3])
def test_z_given_the_rest_with_b_summed_out(K, prior, missing, power):
    """The program's joint, summed over every b of row i, less the log responsibility does not depend on z_i."""
    X, z, b, theta = problem(K, missing)
    prior = check_prior(prior, K)
    tables = tempered_logs(logs(theta), torch.tensor(power, dtype=torch.float64))
    R_NK = responsibilities(log_joint(as_counts(X), tables))[0]
    for i in range(len(X)):
        zeros = (X[i] == 0).nonzero().flatten().tolist()
        differences = []
        for k in range(K):
            z_N = z.clone()
            z_N[i] = k
            terms = []
            for bits in range(2 ** len(zeros)):
                b_ND = b.clone()
                b_ND[i, X[i] > 0] = 1.0
                for j, d in enumerate(zeros):
                    b_ND[i, d] = float(bits >> j & 1)
                terms.append(program(X, z_N, b_ND, theta, prior, power))
            differences.append((torch.logsumexp(torch.stack(terms), 0) - R_NK[i, k].log()).item())
        assert np.ptp(differences) < 1e-10 * max(1, abs(differences[0]))
