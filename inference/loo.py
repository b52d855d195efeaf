"""Leave-one-row-out expected log predictive density by PSIS (Vehtari, Gelman and Gabry, 2017), z and b summed out."""

from typing import NamedTuple

import torch
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.store import Counts, as_counts
from zipmix.inference.arviz import pointwise_loo
from zipmix.inference.result import Fit
from zipmix.models.posterior import rows_log_likelihood


class Loo(NamedTuple):
    """Leave-one-row-out expected log predictive density by PSIS (Vehtari, Gelman and Gabry, 2017)."""

    elpd: float
    se: float
    p: float  # effective number of parameters
    n_bad: int  # rows whose Pareto k is over 0.7, for which the estimate is not to be trusted


def loo(fit: Fit) -> Loo:
    """PSIS-LOO of rows, z and b summed out; a row of which nothing is observed adds nothing.

    Args:
        fit: with draws, which are taken for draws from the posterior; those of a variational fit are from q, and then
            so is the score.
    Raises:
        InputError: a fit without draws.
    """
    if fit.draws is None:
        raise InputError(f"fit must hold draws, got a point of method {fit.method!r}; use 'gibbs', for one.")
    counts = as_counts(fit.X)
    rows_CSN = rows_log_likelihood(counts, fit.draws)[..., _observed_rows(counts)]
    if not rows_CSN.shape[-1]:
        return Loo(0.0, 0.0, 0.0, 0)
    elpd, se, p, pareto_k = pointwise_loo(fit.draws, rows_CSN, fit.names)
    return Loo(elpd, se, p, int((pareto_k > 0.7).sum()))


def _observed_rows(counts: Counts) -> Tensor:
    """Which rows have a cell that is not missing, (N,) bool."""
    if counts.missing is None:
        return torch.ones(counts.n_rows, dtype=torch.bool)
    return torch.as_tensor(counts.missing.sum(1)) < counts.n_features
