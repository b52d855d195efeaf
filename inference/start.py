"""Starting points, the same for every method: R points of the parameter space from one seed.

"kmeans++": rows chosen far from one another (Arthur and Vassilvitskii, 2007) on the scale of sqrt(x), where Poisson
counts have about equal variance; every row joins its nearest chosen row, and the starting point is the mean of the
complete conditionals of that partition. "small-em": the most likely of ten such points after ten rounds of EM with the
mean in place of the mode (Biernacki, Celeux and Govaert, 2003); the mean exists under every proper prior. "prior":
draws from the prior.

Notation: models/zip_mixture.py.
"""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_whole
from zipmix.counts.distinct import distinct
from zipmix.counts.rows import Factor
from zipmix.counts.store import Counts, CountTable, as_dense
from zipmix.inference.rng import start_generators
from zipmix.models.conjugate import Conditionals, as_conditionals, complete_conditionals, draw, mean
from zipmix.models.kernel import Statistics, expectation, logs, statistics
from zipmix.models.parameters import Parameters, Prior, check_parameters, require_proper

Init = Literal["kmeans++", "small-em", "prior"]

# Most rows that k-means++ chooses from; more of them make no better start.
SEEDING_ROWS = 5_000

# Candidates and rounds behind each start of "small-em".
CANDIDATES = 10
ROUNDS = 10

# Relative difference of log likelihoods up to which candidates are equal.
TIE = 1e-10


