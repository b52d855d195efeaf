"""The kernel: log joint, responsibilities and sufficient statistics of the ZIP mixture, with no N x K x D array.

b_id given z_i = k is Bernoulli with a probability that depends on (k, d) alone where x_id = 0, and is 1 where x_id > 0.
With P = 1[X > 0] and tables u, v, w, l of shape (K, D) for log omega, log(1 - omega), lambda, log lambda,

    zero      = logaddexp(v, u - w)                                            log p(x = 0 | k, d)
    log_joint = log pi + X @ l.T + P @ (u - w - zero).T + zero.sum(d) - sum_d log x!
    rho       = exp(u - w - zero)                                              P(b = 1 | x = 0, k, d)     question 1d

and, given responsibilities R (N, K), the sufficient statistics n = sum_i R, s = R.T @ X, p = R.T @ P, which are one
product R.T @ A with A = [X, P]. A missing cell adds nothing: with Q = 1[missing], Q @ zero.T is taken off again, and
c = n - R.T @ Q, the expected number of observed cells, takes the place of n.

Batch axes (restarts, chains, draws) stand in front and share one product: X @ (D x batch * K). Tensors of shape
(..., N, K) are views of memory laid out (..., K, N), so that sums over components run along contiguous rows. Rows come
in chunks that stay in the cache (rows.py), dense or sparse, and those of a stream in blocks (stream.py), of which a
pass is the sum. Products are in float64, or, where asked for and where the log joint stays within 1e-4, in float32
(single.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.models.counts import Counts
from zipmix.models.parameters import Parameters
from zipmix.models.rows import DenseRows, SparseRows, in_parts
from zipmix.models.single import Centred, centred

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


class Weights(NamedTuple):
    """The tables as a chunk multiplies them: log_joint + sum_d log x! = A @ W + bias, batch and K flattened to J."""

    W_EJ: Tensor  # as counts.encode returns it
    bias_J: Tensor
    batch: torch.Size  # (..., K), of product J


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


def weights(counts: Counts, logs: Logs, power: float = 1.0) -> Weights:
    """The tables of power * (A @ W + bias)."""
    zero = log_zero(logs)
    W_KE = torch.cat([logs.l, logs.u - logs.w - zero, -zero], dim=-1)
    bias_K = logs.log_pi + zero.sum(-1)
    if power != 1:
        W_KE, bias_K = power * W_KE, power * bias_K
    return Weights(counts.encode(W_KE.flatten(0, -2).T.contiguous()), bias_K.flatten(), logs.log_pi.shape)


def log_joint(counts: Counts, logs: Logs, dtype: torch.dtype = torch.float64) -> Tensor:
    """log p(x_i, z_i = k | Theta) with b summed out, for every row and component (question 1e).

    Args:
        counts: N rows of D counts.
        logs: tables with any batch axes in front.
        dtype: of the products.
    Returns:
        (..., N, K)
    """
    first, *others = (_block_log_joint(block, logs, dtype) for block in counts.blocks())
    return torch.cat([block_NK.mT for block_NK in (first, *others)], dim=-1).mT if others else first


def _block_log_joint(counts: Counts, logs: Logs, dtype: torch.dtype) -> Tensor:
    table = weights(counts, logs)
    J = len(table.bias_J)
    single = _single(counts, table, dtype)

    log_joint_JN = torch.empty(J, counts.n_rows, dtype=torch.float64)

    @torch.inference_mode()
    def part(start: int, stop: int) -> None:
        for chunk, _, scores_JN, beyond_B, exact_JB in _scored(counts, start, stop, table, single):
            own_JN, log_factorial_N = log_joint_JN[:, chunk], counts.log_factorial_N[chunk]
            torch.sub(scores_JN[:J], log_factorial_N, out=own_JN)
            if len(beyond_B):
                own_JN[:, beyond_B] = exact_JB[:J] - log_factorial_N[beyond_B]

    in_parts(counts.n_rows, _width(counts, J), part)
    joint_NK = log_joint_JN.view(*table.batch, -1).mT
    if single is not None:
        joint_NK += counts.scores(single.level_EB, single.level_B).reshape(*table.batch[:-1], -1, 1)
    return joint_NK


def _single(counts: Counts, table: Weights, dtype: torch.dtype) -> Centred | None:
    return None if dtype == torch.float64 else centred(counts, table.W_EJ, table.bias_J, table.batch[-1])


def _scored(
    counts: Counts, start: int, stop: int, table: Weights, single: Centred | None
) -> Iterator[tuple[slice, DenseRows | SparseRows, Tensor, Tensor, Tensor]]:
    """The rows in chunks, each with A @ W + bias (J, N), the B rows too far for float32, and theirs in float64 (J, B).

    Tables for float32, where given, are the ones that are multiplied; the last of their scores is the reach.
    """
    dtype = torch.float64 if single is None else torch.float32
    W_EJ, bias_J = (table.W_EJ, table.bias_J) if single is None else (single.W_EJ, single.bias_J)
    W, bias = W_EJ.to(dtype), bias_J.to(dtype)
    none_B, none_JB = torch.zeros(0, dtype=torch.int64), torch.zeros(len(bias), 0, dtype=torch.float64)
    for chunk, rows in counts.chunks(start, stop, len(bias), dtype):
        scores_JN = rows.scores(W, bias)
        if single is None or float(scores_JN[-1].amax()) <= single.longest:
            yield chunk, rows, scores_JN, none_B, none_JB
        else:
            beyond_B = (scores_JN[-1] > single.longest).nonzero().squeeze(1)
            yield chunk, rows, scores_JN, beyond_B, counts.take(chunk.start + beyond_B).scores(W_EJ, bias_J)


def responsibilities(log_joint_NK: Tensor) -> tuple[Tensor, Tensor]:
    """P(z_i = k | x_i, Theta) and log p(x_i | Theta).

    Args:
        log_joint_NK: (..., N, K); its memory is taken over for the result.
    Returns:
        R_NK (..., N, K) and log_likelihood_N (..., N).
    """
    top = log_joint_NK.amax(-1, keepdim=True)
    # Exponentials that underflow, and products with them, are many times slower than those of 1e-19 or, in float64,
    # 1e-154, which make no difference.
    least = math.log(torch.finfo(log_joint_NK.dtype).tiny) / 2
    R_NK = _exp_(log_joint_NK.sub_(top).clamp_min_(least))
    total = R_NK.sum(-1, keepdim=True)
    return R_NK.mul_(total.reciprocal()), top.add_(total.log_()).squeeze(-1)


def _exp_(table: Tensor) -> Tensor:
    """Exponentials in place; where there is AVX-512, NumPy's take half the time of torch's."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return table.exp_()
    np.exp(table.numpy(), out=table.numpy())
    return table


