"""The kernel: log joint, responsibilities and sufficient statistics of the ZIP mixture, with no N x K x D array.

b_id given z_i = k is Bernoulli with a probability that depends on (k, d) alone where x_id = 0, and is 1 where x_id > 0.
With P = 1[X > 0] and tables u, v, w, l of shape (K, D) for log omega, log(1 - omega), lambda, log lambda,

    zero      = logaddexp(v, u - w)                                            log p(x = 0 | k, d)
    log_joint = log pi + X @ l.T + P @ (u - w - zero).T + zero.sum(d) - sum_d log x!
    rho       = exp(u - w - zero)                                              P(b = 1 | x = 0, k, d)     question 1d

and, given responsibilities R (N, K), the sufficient statistics

    n = R.sum(i)      s = R.T @ X      p = R.T @ P      m = p + rho * (c - p)

A missing cell adds nothing: with Q = 1[missing], Q @ zero.T is taken off the log joint again, and c = n - R.T @ Q, the
expected number of observed cells, stands where n would. This file holds the formulas; the passes over the rows are in
counts/passes.py. Batch axes (restarts, chains, draws) stand in front.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zipmix.counts.passes import Sums, Weights, scores, softmax, softmax_sums, sums
from zipmix.counts.store import CountTable
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
    return floored(exact_logs(parameters))


def exact_logs(parameters: Parameters) -> Logs:
    """Logs of a point of the parameter space, -inf on its boundary."""
    pi, omega, lam = parameters
    return Logs(pi.log(), omega.log(), torch.log1p(-omega), lam, lam.log())


def floored(logs: Logs) -> Logs:
    """Logs that matrix products can take."""
    low = {name: getattr(logs, name).clamp_min(LOG_ZERO) for name in ("log_pi", "u", "v", "l")}
    return logs._replace(**low)


def log_zero(logs: Logs) -> Tensor:
    """log p(x = 0 | k, d), (..., K, D), from equations (5) and (6)."""
    return torch.logaddexp(logs.v, logs.u - logs.w)


def rho(logs: Logs) -> Tensor:
    """P(b = 1 | x = 0, k, d), (..., K, D): question 1d."""
    return _log_rho(logs, log_zero(logs)).exp()


def _log_rho(logs: Logs, zero_KD: Tensor) -> Tensor:
    return logs.u - logs.w - zero_KD


def weights(logs: Logs) -> Weights:
    """The log joint as scores of a row: what a count, a positive cell and a missing cell add to it."""
    zero_KD = log_zero(logs)
    return Weights(x=logs.l, positive=_log_rho(logs, zero_KD), missing=-zero_KD, bias=logs.log_pi + zero_KD.sum(-1))


def log_joint(counts: CountTable, logs: Logs, dtype: torch.dtype = torch.float64) -> Tensor:
    """log p(x_i, z_i = k | Theta) with b summed out, for every row and component (question 1e).

    Args:
        counts: N rows of D counts.
        logs: tables with any batch axes in front.
        dtype: of the products.
    Returns:
        (..., N, K)
    """
    return scores(counts, weights(logs), dtype=dtype)


def responsibilities(log_joint_NK: Tensor) -> tuple[Tensor, Tensor]:
    """P(z_i = k | x_i, Theta) and log p(x_i | Theta).

    Args:
        log_joint_NK: (..., N, K), overwritten by the result.
    Returns:
        R_NK (..., N, K) and log_likelihood_N (..., N).
    """
    return softmax(log_joint_NK)


def statistics(counts: CountTable, R_NK: Tensor, b_given_zero: Callable[[Tensor], Tensor]) -> Statistics:
    """Sufficient statistics of the rows, weighted by responsibilities.

    Args:
        counts: N rows of D counts.
        R_NK: (..., N, K) responsibilities, or a drawn z as ones and zeros.
        b_given_zero: takes the number of observed zeros per (k, d), returns how many of them have b = 1: rho times
            that number where b is summed out, a Binomial draw of it in Gibbs.
    """
    return _with_b(sums(counts, R_NK), b_given_zero)


def expectation(
    counts: CountTable, logs: Logs, power: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Statistics, Tensor]:
    """The E-step in one pass (question 2a): expected sufficient statistics and log p(X | Theta).

    Args:
        counts: N rows of D counts, each counted as often as its multiplicity says (distinct.py).
        logs: tables with any batch axes in front.
        power: of p(x_i, z_i = k) that responsibilities are in proportion to; under 1 they are more alike.
        dtype: of the products; sums of chunks are in float64 always.
    Returns:
        The statistics, and the log likelihood (...), z and b summed out (where the power is 1).
    """
    of_model = weights(logs)
    tempered = of_model if power == 1 else Weights(*(power * table for table in of_model))
    summed, log_likelihood = softmax_sums(counts, tempered, dtype=dtype)
    rho_KD = of_model.positive.exp()
    return _with_b(summed, lambda zeros_KD: rho_KD * zeros_KD), log_likelihood


def log_likelihood(counts: CountTable, parameters: Parameters) -> Tensor:
    """log p(x_i | Theta) of every row, z and b summed out, missing cells left out.

    Args:
        counts: N rows of D counts.
        parameters: with any batch axes in front.
    Returns:
        (..., N)
    """
    return responsibilities(log_joint(counts, logs(parameters)))[1]


def _with_b(summed: Sums, b_given_zero: Callable[[Tensor], Tensor]) -> Statistics:
    n, s, p, missing = summed
    c = (n[..., None] - missing).expand_as(p)
    return Statistics(n, c, s, p, p + b_given_zero((c - p).clamp_min(0.0)))
