"""Gibbs sampling, blocked: b summed out of z, and counted, not stored, in everything else.

A sweep draws, for all chains in one batch,

    z | X, Theta         from the responsibilities, b summed out                    kernel.log_joint   (question 1e)
    m | X, z, Theta      = p + Binomial(zeros of z in (k, d), rho): the number of cells with b = 1, which is all that
                         the next step needs of b (question 1d): K x D numbers instead of N x D
    Theta | X, z, m      from the complete conditionals                             conjugate.draw     (questions 1a-1c)

Geman and Geman (1984); blocking after Liu, Wong and Kong (1994).
"""

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.inference.loop import iterate
from zipmix.inference.result import Fit, Problem, pose
from zipmix.inference.start import Init, starts
from zipmix.models.conjugate import as_conditionals, complete_conditionals, draw, log_density
from zipmix.models.kernel import log_joint, logs, responsibilities, rho, statistics
from zipmix.models.parameters import InputError, Parameters, Prior, check_whole, require_proper

# Split R-hat of the log posterior below which the chains are taken to agree (Vehtari et al., 2021).
R_HAT = 1.01


class State(NamedTuple):
    """C chains: where they are, how good that is, and where the sweep takes them."""

    theta: Parameters  # (C, ...)
    following: Parameters  # (C, ...)
    objective: Tensor  # (C,) log p(X, theta | prior)


def sweep(problem: Problem, theta: Parameters, rng: np.random.Generator) -> State:
    """One sweep from theta, for all chains."""
    tables = logs(theta)
    R_NK, log_likelihood_N = responsibilities(log_joint(problem.counts, tables))
    objective = log_likelihood_N.sum(-1) + log_density(as_conditionals(problem.prior), theta)
    rho_KD = rho(tables)
    drawn = statistics(problem.counts, draw_z(R_NK, rng), lambda zeros_KD: _binomial(zeros_KD, rho_KD, rng))
    return State(theta, draw(complete_conditionals(drawn, problem.prior), rng), objective)


def draw_z(R_NK: Tensor, rng: np.random.Generator) -> Tensor:
    """One component per row as ones and zeros, (..., N, K), by inversion of the cumulative responsibilities."""
    below_KN = R_NK.mT.cumsum(-2)
    below_KN[..., -1, :] = 1.0
    uniform_N = torch.from_numpy(rng.random((*R_NK.shape[:-2], 1, R_NK.shape[-2])))
    z_KN = (uniform_N < below_KN).to(R_NK.dtype)
    z_KN[..., 1:, :] -= z_KN[..., :-1, :].clone()
    return z_KN.mT


def _binomial(n: Tensor, p: Tensor, rng: np.random.Generator) -> Tensor:
    drawn = rng.binomial(n.round().to(torch.int64).numpy(), p.clamp(0.0, 1.0).numpy())
    return torch.from_numpy(np.asarray(drawn)).to(p.dtype)


def gibbs(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    n_chains: int = 4,
    n_warmup: int = 500,
    n_draws: int = 1000,
    init: Init = "small-em",
    start: Parameters | None = None,
    progress: bool = False,
) -> Fit:
    """Posterior draws by blocked Gibbs sampling.

    Args:
        X: (N, D) counts >= 0, NaN where missing.
        n_components: K >= 1.
        prior: hyperparameters, all > 0.
        seed: of starts and draws.
        n_chains: C >= 1 chains, all in one batch; chain c begins at start c.
        n_warmup: sweeps thrown away first.
        n_draws: sweeps kept, per chain.
        init: "small-em", "kmeans++" or "prior", where starts come from.
        start: starting points to use instead, (K, D) or (C, K, D).
        progress: whether to show a progress bar.
    Returns:
        Draws (chain, draw, ...) with the labels as the chains left them; parameters are the draw of highest log
        posterior, and objective is its log posterior.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    problem = pose(X, n_components, prior)
    require_proper(problem.prior, "gibbs")
    for name, value, least in (("n_chains", n_chains, 1), ("n_warmup", n_warmup, 0), ("n_draws", n_draws, 1)):
        check_whole(value, name, at_least=least)
    theta = starts(
        problem.counts,
        problem.prior,
        n_components=problem.n_components,
        n_starts=n_chains,
        init=init,
        start=start,
        seed=seed,
    )
    if len(theta.pi) == 1 and n_chains > 1:
        theta = Parameters(*(value.expand(n_chains, *value.shape[1:]) for value in theta))
    if len(theta.pi) != n_chains:
        raise InputError(f"start must hold one point or n_chains = {n_chains} points, got {len(theta.pi)}.")
    rng = np.random.default_rng([seed, 1_000_003])
    kept: list[Parameters] = []

    def step(state: State) -> State:
        state = sweep(problem, state.following, rng)
        kept.append(state.theta)
        return state

    _, loop = iterate(
        step,
        sweep(problem, theta, rng),
        lambda state: state.objective,
        max_iter=n_warmup + n_draws,
        tolerance=None,
        progress=progress,
        label="gibbs",
    )
    n_kept = max(len(kept) - n_warmup, 1)
    draws = Parameters(*(torch.stack(fields, dim=1) for fields in zip(*kept[-n_kept:], strict=True)))
    trace_CT = loop.trace_TR.T
    lp_CS = trace_CT[:, -n_kept:]
    chain, best = divmod(int(lp_CS.argmax()), n_kept)
    converged, reason = _agreement(lp_CS, loop.reason)
    return Fit(
        method="gibbs",
        parameters=Parameters(*(value[chain, best] for value in draws)),
        draws=draws,
        objective=lp_CS[chain, best].item(),
        trace=trace_CT,
        trace_seconds=loop.seconds_T,
        converged=converged,
        reason=reason,
        n_iter=len(kept),
        seconds=time.perf_counter() - problem.began,
        settings=dict(n_chains=n_chains, n_warmup=n_warmup, n_draws=n_draws, init=init, start=start),
        seed=seed,
        prior=problem.prior,
        X=problem.table.X_ND,
        names=problem.table.names,
    )


def _agreement(lp_CS: Tensor, reason: str) -> tuple[bool, str]:
    if reason.startswith("interrupted"):
        return False, reason
    if lp_CS.shape[1] < 4:
        return False, f"{reason}; too few draws to judge whether the chains agree (4 at least)"
    from zipmix.inference.arviz_io import rhat

    value = rhat(lp_CS)
    return value < R_HAT, f"{reason}; R-hat of the log posterior over {len(lp_CS)} chains is {value:.3f}"
