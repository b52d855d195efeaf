"""Collapsed Gibbs sampling: pi, omega and lambda integrated out, one row at a time.

Liu (1994); Neal (2000, algorithm 3) for mixtures. Row i is taken out of the statistics (n, c, s, p, m) of the others
and put back with (z_i, b_i) drawn together. Given the others, a cell of component k and column d has

    p(x_id, b_id = 1 | z_i = k) = (a + m) / (a + b + c) * NegativeBinomial(x_id; shape e + s, rate f + m)
    p(x_id, b_id = 0 | z_i = k) = (b + c - m) / (a + b + c)                               where x_id = 0
    p(z_i = k)                  = (alpha + n) / (sum alpha + N - 1)

The b themselves are not kept: given m and z, every choice of m - p zeros of (k, d) is as likely as any other, so the
b_id of the row that is taken out is 1 with probability (m - p) / (c - p) where x_id = 0. After each sweep the
parameters are drawn from the complete conditionals, as draws of the posterior to report; the sweeps do not use them.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from zipmix.inference.chains import Visit, chain_starts, check_lengths, run
from zipmix.inference.gibbs import draw_b, draw_z
from zipmix.inference.problem import Problem, pose
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.inference.start import Init
from zipmix.models.conjugate import complete_conditionals, draw
from zipmix.models.kernel import Statistics, log_joint, logs, responsibilities, rho, statistics
from zipmix.models.parameters import Parameters, Prior, require_proper
from zipmix.models.posterior import log_posterior_at


class State(NamedTuple):
    """C chains: components of the rows with their statistics, and a draw of the parameters given them."""

    z: Tensor  # (C, N) int64
    statistics: Statistics  # (C, ...)
    theta: Parameters  # (C, ...)
    objective: Tensor  # (C,) log p(X, theta | prior)


def assign(problem: Problem, theta: Parameters, rng: np.random.Generator) -> State:
    """The state at the start: (z, b) drawn given the parameters."""
    tables = logs(theta)
    rho_KD = rho(tables)
    z_CNK = draw_z(responsibilities(log_joint(problem.counts, tables))[0], rng)
    counted = statistics(problem.counts, z_CNK, lambda zeros_KD: draw_b(zeros_KD, rho_KD, rng))
    return _with_parameters(problem, z_CNK.argmax(-1), counted, rng)


def sweep(problem: Problem, state: State, rng: np.random.Generator) -> State:
    """Draws (z_i, b_i) of every row in turn, given the others, for all chains; then the parameters."""
    alpha_K = np.asarray(problem.prior.alpha)
    cells_ND = problem.table.X_ND.numpy()
    X_ND, M_ND = np.nan_to_num(cells_ND), (~np.isnan(cells_ND)).astype(np.float64)
    (N, D), chain = X_ND.shape, np.arange(len(state.z))
    z_CN, n_CK = state.z.numpy().copy(), state.statistics.n.numpy().copy()
    cspm = np.stack([value.numpy() for value in state.statistics[1:]])
    log_uniform_NC = np.log(rng.random((N, len(chain), 1)))
    uniform_take, uniform_put = rng.random((2, N, len(chain), D))
    for i in range(N):
        x, seen = X_ND[i], M_ND[i]
        row = np.stack([seen, x, x > 0, seen])[:, None].repeat(len(chain), axis=1)

        c, _, p, m = cspm[:, chain, z_CN[:, i]]
        row[3] = np.where(x > 0, 1.0, (uniform_take[i] * (c - p) < m - p) * seen)
        n_CK[chain, z_CN[:, i]] -= 1
        cspm[:, chain, z_CN[:, i]] -= row

        on, off = cell(x, cspm, problem.prior)
        either = np.logaddexp(on, off)
        log_p = np.log(alpha_K + n_CK) + (either * seen).sum(-1)
        below = np.logaddexp.accumulate(log_p, axis=1)
        z_CN[:, i] = (log_uniform_NC[i] + below[:, -1:] > below).sum(1)

        row[3] = (np.log(uniform_put[i]) < (on - either)[chain, z_CN[:, i]]) * seen
        n_CK[chain, z_CN[:, i]] += 1
        cspm[:, chain, z_CN[:, i]] += row
    counted = Statistics(*(torch.from_numpy(value) for value in (n_CK, *cspm)))
    return _with_parameters(problem, torch.from_numpy(z_CN), counted, rng)


def cell(x: np.ndarray, cspm: np.ndarray, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
    """log p(x, b = 1 | z = k) and log p(x, b = 0 | z = k) given the other rows.

    Args:
        x: (D,) counts of one row.
        cspm: (4, ..., K, D) statistics c, s, p, m of the other rows.
        prior: hyperparameters.
    Returns:
        Two arrays (..., K, D).
    """
    c, s, _, m = cspm
    a, b, e, f = (float(value) for value in prior[1:])
    shape, rate = e + s, f + m
    log_poisson = gammaln(shape + x) - gammaln(shape) - gammaln(x + 1)
    log_poisson += shape * np.log(rate / (rate + 1)) - x * np.log(rate + 1)
    log_all = np.log(a + b + c)
    return np.log(a + m) + log_poisson - log_all, np.where(x > 0, -np.inf, np.log(b + c - m) - log_all)


def _with_parameters(problem: Problem, z_CN: Tensor, counted: Statistics, rng: np.random.Generator) -> State:
    theta = draw(complete_conditionals(counted, problem.prior), rng)
    return State(z_CN, counted, theta, log_posterior_at(problem.counts, theta, problem.prior))


def collapsed_gibbs(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    n_chains: int = 4,
    n_warmup: int = 200,
    n_draws: int = 1000,
    init: Init = "small-em",
    start: Parameters | None = None,
    progress: bool = False,
) -> Fit:
    """Posterior draws by collapsed Gibbs sampling; a sweep visits the rows one by one and is slow on long tables.

    Args (those of every method: zipmix.fit):
        prior: hyperparameters, all > 0.
        n_chains: C >= 1 chains, all in one batch; chain c begins at start c.
        n_warmup: sweeps thrown away first.
        n_draws: sweeps kept, per chain.
        start: starting points to use instead, (K, D) or (C, K, D).
    Returns:
        Draws (chain, draw, ...) with the labels as the chains left them; parameters are the draw of highest log
        posterior, and objective is its log posterior.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    problem = pose(X, n_components, prior)
    require_proper(problem.prior, "collapsed_gibbs")
    lengths = check_lengths(n_chains, n_warmup, n_draws)
    begin = chain_starts(problem, n_chains=lengths.n_chains, init=init, start=start, seed=seed)
    rng = generator(seed, "method")
    return run(
        "collapsed_gibbs",
        problem,
        lambda state: sweep(problem, state, rng),
        assign(problem, begin, rng),
        lambda state: Visit(state.theta, state.objective, {}),
        lengths,
        progress=progress,
        settings=dict(init=init, start=start),
        seed=seed,
    )
