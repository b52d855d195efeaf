"""How rows of counts arrive at the kernel: a chunk at a time, dense or sparse, with the two products that it needs.

A chunk stands for A = [X, P] or, where cells are missing, [X, P, Q], with P = 1[X > 0] and Q = 1[missing]. The kernel
multiplies it from either side, W @ A.T and R @ A, and knows nothing else about it. A chunk is so small that A and the
table of responsibilities stay in the cache between the two products.

Letters: N rows of a chunk, E columns of A (2 D or 3 D), J rows of W, one for each component of each batch entry.
"""

import threading
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from zipmix.counts.sparse_products import Cells, add_product, add_transposed_product

# Bytes of the larger table of a chunk, A or the responsibilities: a core's share of the cache.
CHUNK = 2**21

# Pairs (column, count) beyond which a table over them leaves the cache.
MOST_CODES = 2**15


class Factor(NamedTuple):
    """What a chunk is multiplied with for its scores, W @ A.T + bias."""

    W_JE: Tensor  # as counts.encode returns it
    bias_J1: Tensor


class DenseRows(NamedTuple):
    """A chunk whose A is a table."""

    A_NE: Tensor
    A_EN: Tensor  # A.T

    def scores(self, factor: Factor) -> Tensor:
        """W @ A.T + bias, (J, N), in memory that is good until this thread asks for other scores."""
        out_JN = _scratch(len(factor.bias_J1), len(self.A_NE), self.A_NE.dtype)
        return torch.addmm(factor.bias_J1, factor.W_JE, self.A_EN, out=out_JN)

    def add_sums(self, R_JN: Tensor, sums_JE: Tensor) -> None:
        """Adds R @ A to sums (J, E), float64."""
        if R_JN.dtype == sums_JE.dtype:
            sums_JE.addmm_(R_JN, self.A_NE)
        else:
            sums_JE.add_(R_JN @ self.A_NE)


class SparseRows(NamedTuple):
    """A chunk of which the non-zeros alone are stored; the cost of a product follows their number."""

    blocks: tuple[Cells, ...]  # side by side they are A

    def scores(self, factor: Factor) -> Tensor:
        """W @ A.T + bias, (J, N), in memory that is good until this thread asks for other scores."""
        n_rows = len(self.blocks[0].indptr) - 1
        scores_NJ = _scratch(n_rows, len(factor.bias_J1), factor.bias_J1.dtype).copy_(factor.bias_J1.mT)
        for cells, W_EJ in zip(self.blocks, self._split(factor.W_JE.numpy().T), strict=True):
            add_product(cells, W_EJ, scores_NJ.numpy())
        return scores_NJ.T

    def add_sums(self, R_JN: Tensor, sums_JE: Tensor) -> None:
        """Adds R @ A to sums (J, E), float64."""
        R_NJ = R_JN.T.contiguous().numpy()
        for cells, sums_EJ in zip(self.blocks, self._split(sums_JE.numpy().T), strict=True):
            if R_NJ.dtype == sums_EJ.dtype:
                add_transposed_product(cells, R_NJ, sums_EJ)
            else:
                single_EJ = np.zeros_like(sums_EJ, dtype=R_NJ.dtype)
                add_transposed_product(cells, R_NJ, single_EJ)
                sums_EJ += single_EJ

    def _split(self, table_EJ: np.ndarray) -> list[np.ndarray]:
        widths = [cells.n_columns for cells in self.blocks]
        return [table_EJ[stop - width : stop] for width, stop in zip(widths, accumulate(widths), strict=True)]


class _Memory(threading.local):
    """What a thread holds on to, since memory that is new to a process takes as long to come as a product to make."""

    held = torch.empty(0, dtype=torch.uint8)
    table_NM = torch.empty(0, 0)  # the last table that was asked for


_memory = _Memory()


