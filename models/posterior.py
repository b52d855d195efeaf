"""log p(X, Theta | prior): the objective of every point method, for any batch of points.

Notation: models/zip_mixture.py.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zipmix.counts.store import CountTable, as_counts
from zipmix.counts.table import as_table
from zipmix.models.conjugate import as_conditionals, log_density
from zipmix.models.kernel import log_likelihood
from zipmix.models.parameters import Parameters, Prior, check_parameters, check_prior

# Most numbers in the (S, N, K) table of a block of S points.
BLOCK = 4_000_000


def log_posterior(X: Any, parameters: Parameters, prior: Prior = Prior()) -> Tensor:
    """log p(X, Theta | prior) with z and b summed out, all constants in.

    Args:
        X: (N, D) counts >= 0, NaN where missing; or a zipmix.stream of them.
        parameters: pi (..., K), omega (..., K, D), lam (..., K, D), with any batch axes in front.
        prior: hyperparameters of equations (1)-(3).
    Returns:
        (...) float64
    Raises:
        InputError: X, parameters or prior cannot be used.
    """
    table = as_table(X)
    n_components = torch.as_tensor(parameters.pi).shape[-1] if isinstance(parameters, Parameters) else 1
    points = check_parameters(parameters, n_components, len(table.names))
    return log_posterior_at(as_counts(table.X), points, check_prior(prior, n_components))


def log_posterior_at(counts: CountTable, points: Parameters, prior: Prior) -> Tensor:
    """log p(X, Theta | prior) of checked points, in blocks that fit in memory, (...)."""
    return rows_log_likelihood(counts, points).sum(-1) + log_density(as_conditionals(prior), points)


def rows_log_likelihood(counts: CountTable, points: Parameters) -> Tensor:
    """log p(x_i | Theta) of every row at every point, in blocks that fit in memory, (..., N)."""
    batch = points.pi.shape[:-1]
    flat = points.flat(len(batch))
    rows = torch.cat([log_likelihood(counts, block) for block in blocks(flat, counts.n_rows)])
    return rows.reshape(*batch, -1)


def blocks(points: Parameters, n_rows: int) -> Iterator[Parameters]:
    """A batch of points (S, ...) in blocks whose N x K tables fit in memory together."""
    size = max(1, BLOCK // (n_rows * points.pi.shape[-1]))
    for parts in zip(*(value.split(size) for value in points), strict=True):
        yield Parameters(*parts)
