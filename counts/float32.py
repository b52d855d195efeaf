"""Products in float32 that keep the log joint to 1e-4: rows that would lose more are told apart.

Rounding grows with the numbers that are summed up, so the weights that come here are centred (kernel.py). How much is
lost is measured, not guessed. The reach of a row is |A| times the largest |W| of each column, which no component's
numbers add up to more than; on some rows the error is measured against float64, as a share of their reach, and every
row for whose reach that share comes to 1e-4 or more is multiplied in float64. Large counts have a long reach.
"""

from typing import NamedTuple

import torch

from zipmix.counts.rows import Factor
from zipmix.counts.store import Counts

# The largest error of a log joint.
ERROR = 1e-4

# Rows on which the error is measured: some, and one in so many, but no more than; and how much larger than theirs the
# error of the others may be.
SOME, ONE_IN, MOST = 64, 8, 512
CARE = 1.5

# Least share of rows within reach for which float32 is worth its trouble.
WORTH = 0.5

# Below, a weight or a score is a log 0 made finite, and no count leads to it: its component is ruled out, whatever the
# rounding.
RULED_OUT = -1e13


class Single(NamedTuple):
    """What a chunk is multiplied with in float32."""

    factor: Factor  # J rows, and the reach as one more
    longest: float  # reach up to which float32 will do


def in_float32(counts: Counts, factor: Factor) -> Single | None:
    """The factor that float32 can multiply the rows with, or None where float64 is the better choice.

    Args:
        counts: N rows in memory.
        factor: centred, float64.
    """
    table_FJ = torch.cat([factor.W_JE, factor.bias_J1], dim=1).T
    reach_F = torch.where(table_FJ > RULED_OUT, table_FJ.abs(), 0.0).amax(1, keepdim=True)
    table_JF = torch.cat([table_FJ, reach_F], dim=1).T
    double = Factor(table_JF[:, :-1], table_JF[:, -1:])
    single = Factor(*(table.to(torch.float32) for table in double))
    n_measured = min(counts.n_rows, SOME + counts.n_rows // ONE_IN, MOST)
    rows_N = torch.linspace(0, counts.n_rows - 1, n_measured, dtype=torch.float64).to(torch.int64)
    some = counts.take(rows_N)
    exact_JN, single_JN = some.scores(double), some.scores(single)
    reach_N = exact_JN[-1]
    error_JN = torch.where(exact_JN > RULED_OUT, (single_JN - exact_JN).abs(), 0.0)[:-1]
    # Never less than the usual rounding of one number, which rows of zeros alone would have it be.
    rate = (error_JN.amax(0) / reach_N.clamp_min(1e-300)).amax().clamp_min(2.0**-25)
    longest = ERROR / (CARE * float(rate))
    is_worth_it = float((reach_N <= longest).to(torch.float64).mean()) >= WORTH
    return Single(single, longest) if is_worth_it else None
