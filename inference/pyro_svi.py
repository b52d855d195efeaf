"""Stochastic variational inference in Pyro, with a mean-field guide over pi, omega and lambda.

The guide is of the conjugate families, q(pi) Dirichlet, q(omega_kd) Beta, q(lambda_kd) Gamma, or AutoNormal:
independent normals for the stick-breaking logits of pi, logit omega and log lambda (Kucukelbir et al., 2017). z and b
are enumerated out of the Pyro program (TraceEnum_ELBO), so that they need no factor of q and the ELBO is closer to the
evidence than that of a q over z and b as well. Gradients are reparameterised (implicitly for the conjugate families,
Figurnov, Mohamed and Mnih, 2018) and followed by Adam with a falling step.
"""

from typing import Any, Literal, get_args

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.optim import ClippedAdam
from torch.distributions import Distribution, biject_to, constraints

from zipmix.counts.checks import InputError, check_real, check_whole
from zipmix.inference.loop import iterate, settled
from zipmix.inference.problem import Problem, pose
from zipmix.inference.pyro_map import Value
from zipmix.inference.result import Fit
from zipmix.inference.start import Init, starts
from zipmix.models.conjugate import Conditionals, as_conditionals, as_distributions, complete_conditionals
from zipmix.models.coordinates import interior
from zipmix.models.kernel import expectation, logs
from zipmix.models.parameters import Parameters, Prior, require_proper
from zipmix.models.posterior import log_posterior_at
from zipmix.models.zip_mixture import zip_mixture

# Draws behind the reported ELBO.
ELBO_DRAWS = 1000

Guide = Literal["conjugate", "normal"]

# q of pi, omega and lambda.
Families = tuple[Distribution, Distribution, Distribution]


def conjugate_guide(initial: Conditionals) -> None:
    """q(pi) q(omega) q(lambda), started at the given Dirichlet, Beta and Gamma parameters."""
    q = Conditionals(
        *(pyro.param(f"q_{name}", value, constraint=constraints.positive) for name, value in initial._asdict().items())
    )
    K, D = q.a.shape
    pyro.sample("pi", dist.Dirichlet(q.alpha))
    with pyro.plate("component", K, dim=-2), pyro.plate("feature", D, dim=-1):
        pyro.sample("omega", dist.Beta(q.a, q.b))
        pyro.sample("lam", dist.Gamma(q.e, q.f))


def conjugate_families() -> Families:
    """q as the parameter store holds it."""
    return as_distributions(Conditionals(*(pyro.param(f"q_{name}").detach().clone() for name in Conditionals._fields)))


def normal_families(guide: AutoNormal, prior: Prior) -> Families:
    """q of the normal guide on the scale of the parameters, Jacobian included."""
    pi, omega, lam = (
        dist.TransformedDistribution(
            dist.Normal(getattr(guide.locs, name).detach(), getattr(guide.scales, name).detach()),
            [biject_to(family.support)],
        )
        for name, family in zip(Parameters._fields, as_distributions(as_conditionals(prior)), strict=True)
    )
    return pi, omega, lam


def pyro_svi(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    guide: Guide = "conjugate",
    init: Init = "small-em",
    start: Parameters | None = None,
    n_steps: int = 1000,
    learning_rate: float = 0.05,
    n_particles: int = 1,
    n_draws: int = 1000,
    progress: bool = False,
) -> Fit:
    """Variational posterior by Pyro's SVI, from one start.

    Args (those of every method: zipmix.fit):
        prior: hyperparameters, all > 0.
        guide: "conjugate" (Dirichlet, Beta, Gamma) or "normal" (Pyro's AutoNormal on the unconstrained scale).
        start: a starting point to use instead, (K, D) or (1, K, D).
        n_steps: gradient steps.
        learning_rate: of Adam at the first step; it falls to a hundredth of that at the last.
        n_particles: draws of q per step.
        n_draws: S, draws of the final q to keep.
    Returns:
        parameters: the mean of q ("normal": of its draws); draws (1, S, ...) from q; objective: the ELBO, an average
        over 1000 draws whose standard error is objective_error; trace: the noisy ELBO of every step.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    problem = pose(X, n_components, prior)
    require_proper(problem.prior, "pyro_svi")
    if guide not in get_args(Guide):
        raise InputError(f"guide must be 'conjugate' or 'normal', got {guide!r}.")
    for name, value in (("n_steps", n_steps), ("n_particles", n_particles), ("n_draws", n_draws)):
        check_whole(value, name, at_least=1)
    check_real(learning_rate, "learning_rate")
    counts, K = problem.counts, problem.n_components
    theta = starts(counts, problem.prior, n_components=K, n_starts=1, init=init, start=start, seed=seed)
    if len(theta.pi) != 1:
        raise InputError(f"start must be one point, got {len(theta.pi)}; run pyro_svi once from each of them.")
    arguments = (problem.table.X_ND, *problem.table.X_ND.shape, problem.prior)
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        q = _guide(problem, guide, theta.at(0))
        optimiser = ClippedAdam({"lr": learning_rate, "lrd": 0.01 ** (1 / n_steps)})
        svi = SVI(zip_mixture, q, optimiser, TraceEnum_ELBO(max_plate_nesting=2, num_particles=n_particles))
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
        families = conjugate_families() if guide == "conjugate" else normal_families(q, problem.prior)
        objective, error = _elbo(problem, families)
        draws = Parameters(*(family.sample((1, n_draws)) for family in families))
    trace = loop.trace_TR[:, 0]
    converged, reason = settled(trace, loop.ending, loop.reason)
    return problem.fit(
        "pyro_svi",
        parameters=Parameters(*(family.mean for family in families)) if guide == "conjugate" else _mean(draws),
        draws=draws,
        objective=objective,
        trace=trace,
        trace_seconds=loop.seconds_T,
        converged=converged,
        ending=loop.ending,
        reason=reason,
        n_iter=len(trace) - 1,
        settings=dict(
            guide=guide,
            init=init,
            start=start,
            n_steps=n_steps,
            learning_rate=learning_rate,
            n_particles=n_particles,
            n_draws=n_draws,
        ),
        seed=seed,
        objective_error=error,
    )


def _guide(problem: Problem, guide: Guide, point: Parameters) -> Any:
    """q as a Pyro guide, begun at a point."""
    if guide == "conjugate":
        initial = complete_conditionals(expectation(problem.counts, logs(point))[0], problem.prior)
        return lambda *_: conjugate_guide(initial)
    continuous = poutine.block(zip_mixture, expose=list(Parameters._fields))
    return AutoNormal(continuous, init_loc_fn=init_to_value(values=interior(point)._asdict()))


def _mean(draws: Parameters) -> Parameters:
    return draws.map(lambda value: value.mean((0, 1)))


def _elbo(problem: Problem, families: Families) -> tuple[float, float]:
    """E_q[log p(X, Theta) - log q(Theta)] and its Monte-Carlo standard error."""
    theta = Parameters(*(family.sample((ELBO_DRAWS,)) for family in families))
    pi, omega, lam = (family.log_prob(value) for family, value in zip(families, theta, strict=True))
    values_S = log_posterior_at(problem.counts, theta, problem.prior) - pi - (omega + lam).sum((-2, -1))
    return values_S.mean().item(), (values_S.std() / ELBO_DRAWS**0.5).item()
