"""Scores in float32 with errors below 1e-4: rows that would lose more fall back to float64.

What it buys: a pass over 200 000 x 100 small counts takes 0.6 of the time, a fit of it 0.7; small tables gain nothing
(benchmarks/passes.py). It is used where the user asks for it.

Rounding grows with the numbers that are summed, so the weights are centred first (passes.py). The loss is measured.
The bound of a row is |A| times the largest |W| of each column, which the terms of no component exceed in sum. On some
rows the error is measured against float64, as a share of their bound, and every row for whose bound that share comes to
1e-4 or more is multiplied in float64. Large counts have large bounds.
"""

from typing import NamedTuple

import torch

from zipmix.counts.rows import Factor
from zipmix.counts.store import Counts

# The largest error of a score.
ERROR = 1e-4

# Rows on which the error is measured: some, and one in so many, but no more than MOST; and a margin by which the error
# of other rows may exceed theirs.
SOME, ONE_IN, MOST = 64, 8, 512
MARGIN = 1.5

# Minimum share of eligible rows below which everything stays in float64.
WORTH = 0.5

# Below, a weight or a score is a log 0 made finite, and no count leads to it: its component is ruled out, whatever the
# rounding.
RULED_OUT = -1e13


class Float32(NamedTuple):
    """The left factor of the scores in float32."""

    factor: Factor  # J rows, and the bound as one more
    largest: float  # bound up to which float32 is accurate enough


def in_float32(counts: Counts, factor: Factor) -> Float32 | None:
    """The factor in float32, or None where too few rows could use it.

    Args:
        counts: N rows in memory.
        factor: centred, float64.
    """
    table_FJ = torch.cat([factor.W_JE, factor.bias_J1], dim=1).T
    bound_F = torch.where(table_FJ > RULED_OUT, table_FJ.abs(), 0.0).amax(1, keepdim=True)
    table_JF = torch.cat([table_FJ, bound_F], dim=1).T
    double = Factor(table_JF[:, :-1], table_JF[:, -1:])
    single = Factor(*(table.to(torch.float32) for table in double))
    n_measured = min(counts.n_rows, SOME + counts.n_rows // ONE_IN, MOST)
    rows_N = torch.linspace(0, counts.n_rows - 1, n_measured, dtype=torch.float64).to(torch.int64)
    some = counts.take(rows_N)
    exact_JN, single_JN = some.scores(double), some.scores(single)
    bound_N = exact_JN[-1]
    error_JN = torch.where(exact_JN > RULED_OUT, (single_JN - exact_JN).abs(), 0.0)[:-1]
    # Never less than the rounding of one number, which rows of zeros alone would have it be.
    rate = (error_JN.amax(0) / bound_N.clamp_min(1e-300)).amax().clamp_min(2.0**-25)
    largest = ERROR / (MARGIN * float(rate))
    is_worth_it = float((bound_N <= largest).to(torch.float64).mean()) >= WORTH
    return Float32(single, largest) if is_worth_it else None
