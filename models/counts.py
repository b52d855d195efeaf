"""The table of counts: what users hand over, checked, and the form in which the kernel reads it.

Users bring torch tensors, NumPy arrays, lists, pandas frames, SciPy sparse matrices or AnnData. NaN means missing. A
sparse table stays sparse: its cost, in time and memory, follows its non-zeros.
"""

import itertools
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from scipy.sparse import csr_array, issparse
from torch import Tensor

from zipmix.models.memory import check_room
from zipmix.models.parameters import InputError
from zipmix.models.rows import CHUNK, DenseRows, Factor, Letters, SparseRows, as_ones, cut, room, spell

# Non-zeros in a sparse chunk, beyond which it is cut whatever the cache holds.
SPARSE_CHUNK = 2**22

# The largest count that is taken: rates of this size stay well above the kernel's log 0.
LARGEST = 10**12

# Counts up to which log x! is looked up and not worked out.
LOOKED_UP = 2**16


class Table(NamedTuple):
    """A checked table of counts with the names of its columns."""

    X: Tensor | csr_array  # (N, D) whole numbers >= 0, NaN where missing: float64 or an integer type, dense or sparse
    names: tuple[str, ...]  # D names of columns
    row_names: tuple[str, ...] | None = None  # N names of rows, where the data have them

    @property
    def X_ND(self) -> Tensor:
        """The table made dense, float64, for methods that need every cell."""
        return as_dense(self.X)


