"""Held-out log scores: how well a fit predicts rows it has not seen, and single cells of rows it has seen.

A share of the rows is set aside, and in as many of the other rows one observed cell is masked. One fit to what is left
is scored on both:

    rows     log p(x_new | X)              = log mean_s p(x_new | Theta_s)
    cells    log p(x_id | rest of x_i, X)  = log mean_s p(x_i | Theta_s) / p(x_i without cell d | Theta_s)

with z and b summed out, and Theta_s the draws of the posterior or of q, or the one point of a point method.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.store import as_counts
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.models.posterior import rows_log_likelihood


class Split(NamedTuple):
    """What is fitted, and what it is scored on."""

    train_ND: Tensor  # rows that stay, masked cells NaN
    rows_MD: Tensor  # rows set aside
    complete_JD: Tensor  # rows that stay and lose a cell, complete
    masked_JD: Tensor  # the same rows without the cell


class Score(NamedTuple):
    """A mean log score in nats, with its standard error over what is scored."""

    mean: float
    error: float
    n: int


class HeldOut(NamedTuple):
    """Mean log scores of rows and of cells; None where nothing was set aside."""

    rows: Score | None
    cells: Score | None


def split(X_ND: Tensor, *, share: float, seed: int) -> Split:
    """Sets rows aside and masks cells.

    Args:
        X_ND: (N, D) counts, NaN where missing.
        share: of the rows, in (0, 0.5]; at least two rows stay.
        seed: of the choice.
    """
    rng = generator(seed, "held-out")
    n_rows = len(X_ND)
    n_held = min(round(share * n_rows), max(0, n_rows - 2))
    order = torch.from_numpy(rng.permutation(n_rows))
    kept_N = order[n_held:].sort().values
    train_ND = X_ND[kept_N].clone()
    observed_ND = ~train_ND.isnan()
    # A row keeps at least one cell.
    candidates = (observed_ND.sum(1) > 1).nonzero().flatten()
    chosen_J = candidates[torch.from_numpy(rng.permutation(len(candidates))[:n_held])].sort().values
    complete_JD = train_ND[chosen_J]
    weight_JD = torch.from_numpy(rng.random(complete_JD.shape)).masked_fill(~observed_ND[chosen_J], -1.0)
    train_ND[chosen_J, weight_JD.argmax(1)] = torch.nan
    return Split(train_ND, X_ND[order[:n_held]], complete_JD, train_ND[chosen_J])


def score(fit: Fit, held: Split) -> HeldOut:
    """Scores a fit to held.train_ND on what it has not seen."""
    rows = cells = None
    if len(held.rows_MD):
        rows = _score(_log_likelihood(fit, held.rows_MD))
    if len(held.complete_JD):
        cells = _score(_log_likelihood(fit, held.complete_JD) - _log_likelihood(fit, held.masked_JD))
    return HeldOut(rows, cells)


def _log_likelihood(fit: Fit, X_ND: Tensor) -> Tensor:
    """log p(x_i | Theta_s), (S, N)."""
    return torch.cat([rows_log_likelihood(as_counts(X_ND), points) for points in fit.points(len(X_ND))])


def _score(log_p_SN: Tensor) -> Score:
    log_mean_N = torch.logsumexp(log_p_SN, 0) - np.log(len(log_p_SN))
    n = len(log_mean_N)
    error = log_mean_N.std().item() / n**0.5 if n > 1 else float("nan")
    return Score(log_mean_N.mean().item(), error, n)
