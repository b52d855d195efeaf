"""Passes over a table: scores of its rows, sums over them, and both in one, in chunks shared out among threads.

With P = 1[X > 0] and Q = 1[missing], every row has one score for each component of a batch,

    score_ik = X_i . x_k + P_i . positive_k + Q_i . missing_k + bias_k - sum_d log X_id!

and a pass with responsibilities R (N, K) comes to R'X, R'P, R'Q and the column sums of R. What the numbers mean is the
business of the model. This file is the one place where the work is shared out: no table of size N x K x D is made, and
those of size N x K are a chunk in `softmax_sums`.

What all components have in common changes no softmax. `softmax_sums` takes it off the weights before they multiply a
row and adds it to log Z from the sums over all rows, so that large terms that cancel cost no accuracy, and so that
float32 can hold what is left (float32.py).

Letters: E columns of A = [X, P, Q], J rows of weights, one for each component of each batch entry. Batch axes stand in
front. Tensors of shape (..., N, K) are views of memory laid out (..., K, N), so that sums over components run along
contiguous rows.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from zipmix.counts.float32 import Float32, in_float32
from zipmix.counts.rows import DenseRows, Factor, SparseRows
from zipmix.counts.store import Counts, CountTable
from zipmix.counts.threads import in_parts

# Weights of components that have a mean worth subtracting: at most this many times the smallest of them, or 1.
ALIKE = 64

# Rows beyond the error bound of float32 that are multiplied in float64 together.
REDONE = 2**13


class Weights(NamedTuple):
    """The weights of the scores, with any batch axes in front."""

    x: Tensor  # (..., K, D)  of the count
    positive: Tensor  # (..., K, D)  of 1[x > 0]
    missing: Tensor  # (..., K, D)  of 1[missing]
    bias: Tensor  # (..., K)


class Sums(NamedTuple):
    """Sums over rows weighted by R; those of shards of rows simply add."""

    n: Tensor  # (..., K)     sum of R
    x: Tensor  # (..., K, D)  R'X
    positive: Tensor  # (..., K, D)  R'P
    missing: Tensor  # (..., K, D)  R'Q; zeros (..., K, 1) where no cell is missing


class Accumulated(NamedTuple):
    """Accumulated sums of a pass over some rows, float64."""

    sums_JE: Tensor  # R A as the chunks hold it
    n_K: Tensor  # (..., K)
    log_z: Tensor  # (...), of centred weights, log x! left out


def scores(table: CountTable, weights: Weights, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """The scores of all rows, (..., N, K) float64.

    Args:
        table: N rows of D counts.
        weights: with any batch axes in front.
        dtype: of the products; in float32 no score is off by more than 1e-4.
    """
    blocks = [_block_scores(block, weights, dtype) for block in table.blocks()]
    return torch.cat([block_NK.mT for block_NK in blocks], dim=-1).mT if len(blocks) > 1 else blocks[0]


def softmax(scores_NK: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over components, and the log of what it is normalised by.

    Args:
        scores_NK: (..., N, K), overwritten by the result.
    Returns:
        R_NK (..., N, K) and log_z_N (..., N).
    """
    top_N1 = scores_NK.amax(-1, keepdim=True)
    R_NK = scores_NK.sub_(top_N1).clamp_min_(_least(scores_NK.dtype)).exp_()
    total_N1 = R_NK.sum(-1, keepdim=True)
    R_NK.mul_(total_N1.reciprocal())
    return R_NK, total_N1.log_().add_(top_N1).squeeze(-1)


def sums(table: CountTable, R_NK: Tensor) -> Sums:
    """The sums over rows for weights that are given.

    Args:
        table: N rows of D counts.
        R_NK: (..., N, K) float64.
    """
    return Sums(*table.fold(lambda block, rows: _block_sums(block, R_NK[..., rows, :])))


def softmax_sums(table: CountTable, weights: Weights, *, dtype: torch.dtype = torch.float64) -> tuple[Sums, Tensor]:
    """The sums over rows for R = softmax(scores), and log Z = sum_i log sum_k exp(score_ik), in one pass.

    Args:
        table: N rows of D counts, each counted as often as its multiplicity says (distinct.py).
        weights: with any batch axes in front.
        dtype: of the products; sums of chunks are in float64 always.
    Returns:
        The sums, and log Z (...).
    """
    *fields, log_z = table.fold(lambda block, _: _block_softmax_sums(block, weights, dtype))
    return Sums(*fields), log_z


