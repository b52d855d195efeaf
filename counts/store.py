"""Counts as passes read them: in memory, dense or sparse, in the smallest integer type that holds them.

A sparse table stays sparse: its cost, in time and memory, follows its non-zeros.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, overload, runtime_checkable

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from zipmix.counts.memory import check_room
from zipmix.counts.rows import CHUNK, Codes, DenseRows, Factor, SparseRows, as_ones, cut, one_hot, room

# Non-zeros in a sparse chunk, beyond which it is cut whatever the cache holds.
SPARSE_CHUNK = 2**22

# Counts up to which log x! is read off a table.
TABULATED = 2**16


# What is folded over the blocks of a table: (block, its rows in the table) -> sums over these rows.
Fold = Callable[["Counts", slice], tuple[Tensor, ...]]


class CountTable(Protocol):
    """Rows of counts, wherever they are: in memory (Counts), or in the blocks of a file (stream.Stream)."""

    @property
    def n_rows(self) -> int: ...

    @property
    def n_features(self) -> int: ...

    def blocks(self) -> Iterator["Counts"]:
        """The rows in order, a block at a time."""
        ...

    def fold(self, function: Fold) -> tuple[Tensor, ...]:
        """The sums over blocks of function(block, its rows in the table), field by field."""
        ...

    def take(self, rows_N: Tensor) -> "Counts":
        """The counts of some rows."""
        ...


@runtime_checkable
class Source(CountTable, Protocol):
    """A table whose rows are not in memory, as users pass it: they are read block by block in every pass."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int]: ...


