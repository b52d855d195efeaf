"""The kernel: log joint, responsibilities and sufficient statistics of the ZIP mixture, with no N x K x D array.

b_id given z_i = k is Bernoulli with a probability that depends on (k, d) alone where x_id = 0, and is 1 where x_id > 0.
With P = 1[X > 0] and tables u, v, w, l of shape (K, D) for log omega, log(1 - omega), lambda, log lambda,

    zero      = logaddexp(v, u - w)                                            log p(x = 0 | k, d)
    log_joint = log pi + X @ l.T + P @ (u - w - zero).T + zero.sum(d) - sum_d log x!
    rho       = exp(u - w - zero)                                              P(b = 1 | x = 0, k, d)     question 1d

and, given responsibilities R (N, K), the sufficient statistics n = sum_i R, s = R.T @ X, p = R.T @ P, which are one
product R.T @ A with A = [X, P]. A missing cell adds nothing: with Q = 1[missing], Q @ zero.T is taken off again, and
c = n - R.T @ Q, the expected number of observed cells, takes the place of n.

What all components have in common changes no responsibility. A pass takes it off the weights before they multiply a
row, and adds it to the log likelihood from the sums over all rows. The scores that are left are so small, as a rule,
that their exponentials can be summed as they are, and that float32 can hold them.

Letters: E columns of A, F = E + 1 with the bias behind them, J rows of W, one for each component of each batch entry.
Batch axes (restarts, chains, draws) stand in front and share one product: X @ (D x batch * K). Tensors of shape
(..., N, K) are views of memory laid out (..., K, N), so that sums over components run along contiguous rows. Rows come
in chunks that stay in the cache (rows.py), dense or sparse, and those of a stream in blocks (stream.py), of which a
pass is the sum. Products are in float64, or, where asked for and where the log joint stays within 1e-4, in float32
(single.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.float32 import Single, in_float32
from zipmix.counts.rows import DenseRows, Factor, SparseRows
from zipmix.counts.store import Counts
from zipmix.counts.threads import in_parts
from zipmix.models.parameters import Parameters

# log 0, kept finite so that 0 * log 0 is 0 in a matrix product; below every -lambda that a count can lead to.
LOG_ZERO = -1e15

# Weights of components that have a mean worth taking off: this many times the smallest of them, and 1, or less.
ALIKE = 64

# Rows too far for float32 that are looked at together.
FAR = 2**13


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


class Pass(NamedTuple):
    """What a pass over some rows comes to, float64."""

    sums_JE: Tensor  # R.T @ A as the chunks hold it
    n_K: Tensor  # (..., K)
    log_likelihood: Tensor  # (...), without what the components have in common, and log x!


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


def weights(counts: Counts, logs: Logs) -> tuple[Tensor, Tensor]:
    """W with log_joint + sum_d log x! = [A, 1] @ W.T, (..., K, F), and log rho, (..., K, D), which is a block of it."""
    zero_KD = log_zero(logs)
    log_rho_KD, bias_K = _log_rho(logs, zero_KD), logs.log_pi + zero_KD.sum(-1)
    blocks = [logs.l, log_rho_KD, *([-zero_KD] if counts.has_missing else []), bias_K[..., None]]
    return torch.cat(blocks, dim=-1), log_rho_KD


def centred(W_KF: Tensor) -> tuple[Tensor, Tensor]:
    """Weights without what the components have in common, and that, (..., 1, F).

    It is the mean over components of like weight: one that is far from the others, or ruled out by a log 0, would put
    large numbers into the scores of all, to be taken off again at the end. Responsibilities do not depend on it.
    """
    size_KF = W_KF.abs()
    alike_KF = size_KF <= ALIKE * (1 + size_KF.amin(-2, keepdim=True))
    common_1F = torch.where(alike_KF, W_KF, 0.0).sum(-2, keepdim=True) / alike_KF.sum(-2, keepdim=True)
    return W_KF - common_1F, common_1F


def _factor(counts: Counts, W_KF: Tensor) -> Factor:
    """The weights as a chunk multiplies them, batch and K flattened to J."""
    W_JF = W_KF.flatten(0, -2)
    return Factor(counts.encode(W_JF[:, :-1]), W_JF[:, -1:].contiguous())


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
    W_KF, _ = weights(counts, logs)
    double, common_1F, single = _factor(counts, W_KF), None, None
    if dtype != torch.float64:
        own_KF, common_1F = centred(W_KF)
        own = _factor(counts, own_KF)
        single = in_float32(counts, own)
        double, common_1F = (double, None) if single is None else (own, common_1F)
    log_joint_JN = torch.empty(len(double.bias_J1), counts.n_rows, dtype=torch.float64)

    @torch.inference_mode()
    def part(start: int, stop: int) -> None:
        for chunk, _, scores_JN, far_B in _scored(counts, start, stop, double, single):
            log_factorial_N = counts.log_factorial_N[chunk]
            torch.sub(scores_JN, log_factorial_N, out=log_joint_JN[:, chunk])
            if len(far_B):
                exact_JB = counts.take(chunk.start + far_B).scores(double)
                log_joint_JN[:, chunk.start + far_B] = exact_JB - log_factorial_N[far_B]

    in_parts(counts.n_rows, _width(counts, len(log_joint_JN)), part)
    joint_NK = log_joint_JN.view(*W_KF.shape[:-1], -1).mT
    if common_1F is not None:
        joint_NK += counts.scores(_factor(counts, common_1F)).view(*common_1F.shape[:-1], -1).mT
    return joint_NK


def _scored(
    counts: Counts, start: int, stop: int, double: Factor, single: Single | None
) -> Iterator[tuple[slice, DenseRows | SparseRows, Tensor, Tensor]]:
    """Rows start to stop in chunks, each with its scores, (J, N), and those of its rows too far for float32."""
    factor, none_B = double if single is None else single.factor, torch.zeros(0, dtype=torch.int64)
    for chunk, rows in counts.chunks(start, stop, len(factor.bias_J1), factor.bias_J1.dtype):
        scores_JN, far_B = rows.scores(factor), none_B
        if single is not None:
            reach_N, scores_JN = scores_JN[-1], scores_JN[:-1]
            if float(reach_N.amax()) > single.longest:
                far_B = (reach_N > single.longest).nonzero()[:, 0]
        yield chunk, rows, scores_JN, far_B


def responsibilities(log_joint_NK: Tensor) -> tuple[Tensor, Tensor]:
    """P(z_i = k | x_i, Theta) and log p(x_i | Theta).

    Args:
        log_joint_NK: (..., N, K); its memory is taken over for the result.
    Returns:
        R_NK (..., N, K) and log_likelihood_N (..., N).
    """
    R_NK, log_likelihood_N1 = _shares(log_joint_NK, summable=False)
    return R_NK, log_likelihood_N1.squeeze(-1)


def _shares(log_joint_NK: Tensor, summable: bool, times_N1: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Responsibilities in the place of a log joint, and log p(x_i), (..., N, 1), both as many times as a row occurs.

    Args:
        log_joint_NK: (..., N, K).
        summable: what _summable says.
        times_N1: (N, 1); once each where None.
    """
    top_N1 = None
    if not summable:
        top_N1 = log_joint_NK.amax(-1, keepdim=True)
        log_joint_NK.sub_(top_N1).clamp_min_(_least(log_joint_NK.dtype))
    R_NK = _exp_(log_joint_NK)
    total_N1 = R_NK.sum(-1, keepdim=True)
    share_N1 = total_N1.reciprocal()
    R_NK.mul_(share_N1 if times_N1 is None else share_N1.mul_(times_N1))
    log_likelihood_N1 = total_N1.log_() if top_N1 is None else total_N1.log_().add_(top_N1)
    return R_NK, log_likelihood_N1 if times_N1 is None else log_likelihood_N1.mul_(times_N1)