def statistics(counts: Counts, R_NK: Tensor, b_given_zero: Callable[[Tensor], Tensor]) -> Statistics:
    """Sufficient statistics of the rows, weighted by responsibilities.

    Args:
        counts: N rows of D counts.
        R_NK: (..., N, K) responsibilities, or a drawn z as ones and zeros.
        b_given_zero: takes the number of observed zeros per (k, d), returns how many of them have b = 1: rho times
            that number where b is summed out, a Binomial draw of it in Gibbs.
    """
    parts, start = [], 0
    for block in counts.blocks():
        parts.append(_block_statistics(block, R_NK[..., start : start + block.n_rows, :], b_given_zero))
        start += block.n_rows
    return _added(parts)


def _block_statistics(counts: Counts, R_NK: Tensor, b_given_zero: Callable[[Tensor], Tensor]) -> Statistics:
    R_KN = R_NK.mT
    R_JN = R_KN.flatten(0, -2)

    @torch.inference_mode()
    def part(start: int, stop: int) -> Tensor:
        sums = counts.no_sums(len(R_JN))
        for chunk, rows in counts.chunks(start, stop, len(R_JN), R_JN.dtype):
            rows.add_sums(R_JN[:, chunk], sums)
        return sums

    parts = in_parts(counts.n_rows, _width(counts, len(R_JN)), part)
    return _from_sums(counts, R_KN.sum(-1), _total(parts), b_given_zero)


