"""cavi: the ELBO against the Pyro program, the exact evidence, autodiff and its own monotony."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import TraceEnum_ELBO
from scipy import stats
from torch import distributions

from zipmix import METHODS, InputError, Parameters, Prior, log_evidence_exact, log_posterior, simulate
from zipmix.inference.cavi import cavi, evaluate
from zipmix.inference.problem import pose
from zipmix.models.conjugate import Conditionals, expected_logs
from zipmix.models.zip_mixture import zip_mixture

PRIORS = [Prior(), Prior(alpha=0.5, a=0.7, b=1.2, e=0.8, f=0.1)]


def some_q(K, D, seed, restarts=1):
    """Any Dirichlet, Beta and Gamma factors, with a restart axis."""
    rng = np.random.default_rng(seed)
    shapes = [(restarts, K)] + [(restarts, K, D)] * 4
    return Conditionals(*(torch.from_numpy(rng.gamma(4.0, 0.7, size=shape) + 0.3) for shape in shapes))


def table(n, d, k, seed, missing=False):
    X = simulate(n, d, k, seed=seed).X
    if missing:
        X[torch.from_numpy(np.random.default_rng(seed).random((n, d)) < 0.2)] = torch.nan
    return X


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("missing", [False, True])
def test_elbo_never_falls(prior, missing):
    problem = pose(table(60, 4, 3, 2, missing), 3, prior)
    state = evaluate(problem, some_q(3, 4, 0, restarts=10))
    for _ in range(200):
        before, state = state, evaluate(problem, state.following)
        assert (state.objective >= before.objective - 1e-10 * before.objective.abs()).all()
    assert (state.objective > before.objective.min() - 1).all()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("seed", range(6))
def test_elbo_is_below_the_exact_evidence(prior, seed):
    X = table(7, 2, 2, seed, missing=seed % 2 == 1)
    fit = cavi(X, 2, prior=prior, n_starts=5)
    evidence = log_evidence_exact(X, 2, prior)
    assert fit.converged
    assert fit.restarts.trace_TR.nan_to_num(-math.inf).max() < evidence
    # q cannot mix the K! labellings, and little more than that is lost on so few rows.
    assert fit.objective > evidence - 5


def test_elbo_is_the_evidence_where_q_holds_the_posterior():
    """K = 1 and no zero: nothing is latent and the posterior factorises, so nothing is lost."""
    X = torch.tensor([[3.0, 1], [2, 7], [9, 4]])
    assert cavi(X, 1).objective == pytest.approx(log_evidence_exact(X, 1), rel=1e-12)


class Indicator(dist.Categorical):
    """Categorical over 0.0 and 1.0: unlike pyro's Bernoulli it can be certain."""

    def enumerate_support(self, expand=True):
        return super().enumerate_support(expand).double()


def best_latents(X, tables):
    """The best q(z) and q(b | z), as logits, by plain loops: exp of the expected log joint."""
    N, D = X.shape
    log_r_NK = torch.zeros(N, len(tables.log_pi), dtype=torch.float64) + tables.log_pi
    log_b_NKD2 = torch.zeros(N, len(tables.log_pi), D, 2, dtype=torch.float64)
    for i, d in [(i, d) for i in range(N) for d in range(D) if not X[i, d].isnan()]:
        x = X[i, d]
        on = tables.u[:, d] - tables.w[:, d] + x * tables.l[:, d] - torch.lgamma(x + 1)
        off = tables.v[:, d] if x == 0 else torch.full_like(on, -torch.inf)
        log_b_NKD2[i, :, d] = torch.stack([off, on], -1)
        log_r_NK[i] += torch.logaddexp(off, on)
    return log_r_NK, log_b_NKD2


@pytest.mark.parametrize(("prior", "missing"), [(PRIORS[0], False), (PRIORS[1], True)])
def test_elbo_equals_that_of_the_pyro_program(prior, missing):
    """TraceEnum_ELBO of a guide that is the same q, z and b enumerated in it, averaged over draws of Theta.

    The draws are independent: 4 standard errors sd / sqrt(S).
    """
    X, K = table(5, 2, 2, 4, missing), 2
    problem = pose(X, K, prior)
    # Concentrated, so that the average is sharp.
    q = Conditionals(*(100 * value for value in some_q(K, 2, 1)))
    elbo = evaluate(problem, q).objective.item()
    alpha, a, b, e, f = (value[0] for value in q)
    log_r_NK, log_b_NKD2 = best_latents(X, expected_logs(Conditionals(alpha, a, b, e, f)))

    def guide(*_):
        pyro.sample("pi", dist.Dirichlet(alpha))
        feature = pyro.plate("feature", 2, dim=-1)
        with pyro.plate("component", K, dim=-2), feature:
            omega_KD = pyro.sample("omega", dist.Beta(a, b))
            pyro.sample("lam", dist.Gamma(e, f))
        # In a missing cell b is in no likelihood: its own density takes the place of q(b), and cancels.
        own_KD2 = torch.stack([1 - omega_KD, omega_KD], -1).log()
        logits_NKD2 = torch.where(X.isnan()[:, None, :, None], own_KD2, log_b_NKD2)
        with pyro.plate("observation", 5, dim=-2):
            z_N = pyro.sample("z", dist.Categorical(logits=log_r_NK[:, None]), infer={"enumerate": "parallel"})
            with feature:
                logits = logits_NKD2[torch.arange(5)[:, None], z_N, torch.arange(2)]
                pyro.sample("b", Indicator(logits=logits), infer={"enumerate": "parallel"})

    with torch.random.fork_rng(), pyro.validation_enabled(False), pyro.get_param_store().scope():
        torch.manual_seed(0)
        judge = TraceEnum_ELBO(max_plate_nesting=2)
        values = [-judge.loss(zip_mixture, guide, X, 5, 2, problem.prior) for _ in range(500)]
    error = np.std(values) / math.sqrt(len(values))
    assert elbo == pytest.approx(np.mean(values), abs=4 * error)
    assert error < 0.12


