"""One optimum by three roads: EM, Adam with L-BFGS and L-BFGS alone, from the same start, on random problems."""

from importlib import import_module

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

from zipmix import METHODS, InputError, Parameters, Prior, log_posterior, simulate
from zipmix.inference.problem import pose
from zipmix.models.zip_mixture import log_density, zip_mixture

ROUNDS = 6


def problem(seed):
    """A random size, prior and table, every third with missing cells, and a start.

    The start is the end of a few rounds of plain EM: a posterior has several hills, and only a start on the slope of
    one of them leads all roads to its top.
    """
    rng = np.random.default_rng(seed)
    K, D, N = int(rng.integers(2, 5)), int(rng.integers(1, 6)), int(rng.integers(20, 120))
    prior = Prior(
        alpha=rng.uniform(1.1, 3),
        a=rng.uniform(1.1, 4),
        b=rng.uniform(1.1, 4),
        e=rng.uniform(1.1, 4),
        f=rng.uniform(0.1, 1),
    )
    X = simulate(N, D, K, prior=prior, seed=seed).X
    if seed % 3 == 0:
        X[torch.from_numpy(rng.random((N, D)) < 0.15)] = torch.nan
    plain = dict(annealing=0, race=None, split_merge=0, accelerate=False)
    rounds = METHODS["em"](X, K, prior=prior, seed=seed, n_starts=1, init="small-em", max_iter=ROUNDS, **plain)
    return X, K, prior, rounds.parameters


def gradient(X, theta, prior):
    """Of the Pyro program's log density, in unconstrained coordinates."""
    free = [theta.pi.log(), theta.omega.logit(), theta.lam.log()]
    log_pi, logit, log_lam = (value.clone().requires_grad_() for value in free)
    point = Parameters(torch.softmax(log_pi, -1), torch.sigmoid(logit), log_lam.exp())
    return torch.autograd.grad(log_density(X, point, pose(X, len(log_pi), prior).prior), (log_pi, logit, log_lam))


@pytest.mark.parametrize("seed", range(24))
def test_same_optimum_from_the_same_start(seed):
    X, K, prior, start = problem(seed)
    em = METHODS["em"](X, K, prior=prior, start=start)
    assert log_posterior(X, start, prior) < em.objective - 1e-5
    adam = METHODS["pyro_map"](X, K, prior=prior, start=start, n_adam=20)
    alone = METHODS["pyro_map"](X, K, prior=prior, start=start, n_adam=0)
    assert adam.objective == pytest.approx(em.objective, abs=1e-6)
    assert alone.objective == pytest.approx(em.objective, abs=1e-6)
    # Where the objective is within 1e-9 of its top and no curvature is over N = 120 or so, |g|^2 < 2 * 120 * 1e-9.
    for each in gradient(X, em.parameters, prior):
        assert each.abs().max() < 5e-4


def test_minibatches_weigh_up_to_the_whole_table():
    """Pyro's subsample of the observation plate: its mean over draws is the log density, within 4 standard errors."""
    X = torch.tensor([[0.0, 3], [1, torch.nan], [7, 0], [0, 0], [2, 5]], dtype=torch.float64)
    prior = pose(X, 2, Prior()).prior
    theta = simulate(1, 2, 2, seed=1).parameters
    conditioned = poutine.condition(zip_mixture, data=theta._asdict())
    blocked = TraceEnum_ELBO(max_plate_nesting=2)
    with torch.random.fork_rng(), pyro.validation_enabled(False), poutine.block():
        torch.manual_seed(0)
        values = [-blocked.loss(conditioned, lambda *_: None, X, 5, 2, prior, 2) for _ in range(225)]
    error = np.std(values) / 15
    assert error > 0.1
    assert np.mean(values) == pytest.approx(log_density(X, theta, prior).item(), abs=4 * error)


@pytest.mark.parametrize("batch_size", [1, 25, 1000])
def test_minibatches_lead_to_the_same_optimum(batch_size):
    X, K, prior, start = problem(4)
    em = METHODS["em"](X, K, prior=prior, start=start)
    settings = dict(prior=prior, start=start, n_adam=30, learning_rate=0.005)
    found = METHODS["pyro_map"](X, K, batch_size=batch_size, seed=1, **settings)
    assert found.objective == pytest.approx(em.objective, abs=1e-6)
    whole = METHODS["pyro_map"](X, K, seed=1, **settings)
    # More rows than the table has are the table; fewer give noisy steps.
    assert torch.equal(found.trace, whole.trace) == (batch_size == 1000)


@pytest.mark.parametrize("where", ["Adam", "L-BFGS"])
def test_ctrl_c_ends_the_search_and_hands_back_where_it_is(monkeypatch, where):
    """The second of three starts is interrupted; the third does not run, and the second is no end that converged."""
    module = import_module("zipmix.inference.pyro_map")
    owner, name, after = {
        "Adam": (pyro.infer.SVI, "step", 10 + 4),
        "L-BFGS": (module, "log_density", 40),
    }[where]
    original, calls = getattr(owner, name), []

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(owner, name, pressed)
    X = problem(4)[0]
    found = METHODS["pyro_map"](X, 2, n_starts=3, n_adam=10, max_iter=20)
    assert found.reason.startswith("interrupted by the user")
    assert "in start 2 of 3" in found.reason
    assert len(found.restarts.objective_R) == 2
    assert not found.restarts.converged_R[1]
    assert len(found.trace) == len(found.trace_seconds) == found.n_iter + 1
    assert found.objective == pytest.approx(log_posterior(X, found.parameters).item(), rel=1e-9)


def test_settings_are_checked():
    for settings, words in [
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0"),
    ]:
        with pytest.raises(InputError, match=words):
            METHODS["pyro_map"]([[1.0]], 1, **settings)
