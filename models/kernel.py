"""The kernel: log joint, responsibilities and sufficient statistics of the ZIP mixture, with no N x K x D array.

b_id given z_i = k is Bernoulli with a probability that depends on (k, d) alone where x_id = 0, and is 1 where x_id > 0.
With P = 1[X > 0] and tables u, v, w, l of shape (K, D) for log omega, log(1 - omega), lambda, log lambda,

    zero      = logaddexp(v, u - w)                                            log p(x = 0 | k, d)
    log_joint = log pi + X @ l.T + P @ (u - w - zero).T + zero.sum(d) - sum_d log x!
    rho       = exp(u - w - zero)                                              P(b = 1 | x = 0, k, d)     question 1d

and, given responsibilities R (N, K), the sufficient statistics n = sum_i R, s = R.T @ X, p = R.T @ P, which are one
product R.T @ A with A = [X, P]. A missing cell adds nothing: with the mask M, M @ zero.T takes the place of the row sum
of zero, and c = R.T @ M, the expected number of observed cells, takes the place of n.

Batch axes (restarts, chains, draws) stand in front and share one product: X @ (D x batch * K). Tensors of shape
(..., N, K) are views of memory laid out (..., K, N), so that sums over components run along contiguous rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zipmix.models.counts import Counts
from zipmix.models.parameters import Parameters

# log 0, kept finite so that 0 * log 0 is 0 in a matrix product; below every -lambda that a count can lead to.
LOG_ZERO = -1e15


class Logs(NamedTuple):
    """What stands for (log pi, u, v, w, l): logs of a point (EM, Gibbs), or expected logs under q (variational)."""

    log_pi: Tensor  # (..., K)
    u: Tensor  # (..., K, D)  log omega
    v: Tensor  # (..., K, D)  log(1 - omega)
    w: Tensor  # (..., K, D)  lambda
    l: Tensor  # (..., K, D)  log lambda  # noqa: E741


class Statistics(NamedTuple):
    """Expected sufficient statistics of (z, b) given X; those of shards of rows simply add."""

    n: Tensor  # (..., K)     rows of component k
    c: Tensor  # (..., K, D)  observed cells of component k in column d (n, where nothing is missing)
    s: Tensor  # (..., K, D)  sum of the counts
    p: Tensor  # (..., K, D)  cells with x > 0
    m: Tensor  # (..., K, D)  cells with b = 1


def logs(parameters: Parameters) -> Logs:
    """Logs of a point of the parameter space, floored at a finite value.

    Args:
        parameters: pi (..., K), omega (..., K, D), lam (..., K, D).
    """
    pi, omega, lam = parameters
    return Logs(_log(pi), _log(omega), _floor(torch.log1p(-omega)), lam, _log(lam))


def log_zero(logs: Logs) -> Tensor:
    """log p(x = 0 | k, d), (..., K, D), from equations (5) and (6)."""
    return torch.logaddexp(logs.v, logs.u - logs.w)


def rho(logs: Logs) -> Tensor:
    """P(b = 1 | x = 0, k, d), (..., K, D): question 1d."""
    return torch.exp(logs.u - logs.w - log_zero(logs))


def log_joint(counts: Counts, logs: Logs) -> Tensor:
    """log p(x_i, z_i = k | Theta) with b summed out, for every row and component (question 1e).

    Args:
        counts: N rows of D counts.
        logs: tables with any batch axes in front.
    Returns:
        (..., N, K)
    """
    zero = log_zero(logs)
    tables = [logs.l, logs.u - logs.w - zero]
    log_pi = logs.log_pi
    if counts.has_missing:
        tables.append(zero)
    else:
        log_pi = log_pi + zero.sum(-1)
    W_KE = torch.cat(tables, dim=-1)
    joint_KN = (W_KE.flatten(0, -2) @ counts.A_NE.T).unflatten(0, log_pi.shape)
    return joint_KN.add_(log_pi[..., None]).sub_(counts.log_factorial_N).mT


def responsibilities(log_joint_NK: Tensor) -> tuple[Tensor, Tensor]:
    """P(z_i = k | x_i, Theta) and log p(x_i | Theta).

    Args:
        log_joint_NK: (..., N, K); its memory is taken over for the result.
    Returns:
        R_NK (..., N, K) and log_likelihood_N (..., N).
    """
    top = log_joint_NK.amax(-1, keepdim=True)
    R_NK = log_joint_NK.sub_(top).exp_()
    total = R_NK.sum(-1, keepdim=True)
    return R_NK.div_(total), (top + total.log()).squeeze(-1)


def statistics(counts: Counts, R_NK: Tensor, b_given_zero: Callable[[Tensor], Tensor]) -> Statistics:
    """Sufficient statistics of the rows, weighted by responsibilities.

    Args:
        counts: N rows of D counts.
        R_NK: (..., N, K) responsibilities, or a drawn z as ones and zeros.
        b_given_zero: takes the number of observed zeros per (k, d), returns how many of them have b = 1: rho times
            that number where b is summed out, a Binomial draw of it in Gibbs.
    """
    R_KN = R_NK.mT
    n = R_KN.sum(-1)
    sums = (R_KN.flatten(0, -2) @ counts.A_NE).unflatten(0, n.shape)
    s, p, *mask = sums.split(counts.n_features, dim=-1)
    c = mask[0] if mask else n[..., None].expand_as(p)
    return Statistics(n, c, s, p, p + b_given_zero((c - p).clamp_min(0.0)))


def expectation(counts: Counts, logs: Logs) -> tuple[Statistics, Tensor]:
    """The E-step in one pass (question 2a): expected sufficient statistics and log p(X | Theta).

    Args:
        counts: N rows of D counts.
        logs: tables with any batch axes in front.
    Returns:
        The statistics, and the log likelihood (...), z and b summed out.
    """
    R_NK, log_likelihood_N = responsibilities(log_joint(counts, logs))
    rho_KD = rho(logs)
    return statistics(counts, R_NK, lambda zeros_KD: rho_KD * zeros_KD), log_likelihood_N.sum(-1)


def log_likelihood(counts: Counts, parameters: Parameters) -> Tensor:
    """log p(x_i | Theta) of every row, z and b summed out, missing cells left out.

    Args:
        counts: N rows of D counts.
        parameters: with any batch axes in front.
    Returns:
        (..., N)
    """
    return responsibilities(log_joint(counts, logs(parameters)))[1]


def _floor(log: Tensor) -> Tensor:
    return log.clamp_min(LOG_ZERO)


def _log(value: Tensor) -> Tensor:
    return _floor(torch.log(value))