def _scratch(n: int, m: int, dtype: torch.dtype) -> Tensor:
    """A table (n, m) in memory that this thread uses again and again."""
    if _memory.table_NM.shape != (n, m) or _memory.table_NM.dtype != dtype:
        n_bytes = n * m * dtype.itemsize
        # Memory from inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            if len(_memory.held) < n_bytes:
                _memory.held = torch.empty(n_bytes, dtype=torch.uint8)
            _memory.table_NM = _memory.held[:n_bytes].view(dtype).view(n, m)
    return _memory.table_NM


class Room(NamedTuple):
    """Floating-point memory for dense chunks of one size, and views of it, which take their time to make."""

    rows: DenseRows
    blocks: tuple[Tensor, ...]  # of A: X, P and, where cells are missing, Q

    def filled(self, X_ND: Tensor, missing_ND: Tensor | None) -> DenseRows:
        """Integer counts, 0 where missing, as a chunk."""
        X, P, *Q = self.blocks
        X.copy_(X_ND)
        # Sixfold faster than X_ND > 0: torch converts integers in vectors, and booleans one by one.
        P.copy_(X_ND.clamp_max(1))
        if missing_ND is not None:
            Q[0].copy_(missing_ND)
        return self.rows


def room(A_NE: Tensor, n_blocks: int) -> Room:
    """The memory of A as room for its N rows."""
    return Room(DenseRows(A_NE, A_NE.T), A_NE.chunk(n_blocks, dim=1))


class Letters(NamedTuple):
    """Sparse counts in an alphabet of the U pairs (column, count) that occur: A = H @ B, where H is all ones.

    A product with H goes once over the non-zeros, one with [X, P, Q] up to three times.
    """

    H_NU: csr_array  # bool: whether the row has the letter
    B_UE: csr_array  # the row of A that a letter stands for: its count in X, 1 in P, or 1 in Q


def spell(X_ND: csr_array, missing_ND: csr_array | None) -> Letters | None:
    """Sparse counts in letters, or None where there would be too many of them to be worth it."""
    n_rows, D = X_ND.shape
    largest = int(X_ND.data.max(initial=0))
    n_codes = D * (largest + 2)
    if n_codes > X_ND.nnz or n_codes > MOST_CODES:
        return None
    code = csr_array((X_ND.data.astype(np.int32), X_ND.indices, X_ND.indptr), shape=X_ND.shape)
    if missing_ND is not None:
        code = code + missing_ND.astype(np.int32) * (largest + 1)
    code_of_cell = code.indices * (largest + 2) + code.data
    occurs = np.zeros(n_codes, dtype=bool)
    occurs[code_of_cell] = True
    column, count = np.divmod(np.flatnonzero(occurs).astype(np.int32), largest + 2)
    letter_of_code = (np.cumsum(occurs) - 1).astype(np.int32)
    H_NU = csr_array(
        (np.ones(code.nnz, dtype=bool), letter_of_code[code_of_cell], code.indptr), shape=(n_rows, len(column))
    )
    letter, is_missing = np.arange(len(column)), count > largest
    there, absent = np.flatnonzero(~is_missing), np.flatnonzero(is_missing)
    entries = np.concatenate([count[there], np.ones(len(there) + len(absent))])
    rows = np.concatenate([there, there, absent])
    columns = np.concatenate([column[there], D + column[there], 2 * D + column[absent]])
    n_blocks = 2 if missing_ND is None else 3
    return Letters(H_NU, csr_array((entries, (rows, columns)), shape=(len(letter), n_blocks * D)))


def cut(matrix: csr_array, rows: slice, dtype: torch.dtype) -> Cells:
    """Rows of a sparse matrix as a block of a chunk, their columns shared and not copied."""
    indptr = matrix.indptr[rows.start : rows.stop + 1]
    cells = slice(indptr[0], indptr[-1])
    value = matrix.data[cells].astype(np.float64 if dtype == torch.float64 else np.float32)
    return Cells(indptr - indptr[0], matrix.indices[cells], value, matrix.shape[1])


def as_ones(cells: Cells) -> Cells:
    """The non-zeros made 1."""
    return cells._replace(value=np.ones_like(cells.value))
