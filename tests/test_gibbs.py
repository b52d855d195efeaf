"""Gibbs: against a slow sampler of plain loops, and its complete conditionals against the Pyro program."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

from zipmix import InputError, Parameters, Prior, simulate
from zipmix.counts.store import as_counts
from zipmix.counts.table import as_table
from zipmix.inference.gibbs import draw_b, draw_z, gibbs
from zipmix.models.conjugate import Conditionals, as_distributions, complete_conditionals, draw
from zipmix.models.conjugate import log_density as log_density_of
from zipmix.models.kernel import log_joint, logs, responsibilities, rho, statistics
from zipmix.models.parameters import check_prior
from zipmix.models.zip_mixture import log_density, zip_mixture

NAN = float("nan")
PRIOR = Prior(alpha=torch.tensor([1.5, 0.7]).double(), a=2.0, b=1.3, e=2.5, f=0.4)


def table(seed, n=6, d=2, missing=False):
    X = simulate(n, d, 2, seed=seed).X
    if missing:
        X[0, 0], X[1] = NAN, NAN
    return X


def slow_gibbs(rows, alpha, a, b, e, f, n_sweeps, seed):
    """Draws z given b, b given z and Theta given both, one number at a time; yields (pi, omega, lam) as lists."""
    rng = random.Random(seed)
    K, D = len(alpha), len(rows[0])
    pi = [1 / K] * K
    omega = [[rng.betavariate(a, b) for _ in range(D)] for _ in range(K)]
    lam = [[rng.gammavariate(e, 1 / f) for _ in range(D)] for _ in range(K)]
    bits = [[1 if x > 0 else rng.randrange(2) for x in row] for row in rows]
    for _ in range(n_sweeps):
        size = [0] * K
        on = [[0] * D for _ in range(K)]
        off = [[0] * D for _ in range(K)]
        total = [[0.0] * D for _ in range(K)]
        for row, bit in zip(rows, bits, strict=True):
            weight = []
            for k in range(K):
                w = pi[k]
                for d, x in enumerate(row):
                    if math.isnan(x):
                        continue
                    # x! is the same for all k.
                    w *= omega[k][d] * math.exp(-lam[k][d]) * lam[k][d] ** x if bit[d] else 1 - omega[k][d]
                weight.append(w)
            k = rng.choices(range(K), weight)[0]
            size[k] += 1
            for d, x in enumerate(row):
                if math.isnan(x):
                    continue
                if x == 0:
                    alive = omega[k][d] * math.exp(-lam[k][d])
                    bit[d] = int(rng.random() < alive / (alive + 1 - omega[k][d]))
                on[k][d] += bit[d]
                off[k][d] += 1 - bit[d]
                total[k][d] += x
        gammas = [rng.gammavariate(alpha[k] + size[k], 1) for k in range(K)]
        pi = [g / sum(gammas) for g in gammas]
        omega = [[rng.betavariate(a + on[k][d], b + off[k][d]) for d in range(D)] for k in range(K)]
        lam = [[rng.gammavariate(e + total[k][d], 1 / (f + on[k][d])) for d in range(D)] for k in range(K)]
        yield pi, omega, lam


def invariants(pi, omega, lam):
    """What does not depend on the order of components: mixture means, their squares and products, (..., J)."""
    table = np.concatenate([omega, lam, omega * lam, lam**2, omega * lam[..., ::-1]], -1)
    means = (pi[..., None] * table).sum(-2)
    return np.concatenate([means, means**2, (pi**2).sum(-1, keepdims=True), lam.max(-2)], -1)


def mean_and_error(values_CSJ):
    """Mean over all draws, and its standard error from the means of 25 batches of each chain."""
    C, S, J = values_CSJ.shape
    batches = values_CSJ[:, : S // 25 * 25].reshape(C * 25, -1, J).mean(1)
    return values_CSJ.mean((0, 1)), batches.std(0, ddof=1) / math.sqrt(len(batches))


@pytest.mark.parametrize(("seed", "missing"), [(1, False), (4, True)])
def test_agrees_with_a_slow_sampler_of_explicit_z_and_b(seed, missing):
    """All 25 means agree within 4.5 standard errors of their difference; low rates leave open what a zero is."""
    prior = Prior(alpha=1.2, a=1.0, b=1.0, e=2.5, f=2.0)
    X = simulate(9, 2, 2, prior=prior, seed=seed).X
    if missing:
        X[0, 0], X[1] = NAN, NAN
    assert 4 < (X == 0).sum() < 14
    fit = gibbs(X, 2, prior=prior, n_draws=8000, n_chains=4, n_warmup=300)
    fast, error = mean_and_error(invariants(*(field.numpy() for field in fit.draws)))
    draws = list(slow_gibbs(X.tolist(), [1.2, 1.2], prior.a, prior.b, prior.e, prior.f, 20_300, seed))[300:]
    slow, slow_error = mean_and_error(invariants(*(np.array(field)[None] for field in zip(*draws, strict=True))))
    both = np.hypot(error, slow_error)
    assert (np.abs(fast - slow) < 4.5 * both).all(), (fast - slow) / both
    # The error is small enough to see a mistake: at most 3 % of each mean.
    assert (both < 0.03 * np.abs(slow)).all()


def log_joint_of_the_program(X, z, b, theta, prior):
    """log p(X, z, b, Theta) of the Pyro program; b is summed out of cells that are missing, where it is free."""
    values = dict(theta._asdict(), z=z[:, None], b=b)
    trace = poutine.trace(poutine.condition(zip_mixture, data=values)).get_trace(X, *X.shape, prior)
    trace.compute_log_prob()
    seen = ~X.isnan()
    sites = {name: trace.nodes[name]["log_prob"] for name in ("pi", "omega", "lam", "z", "b", "x")}
    return (sum(value.sum() for name, value in sites.items() if name != "b") + sites["b"][seen].sum()).item()


def latents(X, seed, K=2):
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.integers(K, size=len(X)))
    b = torch.from_numpy(rng.random(X.shape) < 0.5) | (X.nan_to_num(0.0) > 0)
    return z, b.double()


def other_points(K, D, n, seed):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield Parameters(
            *(torch.from_numpy(v) for v in (rng.dirichlet(np.ones(K)), rng.random((K, D)), rng.gamma(2, 2, (K, D))))
        )


@pytest.mark.parametrize("seed", range(4))
def test_conditionals_of_parameters_pass_the_constant_ratio_test(seed):
    """log joint - log conditional does not change with the variable: pi, every omega_kd and every lambda_kd at once."""
    X = table(seed, missing=seed % 2 == 1)
    prior = check_prior(PRIOR, 2)
    z, b = latents(X, seed)
    seen = ~X.isnan()
    zeta = torch.nn.functional.one_hot(z, 2).double()
    silent = zeta.T @ ((X == 0) * b)
    counted = statistics(as_counts(X), zeta, lambda zeros: silent)
    np.testing.assert_allclose(counted.m, zeta.T @ (b * seen), atol=1e-12)
    claimed = as_distributions(complete_conditionals(counted, prior))
    fixed = next(other_points(2, 2, 1, 50))
    for name, density in zip(Parameters._fields, claimed, strict=True):
        differences = []
        for point in other_points(2, 2, 6, seed):
            theta = fixed._replace(**{name: getattr(point, name)})
            value = density.log_prob(getattr(theta, name)).sum().item()
            differences.append(log_joint_of_the_program(X, z, b, theta, prior) - value)
        np.testing.assert_allclose(differences, differences[0], rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("missing", [False, True])
def test_conditional_of_z_passes_the_constant_ratio_test(missing):
    """With b summed out of the Pyro program term by term, over all b that the row's zeros allow."""
    X, prior = table(2, n=4, missing=missing), check_prior(PRIOR, 2)
    theta = next(other_points(2, 2, 1, 3))
    R_NK, _ = responsibilities(log_joint(as_counts(X), logs(theta)))
    z, b = latents(X, 0)
    for i in range(4):
        free = [d for d in range(2) if X[i, d] == 0]
        differences = []
        for k in range(2):
            terms = []
            for bits in itertools.product((0.0, 1.0), repeat=len(free)):
                moved, bs = z.clone(), b.clone()
                moved[i], bs[i, free] = k, torch.tensor(bits, dtype=torch.float64)
                terms.append(log_joint_of_the_program(X, moved, bs, theta, prior))
            differences.append(np.logaddexp.reduce(terms) - math.log(R_NK[i, k]))
        assert differences[0] == pytest.approx(differences[1], rel=1e-10)


