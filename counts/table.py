"""The table of counts as users pass it, checked: the first stop of every count.

Users bring torch tensors, NumPy arrays, lists, pandas frames, SciPy sparse matrices or AnnData. NaN means missing. A
sparse table stays sparse.
"""

import itertools
import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from scipy.sparse import csr_array, issparse
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.store import Source, as_dense, portion

# The largest count that is allowed: rates of this size stay well above the kernel's log 0.
LARGEST = 10**12


class Table(NamedTuple):
    """A checked table of counts with the names of its columns."""

    X: Tensor | csr_array | Source  # (N, D) whole numbers >= 0, NaN where missing: float64 or integers; or a stream
    names: tuple[str, ...]  # D names of columns
    row_names: tuple[str, ...] | None = None  # N names of rows, where the data have them

    @property
    def X_ND(self) -> Tensor:
        """The table made dense, float64, for methods that need every cell."""
        return as_dense(self.X)


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
        raise InputError("X is an AnnData in backed mode; pass zipmix.stream(X) or X.to_memory().")
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
    """Names for the columns of a table that has none: x0, x1, ..."""
    return tuple(f"x{d}" for d in range(n_columns))


ALLOWED = "counts are whole numbers >= 0, with NaN for a missing cell"


def check_cells(X: Tensor | csr_array, names: tuple[str, ...], first_row: int = 0, source: str = "X") -> None:
    """Raises InputError naming the first cell that is not a count.

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
        for start, part in zip(itertools.count(0, portion(cells)), cells.split(portion(cells)), strict=False):
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
                f"X has {int(bad.sum())} non-numeric cell(s), the first in row {i}, column {d} "
                f"({str(name)!r}): {column.iloc[i]!r}{hint}; {ALLOWED}."
            )


def _as_tensor(X: Any) -> Tensor:
    """X as float64, or as it is where it holds integers."""
    try:
        if isinstance(X, np.ma.MaskedArray):
            X = np.ma.filled(X.astype(np.float64), np.nan)
        if isinstance(X, Tensor):
            # A fit keeps its data, whatever happens later to the tensor that was passed.
            X = X.detach().clone()
        else:
            array = _real(np.array(X))
            X = torch.from_numpy(array if array.dtype in INTEGERS else array.astype(np.float64))
        X = _real(X).cpu().to_dense()
        return X if X.dtype in KEPT else X.to(torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"X must be a table of numbers, got {_culprit(X)}; {ALLOWED}.") from None


def _real(X: Any) -> Any:
    """X, unless it holds complex numbers or times, which cannot be converted without loss."""
    if X.is_complex() if isinstance(X, Tensor) else X.dtype.kind in "cmM":
        raise TypeError
    return X


def _culprit(X: Any) -> str:
    """The first non-numeric cell, described, or else the type of X."""
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
    """X in canonical form: rows in order, every cell once, no zero stored; X itself is not changed."""
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
