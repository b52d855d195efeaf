"""Exact inference for tiny tables: sums over all partitions of the rows, in closed form.

Given z, everything else integrates out (Nobile and Fearnside, 2007, for mixtures of conjugate families). With n the
sizes of the blocks of z and, in block S and column d, c observed cells, s the sum and p the number of positive ones,

    p(z)           = Dirichlet-multinomial of the sizes
    p(X_Sd | S)    = prod 1 / x! * sum_m C(c - p, m - p) B(a + m, b + c - m) / B(a, b)
                                     * Gamma(e + s) / Gamma(e) * f^e / (f + m)^(e + s),        m = p..c

m counts the cells with b = 1. With one alpha for all components, labellings with the same blocks have the same
probability: partitions are enumerated, each standing for K! / (K - blocks)! labellings. With unequal alpha every
labelling is enumerated. Expectations that do not depend on labels follow from P(S is a block | X).
"""

import math
import time
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_whole
from zipmix.counts.store import Counts
from zipmix.inference.ending import Ending
from zipmix.inference.problem import Problem, pose
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.models.conjugate import as_conditionals, complete_conditionals, draw, log_normalisers
from zipmix.models.kernel import Statistics, statistics
from zipmix.models.parameters import Parameters, Prior, exchangeable, require_proper
from zipmix.models.posterior import log_posterior_at

# Terms summed at most: some seconds and about a gigabyte.
LIMIT = 10_000_000


class Blocks(NamedTuple):
    """Every set of rows that is a block of some partition, the empty one included, and what it integrates to."""

    member_UN: Tensor  # (U, N) 1 where the row belongs to the block
    statistics: Statistics  # n (U,) and c, s, p, m (U, D); m is still p, no zero counted
    log_marginal_U: Tensor  # (U,) log p(X_S | S), prod 1 / x! left out
    log_share_UDJ: Tensor  # (U, D, J) log P(m - p = j | X_S), j = 0, 1, ...


class Enumeration(NamedTuple):
    """Every partition of the rows (every labelling, where alpha is unequal) with its probability."""

    blocks: Blocks
    block_PK: Tensor  # (P, K) which of the blocks each component holds
    probability_P: Tensor  # (P,)
    log_evidence: float
    symmetric: bool  # whether labels may be permuted


class Posterior(NamedTuple):
    """Exact posterior expectations that do not depend on labels."""

    log_evidence: float  # log p(X | K, prior)
    coclustering_NN: Tensor  # (N, N)  P(z_i = z_j | X)
    occupied_K: Tensor  # (K,)  P(k + 1 components hold a row | X)
    rate_ND: Tensor  # (N, D)  E[lambda_kd | X] at k = z_i
    share_ND: Tensor  # (N, D)  E[omega_kd | X] at k = z_i
    predictive_ND: Tensor  # (N, D)  E[omega_kd lambda_kd | X] at k = z_i: the mean of the cell, were it missing or new
    structural_ND: Tensor  # (N, D)  P(b_id = 0 | X)


def log_evidence_exact(X: Any, n_components: int, prior: Prior = Prior()) -> float:
    """log p(X | K, prior) of a tiny table, z, b, pi, omega and lambda summed and integrated out.

    The predictive probability of a missing cell is a ratio of two of these, with the cell filled in and without.

    Args:
        X: (N, D) counts >= 0, NaN where missing; N up to about 15 for K = 2, 11 for K = 5.
        n_components: K >= 1.
        prior: hyperparameters, all > 0.
    Raises:
        InputError: data or prior that cannot be used, or over 1e7 terms.
    """
    return enumeration(_pose(X, n_components, prior)).log_evidence