@runtime_checkable
class Source(Protocol):
    """A stream: rows that come in blocks (stream.py)."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def tables(self) -> Iterator[Table]: ...

    def blocks(self) -> Iterator["Counts"]: ...


class Counts(NamedTuple):
    """The table as the kernel reads it, in the smallest integer type that holds it."""

    X: Tensor | csr_array  # (N, D) counts, 0 where missing
    missing: Tensor | csr_array | None  # (N, D) bool; None where no cell is missing
    log_factorial_N: Tensor  # (N,)  sum over d of log x_id!
    letters: Letters | None = None  # the same counts in letters, where they are sparse and of few kinds
    total_E: Tensor | None = None  # what totals returns, where it has been worked out beforehand
    times_N: Tensor | None = None  # (N,) rows of the table that a row stands for in a pass, float64; None: one each

    @property
    def n_rows(self) -> int:
        """N."""
        return self.X.shape[0]

    @property
    def n_features(self) -> int:
        """D."""
        return self.X.shape[1]

    def blocks(self) -> "Iterator[Counts]":
        """The counts, which are in memory as a whole; those of a stream come in many blocks."""
        yield self

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
        """Rows start to stop in chunks that stay in the cache, each good until the next is asked for.

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
            whole = room(A_NE, self.n_blocks)
        for low in range(start, stop, size):
            rows = slice(low, min(low + size, stop))
            if isinstance(self.X, Tensor):
                n_rows = rows.stop - rows.start
                place = whole if n_rows == len(A_NE) else room(A_NE[:n_rows], self.n_blocks)
                yield rows, place.filled(self.X[rows], None if self.missing is None else self.missing[rows])
            elif self.letters is not None:
                yield rows, SparseRows((cut(self.letters.H_NU, rows, dtype),))
            else:
                X = cut(self.X, rows, dtype)
                mask = () if self.missing is None else (cut(self.missing, rows, dtype),)
                yield rows, SparseRows((X, as_ones(X), *mask))

    def scores(self, factor: Factor) -> Tensor:
        """W @ A.T + bias of all rows, (J, N), with W as encode returns it."""
        chunks = self.chunks(0, self.n_rows, len(factor.bias_J1), factor.bias_J1.dtype)
        return torch.cat([rows.scores(factor).clone() for _, rows in chunks], dim=1)

    def encode(self, W_JE: Tensor) -> Tensor:
        """W as the chunks multiply it: W @ B.T where they are spelt in letters, in C order of (E, J) where sparse."""
        if self.letters is not None:
            return torch.from_numpy(self.letters.B_UE @ W_JE.numpy().T).T
        return W_JE if isinstance(self.X, Tensor) else W_JE.T.contiguous().T

    def times(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """How many rows of the table each of these rows stands for."""
        if self.times_N is None:
            return torch.ones(rows.stop - rows.start, dtype=dtype)
        return self.times_N[rows].to(dtype)

    def totals(self) -> Tensor:
        """The sums over rows of the columns of A, (E,) float64."""
        if self.total_E is not None:
            return self.total_E
        sums_1E = self.no_sums(1)
        for chunk, rows in self.chunks(0, self.n_rows, 1, torch.float64):
            rows.add_sums(self.times(chunk, torch.float64)[None], sums_1E)
        return self.decode(sums_1E)[0]

    def totalled(self) -> "Counts":
        """The same counts, with their totals worked out once and for all."""
        return self._replace(total_E=self.totals())

    def no_sums(self, n_products: int) -> Tensor:
        """Zeros to which the chunks add R @ A, for J products."""
        columns = self.n_columns if self.letters is None else self.letters.B_UE.shape[0]
        # Both kinds of product run faster along the longer side; the sparse one knows no other way.
        if isinstance(self.X, Tensor) and columns >= n_products:
            return torch.zeros(n_products, columns, dtype=torch.float64)
        return torch.zeros(columns, n_products, dtype=torch.float64).T

    def decode(self, sums_JE: Tensor) -> Tensor:
        """What the chunks have summed as R @ A, with the columns of A, (J, E)."""
        return sums_JE if self.letters is None else torch.from_numpy((self.letters.B_UE.T @ sums_JE.numpy().T).T)

    def take(self, rows_N: Tensor) -> "Counts":
        """The counts of some rows."""
        index = rows_N if isinstance(self.X, Tensor) else rows_N.numpy()
        missing = None if self.missing is None else self.missing[index]
        letters = None if self.letters is None else self.letters._replace(H_NU=self.letters.H_NU[index])
        times_N = None if self.times_N is None else self.times_N[rows_N]
        return Counts(self.X[index], missing, self.log_factorial_N[rows_N], letters, times_N=times_N)


def as_counts(X: Tensor | csr_array) -> Counts:
    """The kernel's form of a checked table.

    Args:
        X: (N, D) counts, NaN where missing, as in Table; a stream stands for itself.
    """
    if isinstance(X, Source):
        return cast(Counts, X)
    if isinstance(X, Tensor):
        missing = X.isnan() if X.is_floating_point() else torch.zeros(0, dtype=torch.bool)
        whole = _smallest(X.nan_to_num(0.0) if bool(missing.any()) else X)
        # Into memory that is there: small results kept between large temporaries would hold on to the room of these.
        log_factorial_N = torch.empty(len(whole), dtype=torch.float64)
        for rows, out_N in zip(whole.split(_step(whole)), log_factorial_N.split(_step(whole)), strict=True):
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
    return Counts(whole, absent, torch.from_numpy(sums), spell(whole, absent))


def as_dense(X: Tensor | csr_array) -> Tensor:
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
        return torch.cat([as_dense(table.X) for table in X.tables()])
    return X.to(torch.float64) if isinstance(X, Tensor) else torch.from_numpy(X.toarray().astype(np.float64))


def as_table(X: Any, n_features: int | None = None) -> Table:
    """Any table of counts, checked.

    Args:
        X: torch tensor, NumPy array, nested list, pandas frame, SciPy sparse matrix, AnnData or what zipmix.load_data
            returns, of shape (N, D) with N, D >= 1; whole numbers >= 0, NaN where missing. In a sparse matrix, cells
            that are not stored are zeros, and cells stored twice are summed, as SciPy does.
        n_features: the number of columns to insist on, where a fit has fixed it.
    Returns:
        The table, sparse where X is, the names of its columns ("x0", "x1", ... where X has none), and those of its
        rows (the index of a pandas frame, where it is more than 0, 1, ..., or the obs_names of AnnData).
    Raises:
        InputError: negative, fractional, infinite or text entries, no rows or columns, or a wrong shape.
    """
    if isinstance(X, Source | Table):
        if n_features is not None and len(X.names) != n_features:
            raise InputError(f"X must have the {n_features} columns of the fit; got {len(X.names)}.")
        return X if isinstance(X, Table) else Table(X, X.names)
    names: Sequence[Any] | None = None
    rows = _row_names(X)
    if isinstance(X, tuple) and hasattr(X, "X") and hasattr(X, "names"):
        X, names = X.X, X.names
    if getattr(X, "isbacked", False):
        raise InputError("X is an AnnData in backed mode; hand over zipmix.stream(X), or X.to_memory().")
    if hasattr(X, "var_names") and hasattr(X, "X"):
        X, names = X.X, list(X.var_names)
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):
        names = list(X.columns)
        _refuse_text_columns(X)
        X = X.to_numpy(dtype=np.float64, na_value=np.nan)
    table = as_csr(X) if issparse(X) else _as_tensor(X)
    if table.ndim != 2:
        hint = " For a single column, use X[:, None]." if table.ndim == 1 else ""
        raise InputError(f"X must have two axes, rows and columns; got shape {tuple(table.shape)}.{hint}")
    n_rows, n_columns = table.shape
    if n_rows == 0 or n_columns == 0:
        raise InputError(f"X must have at least one row and one column; got {n_rows} rows and {n_columns} columns.")
    if n_features is not None and n_columns != n_features:
        raise InputError(f"X must have the {n_features} columns of the fit; got {n_columns}.")
    labels = tuple(str(name) for name in names) if names is not None else default_names(n_columns)
    check_cells(table, labels)
    return Table(table, labels, rows)


