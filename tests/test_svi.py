"""pyro_svi: the ELBO of both guides against Pyro's own estimate, the exact evidence and quadrature."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import integrate, stats
from scipy.optimize import minimize

from zipmix import InputError, Parameters, Prior, fit, log_evidence_exact, simulate
from zipmix.inference.problem import pose
from zipmix.inference.pyro_svi import _elbo, normal_families
from zipmix.models.zip_mixture import zip_mixture

GUIDES = ["conjugate", "normal"]


@pytest.mark.parametrize("guide", GUIDES)
def test_elbo_is_below_the_exact_evidence_and_not_far(guide):
    """4 standard errors of its average above the evidence at most; below, the K! labellings and what q cannot hold."""
    X = simulate(8, 2, 2, seed=3).X
    X[1, 0] = torch.nan
    found = fit(X, 2, "pyro_svi", guide=guide, n_steps=300, n_draws=10)
    evidence = log_evidence_exact(X, 2)
    assert evidence - 2 < found.objective < evidence + 4 * found.objective_error
    assert found.objective_error < 0.1


def test_conjugate_guide_finds_the_posterior_where_it_holds_it():
    """K = 1 and no zero: the posterior is Beta and Gamma, and the ELBO is the evidence, whatever is drawn."""
    X = torch.tensor([[3.0], [2], [9]])
    found = fit(X, 1, "pyro_svi", n_steps=400, learning_rate=0.05, n_draws=4000)
    assert found.objective == pytest.approx(log_evidence_exact(X, 1), abs=0.02)
    assert found.parameters.lam.item() == pytest.approx(16 / 3.5, rel=0.03)
    # Independent draws: 4 standard errors, and 3 % for a q that is not quite there.
    assert found.draws.lam.mean().item() == pytest.approx(16 / 3.5, rel=0.03 + 4 / math.sqrt(16 * 4000))


def test_normal_guide_finds_the_best_normal():
    """K = 1 and no zero, so log lambda and logit omega are independent: the best ELBO of each by quadrature."""
    X = torch.tensor([[3.0], [2], [9]])
    found = fit(X, 1, "pyro_svi", guide="normal", n_steps=600, learning_rate=0.05, n_draws=4000)

    def bound(log_density, location, scale):
        y = np.linspace(location - 9 * scale, location + 9 * scale, 4001)
        weight = stats.norm.pdf(y, location, scale)
        return integrate.simpson(weight * (log_density(y) - stats.norm.logpdf(y, location, scale)), x=y)

    def log_lam(y):
        rate = np.exp(y)
        likelihood = stats.poisson.logpmf(np.array([3, 2, 9])[:, None], rate).sum(0)
        return likelihood + stats.gamma.logpdf(rate, 2, scale=2) + y

    def logit_omega(y):
        share = 1 / (1 + np.exp(-y))
        return 3 * np.log(share) + stats.beta.logpdf(share, 2, 2) + np.log(share) + np.log1p(-share)

    y = found.draws.lam.log(), found.draws.omega.logit()
    best = 0.0
    for log_density, value in zip((log_lam, logit_omega), y, strict=True):
        top = minimize(lambda t, f=log_density: -bound(f, t[0], math.exp(t[1])), [1.0, -1.0], method="Nelder-Mead")
        location, scale = top.x[0], math.exp(top.x[1])
        best -= top.fun
        # 4 standard errors of 4000 draws, and a tenth of a standard deviation for the noise of the last steps.
        assert value.mean().item() == pytest.approx(location, abs=(0.1 + 4 / math.sqrt(4000)) * scale)
        assert value.std().item() == pytest.approx(scale, rel=0.1 + 4 / math.sqrt(8000))
    assert found.objective == pytest.approx(best, abs=4 * found.objective_error + 0.01)
    assert best < log_evidence_exact(X, 1)


def test_elbo_of_the_normal_guide_is_that_of_pyro():
    """The same q, estimated by Pyro's TraceEnum_ELBO from draws of its own: 4 standard errors of the difference."""
    X, K = simulate(6, 2, 3, seed=5).X, 3
    problem = pose(X, K, Prior())
    with pyro.get_param_store().scope(), torch.random.fork_rng(), pyro.validation_enabled(False):
        torch.manual_seed(0)
        guide = AutoNormal(poutine.block(zip_mixture, expose=list(Parameters._fields)), init_scale=0.3)
        arguments = (X, 6, 2, problem.prior)
        guide(*arguments)
        elbo = TraceEnum_ELBO(max_plate_nesting=2)
        values = [-elbo.loss(zip_mixture, guide, *arguments) for _ in range(300)]
        objective, error = _elbo(problem, normal_families(guide, problem.prior))
    assert objective == pytest.approx(np.mean(values), abs=4 * math.hypot(error, np.std(values) / math.sqrt(300)))
    assert error < 0.2


def test_settings_are_checked():
    for settings, words in [
        ({"guide": "AutoNormal"}, "guide must be 'conjugate' or 'normal', got 'AutoNormal'"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number > 0"),
        ({"n_particles": 0}, "n_particles must be a whole number >= 1"),
        ({"start": Parameters([[1.0]] * 2, [[[0.5]]] * 2, [[[1.0]]] * 2)}, "start must be one point, got 2"),
    ]:
        with pytest.raises(InputError, match=words):
            fit([[1.0]], 1, "pyro_svi", **settings)
