"""Starting points, the same for every method: R points of the parameter space from one seed.

"kmeans++": rows chosen far from one another (Arthur and Vassilvitskii, 2007) on the scale of sqrt(x), where Poisson
counts have about equal variance; every row joins its nearest chosen row, and the starting point is the mean of the
complete conditionals of that partition. "small-em": the most likely of ten such points after ten rounds of EM with the
mean in the place of the mode, which every proper prior has (Biernacki, Celeux and Govaert, 2003). "prior": draws from
the prior, as the coursework asks.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zipmix.models.conjugate import Conditionals, as_conditionals, complete_conditionals, draw, mean
from zipmix.models.counts import Counts
from zipmix.models.kernel import Statistics, expectation, logs, statistics
from zipmix.models.parameters import (
    InputError,
    Parameters,
    Prior,
    check_parameters,
    check_whole,
    require_proper,
)

Init = Literal["kmeans++", "small-em", "prior"]

# Rows that the seeding looks at; more of them make no better start.
SEEDING_ROWS = 5_000

# Candidates and rounds behind each start of "small-em".
CANDIDATES = 10
ROUNDS = 10


def starts(
    counts: Counts,
    prior: Prior,
    *,
    n_components: int,
    n_starts: int,
    init: Init,
    start: Parameters | None,
    seed: int,
) -> Parameters:
    """Starting points with a restart axis in front; the first of them do not depend on how many are asked for.

    Args:
        counts: N rows of D counts.
        prior: hyperparameters as check_prior returns them.
        n_components: K.
        n_starts: R >= 1; not used where start is given.
        init: "kmeans++", "small-em" or "prior".
        start: points to use instead, (K, D) or (R, K, D).
        seed: of the draws.
    Raises:
        InputError: a setting that is not allowed.
    """
    if start is not None:
        given = check_parameters(start, n_components, counts.n_features)
        return given if given.pi.ndim == 2 else Parameters(*(field.unsqueeze(0) for field in given))
    check_whole(n_starts, "n_starts", at_least=1)
    if init not in get_args(Init):
        raise InputError(f"init must be one of {', '.join(map(repr, get_args(Init)))}; got {init!r}.")
    rngs = [np.random.default_rng([seed, r]) for r in range(n_starts)]
    if init == "prior":
        require_proper(prior, "init='prior'")
        conditionals = as_conditionals(prior)
        shape = (n_components, counts.n_features)
        conditionals = Conditionals(conditionals.alpha, *(field.expand(shape) for field in conditionals[1:]))
        return _stack([draw(conditionals, rng) for rng in rngs])
    if init == "kmeans++":
        return _partition_means(counts, prior, n_components, rngs)
    return _stack([_small_em(counts, prior, n_components, rng) for rng in rngs])


def interior(parameters: Parameters) -> Parameters:
    """The point, moved off the boundary, where logits and logs are infinite."""
    pi, omega, lam = parameters
    pi = pi.clamp_min(1e-8)
    return Parameters(pi / pi.sum(-1, keepdim=True), omega.clamp(1e-8, 1 - 1e-8), lam.clamp_min(1e-8))


def _small_em(counts: Counts, prior: Prior, n_components: int, rng: np.random.Generator) -> Parameters:
    theta = _partition_means(counts, prior, n_components, [rng] * CANDIDATES)
    for _ in range(ROUNDS):
        theta = mean(complete_conditionals(expectation(counts, logs(theta))[0], prior))
    best = int(expectation(counts, logs(theta))[1].argmax())
    return Parameters(*(value[best] for value in theta))


def _stack(points: list[Parameters]) -> Parameters:
    return Parameters(*(torch.stack(fields) for fields in zip(*points, strict=True)))


def _partition_means(counts: Counts, prior: Prior, n_components: int, rngs: list[np.random.Generator]) -> Parameters:
    rows: slice | Tensor = slice(None)
    A_NE = counts.A_NE
    if len(A_NE) > SEEDING_ROWS:
        chosen = rngs[0].choice(len(A_NE), SEEDING_ROWS, replace=False)
        rows = torch.from_numpy(np.sort(chosen))
    few = Counts(A_NE[rows], counts.log_factorial_N[rows], counts.n_features)
    Y_ND = _root_counts(few)
    labels_RN = torch.stack([_nearest_seed(Y_ND, n_components, rng) for rng in rngs])
    R_NK = torch.nn.functional.one_hot(labels_RN, n_components).to(torch.float64)
    # Each component is given one average row more, so that none starts empty; a zero is structural half of the time.
    n, c, s, p, m = statistics(few, R_NK, lambda zeros_KD: zeros_KD / 2)
    share = 1 / len(few.A_NE)
    every = [field.sum(1, keepdim=True) * share for field in (c, s, p, m)]
    smoothed = Statistics(n + 1, *(field + average for field, average in zip((c, s, p, m), every, strict=True)))
    return mean(complete_conditionals(smoothed, prior))


def _root_counts(counts: Counts) -> Tensor:
    """sqrt(x), with the mean of its column where a cell is missing, (N, D)."""
    X_ND, _, *mask = counts.A_NE.split(counts.n_features, dim=1)
    Y_ND = X_ND.sqrt()
    if not mask:
        return Y_ND
    M_ND = mask[0]
    column_D = Y_ND.sum(0) / M_ND.sum(0).clamp_min(1)
    return torch.where(M_ND > 0, Y_ND, column_D)


def _nearest_seed(Y_ND: Tensor, n_components: int, rng: np.random.Generator) -> Tensor:
    """For every row the number of the nearest of K rows chosen by k-means++, (N,)."""
    n_rows = len(Y_ND)
    squares_N = (Y_ND**2).sum(1)
    nearest_N = torch.full((n_rows,), torch.inf, dtype=torch.float64)
    label_N = torch.zeros(n_rows, dtype=torch.int64)
    seed_row = int(rng.integers(n_rows))
    for k in range(n_components):
        distance_N = (squares_N - 2 * (Y_ND @ Y_ND[seed_row]) + squares_N[seed_row]).clamp_min(0.0)
        closer_N = distance_N < nearest_N
        label_N[closer_N] = k
        nearest_N = torch.minimum(nearest_N, distance_N)
        reach_N = nearest_N.cumsum(0)
        # Fewer distinct rows than components: any row will do.
        total = float(reach_N[-1])
        seed_row = (
            min(int(torch.searchsorted(reach_N, rng.random() * total, right=True)), n_rows - 1)
            if total > 0
            else int(rng.integers(n_rows))
        )
    return label_N