def test_step_is_a_stationary_point_of_the_elbo():
    """At the end the gradient of the ELBO in all parameters of q vanishes, by autodiff."""
    X = table(40, 3, 2, 5)
    problem = pose(X, 2, Prior())
    state = evaluate(problem, some_q(2, 3, 0))
    for _ in range(3000):
        state = evaluate(problem, state.following)
    q = Conditionals(*(value.clone().log().requires_grad_() for value in state.q))
    evaluated = evaluate_differentiably(problem, Conditionals(*(value.exp() for value in q)))
    assert evaluated.item() == pytest.approx(state.objective.item(), rel=1e-12)
    for gradient in torch.autograd.grad(evaluated, list(q)):
        assert gradient.abs().max() < 1e-5
    moved = evaluate_differentiably(problem, Conditionals(*((value + 0.1).exp() for value in q)))
    assert moved < evaluated - 1e-3


def evaluate_differentiably(problem, q):
    """The ELBO cell by cell, without the kernel's in-place memory."""
    X = problem.table.X_ND
    tables = expected_logs(q)
    u, v, w, log_lam = (value[0] for value in tables[1:])
    on = u - w + X[:, None] * log_lam - torch.lgamma(X + 1)[:, None]
    cell = torch.where(X[:, None] > 0, on, torch.logaddexp(on, v.expand_as(on)))
    local = torch.logsumexp(tables.log_pi[0] + cell.sum(-1), -1).sum()
    a, b, e, f = problem.prior[1:]
    kl = torch.distributions.kl_divergence
    pi = kl(distributions.Dirichlet(q.alpha[0]), distributions.Dirichlet(problem.prior.alpha))
    omega = kl(distributions.Beta(q.a[0], q.b[0]), distributions.Beta(a, b)).sum()
    lam = kl(distributions.Gamma(q.e[0], q.f[0]), distributions.Gamma(e, f)).sum()
    return local - pi - omega - lam


def test_expected_logs_are_expectations():
    """Digamma terms against scipy quadrature of the log under each density."""
    q = Conditionals(*(torch.tensor(v, dtype=torch.float64) for v in ([0.7, 2.0, 4.0], 1.4, 0.6, 2.5, 3.0)))
    found = expected_logs(q)
    beta, gamma = stats.beta(1.4, 0.6), stats.gamma(2.5, scale=1 / 3)
    assert found.u.item() == pytest.approx(beta.expect(np.log), abs=1e-6)
    assert found.v.item() == pytest.approx(beta.expect(lambda x: np.log1p(-x)), abs=1e-5)
    assert found.w.item() == pytest.approx(gamma.mean(), rel=1e-12)
    assert found.l.item() == pytest.approx(gamma.expect(np.log), abs=1e-7)
    for k, alpha in enumerate([0.7, 2.0, 4.0]):
        assert found.log_pi[k].item() == pytest.approx(stats.beta(alpha, 6.7 - alpha).expect(np.log), abs=1e-5)


def test_elbo_of_a_fit_equals_an_average_over_draws_of_q_at_most():
    """With z and b summed out of the joint the bound can only rise: E_q[log p(X, Theta) - log q] >= ELBO."""
    X = table(50, 3, 2, 7)
    fit = METHODS["cavi"](X, 2, seed=1, n_draws=4000)
    assert (fit.restarts.objective_R.max() - fit.objective) == 0
    problem = pose(X, 2, Prior())
    q = _q_of(problem, fit)
    draws = Parameters(*(value[0] for value in fit.draws))
    families = (distributions.Dirichlet(q.alpha), distributions.Beta(q.a, q.b), distributions.Gamma(q.e, q.f))
    pi, omega, lam = (family.log_prob(value) for family, value in zip(families, draws, strict=True))
    values = log_posterior(X, draws) - pi - (omega + lam).sum((-2, -1))
    error = values.std() / math.sqrt(len(values))
    assert fit.objective < values.mean() + 4 * error
    for mean, value in zip(fit.parameters, draws, strict=True):
        assert ((value.mean(0) - mean).abs() < 4.5 * value.std(0) / math.sqrt(4000)).all()


def _q_of(problem, fit):
    """The q whose means a converged fit reports: iterate on from there."""
    from zipmix.models.conjugate import complete_conditionals
    from zipmix.models.kernel import expectation, logs

    statistics, _ = expectation(problem.counts, logs(Parameters(*(v[None] for v in fit.parameters))))
    state = evaluate(problem, complete_conditionals(statistics, problem.prior))
    for _ in range(2000):
        state = evaluate(problem, state.following)
    assert state.objective.item() == pytest.approx(fit.objective, rel=1e-9)
    return Conditionals(*(value[0] for value in state.q))


def test_extremes_stay_finite():
    X = torch.zeros(6, 3, dtype=torch.float64)
    X[0, 0], X[1], X[2, 2] = 1e6, torch.nan, torch.nan
    fit = cavi(X, 9, prior=Prior(alpha=0.01, a=0.1, b=0.1, e=0.1, f=0.001), n_starts=3)
    assert math.isfinite(fit.objective)
    assert all(value.isfinite().all() for value in (*fit.parameters, *fit.draws))


def test_refuses_bad_settings():
    with pytest.raises(InputError, match=r"prior\.f is 0"):
        cavi([[1]], 1, prior=Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=0.0))
    with pytest.raises(InputError, match="n_draws"):
        cavi([[1]], 1, n_draws=0)
