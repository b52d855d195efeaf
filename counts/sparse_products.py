"""Products of the non-zeros of a block of rows with a table, added to a table that is there.

SciPy's operators make a new table for every product. The routines that they call add to one, which spares a third of
the time; where a SciPy has them no longer, its operators do the work.
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

try:
    from scipy.sparse._sparsetools import csc_matvecs, csr_matvecs
except ImportError:
    csc_matvecs = csr_matvecs = None


class Cells(NamedTuple):
    """The non-zeros of N rows, row by row, as SciPy's CSR has them."""

    indptr: np.ndarray  # (N + 1,)
    column: np.ndarray
    value: np.ndarray
    n_columns: int  # E


def add_product(cells: Cells, W_EJ: np.ndarray, out_NJ: np.ndarray) -> None:
    """out += cells @ W, all of one type, tables in C order."""
    assert out_NJ.flags.c_contiguous
    n_rows, n_products = out_NJ.shape
    if csr_matvecs is None:
        out_NJ += _matrix(cells) @ W_EJ
    else:
        indptr, column, value, n_columns = cells
        csr_matvecs(n_rows, n_columns, n_products, indptr, column, value, W_EJ.ravel(), out_NJ.ravel())


def add_transposed_product(cells: Cells, R_NJ: np.ndarray, out_EJ: np.ndarray) -> None:
    """out += cells.T @ R, all of one type, tables in C order."""
    assert out_EJ.flags.c_contiguous
    n_rows, n_products = R_NJ.shape
    if csc_matvecs is None:
        out_EJ += _matrix(cells).T @ R_NJ
    else:
        indptr, column, value, n_columns = cells
        csc_matvecs(n_columns, n_rows, n_products, indptr, column, value, R_NJ.ravel(), out_EJ.ravel())


def _matrix(cells: Cells) -> csr_array:
    shape = len(cells.indptr) - 1, cells.n_columns
    return csr_array((cells.value, cells.column, cells.indptr), shape=shape)