def test_conditional_of_b_passes_the_constant_ratio_test():
    X = torch.tensor([[0.0, 3.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    prior, theta = check_prior(PRIOR, 2), next(other_points(2, 2, 1, 4))
    z, b = latents(X, 1)
    rho_KD = rho(logs(theta))
    for i, d in (X == 0).nonzero().tolist():
        off, on = b.clone(), b.clone()
        off[i, d], on[i, d] = 0, 1
        odds = log_joint_of_the_program(X, z, on, theta, prior) - log_joint_of_the_program(X, z, off, theta, prior)
        assert torch.logit(rho_KD[z[i], d]).item() == pytest.approx(odds, rel=1e-9)


@pytest.mark.parametrize("scale", [0.02, 1.0, 500.0])
def test_draws_of_parameters_follow_their_distributions(scale):
    """Kolmogorov's distance of 4000 draws is under its 0.1 % point; small shapes do not underflow."""
    one = Conditionals(*(scale * torch.tensor(v).double() for v in ([1.0, 2.5], [[0.7]], [[1.9]], [[1.3]], [[0.4]])))
    batch = Conditionals(*(field.expand(4000, *field.shape) for field in one))
    pi, omega, lam = draw(batch, np.random.default_rng(7))
    a, b, e, f = (field.item() for field in one[1:])
    np.testing.assert_allclose(pi.sum(-1), 1)
    assert log_density_of(one, Parameters(pi, omega, lam)).isfinite().all()
    grid = np.linspace(0.005, 0.995, 199)
    for values, true in (
        (pi[:, 0], stats.beta(scale, 2.5 * scale)),
        (pi[:, 1], stats.beta(2.5 * scale, scale)),
        (omega[:, 0, 0], stats.beta(a, b)),
        (lam[:, 0, 0], stats.gamma(e, scale=1 / f)),
    ):
        at = true.ppf(grid)
        # Small shapes round to 0 and 1, where the distribution has no mass and its rounded values do.
        at = at[(at > 1e-280) & (at < 1 - 1e-15) | (at > 1)]
        below = (values.numpy()[:, None] <= at).mean(0)
        assert np.abs(below - true.cdf(at)).max() < 1.95 / math.sqrt(4000)


def test_z_is_drawn_from_the_responsibilities():
    rng = np.random.default_rng(3)
    R_NK = torch.from_numpy(np.vstack([rng.dirichlet(np.ones(4)), [0, 1, 0, 0], [0.5, 0, 0, 0.5]]))
    z = draw_z(R_NK.expand(20_000, 3, 4), rng)
    assert ((z == 0) | (z == 1)).all()
    assert (z.sum(-1) == 1).all()
    # 4.5 standard errors of a share.
    assert ((z.mean(0) - R_NK).abs() <= 4.5 * (R_NK * (1 - R_NK) / 20_000).sqrt()).all()
    # Rows are drawn independently.
    assert abs(np.corrcoef(z[:, 0, 0], z[:, 2, 0])[0, 1]) < 4.5 / math.sqrt(20_000)


def test_b_is_drawn_as_a_binomial_count():
    zeros = torch.tensor([[0.0, 7.0], [40.0, 1.0]]).double()
    share = torch.tensor([[0.5, 0.2], [0.9, 1.0]]).double()
    drawn = draw_b(zeros.expand(20_000, 2, 2), share.expand(20_000, 2, 2), np.random.default_rng(0))
    expected = stats.binom(zeros.numpy(), share.numpy())
    assert (np.abs(drawn.mean(0).numpy() - expected.mean()) <= 4.5 * expected.std() / math.sqrt(20_000)).all()
    assert drawn[:, 1, 0].var().item() == pytest.approx(expected.var()[1, 0], rel=0.05)


def test_fit_of_the_chains():
    X = table(5, n=20, missing=True)
    fit = gibbs(X, 3, seed=2, n_chains=3, n_warmup=10, n_draws=40)
    assert [tuple(field.shape) for field in fit.draws] == [(3, 40, 3), (3, 40, 3, 2), (3, 40, 3, 2)]
    assert fit.n_iter == 50
    assert fit.trace.shape == (3, 51)
    assert len(fit.trace_seconds) == 51
    prior = check_prior(fit.prior, 3)
    for c, s in ((0, 0), (2, 39), (1, 17)):
        point = Parameters(*(field[c, s] for field in fit.draws))
        assert fit.trace[c, 11 + s].item() == pytest.approx(log_density(X, point, prior).item(), rel=1e-10)
    assert fit.objective == fit.trace[:, 11:].max().item()
    assert fit.objective == pytest.approx(log_density(X, fit.parameters, prior).item(), rel=1e-10)
    # Chains do not move together.
    assert not torch.equal(fit.draws.lam[0], fit.draws.lam[1])


def test_seed_alone_decides():
    X = table(5, n=20)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    settings = dict(n_chains=2, n_warmup=3, n_draws=5)
    one, same, other = (gibbs(X, 2, seed=s, **settings).draws.lam for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_chains_that_disagree_are_not_called_converged():
    """Each chain is left near where it began: one sweep from two points that are far apart."""
    X = simulate(400, 4, 2, seed=1).X
    far = simulate(1, 4, 2, seed=9).parameters
    pair = Parameters(
        *(torch.stack([one, other]) for one, other in zip(simulate(1, 4, 2).parameters, far, strict=True))
    )
    few = gibbs(X, 2, start=pair, n_chains=2, n_warmup=0, n_draws=6)
    assert not few.converged
    assert "R-hat" in few.reason
    many = gibbs(X[:30], 2, n_chains=2, n_warmup=200, n_draws=2000)
    assert many.converged


def test_chains_begin_at_the_given_points():
    X, start = table(5), simulate(1, 2, 2, seed=9).parameters
    fit = gibbs(X, 2, start=start, n_chains=2, n_warmup=0, n_draws=1)
    begun = log_density(as_table(X).X_ND, start, check_prior(Prior(), 2)).item()
    np.testing.assert_allclose(fit.trace[:, 0], begun, rtol=1e-10)
    with pytest.raises(InputError, match=r"start must hold one point or n_chains = 3 points, got 2"):
        gibbs(X, 2, start=Parameters(*(field.expand(2, *field.shape) for field in start)), n_chains=3)