def _row_names(X: Any) -> tuple[str, ...] | None:
    if isinstance(X, tuple) and hasattr(X, "row_names"):
        return cast(tuple[str, ...] | None, X.row_names)
    if hasattr(X, "obs_names"):
        return tuple(map(str, X.obs_names))
    if hasattr(X, "columns") and hasattr(X, "index"):
        numbered = X.index.dtype.kind == "i" and bool((X.index == np.arange(len(X))).all())
        return None if numbered else tuple(map(str, X.index))
    return None


def default_names(n_columns: int) -> tuple[str, ...]:
    """What the columns of a table without names are called."""
    return tuple(f"x{d}" for d in range(n_columns))


ALLOWED = "counts are whole numbers >= 0, with NaN for a missing cell"


def check_cells(X: Tensor | csr_array, names: tuple[str, ...], first_row: int = 0, source: str = "X") -> None:
    """Refuses what is no count, and says where the first of it is.

    Args:
        X: (N, D) numbers.
        names: D names of columns.
        first_row: the number of the first row in the source.
        source: what the message calls the table.
    Raises:
        InputError: negative, fractional or infinite cells, or counts over 1e12.
    """
    cells = X if isinstance(X, Tensor) else torch.from_numpy(X.data)
    if not cells.is_floating_point() and (cells.numel() == 0 or _are_counts(*cells.aminmax())):
        return
    kinds = {"infinite": torch.isinf, "negative": lambda part: part < 0}
    if cells.is_floating_point() or cells.dtype == torch.int64:
        kinds["too large (over 1e12)"] = lambda part: part > LARGEST
    if cells.is_floating_point():
        kinds["fractional"] = lambda part: (part.floor() != part) & ~part.isnan()
    for word, is_bad in kinds.items():
        n_bad, first = 0, -1
        for start, part in zip(itertools.count(0, _step(cells)), cells.split(_step(cells)), strict=False):
            bad = is_bad(part)
            if bool(bad.any()):
                n_bad += int(bad.sum())
                first = first if first >= 0 else start * part[0].numel() + int(bad.flatten().nonzero()[0])
        if n_bad:
            if isinstance(X, Tensor):
                i, d = divmod(first, X.shape[1])
            else:
                i, d = int(np.searchsorted(X.indptr, first, side="right")) - 1, int(X.indices[first])
            raise InputError(
                f"{source} has {n_bad} {word} cell(s), the first in row {first_row + i}, column {d} ({names[d]!r}): "
                f"{cells.flatten()[first].item():g}; {ALLOWED}."
            )


def _are_counts(least: Tensor, most: Tensor) -> bool:
    return int(least) >= 0 and int(most) <= LARGEST