def _flat(weights: Weights, *, missing: bool) -> Tensor:
    """The weights side by side, as they multiply [A, 1], (..., K, E + 1)."""
    blocks = [weights.x, weights.positive, *([weights.missing] if missing else []), weights.bias[..., None]]
    return torch.cat(blocks, dim=-1)


def _factor(counts: Counts, W_KF: Tensor) -> Factor:
    """The weights as a chunk multiplies them, batch and K flattened to J."""
    W_JF = W_KF.flatten(0, -2)
    return Factor(counts.encode(W_JF[:, :-1]), W_JF[:, -1:].contiguous())


def centred(W_KF: Tensor) -> tuple[Tensor, Tensor]:
    """Weights centred over components, and the subtracted mean, (..., 1, E + 1).

    The mean is over components of like weight: one that is far from the others, or ruled out by a log 0, would put
    large numbers into the scores of all.
    """
    size_KF = W_KF.abs()
    alike_KF = size_KF <= ALIKE * (1 + size_KF.amin(-2, keepdim=True))
    mean_1F = torch.where(alike_KF, W_KF, 0.0).sum(-2, keepdim=True) / alike_KF.sum(-2, keepdim=True)
    return W_KF - mean_1F, mean_1F


def _block_scores(counts: Counts, weights: Weights, dtype: torch.dtype) -> Tensor:
    W_KF = _flat(weights, missing=counts.has_missing)
    double, mean_1F, single = _factor(counts, W_KF), None, None
    if dtype != torch.float64:
        centred_KF, mean_1F = centred(W_KF)
        centred_factor = _factor(counts, centred_KF)
        single = in_float32(counts, centred_factor)
        double, mean_1F = (double, None) if single is None else (centred_factor, mean_1F)
    scores_JN = torch.empty(len(double.bias_J1), counts.n_rows, dtype=torch.float64)

    @torch.inference_mode()
    def part(start: int, stop: int) -> None:
        for chunk, _, chunk_JN, inexact_B in _scored(counts, start, stop, double, single):
            log_factorial_N = counts.log_factorial_N[chunk]
            torch.sub(chunk_JN, log_factorial_N, out=scores_JN[:, chunk])
            if len(inexact_B):
                exact_JB = counts.take(chunk.start + inexact_B).scores(double)
                scores_JN[:, chunk.start + inexact_B] = exact_JB - log_factorial_N[inexact_B]

    in_parts(counts.n_rows, _row_size(counts, len(scores_JN)), part)
    scores_NK = scores_JN.view(*W_KF.shape[:-1], -1).mT
    if mean_1F is not None:
        scores_NK += counts.scores(_factor(counts, mean_1F)).view(*mean_1F.shape[:-1], -1).mT
    return scores_NK


def _scored(
    counts: Counts, start: int, stop: int, double: Factor, single: Float32 | None
) -> Iterator[tuple[slice, DenseRows | SparseRows, Tensor, Tensor]]:
    """Rows start to stop in chunks, each with its scores, (J, N), and those of its rows that need float64."""
    factor, none_B = double if single is None else single.factor, torch.zeros(0, dtype=torch.int64)
    for chunk, rows in counts.chunks(start, stop, len(factor.bias_J1), factor.bias_J1.dtype):
        scores_JN, inexact_B = rows.scores(factor), none_B
        if single is not None:
            bound_N, scores_JN = scores_JN[-1], scores_JN[:-1]
            if float(bound_N.amax()) > single.largest:
                inexact_B = (bound_N > single.largest).nonzero()[:, 0]
        yield chunk, rows, scores_JN, inexact_B


@cache
def _least(dtype: torch.dtype) -> float:
    """The log of a share that makes no difference, 1e-19 or, in float64, 1e-154.

    Exponentials that underflow, and products with them, are many times slower than those of it.
    """
    return math.log(torch.finfo(dtype).tiny) / 2