def expectation(
    counts: Counts, logs: Logs, power: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Statistics, Tensor]:
    """The E-step in one pass (question 2a): expected sufficient statistics and log p(X | Theta).

    Args:
        counts: N rows of D counts.
        logs: tables with any batch axes in front.
        power: of p(x_i, z_i = k) that responsibilities are in proportion to; under 1 they are more alike.
        dtype: of the products; sums over chunks are in float64 always.
    Returns:
        The statistics, and the log likelihood (...), z and b summed out (where the power is 1).
    """
    total: list[Statistics] = []
    log_likelihood = torch.zeros(logs.log_pi.shape[:-1], dtype=torch.float64)
    for block in counts.blocks():
        statistics, value = _block_expectation(block, logs, power, dtype)
        total = [_added([*total, statistics])]
        log_likelihood = log_likelihood + value
    return total[0], log_likelihood


def _block_expectation(counts: Counts, logs: Logs, power: float, dtype: torch.dtype) -> tuple[Statistics, Tensor]:
    table = weights(counts, logs, power)
    J, batch = len(table.bias_J), table.batch
    single = _single(counts, table, dtype)

    @torch.inference_mode()
    def part(start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        sums, n_K = counts.no_sums(J), torch.zeros(batch, dtype=torch.float64)
        log_likelihood = torch.zeros(batch[:-1], dtype=torch.float64)
        for _, rows, scores_JN, beyond_B, exact_JB in _scored(counts, start, stop, table, single):
            # Responsibilities take the place of the scores.
            scores_JN = scores_JN[:J]
            R_NK, log_likelihood_N = responsibilities(scores_JN.view(*batch, -1).mT)
            if len(beyond_B):
                R_BK, log_likelihood_B = responsibilities(exact_JB[:J].view(*batch, -1).mT)
                R_NK[..., beyond_B, :] = R_BK.to(R_NK.dtype)
                log_likelihood_N = log_likelihood_N.to(torch.float64).index_copy(-1, beyond_B, log_likelihood_B)
            rows.add_sums(scores_JN, sums)
            n_K += R_NK.sum(-2)
            log_likelihood += log_likelihood_N.sum(-1, dtype=torch.float64)
        return sums, n_K, log_likelihood

    parts = in_parts(counts.n_rows, _width(counts, J), part)
    sums, n_K, log_likelihood = (_total(values) for values in zip(*parts, strict=True))
    if single is not None:
        log_likelihood += single.total_level_B.reshape(batch[:-1])
    rho_KD = rho(logs)
    expected = _from_sums(counts, n_K, sums, lambda zeros_KD: rho_KD * zeros_KD)
    return expected, log_likelihood - counts.log_factorial_N.sum()


def log_likelihood(counts: Counts, parameters: Parameters) -> Tensor:
    """log p(x_i | Theta) of every row, z and b summed out, missing cells left out.

    Args:
        counts: N rows of D counts.
        parameters: with any batch axes in front.
    Returns:
        (..., N)
    """
    return responsibilities(log_joint(counts, logs(parameters)))[1]


def _added(parts: list[Statistics]) -> Statistics:
    """Statistics of all rows from those of shards."""
    return Statistics(*(sum(fields[1:], start=fields[0]) for fields in zip(*parts, strict=True)))


def _total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of what parts of the rows come to, an ordinary tensor where those are of inference mode."""
    return torch.stack(list(parts)).sum(0)


def _from_sums(counts: Counts, n: Tensor, sums: Tensor, b_given_zero: Callable[[Tensor], Tensor]) -> Statistics:
    s, p, *q = (block.unflatten(0, n.shape) for block in counts.decode(sums))
    c = n[..., None] - q[0] if q else n[..., None].expand_as(p)
    return Statistics(n, c, s, p, p + b_given_zero((c - p).clamp_min(0.0)))


def _width(counts: Counts, n_columns: int) -> int:
    """Numbers in a row of the larger table of a chunk."""
    return max(counts.width, n_columns)


def _floor(log: Tensor) -> Tensor:
    return log.clamp_min(LOG_ZERO)


def _log(value: Tensor) -> Tensor:
    return _floor(torch.log(value))
