"""Products in float32 that keep the log joint to 1e-4: tables centred, rows that would lose more told apart.

Rounding grows with the numbers that are summed up, so what all components have in common is taken off first: with L the
mean of W over the components, A @ W = A @ (W - L) + A @ L. Responsibilities do not need A @ L, and the log likelihood
needs it summed over rows alone, where it is made in float64 from the totals of the columns of A.

How much is lost is measured, not guessed. The reach of a row is the most that |A| @ |W - L| comes to for any component;
on some rows the error is measured against float64, as a share of their reach, and every row for whose reach that share
comes to 1e-4 or more is multiplied in float64. Large counts have a long reach.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zipmix.models.counts import Counts

# The largest error of a log joint.
ERROR = 1e-4

# Rows on which the error is measured: some, and one in so many, but no more than; and how much larger than theirs the
# error of the others may be.
SOME, ONE_IN, MOST = 64, 8, 512
CARE = 1.5

# Least share of rows within reach for which float32 is worth its trouble.
WORTH = 0.5

# Below, an entry is a log 0 made finite: its component is ruled out, whatever the rounding.
RULED_OUT = -1e9


class Centred(NamedTuple):
    """The tables without what the components have in common, float64, and with the reach as one more column."""

    W_EJ: Tensor  # J columns and the reach
    bias_J: Tensor
    level_EB: Tensor  # L, for each batch entry
    level_B: Tensor  # the same of the bias
    total_level_B: Tensor  # A @ L and that of the bias, summed over rows
    longest: float  # reach up to which float32 will do


def centred(counts: Counts, W_EJ: Tensor, bias_J: Tensor, n_components: int) -> Centred | None:
    """The tables that float32 can multiply the rows with, or None where float64 is the better choice.

    Args:
        counts: N rows in memory.
        W_EJ: the factor of A, J columns, those of a batch entry side by side.
        bias_J: what is added.
        n_components: K.
    """
    table_EBK = torch.cat([W_EJ, bias_J[None]]).unflatten(1, (-1, n_components))
    possible_EBK = table_EBK > RULED_OUT
    level_EB = torch.where(possible_EBK, table_EBK, 0.0).sum(-1) / possible_EBK.sum(-1).clamp_min(1)
    table_EBK = table_EBK - level_EB[..., None]
    reach_E = torch.where(possible_EBK, table_EBK.abs(), 0.0).amax((1, 2))
    table_EJ = torch.cat([table_EBK.flatten(1), reach_E[:, None]], dim=1)
    total_B = counts.totals() @ level_EB[:-1] + counts.n_rows * level_EB[-1]
    tables = Centred(table_EJ[:-1], table_EJ[-1], level_EB[:-1], level_EB[-1], total_B, torch.inf)
    longest, share = _measured(counts, tables)
    return tables._replace(longest=longest) if share >= WORTH else None


def _measured(counts: Counts, tables: Centred) -> tuple[float, float]:
    """The longest reach that keeps to the error allowed, and the share of rows within it."""
    n_measured = min(counts.n_rows, SOME + counts.n_rows // ONE_IN, MOST)
    rows_N = torch.linspace(0, counts.n_rows - 1, n_measured, dtype=torch.float64).to(torch.int64)
    some = counts.take(rows_N)
    exact_JN, single_JN = (
        some.scores(tables.W_EJ.to(dtype), tables.bias_J.to(dtype)) for dtype in (torch.float64, torch.float32)
    )
    reach_N = exact_JN[-1]
    error_JN = torch.where(exact_JN > RULED_OUT, (single_JN - exact_JN).abs(), 0.0)[:-1]
    # Never less than the rounding of one number, which rows of zeros alone would have it be.
    rate = (error_JN.amax(0) / reach_N.clamp_min(1e-300)).amax().clamp_min(2.0**-24)
    longest = ERROR / (CARE * float(rate))
    return longest, float((reach_N <= longest).to(torch.float64).mean())