def starts(
    counts: CountTable,
    prior: Prior,
    *,
    n_components: int,
    n_starts: int,
    init: Init,
    start: Parameters | None,
    seed: int,
) -> Parameters:
    """Starting points with a restart axis in front; the first ones do not depend on how many there are.

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
        given = check_parameters(start, n_components, counts.n_features, name="start")
        if given.pi.ndim > 2 or not len(given.pi):
            raise InputError(
                f"start must hold one point, pi (K,), or several, pi (R, K), got pi of shape {tuple(given.pi.shape)}."
            )
        return given if given.pi.ndim == 2 else given.map(lambda field: field.unsqueeze(0))
    check_whole(n_starts, "n_starts", at_least=1)
    if init not in get_args(Init):
        raise InputError(f"init must be one of {', '.join(map(repr, get_args(Init)))}; got {init!r}.")
    rngs = start_generators(seed, n_starts)
    if init == "prior":
        require_proper(prior, "init='prior'")
        conditionals = as_conditionals(prior)
        shape = (n_components, counts.n_features)
        conditionals = Conditionals(conditionals.alpha, *(field.expand(shape) for field in conditionals[1:]))
        return Parameters.stack([draw(conditionals, rng) for rng in rngs])
    if init == "kmeans++":
        return _partition_means(counts, prior, n_components, rngs)
    passes = distinct(counts)
    return Parameters.stack([_small_em(counts, passes, prior, n_components, rng) for rng in rngs])


def _small_em(
    counts: CountTable, passes: CountTable, prior: Prior, n_components: int, rng: np.random.Generator
) -> Parameters:
    theta = _partition_means(counts, prior, n_components, [rng] * CANDIDATES)
    for _ in range(ROUNDS):
        theta = mean(complete_conditionals(expectation(passes, logs(theta))[0], prior))
    value_R = expectation(passes, logs(theta))[1]
    # The first of those that are equal but for rounding, so that every form of a table has the same starts.
    highest = value_R.max()
    return theta.at(int((value_R >= highest - TIE * (1 + highest.abs())).int().argmax()))


def _partition_means(
    counts: CountTable, prior: Prior, n_components: int, rngs: list[np.random.Generator]
) -> Parameters:
    few = few_rows(counts, rngs[0])
    labels_RN = nearest_seeds(few, n_components, rngs)
    R_NK = torch.nn.functional.one_hot(labels_RN, n_components).to(torch.float64)
    # One average row is added to each component, so that none starts empty; half of the zeros count as structural.
    n, c, s, p, m = statistics(few, R_NK, lambda zeros_KD: zeros_KD / 2)
    share = 1 / few.n_rows
    every = [field.sum(1, keepdim=True) * share for field in (c, s, p, m)]
    smoothed = Statistics(n + 1, *(field + average for field, average in zip((c, s, p, m), every, strict=True)))
    return mean(complete_conditionals(smoothed, prior))


def few_rows(counts: CountTable, rng: np.random.Generator) -> Counts:
    """All rows, or SEEDING_ROWS of them drawn at random where there are more."""
    if counts.n_rows <= SEEDING_ROWS:
        return counts if isinstance(counts, Counts) else counts.take(torch.arange(counts.n_rows))
    return counts.take(torch.from_numpy(np.sort(rng.choice(counts.n_rows, SEEDING_ROWS, replace=False))))


def nearest_seeds(
    counts: Counts, n_components: int, rngs: list[np.random.Generator], weight_N: Tensor | None = None
) -> Tensor:
    """The index of the seed nearest to each row, of K seeds chosen by k-means++ once per generator, (R, N).

    Args:
        counts: N rows of D counts.
        n_components: K.
        rngs: R generators.
        weight_N: weights of the rows in the choice; equal where None.
    """
    n_rows, n_runs = counts.n_rows, len(rngs)
    root_X = as_dense(counts.X).sqrt() if isinstance(counts.X, Tensor) else counts.X.astype(np.float64).sqrt()
    root = counts._replace(X=root_X, codes=None, total_E=None)
    _, observed_1D, sum_1D, *_ = statistics(root, torch.ones(n_rows, 1, dtype=torch.float64), lambda zeros: zeros)
    # sqrt(x), with the mean of its column where a cell is missing.
    column_D = (sum_1D / observed_1D.clamp_min(1)).squeeze(0)
    one_D, none_RD = torch.ones_like(column_D), torch.zeros(n_runs, len(column_D), dtype=torch.float64)
    squares_N = _times(counts, torch.cat([one_D, 0 * one_D, column_D**2])[None])[0]
    nearest_RN = torch.full((n_runs, n_rows), torch.inf, dtype=torch.float64)
    label_RN = torch.zeros(n_runs, n_rows, dtype=torch.int64)
    share_N = None if weight_N is None else (weight_N / weight_N.sum()).numpy()
    drawn = ((int(rng.choice(n_rows, p=share_N)), rng.random(n_components)) for rng in rngs)
    first, uniform = zip(*drawn, strict=True)
    seed_R, uniform_KR = torch.tensor(first), torch.from_numpy(np.stack(uniform, axis=1))
    for k in range(n_components):
        seeds = root.take(seed_R)
        y_RD = as_dense(seeds.X)
        if seeds.missing is not None:
            y_RD = torch.where(as_dense(seeds.missing) > 0, column_D, y_RD)
        products_RN = _times(root, torch.cat([y_RD, none_RD, y_RD * column_D], dim=1))
        distance_RN = (squares_N - 2 * products_RN + squares_N[seed_R, None]).clamp_min(0.0)
        label_RN[distance_RN < nearest_RN] = k
        nearest_RN = torch.minimum(nearest_RN, distance_RN)
        reach_RN = (nearest_RN if weight_N is None else weight_N * nearest_RN).cumsum(1)
        # With fewer distinct rows than components every distance is 0 in the end, and the last row is taken.
        at_R1 = (uniform_KR[k] * reach_RN[:, -1])[:, None]
        seed_R = torch.searchsorted(reach_RN, at_R1, right=True).squeeze(1).clamp_max(n_rows - 1)
    return label_RN


def _times(counts: Counts, W_JE: Tensor) -> Tensor:
    """W @ [X, P, Q].T, (J, N)."""
    W_JE = W_JE[:, : counts.n_columns].contiguous()
    return counts.scores(Factor(counts.encode(W_JE), torch.zeros(len(W_JE), 1, dtype=torch.float64)))