def _block_sums(counts: Counts, R_NK: Tensor) -> Sums:
    R_KN = R_NK.mT
    R_JN = R_KN.flatten(0, -2)

    @torch.inference_mode()
    def part(start: int, stop: int) -> Tensor:
        sums_JE = counts.no_sums(len(R_JN))
        for chunk, rows in counts.chunks(start, stop, len(R_JN), R_JN.dtype):
            rows.add_sums(R_JN[:, chunk], sums_JE)
        return sums_JE

    parts = in_parts(counts.n_rows, _row_size(counts, len(R_JN)), part)
    n_K = R_KN.sum(-1)
    return _as_sums(n_K, counts.decode(_total(parts)).unflatten(0, n_K.shape), counts)


def _block_softmax_sums(counts: Counts, weights: Weights, dtype: torch.dtype) -> tuple[Tensor, ...]:
    batch = weights.bias.shape
    centred_KF, mean_1F = centred(_flat(weights, missing=counts.has_missing))
    double = _factor(counts, centred_KF)
    # In a wide table it is as large as the sums; the factor is all that the pass needs.
    del centred_KF
    single = None if dtype == torch.float64 else in_float32(counts, double)

    @torch.inference_mode()
    def part(start: int, stop: int) -> Accumulated:
        return _accumulated(counts, start, stop, double, single, batch)

    parts = in_parts(counts.n_rows, _row_size(counts, len(double.bias_J1)), part)
    sums_JE, n_K, log_z = (_total(values) for values in zip(*parts, strict=True))
    A_KE = counts.decode(sums_JE).unflatten(0, batch)
    # Responsibilities add up to 1, so that the sums of all components are those of the table; in float32, nearly.
    total_E = A_KE.sum(-2) if single is None else counts.totals()
    mean_F, times_N = mean_1F.squeeze(-2), counts.times(slice(0, counts.n_rows), torch.float64)
    log_z += (total_E * mean_F[..., :-1]).sum(-1) + times_N.sum() * mean_F[..., -1]
    return *_as_sums(n_K, A_KE, counts), log_z - counts.log_factorial_N @ times_N


def _accumulated(
    counts: Counts, start: int, stop: int, double: Factor, single: Float32 | None, batch: torch.Size
) -> Accumulated:
    """Rows start to stop; those beyond the error bound of float32 are redone in float64."""
    sums_JE, n_K = counts.no_sums(len(double.bias_J1)), torch.zeros(batch, dtype=torch.float64)
    log_z = torch.zeros(batch[:-1], dtype=torch.float64)
    inexact = []
    for chunk, rows, scores_JN, inexact_B in _scored(counts, start, stop, double, single):
        R_NK, log_z_N = softmax(scores_JN.view(*batch, -1).mT)
        if counts.times_N is not None:
            times_N = counts.times(chunk, scores_JN.dtype)
            R_NK.mul_(times_N[:, None])
            log_z_N.mul_(times_N)
        if len(inexact_B):
            R_NK[..., inexact_B, :] = 0.0
            log_z_N[..., inexact_B] = 0.0
            inexact.append(chunk.start + inexact_B)
        # The softmax was written over the scores.
        rows.add_sums(scores_JN, sums_JE)
        n_K += R_NK.sum(-2)
        log_z += log_z_N.sum(-1, dtype=torch.float64)
    done = Accumulated(sums_JE, n_K, log_z)
    for rows_B in torch.cat(inexact).split(REDONE) if inexact else ():
        redone = _accumulated(counts.take(rows_B), 0, len(rows_B), double, None, batch)
        done = Accumulated(*map(torch.add, done, redone))
    return done


def _as_sums(n_K: Tensor, A_KE: Tensor, counts: Counts) -> Sums:
    x, positive, *missing = A_KE.split(counts.n_features, dim=-1)
    return Sums(n_K, x, positive, missing[0] if missing else torch.zeros_like(n_K)[..., None])


def _total(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The sum of the parts, an ordinary tensor where those are of inference mode."""
    return torch.stack(list(parts)).sum(0)


def _row_size(counts: Counts, n_products: int) -> int:
    """Numbers in a row of the larger table of a chunk."""
    return max(counts.width, n_products)
