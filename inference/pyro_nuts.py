"""The No-U-Turn sampler in Pyro, on the Pyro program alone: the cross-check of the Gibbs samplers.

Hoffman and Gelman (2014), with multinomial sampling along the trajectory (Betancourt, 2017), as Pyro implements it. z
and b are enumerated out, so that what is left is the density of (pi, omega, lambda), which is differentiable; Pyro maps
it to unconstrained coordinates, and torch.jit traces it once per table, which halves the time of a gradient. Warm-up
tunes the step and a diagonal mass matrix, for every chain by itself. The chains take turns in one process.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer.autoguide import init_to_value
from pyro.infer.mcmc import NUTS
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from zipmix.counts.checks import InputError, check_whole
from zipmix.inference.chains import Visit, chain_starts, check_lengths, run
from zipmix.inference.problem import Problem, pose
from zipmix.inference.result import Fit
from zipmix.inference.start import Init
from zipmix.models.coordinates import interior
from zipmix.models.parameters import Parameters, Prior, require_proper
from zipmix.models.posterior import log_posterior_at
from zipmix.models.zip_mixture import zip_mixture

Coordinates = dict[str, Tensor]  # unconstrained, by the name of the parameter


class State(NamedTuple):
    """C chains: where they are, how good that is, and what the last iteration took."""

    theta: Parameters  # (C, ...)
    objective: Tensor  # (C,) log p(X, theta | prior)
    step_size: Tensor  # (C,)
    n_gradients: Tensor  # (C,)


class Density(NamedTuple):
    """The program's density in unconstrained coordinates."""

    potential: Callable[[Coordinates], Tensor]  # -log p(X, Theta | prior) - log |d Theta / d coordinates|
    transforms: dict[str, Any]  # Theta -> coordinates, by the name of the parameter


def density(problem: Problem, point: Parameters) -> Density:
    """The potential energy of the Pyro program, z and b enumerated out, traced at a point (K, D)."""
    with warnings.catch_warnings():
        # Pyro has no other compiler to offer.
        warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
        coordinates, potential, transforms, _ = initialize_model(
            zip_mixture,
            (problem.table.X_ND, *problem.table.X_ND.shape, problem.prior),
            max_plate_nesting=2,
            init_strategy=init_to_value(values=point._asdict()),
            jit_compile=True,
            skip_jit_warnings=True,
        )
        potential(coordinates)
    return Density(potential, transforms)


def pyro_nuts(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    n_chains: int = 4,
    n_warmup: int = 500,
    n_draws: int = 500,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    init: Init = "small-em",
    start: Parameters | None = None,
    progress: bool = False,
) -> Fit:
    """Posterior draws by Pyro's NUTS; slow, since every draw takes many gradients of the enumerated program.

    Args (those of every method: zipmix.fit):
        prior: hyperparameters, all > 0.
        n_chains: C >= 1 chains, which take turns; chain c begins at start c.
        n_warmup: iterations that tune the step and the mass matrix, thrown away.
        n_draws: iterations kept, per chain.
        target_accept: acceptance probability in (0, 1) that the step is tuned to; higher takes smaller steps.
        max_tree_depth: at most 2^max_tree_depth gradients per draw.
        start: starting points to use instead, (K, D) or (C, K, D).
    Returns:
        Draws (chain, draw, ...) with the labels as the chains left them; parameters are the draw of highest log
        posterior, and objective is its log posterior. diagnostics: step_size, n_gradients and diverging of every draw,
        and acceptance_rate, the mean over the draws of a chain.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    problem = pose(X, n_components, prior)
    require_proper(problem.prior, "pyro_nuts")
    lengths = check_lengths(n_chains, n_warmup, n_draws)
    check_whole(max_tree_depth, "max_tree_depth", at_least=1)
    if not isinstance(target_accept, float) or not 0 < target_accept < 1:
        raise InputError(f"target_accept must be a number between 0 and 1, got {target_accept!r}.")
    begin = chain_starts(problem, n_chains=lengths.n_chains, init=init, start=start, seed=seed)
    points = [interior(Parameters(*point)) for point in zip(*begin, strict=True)]

    with torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        potential, transforms = density(problem, points[0])
        n_gradients = 0

        def counted(coordinates: Coordinates) -> Tensor:
            nonlocal n_gradients
            n_gradients += 1
            return potential(coordinates)

        def chain(point: Parameters) -> NUTS:
            kernel = NUTS(potential_fn=counted, target_accept_prob=target_accept, max_tree_depth=max_tree_depth)
            kernel.initial_params = {name: transforms[name](value) for name, value in point._asdict().items()}
            kernel.setup(lengths.n_warmup)
            return kernel

        kernels = [chain(point) for point in points]
        coordinates = [kernel.initial_params for kernel in kernels]

        def look(n_gradients_C: list[int]) -> State:
            stacked = {name: torch.stack([one[name] for one in coordinates]) for name in Parameters._fields}
            theta = Parameters(**{name: transforms[name].inv(value).detach() for name, value in stacked.items()})
            objective = log_posterior_at(problem.counts, theta, problem.prior)
            step_size = torch.tensor([kernel.step_size for kernel in kernels], dtype=torch.float64)
            return State(theta, objective, step_size, torch.tensor(n_gradients_C))

        def step(_: State) -> State:
            nonlocal n_gradients
            taken = []
            for c, kernel in enumerate(kernels):
                n_gradients = 0
                coordinates[c] = kernel.sample(coordinates[c])
                taken.append(n_gradients)
            return look(taken)

        def visit(state: State) -> Visit:
            theta, objective, step_size, n_gradients = state
            return Visit(theta, objective, {"step_size": step_size, "n_gradients": n_gradients})

        fit = run(
            "pyro_nuts",
            problem,
            step,
            look([0] * lengths.n_chains),
            visit,
            lengths,
            progress=progress,
            settings=dict(target_accept=target_accept, max_tree_depth=max_tree_depth, init=init, start=start),
            seed=seed,
        )
    return _with_acceptance(fit, kernels)


def _with_acceptance(fit: Fit, kernels: list[NUTS]) -> Fit:
    """The fit with what Pyro knows of the kept draws: which of them diverged, and how many proposals were accepted."""
    assert fit.draws is not None
    C, S = fit.draws.pi.shape[:2]
    diverging_CS = torch.zeros(C, S, dtype=torch.bool)
    if fit.n_iter > fit.settings["n_warmup"]:
        for diverging_S, kernel in zip(diverging_CS, kernels, strict=True):
            diverging_S[[draw for draw in kernel.diagnostics()["divergences"] if draw < S]] = True
    rate_C = torch.tensor([float(kernel.logging()["acc. prob"]) for kernel in kernels], dtype=torch.float64)
    diagnostics = {"diverging": diverging_CS, "acceptance_rate": rate_C[:, None].expand(C, S)}
    return replace(
        fit,
        diagnostics=fit.diagnostics | diagnostics,
        reason=f"{fit.reason}; {int(diverging_CS.sum())} of {C * S} draws diverged",
    )