def _summable(log_joint: Tensor) -> bool:
    """Whether all exponentials, their sums and shares stay far from the largest and the smallest numbers."""
    bound = _least(log_joint.dtype) / 2
    # Not aminmax, which takes long where the numbers do not lie in the order of the axes.
    return float(log_joint.amin()) > bound and float(log_joint.amax()) < -bound


@cache
def _least(dtype: torch.dtype) -> float:
    """The logarithm of a share that makes no difference, 1e-19 or, in float64, 1e-154.

    Exponentials that underflow, and products with them, are many times slower than those of it.
    """
    return math.log(torch.finfo(dtype).tiny) / 2


def _exp_(table: Tensor) -> Tensor:
    """Exponentials in place; where there is AVX-512, NumPy's take half the time of torch's."""
    if not _has_avx512():
        return table.exp_()
    np.exp(table.numpy(), out=table.numpy())
    return table


@cache
def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


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
    n_K = R_KN.sum(-1)
    return _from_sums(counts, n_K, counts.decode(_total(parts)).unflatten(0, n_K.shape), b_given_zero)


def expectation(
    counts: Counts, logs: Logs, power: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Statistics, Tensor]:
    """The E-step in one pass (question 2a): expected sufficient statistics and log p(X | Theta).

    Args:
        counts: N rows of D counts, each as many times as it says (distinct.py).
        logs: tables with any batch axes in front.
        power: of p(x_i, z_i = k) that responsibilities are in proportion to; under 1 they are more alike.
        dtype: of the products; sums of chunks are in float64 always.
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
    W_KF, log_rho_KD = weights(counts, logs)
    own_KF, common_1F = centred(W_KF)
    batch, double = own_KF.shape[:-1], _factor(counts, own_KF if power == 1 else power * own_KF)
    single = None if dtype == torch.float64 else in_float32(counts, double)

    @torch.inference_mode()
    def part(start: int, stop: int) -> Pass:
        return _pass(counts, start, stop, double, single, batch)

    parts = in_parts(counts.n_rows, _width(counts, len(double.bias_J1)), part)
    sums_JE, n_K, log_likelihood = (_total(values) for values in zip(*parts, strict=True))
    A_KE = counts.decode(sums_JE).unflatten(0, batch)
    # Responsibilities add up to 1, so that the sums of all components are those of the table; in float32, nearly.
    total_E = A_KE.sum(-2) if single is None else counts.totals()
    common_F, times_N = common_1F.squeeze(-2), counts.times(slice(0, counts.n_rows), torch.float64)
    log_likelihood += (total_E * common_F[..., :-1]).sum(-1) + times_N.sum() * common_F[..., -1]
    rho_KD = log_rho_KD.exp()
    expected = _from_sums(counts, n_K, A_KE, lambda zeros_KD: rho_KD * zeros_KD)
    return expected, log_likelihood - counts.log_factorial_N @ times_N


def _pass(counts: Counts, start: int, stop: int, double: Factor, single: Single | None, batch: torch.Size) -> Pass:
    """Rows start to stop, those too far for float32 in float64."""
    sums_JE, n_K = counts.no_sums(len(double.bias_J1)), torch.zeros(batch, dtype=torch.float64)
    log_likelihood = torch.zeros(batch[:-1], dtype=torch.float64)
    summable, far = True, []
    for chunk, rows, scores_JN, far_B in _scored(counts, start, stop, double, single):
        summable = summable and _summable(scores_JN)
        times_N1 = None if counts.times_N is None else counts.times(chunk, scores_JN.dtype)[:, None]
        # Responsibilities take the place of the scores.
        R_NK, log_likelihood_N1 = _shares(scores_JN.view(*batch, -1).mT, summable, times_N1)
        if len(far_B):
            R_NK[..., far_B, :] = 0.0
            log_likelihood_N1[..., far_B, :] = 0.0
            far.append(chunk.start + far_B)
        rows.add_sums(scores_JN, sums_JE)
        n_K += R_NK.sum(-2)
        log_likelihood += log_likelihood_N1.sum((-2, -1), dtype=torch.float64)
    done = Pass(sums_JE, n_K, log_likelihood)
    for far_B in torch.cat(far).split(FAR) if far else ():
        done = Pass(*map(torch.add, done, _pass(counts.take(far_B), 0, len(far_B), double, None, batch)))
    return done


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


def _from_sums(counts: Counts, n: Tensor, A_KE: Tensor, b_given_zero: Callable[[Tensor], Tensor]) -> Statistics:
    s, p, *q = A_KE.split(counts.n_features, dim=-1)
    c = n[..., None] - q[0] if q else n[..., None].expand_as(p)
    return Statistics(n, c, s, p, p + b_given_zero((c - p).clamp_min(0.0)))


def _width(counts: Counts, n_columns: int) -> int:
    """Numbers in a row of the larger table of a chunk."""
    return max(counts.width, n_columns)
