"""Stochastic variational inference in Pyro: q(pi) Dirichlet, q(omega_kd) Beta, q(lambda_kd) Gamma.

The mean-field guide uses the conjugate families; z and b are enumerated out of the Pyro program (TraceEnum_ELBO), so
that they need no factor of q and the ELBO is closer to the evidence than that of a q over z and b as well. Gradients
are reparameterised (implicitly, Figurnov, Mohamed and Mnih, 2018) and followed by Adam with a falling step.
"""

import time
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import ClippedAdam
from torch.distributions import constraints

from zipmix.inference.loop import iterate, settled
from zipmix.inference.pyro_map import Value
from zipmix.inference.result import Fit, Problem, pose
from zipmix.inference.start import Init, starts
from zipmix.models.conjugate import Conditionals, as_distributions, complete_conditionals, log_density, mean
from zipmix.models.kernel import expectation, logs
from zipmix.models.parameters import Parameters, Prior, check_real, check_whole, require_proper
from zipmix.models.posterior import log_posterior_at
from zipmix.models.zip_mixture import zip_mixture

# Draws behind the reported ELBO.
ELBO_DRAWS = 1000


def guide(initial: Conditionals) -> None:
    """q(pi) q(omega) q(lambda), started at the given Dirichlet, Beta and Gamma parameters."""
    q = Conditionals(
        *(pyro.param(f"q_{name}", value, constraint=constraints.positive) for name, value in initial._asdict().items())
    )
    K, D = q.a.shape
    pyro.sample("pi", dist.Dirichlet(q.alpha))
    with pyro.plate("component", K, dim=-2), pyro.plate("feature", D, dim=-1):
        pyro.sample("omega", dist.Beta(q.a, q.b))
        pyro.sample("lam", dist.Gamma(q.e, q.f))


def pyro_svi(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    init: Init = "small-em",
    start: Parameters | None = None,
    n_steps: int = 1000,
    learning_rate: float = 0.05,
    n_particles: int = 1,
    n_draws: int = 1000,
    progress: bool = False,
) -> Fit:
    """Variational posterior by Pyro's SVI, from one start.

    Args:
        X: (N, D) counts >= 0, NaN where missing.
        n_components: K >= 1.
        prior: hyperparameters, all > 0.
        seed: of the start, the gradients and the draws.
        init: "small-em", "kmeans++" or "prior", where the start comes from.
        start: a starting point to use instead, (K, D).
        n_steps: gradient steps.
        learning_rate: of Adam at the first step; it falls to a hundredth of that at the last.
        n_particles: draws of q per step.
        n_draws: S, draws of the final q to keep.
        progress: whether to show a progress bar.
    Returns:
        parameters: the mean of q; draws (1, S, ...) from q; objective: the ELBO, an average over 1000 draws whose
        standard error is objective_error; trace: the noisy ELBO of every step.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    problem = pose(X, n_components, prior)
    require_proper(problem.prior, "pyro_svi")
    for name, value in (("n_steps", n_steps), ("n_particles", n_particles), ("n_draws", n_draws)):
        check_whole(value, name, at_least=1)
    check_real(learning_rate, "learning_rate")
    theta = starts(
        problem.counts,
        problem.prior,
        n_components=problem.n_components,
        n_starts=1,
        init=init,
        start=start,
        seed=seed,
    )
    statistics, _ = expectation(problem.counts, logs(Parameters(*(value[0] for value in theta))))
    initial = complete_conditionals(statistics, problem.prior)
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        arguments = (problem.table.X_ND, *problem.table.X_ND.shape, problem.prior)
        optimiser = ClippedAdam({"lr": learning_rate, "lrd": 0.01 ** (1 / n_steps)})
        elbo = TraceEnum_ELBO(max_plate_nesting=2, num_particles=n_particles)
        svi = SVI(zip_mixture, lambda *_: guide(initial), optimiser, elbo)
        first = Value(torch.tensor([-svi.evaluate_loss(*arguments)], dtype=torch.float64))
        _, loop = iterate(
            lambda _: Value(torch.tensor([-svi.step(*arguments)], dtype=torch.float64)),
            first,
            lambda state: state.objective,
            max_iter=n_steps,
            tolerance=None,
            progress=progress,
            label="pyro_svi",
        )
        q = Conditionals(*(pyro.param(f"q_{name}").detach().clone() for name in Conditionals._fields))
        objective, error = _elbo(problem, q)
        draws = Parameters(*(family.sample((1, n_draws)) for family in as_distributions(q)))
    trace = loop.trace_TR[:, 0]
    converged, reason = settled(trace, loop.reason)
    return Fit(
        method="pyro_svi",
        parameters=mean(q),
        draws=draws,
        objective=objective,
        trace=trace,
        trace_seconds=loop.seconds_T,
        converged=converged,
        reason=reason,
        n_iter=len(trace) - 1,
        seconds=time.perf_counter() - problem.began,
        settings=dict(
            init=init,
            start=start,
            n_steps=n_steps,
            learning_rate=learning_rate,
            n_particles=n_particles,
            n_draws=n_draws,
        ),
        seed=seed,
        prior=problem.prior,
        X=problem.table.X_ND,
        names=problem.table.names,
        objective_error=error,
    )


def _elbo(problem: Problem, q: Conditionals) -> tuple[float, float]:
    """E_q[log p(X, Theta) - log q(Theta)] and its Monte-Carlo standard error."""
    theta = Parameters(*(family.sample((ELBO_DRAWS,)) for family in as_distributions(q)))
    values_S = log_posterior_at(problem.counts, theta, problem.prior) - log_density(q, theta)
    return values_S.mean().item(), (values_S.std() / ELBO_DRAWS**0.5).item()