def exact_posterior(X: Any, n_components: int, prior: Prior = Prior()) -> Posterior:
    """Exact posterior expectations for a tiny table; append a row of NaN to learn about a new row.

    Args:
        X: (N, D) counts >= 0, NaN where missing.
        n_components: K >= 1.
        prior: hyperparameters, all > 0.
    Raises:
        InputError: data or prior that cannot be used, or over 1e7 terms.
    """
    problem = _pose(X, n_components, prior)
    (member_UN, sums, _, log_share_UDJ), block_PK, probability_P, log_evidence, _ = enumeration(problem)
    n_blocks, K = len(member_UN), problem.n_components
    every = probability_P[:, None].expand_as(block_PK)
    probability_U = torch.bincount(block_PK.flatten(), weights=every.flatten(), minlength=n_blocks)
    occupied_P = (sums.n[block_PK] > 0).sum(1)
    share_UDJ = log_share_UDJ.exp()
    of_m = complete_conditionals(_counted(sums, share_UDJ.shape[-1]), problem.prior)
    omega_UDJ, lam_UDJ = of_m.a / (of_m.a + of_m.b), of_m.e / of_m.f
    zeros_UD = (sums.c - sums.p).clamp_min(1)
    poisson_UD = (share_UDJ * torch.arange(share_UDJ.shape[-1])).sum(-1) / zeros_UD
    weight_NU = member_UN.T * probability_U
    share_ND = weight_NU @ (share_UDJ * omega_UDJ).sum(-1)
    X_ND = problem.table.X_ND
    structural_ND = torch.where(X_ND == 0, 1 - weight_NU @ poisson_UD, 0.0)
    return Posterior(
        log_evidence,
        weight_NU @ member_UN,
        torch.bincount(occupied_P - 1, weights=probability_P, minlength=K),
        weight_NU @ (share_UDJ * lam_UDJ).sum(-1),
        share_ND,
        weight_NU @ (share_UDJ * omega_UDJ * lam_UDJ).sum(-1),
        torch.where(X_ND.isnan(), 1 - share_ND, structural_ND),
    )


def exact(X: Any, n_components: int, *, prior: Prior = Prior(), seed: int = 0, n_draws: int = 1000) -> Fit:
    """Independent draws from the exact posterior of a tiny table: N up to about 15 for K = 2, 11 for K = 5.

    Posterior means of pi, omega and lambda are the same for all components where alpha is, so the point that is
    reported is the draw of highest log posterior, as for the other samplers.

    Args (those of every method: zipmix.fit):
        prior: hyperparameters, all > 0.
        n_draws: S >= 1.
    Returns:
        Draws (1, S, ...), labels permuted at random where alpha is the same for all.
    Raises:
        InputError: data, prior or settings that cannot be used, or over 1e7 terms.
    """
    problem = _pose(X, n_components, prior)
    check_whole(n_draws, "n_draws", at_least=1)
    every = enumeration(problem)
    draws = _draw(problem, every, n_draws, generator(seed, "method"))
    lp_S = log_posterior_at(problem.counts, draws, problem.prior)
    best = int(lp_S.argmax())
    seconds = time.perf_counter() - problem.began
    return problem.fit(
        "exact",
        parameters=draws.at(best),
        draws=draws.map(lambda value: value[None]),
        objective=lp_S[best].item(),
        trace=lp_S[None],
        trace_seconds=torch.full((n_draws,), seconds, dtype=torch.float64),
        converged=True,
        ending=Ending.COMPLETED,
        reason=f"summed over all {len(every.block_PK)} partitions; the log evidence is {every.log_evidence:.6f}",
        n_iter=n_draws,
        settings=dict(n_draws=n_draws),
        seed=seed,
    )


def enumeration(problem: Problem) -> Enumeration:
    """All partitions of the rows into at most K blocks, or all K^N labellings where alpha is unequal."""
    symmetric = exchangeable(problem.prior)
    mask_PK = _assignments(problem.counts.n_rows, problem.n_components, symmetric)
    mask_U, block = np.unique(np.append(mask_PK.ravel(), mask_PK.dtype.type(0)), return_inverse=True)
    block_PK = torch.from_numpy(block[:-1].reshape(mask_PK.shape))
    blocks = _blocks(problem, mask_U)
    n_PK = blocks.statistics.n[block_PK]
    before, after = as_conditionals(problem.prior), problem.prior.alpha + n_PK
    log_prior_P = log_normalisers(before._replace(alpha=after)).pi - log_normalisers(before).pi
    log_joint_P = log_prior_P + blocks.log_marginal_U[block_PK].sum(-1)
    if symmetric:
        empty_P = (n_PK == 0).to(n_PK.dtype).sum(-1)
        log_joint_P += math.lgamma(problem.n_components + 1) - torch.lgamma(empty_P + 1)
    log_sum = torch.logsumexp(log_joint_P, 0)
    assert isinstance(problem.counts, Counts)  # a stream is refused when the problem is posed
    log_evidence = (log_sum - problem.counts.log_factorial_N.sum()).item()
    return Enumeration(blocks, block_PK, (log_joint_P - log_sum).exp(), log_evidence, symmetric)