class Counts(NamedTuple):
    """The table as passes read it, in the smallest integer type that holds it."""

    X: Tensor | csr_array  # (N, D) counts, 0 where missing
    missing: Tensor | csr_array | None  # (N, D) bool; None where no cell is missing
    log_factorial_N: Tensor  # (N,)  sum over d of log x_id!
    codes: Codes | None = None  # the same counts one-hot, where they are sparse and take few values
    total_E: Tensor | None = None  # what totals returns, where it was computed beforehand
    times_N: Tensor | None = None  # (N,) float64 multiplicity of the rows in a pass; None: one each

    @property
    def n_rows(self) -> int:
        """N."""
        return self.X.shape[0]

    @property
    def n_features(self) -> int:
        """D."""
        return self.X.shape[1]

    def blocks(self) -> "Iterator[Counts]":
        """The counts, which are in memory as a whole."""
        yield self

    def fold(self, function: Fold) -> tuple[Tensor, ...]:
        """function(counts, all rows)."""
        return function(self, slice(0, self.n_rows))

    @property
    def has_missing(self) -> bool:
        """Whether any cell is missing."""
        return self.missing is not None

    @property
    def n_blocks(self) -> int:
        """How many blocks A has: [X, P], or [X, P, Q] where cells are missing."""
        return 3 if self.has_missing else 2

    @property
    def n_columns(self) -> int:
        """E, the columns of A."""
        return self.n_features * self.n_blocks

    @property
    def width(self) -> int:
        """Numbers in a row of A, on average."""
        cells = self.X.numel() if isinstance(self.X, Tensor) else self.X.nnz
        return max(1, self.n_columns * cells // (self.n_rows * self.n_features))

    def chunks(
        self, start: int, stop: int, n_products: int, dtype: torch.dtype
    ) -> Iterator[tuple[slice, DenseRows | SparseRows]]:
        """Rows start to stop in chunks that stay in the cache, each valid until the next is requested.

        Args:
            start: first row.
            stop: row after the last.
            n_products: J, columns that a chunk is multiplied with.
            dtype: of the products.
        """
        most = max(self.width, n_products) if isinstance(self.X, Tensor) else n_products
        size = max(1, min(CHUNK // (most * dtype.itemsize), SPARSE_CHUNK // self.width))
        if isinstance(self.X, Tensor):
            A_NE = torch.empty(min(size, stop - start), self.n_columns, dtype=dtype)
            place = room(A_NE, self.n_blocks, n_products)
        for low in range(start, stop, size):
            rows = slice(low, min(low + size, stop))
            if isinstance(self.X, Tensor):
                n_rows = rows.stop - rows.start
                if n_rows < len(A_NE):  # the last chunk
                    place = room(A_NE[:n_rows], self.n_blocks, n_products)
                yield rows, place.filled(self.X[rows], None if self.missing is None else self.missing[rows])
            elif self.codes is not None:
                yield rows, SparseRows((cut(self.codes.H_NU, rows, dtype),))
            else:
                X = cut(self.X, rows, dtype)
                mask = () if self.missing is None else (cut(self.missing, rows, dtype),)
                yield rows, SparseRows((X, as_ones(X), *mask))

    def scores(self, factor: Factor) -> Tensor:
        """W A' + bias of all rows, (J, N), with W as encode returns it."""
        chunks = self.chunks(0, self.n_rows, len(factor.bias_J1), factor.bias_J1.dtype)
        return torch.cat([rows.scores(factor).clone() for _, rows in chunks], dim=1)

    def encode(self, W_JE: Tensor) -> Tensor:
        """W as the chunks multiply it: W B' where they are one-hot codes, in C order of (E, J) where sparse."""
        if self.codes is not None:
            return torch.from_numpy(self.codes.B_UE @ W_JE.numpy().T).T
        return W_JE if isinstance(self.X, Tensor) else W_JE.T.contiguous().T

    def times(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """The multiplicities of some rows."""
        if self.times_N is None:
            return torch.ones(rows.stop - rows.start, dtype=dtype)
        return self.times_N[rows].to(dtype)

    def totals(self) -> Tensor:
        """The column sums of A, (E,) float64."""
        if self.total_E is not None:
            return self.total_E
        sums_1E = self.no_sums(1)
        for chunk, rows in self.chunks(0, self.n_rows, 1, torch.float64):
            rows.add_sums(self.times(chunk, torch.float64)[None], sums_1E)
        return self.decode(sums_1E)[0]

    def totalled(self) -> "Counts":
        """The same counts, with their totals kept."""
        return self._replace(total_E=self.totals())

    def no_sums(self, n_products: int) -> Tensor:
        """Zeros to which the chunks add R A, for J products."""
        columns = self.n_columns if self.codes is None else self.codes.B_UE.shape[0]
        # Both kinds of product run faster along the longer side; the sparse one knows no other way.
        if isinstance(self.X, Tensor) and columns >= n_products:
            return torch.zeros(n_products, columns, dtype=torch.float64)
        return torch.zeros(columns, n_products, dtype=torch.float64).T

    def decode(self, sums_JE: Tensor) -> Tensor:
        """The sums R A of the chunks over the columns of A, (J, E)."""
        return sums_JE if self.codes is None else torch.from_numpy((self.codes.B_UE.T @ sums_JE.numpy().T).T)

    def dense(self) -> Tensor:
        """The counts as (N, D) float64, NaN where missing."""
        X_ND = as_dense(self.X)
        return X_ND if self.missing is None else X_ND.masked_fill(as_dense(self.missing) > 0, torch.nan)

    def take(self, rows_N: Tensor) -> "Counts":
        """The counts of some rows."""
        index = rows_N if isinstance(self.X, Tensor) else rows_N.numpy()
        missing = None if self.missing is None else self.missing[index]
        codes = None if self.codes is None else self.codes._replace(H_NU=self.codes.H_NU[index])
        times_N = None if self.times_N is None else self.times_N[rows_N]
        return Counts(self.X[index], missing, self.log_factorial_N[rows_N], codes, times_N=times_N)


@overload
def as_counts(X: Tensor | csr_array) -> Counts: ...
@overload
def as_counts(X: Tensor | csr_array | Source) -> CountTable: ...
def as_counts(X: Tensor | csr_array | Source) -> CountTable:
    """A checked table in the form that passes read.

    Args:
        X: (N, D) counts, NaN where missing, as in Table; a stream stands for itself.
    """
    if isinstance(X, Source):
        return X
    if isinstance(X, Tensor):
        missing = X.isnan() if X.is_floating_point() else torch.zeros(0, dtype=torch.bool)
        whole = _smallest(X.nan_to_num(0.0) if bool(missing.any()) else X)
        # Into memory that is there: small results kept between large temporaries would hold on to the room of these.
        log_factorial_N = torch.empty(len(whole), dtype=torch.float64)
        for rows, out_N in zip(whole.split(portion(whole)), log_factorial_N.split(portion(whole)), strict=True):
            torch.sum(_log_factorial(rows), 1, out=out_N)
        return Counts(whole, missing if bool(missing.any()) else None, log_factorial_N)
    missing = np.isnan(X.data)
    whole, absent = X, None
    if missing.any():
        absent, whole = (
            csr_array((data, X.indices, X.indptr), shape=X.shape, copy=True)
            for data in (missing, np.nan_to_num(X.data))
        )
        absent.eliminate_zeros()
        whole.eliminate_zeros()
    data = _smallest(torch.from_numpy(whole.data))
    whole = csr_array((data.numpy(), whole.indices, whole.indptr), shape=X.shape)
    each = np.append(_log_factorial(data).numpy(), 0.0)
    # reduceat of an empty row is its next entry, not 0.
    sums = np.where(np.diff(whole.indptr) > 0, np.add.reduceat(each, whole.indptr[:-1]), 0.0)
    return Counts(whole, absent, torch.from_numpy(sums), one_hot(whole, absent))


def as_dense(X: Tensor | csr_array | Source) -> Tensor:
    """A table as in Table, made dense, (N, D) float64.

    Raises:
        InputError: it would take more memory than is free.
    """
    if not isinstance(X, Tensor) or X.dtype != torch.float64:
        N, D = X.shape
        check_room(
            8 * N * D,
            f"X of {N} rows and {D} columns as a dense table of float64",
            "take fewer columns or rows, or one of the methods em, online, cavi and gibbs, which take it as it is",
        )
    if isinstance(X, Source):
        return torch.cat([block.dense() for block in X.blocks()])
    return X.to(torch.float64) if isinstance(X, Tensor) else torch.from_numpy(X.toarray().astype(np.float64))


def portion(cells: Tensor) -> int:
    """Rows that are processed together, so that no temporary is as large as the table."""
    return max(1, CHUNK // (8 * (cells.shape[1] if cells.ndim == 2 else 1)))


def _smallest(whole: Tensor) -> Tensor:
    """Whole numbers in the smallest integer type that holds them."""
    largest = float(whole.max()) if whole.numel() else 0.0
    types = (torch.uint8, torch.int16, torch.int32, torch.int64)
    return whole.to(next(kind for kind in types if largest <= torch.iinfo(kind).max or kind == torch.int64))


def _log_factorial(whole: Tensor) -> Tensor:
    """log x! of integers, in float64."""
    largest = int(whole.max()) if whole.numel() else 0
    if largest > TABULATED:
        return torch.lgamma(whole.to(torch.float64) + 1)
    table = torch.lgamma(torch.arange(largest + 1, dtype=torch.float64) + 1)
    return table.index_select(0, whole.flatten().to(torch.int32)).reshape(whole.shape)
