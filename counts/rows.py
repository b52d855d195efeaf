"""Row chunks, dense or sparse, and the two products that a pass takes with each.

A chunk stands for A = [X, P] or, where cells are missing, [X, P, Q], with P = 1[X > 0] and Q = 1[missing]. A pass
multiplies it from either side, W A' and R A. A chunk is so small that A and the table of responsibilities stay in the
cache between the two products.

Letters: N rows of a chunk, E columns of A (2 D or 3 D), J rows of W, one for each component of each batch entry.
"""

from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

# Bytes of the larger table of a chunk, A or the responsibilities: a core's share of the cache.
CHUNK = 2**21

# Most pairs (column, count) that are one-hot encoded: beyond, a table over them leaves the cache.
MOST_CODES = 2**15


class Factor(NamedTuple):
    """The left factor of the scores of a chunk, W A' + bias."""

    W_JE: Tensor  # as Counts.encode returns it
    bias_J1: Tensor


class DenseRows(NamedTuple):
    """A chunk whose A is a dense table."""

    A_NE: Tensor
    A_EN: Tensor  # A'
    scores_JN: Tensor  # memory for the scores, shared by the chunks of a part

    def scores(self, factor: Factor) -> Tensor:
        """W A' + bias, (J, N), valid until the next chunk is requested."""
        return torch.addmm(factor.bias_J1, factor.W_JE, self.A_EN, out=self.scores_JN)

    def add_sums(self, R_JN: Tensor, sums_JE: Tensor) -> None:
        """Adds R A to sums (J, E), float64."""
        if R_JN.dtype == sums_JE.dtype:
            sums_JE.addmm_(R_JN, self.A_NE)
        else:
            sums_JE.add_(R_JN @ self.A_NE)


class SparseRows(NamedTuple):
    """A chunk of which only the non-zeros are stored; the cost of a product is proportional to their number."""

    blocks: tuple[csr_array, ...]  # side by side they are A

    def scores(self, factor: Factor) -> Tensor:
        """W A' + bias, (J, N)."""
        first, *others = zip(self.blocks, self._split(factor.W_JE.numpy().T), strict=True)
        scores_NJ = first[0] @ first[1]
        for block, W_EJ in others:
            scores_NJ += block @ W_EJ
        return torch.from_numpy(scores_NJ).add_(factor.bias_J1.mT).T

    def add_sums(self, R_JN: Tensor, sums_JE: Tensor) -> None:
        """Adds R A to sums (J, E), float64."""
        R_NJ = R_JN.T.contiguous().numpy()
        for block, sums_EJ in zip(self.blocks, self._split(sums_JE.numpy().T), strict=True):
            sums_EJ += block.T @ R_NJ

    def _split(self, table_EJ: np.ndarray) -> list[np.ndarray]:
        widths = [block.shape[1] for block in self.blocks]
        return [table_EJ[stop - width : stop] for width, stop in zip(widths, accumulate(widths), strict=True)]


class Room(NamedTuple):
    """Floating-point memory for dense chunks of one size, and views of it, which take time to make."""

    rows: DenseRows
    blocks: tuple[Tensor, ...]  # of A: X, P and, where cells are missing, Q

    def filled(self, X_ND: Tensor, missing_ND: Tensor | None) -> DenseRows:
        """Integer counts, 0 where missing, as a chunk."""
        X, P, *Q = self.blocks
        X.copy_(X_ND)
        # Six times as fast as X_ND > 0: torch converts integers in vectors, and booleans one by one.
        P.copy_(X_ND.clamp_max(1))
        if missing_ND is not None:
            Q[0].copy_(missing_ND)
        return self.rows


def room(A_NE: Tensor, n_blocks: int, n_products: int) -> Room:
    """The memory of A as room for its N rows, with memory for their J scores."""
    scores_JN = torch.empty(n_products, len(A_NE), dtype=A_NE.dtype)
    return Room(DenseRows(A_NE, A_NE.T, scores_JN), A_NE.chunk(n_blocks, dim=1))


class Codes(NamedTuple):
    """Sparse counts, one-hot over the U pairs (column, count) that occur: A = H B with ones alone in H.

    A product with H reads every non-zero once; one with [X, P, Q] reads it up to three times. What it buys: a pass over
    200 000 x 100 counts takes 0.7 of the time. Where there are more pairs, as in 50 000 x 2 000 counts, nothing.
    """

    H_NU: csr_array  # bool: whether the row has the pair
    B_UE: csr_array  # the row of A that a pair stands for: its count in X, 1 in P, or 1 in Q


def one_hot(X_ND: csr_array, missing_ND: csr_array | None) -> Codes | None:
    """Sparse counts as one-hot codes of (column, count), or None where there are too many pairs to gain by it."""
    n_rows, D = X_ND.shape
    largest = int(X_ND.data.max(initial=0))
    n_codes = D * (largest + 2)
    if n_codes > X_ND.nnz or n_codes > MOST_CODES:
        return None
    pair = csr_array((X_ND.data.astype(np.int32), X_ND.indices, X_ND.indptr), shape=X_ND.shape)
    if missing_ND is not None:
        pair = pair + missing_ND.astype(np.int32) * (largest + 1)
    code_of_cell = pair.indices * (largest + 2) + pair.data
    occurs = np.zeros(n_codes, dtype=bool)
    occurs[code_of_cell] = True
    column, count = np.divmod(np.flatnonzero(occurs).astype(np.int32), largest + 2)
    index_of_code = (np.cumsum(occurs) - 1).astype(np.int32)
    H_NU = csr_array(
        (np.ones(pair.nnz, dtype=bool), index_of_code[code_of_cell], pair.indptr), shape=(n_rows, len(column))
    )
    is_missing = count > largest
    there, absent = np.flatnonzero(~is_missing), np.flatnonzero(is_missing)
    entries = np.concatenate([count[there], np.ones(len(there) + len(absent))])
    rows = np.concatenate([there, there, absent])
    columns = np.concatenate([column[there], D + column[there], 2 * D + column[absent]])
    n_blocks = 2 if missing_ND is None else 3
    return Codes(H_NU, csr_array((entries, (rows, columns)), shape=(len(column), n_blocks * D)))


def cut(matrix: csr_array, rows: slice, dtype: torch.dtype) -> csr_array:
    """Rows of a sparse matrix as a block of a chunk; its column numbers are shared, not copied."""
    indptr = matrix.indptr[rows.start : rows.stop + 1]
    cells = slice(indptr[0], indptr[-1])
    values = matrix.data[cells].astype(np.float64 if dtype == torch.float64 else np.float32)
    shape = len(indptr) - 1, matrix.shape[1]
    return csr_array((values, matrix.indices[cells], indptr - indptr[0]), shape=shape)


def as_ones(block: csr_array) -> csr_array:
    """The non-zeros made 1; their places are shared, not copied."""
    return csr_array((np.ones_like(block.data), block.indices, block.indptr), shape=block.shape)