def _assignments(n_rows: int, K: int, symmetric: bool) -> np.ndarray:
    """The rows held by each component as the bits of one number, (P, K); components open in order if symmetric."""
    # Beyond 63 rows only K = 1 passes the limit, and there one big number does.
    mask_PK = np.zeros((1, K), dtype=np.int64 if n_rows < 63 else object)
    for i in range(n_rows):
        opened_P = (mask_PK != 0).sum(1)
        grown = []
        for k in range(K):
            allowed = mask_PK[opened_P >= k] if symmetric else mask_PK.copy()
            allowed[:, k] |= 1 << i
            grown.append(allowed)
        mask_PK = np.concatenate(grown)
    return mask_PK


def _blocks(problem: Problem, mask_U: np.ndarray) -> Blocks:
    n_rows = problem.counts.n_rows
    bits = [((mask_U >> i) & 1).astype(np.float64) for i in range(n_rows)]
    member_UN = torch.from_numpy(np.stack(bits, axis=1))
    sums = statistics(problem.counts, member_UN.T, torch.zeros_like)
    zeros_UD1 = (sums.c - sums.p)[..., None]
    j = torch.arange(int(zeros_UD1.max()) + 1, dtype=torch.float64)
    after = log_normalisers(complete_conditionals(_counted(sums, len(j)), problem.prior))
    before = log_normalisers(as_conditionals(problem.prior))
    lgamma = torch.lgamma
    ways = lgamma(zeros_UD1 + 1) - lgamma(j + 1) - lgamma((zeros_UD1 - j).clamp_min(0) + 1)
    log_terms = ways + after.omega - before.omega + after.lam - before.lam
    log_terms = torch.where(j <= zeros_UD1, log_terms, -torch.inf)
    log_marginal_UD = torch.logsumexp(log_terms, -1)
    return Blocks(member_UN, sums, log_marginal_UD.sum(-1), log_terms - log_marginal_UD[..., None])


def _counted(sums: Statistics, n_terms: int) -> Statistics:
    """Statistics with one more axis: j = 0, 1, ... of the zeros have b = 1, as far as there are zeros."""
    n, c, s, p, _ = (value[..., None] for value in sums)
    return Statistics(n, c, s, p, torch.minimum(p + torch.arange(n_terms), c))


def _draw(problem: Problem, every: Enumeration, n_draws: int, rng: np.random.Generator) -> Parameters:
    """Partition, labels, m, then the parameters: each from its distribution given those before."""
    chosen_S = _categorical(every.probability_P.expand(n_draws, -1), rng)
    block_SK = every.block_PK[chosen_S]
    if every.symmetric:
        block_SK = torch.from_numpy(rng.permuted(block_SK.numpy(), axis=1))
    n, c, s, p, _ = (value[block_SK] for value in every.blocks.statistics)
    m = p + _categorical(every.blocks.log_share_UDJ.exp()[block_SK], rng)
    return draw(complete_conditionals(Statistics(n, c, s, p, m), problem.prior), rng)


def _categorical(probability: Tensor, rng: np.random.Generator) -> Tensor:
    """One index along the last axis for every entry, by inversion."""
    below = probability.cumsum(-1)
    uniform = torch.from_numpy(rng.random((*probability.shape[:-1], 1))) * below[..., -1:]
    return (uniform >= below).sum(-1)


def _pose(X: Any, n_components: int, prior: Prior) -> Problem:
    problem = pose(X, n_components, prior)
    require_proper(problem.prior, "exact")
    N, D, K = *problem.table.X_ND.shape, problem.n_components
    terms, what = _cost(N, D, K, symmetric=exchangeable(problem.prior))
    if terms > LIMIT:
        raise InputError(
            f"X has {N} rows: method 'exact' with n_components = {K} would sum over {what}, at least "
            f"{Decimal(terms):.1e} terms, of {LIMIT:.0e} allowed. Use fewer rows or components, or 'gibbs', with "
            "log_evidence_chib or log_evidence_annealed for the evidence."
        )
    return problem


def _cost(N: int, D: int, K: int, *, symmetric: bool) -> tuple[int, str]:
    """Terms of the sums (a lower bound beyond 200 rows), and what they run over, for the message."""
    rows = min(N, 200)
    if symmetric:
        # Stirling numbers of the second kind: partitions of the rows so far into exactly k blocks.
        exactly = [1] + [0] * K
        for _ in range(rows):
            exactly = [0] + [k * exactly[k] + exactly[k - 1] for k in range(1, K + 1)]
        assignments, what = sum(exactly), "all partitions of the rows"
    else:
        assignments, what = K**rows, "all labellings of the rows (partitions will do where alpha is one number)"
    n_blocks = 2**rows if K > 1 else 1
    return assignments * K + n_blocks * D * (N + 1), what