def _step(cells: Tensor) -> int:
    """Rows that are looked at together, so that no temporary is as large as the table."""
    return max(1, CHUNK // (8 * (cells.shape[1] if cells.ndim == 2 else 1)))


def _smallest(whole: Tensor) -> Tensor:
    """Whole numbers in the smallest integer type that holds them."""
    largest = float(whole.max()) if whole.numel() else 0.0
    types = (torch.uint8, torch.int16, torch.int32, torch.int64)
    return whole.to(next(kind for kind in types if largest <= torch.iinfo(kind).max or kind == torch.int64))


def _log_factorial(whole: Tensor) -> Tensor:
    """log x! of integers, in float64."""
    largest = int(whole.max()) if whole.numel() else 0
    if largest > LOOKED_UP:
        return torch.lgamma(whole.to(torch.float64) + 1)
    table = torch.lgamma(torch.arange(largest + 1, dtype=torch.float64) + 1)
    return table.index_select(0, whole.flatten().to(torch.int32)).reshape(whole.shape)


def _refuse_text_columns(frame: Any) -> None:
    import pandas as pd

    for d, name in enumerate(frame.columns):
        column = frame.iloc[:, d]
        no_count = column.dtype.kind in "cmM" or pd.to_numeric(column, errors="coerce").isna()
        bad = column.notna() & no_count
        if bad.any():
            i = int(bad.to_numpy().argmax())
            hint = ""
            if column[bad].astype(str).str.fullmatch(r"\d{1,3}(,\d{3})+").all():
                hint = " (does the comma part thousands? then write them without it)"
            elif d == 0 and len(bad) > 1 and bool(bad.all()):
                hint = " (does it name the rows? then leave it out, or its header empty)"
            raise InputError(
                f"X has {int(bad.sum())} cell(s) that are no numbers, the first in row {i}, column {d} "
                f"({str(name)!r}): {column.iloc[i]!r}{hint}; {ALLOWED}."
            )


def _as_tensor(X: Any) -> Tensor:
    """X as float64, or as it is where it holds integers."""
    try:
        if isinstance(X, np.ma.MaskedArray):
            X = np.ma.filled(X.astype(np.float64), np.nan)
        if isinstance(X, Tensor):
            # A fit keeps its data, whatever becomes of the tensor that was handed over.
            X = X.detach().clone()
        else:
            array = _real(np.array(X))
            X = torch.from_numpy(array if array.dtype in INTEGERS else array.astype(np.float64))
        X = _real(X).cpu().to_dense()
        return X if X.dtype in KEPT else X.to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"X must be a table of numbers, got {_culprit(X)}; {ALLOWED}.") from None


def _real(X: Any) -> Any:
    """X, unless it holds complex numbers or times, which would convert with a loss."""
    if X.is_complex() if isinstance(X, Tensor) else X.dtype.kind in "cmM":
        raise TypeError
    return X


def _culprit(X: Any) -> str:
    """The first cell that is no number, in words, or else the type of X."""
    if not isinstance(X, Tensor):
        cells = np.array(X, dtype=object)
        for index, cell in np.ndenumerate(cells):
            try:
                float(cell)
            except (TypeError, ValueError):
                where = "".join(f", {axis} {i}" for axis, i in zip(("row", "column"), index, strict=False))
                return f"{reprlib.repr(cell)}{where.replace(',', ' in', 1)}"
    return f"{type(X).__name__} of {getattr(X, 'dtype', 'unknown type')}"


INTEGERS = (np.uint8, np.int16, np.int32, np.int64)
KEPT = (torch.uint8, torch.int16, torch.int32, torch.int64)


def as_csr(X: Any) -> csr_array:
    """X in canonical form: rows in order, every cell once, no zero stored; what it was made from is left as it was."""
    if X.dtype.kind not in "buif":
        raise InputError(f"X must be a table of numbers, got a sparse matrix of {X.dtype}; {ALLOWED}.")
    table = csr_array(X)
    if not table.has_canonical_format:
        table = table.copy()
        table.sum_duplicates()
    if table.data.dtype not in INTEGERS:
        table = table.astype(np.float64)
    if not table.data.all():
        table = table.copy()
        table.eliminate_zeros()
    return table
