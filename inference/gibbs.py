"""Gibbs sampling, blocked: b summed out of z, and counted, not stored, in everything else.

A sweep draws, for all chains in one batch,

    z | X, Theta         from the responsibilities, b summed out                    kernel.log_joint   (question 1e)
    m | X, z, Theta      = p + Binomial(zeros of z in (k, d), rho): the number of cells with b = 1, which is all that
                         the next step needs of b (question 1d): K x D numbers instead of N x D
    Theta | X, z, m      from the complete conditionals                             conjugate.draw     (questions 1a-1c)

Geman and Geman (1984); blocking after Liu, Wong and Kong (1994). With n_temperatures > 1 each chain is a ladder of
tempered ones (parallel_tempering.py): axes (C, T, ...), the chain of the posterior itself first.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.store import CountTable
from zipmix.inference.chains import Visit, chain_starts, check_lengths, run
from zipmix.inference.parallel_tempering import Ladder, ladder, spaced, swap, tempered_logs, tempered_statistics
from zipmix.inference.problem import Problem, pose
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.inference.start import Init
from zipmix.models.conjugate import as_conditionals, complete_conditionals, draw, log_density
from zipmix.models.kernel import Logs, Statistics, log_joint, logs, responsibilities, rho, statistics
from zipmix.models.parameters import Parameters, Prior, require_proper


class State(NamedTuple):
    """C chains of T temperatures: where they are, how good that is, and where the sweep takes them."""

    theta: Parameters  # (C, T, ...)
    following: Parameters  # (C, T, ...)
    objective: Tensor  # (C,) log p(X, theta | prior) at temperature 1
    ladder: Ladder


def sweep(problem: Problem, theta: Parameters, ladder: Ladder, rng: np.random.Generator) -> State:
    """One sweep from theta (C, T, ...), for all chains and temperatures."""
    drawn, log_likelihood = draw_statistics(problem.counts, tempered_logs(logs(theta), ladder.beta), rng)
    objective = log_likelihood[:, 0] + log_density(as_conditionals(problem.prior), coldest(theta))
    drawn, ladder = swap(ladder, drawn, problem.prior, rng)
    conditionals = complete_conditionals(tempered_statistics(drawn, ladder.beta), problem.prior)
    return State(theta, draw(conditionals, rng), objective, ladder)


def coldest(theta: Parameters) -> Parameters:
    """The chains of the posterior itself, (C, ...)."""
    return theta.map(lambda value: value[:, 0])


def draw_statistics(counts: CountTable, tables: Logs, rng: np.random.Generator) -> tuple[Statistics, Tensor]:
    """Sufficient statistics of one draw of (z, b) given Theta, and log p(X | Theta), (...), with both summed out."""
    R_NK, log_likelihood_N = responsibilities(log_joint(counts, tables))
    rho_KD = rho(tables)
    drawn = statistics(counts, draw_z(R_NK, rng), lambda zeros_KD: draw_b(zeros_KD, rho_KD, rng))
    return drawn, log_likelihood_N.sum(-1)


def draw_z(R_NK: Tensor, rng: np.random.Generator) -> Tensor:
    """One component per row as ones and zeros, (..., N, K), by inversion of the cumulative responsibilities."""
    below_KN = R_NK.mT.cumsum(-2)
    below_KN[..., -1, :] = 1.0
    uniform_N = torch.from_numpy(rng.random((*R_NK.shape[:-2], 1, R_NK.shape[-2])))
    reached_KN = below_KN.gt_(uniform_N)
    z_KN = torch.empty_like(reached_KN)
    z_KN[..., 0, :] = reached_KN[..., 0, :]
    torch.sub(reached_KN[..., 1:, :], reached_KN[..., :-1, :], out=z_KN[..., 1:, :])
    return z_KN.mT


def draw_b(zeros_KD: Tensor, rho_KD: Tensor, rng: np.random.Generator) -> Tensor:
    """How many of the observed zeros of each (k, d) have b = 1, (..., K, D)."""
    drawn = rng.binomial(zeros_KD.round().to(torch.int64).numpy(), rho_KD.clamp(0.0, 1.0).numpy())
    return torch.from_numpy(np.asarray(drawn)).to(rho_KD.dtype)


def gibbs(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    n_chains: int = 4,
    n_warmup: int = 500,
    n_draws: int = 1000,
    n_temperatures: int = 1,
    hottest: float = 8.0,
    init: Init = "small-em",
    start: Parameters | None = None,
    progress: bool = False,
) -> Fit:
    """Posterior draws by blocked Gibbs sampling.

    Args (those of every method: zipmix.fit):
        prior: hyperparameters, all > 0.
        n_chains: C >= 1 chains, all in one batch; chain c begins at start c.
        n_warmup: sweeps thrown away first.
        n_draws: sweeps kept, per chain.
        n_temperatures: T >= 1 temperatures per chain; more than 1 is parallel tempering, for posteriors with several
            modes, at T times the cost.
        hottest: temperature > 1 of the hottest chain, whose likelihood is raised to the power 1 / hottest; those
            between are spaced during warm-up so that neighbours swap equally often.
        start: starting points to use instead, (K, D) or (C, K, D).
    Returns:
        Draws (chain, draw, ...) with the labels as the chains left them; parameters are the draw of highest log
        posterior, and objective is its log posterior. With tempering, diagnostics hold the temperatures and the
        swap_rate between neighbours (the probability that a swap is accepted) of every draw.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    problem = pose(X, n_components, prior)
    require_proper(problem.prior, "gibbs")
    lengths = check_lengths(n_chains, n_warmup, n_draws)
    begin = chain_starts(problem, n_chains=lengths.n_chains, init=init, start=start, seed=seed)
    temperatures = ladder(lengths.n_chains, n_temperatures, hottest)
    rng = generator(seed, "method")
    T = temperatures.beta.shape[1]
    # The last spacing leaves half of the warm-up to settle on it.
    spacings = {lengths.n_warmup // part for part in (32, 16, 8, 4, 2)} - {0} if T > 1 else set()

    def step(state: State) -> State:
        state = sweep(problem, state.following, state.ladder, rng)
        return state._replace(ladder=spaced(state.ladder)) if int(state.ladder.n_sweeps[0]) in spacings else state

    def visit(state: State) -> Visit:
        beta, swap_rate, *_ = state.ladder
        diagnostics = {"temperature": 1 / beta, "swap_rate": swap_rate} if T > 1 else {}
        return Visit(coldest(state.theta), state.objective, diagnostics)

    many = begin.map(lambda value: value.unsqueeze(1).expand(-1, T, *value.shape[1:]))
    fit = run(
        "gibbs",
        problem,
        step,
        sweep(problem, many, temperatures, rng),
        visit,
        lengths,
        progress=progress,
        settings=dict(n_temperatures=n_temperatures, hottest=hottest, init=init, start=start),
        seed=seed,
    )
    if T == 1:
        return fit
    rates = fit.diagnostics["swap_rate"].mean((0, 1))
    return replace(
        fit, reason=f"{fit.reason}; swap rates of {T} temperatures are {rates.min():.2f} to {rates.max():.2f}"
    )
