"""The table of counts: what users hand over, checked, and the form in which the kernel reads it.

Users bring torch tensors, NumPy arrays, lists, pandas frames, SciPy sparse matrices or AnnData. NaN means missing.
"""

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.models.parameters import InputError


class Table(NamedTuple):
    """A checked table of counts with the names of its columns."""

    X_ND: Tensor  # (N, D) float64; whole numbers >= 0, NaN where missing
    names: tuple[str, ...]  # D names of columns


class Counts(NamedTuple):
    """The table as the kernel multiplies it: one block A = [X, P] per row, or [X, P, M] where cells are missing."""

    A_NE: Tensor  # (N, 2 D) or (N, 3 D): counts (0 where missing), P = 1[X > 0], M = 1[observed]
    log_factorial_N: Tensor  # (N,)  sum over d of log x_id!
    n_features: int  # D

    @property
    def has_missing(self) -> bool:
        """Whether A carries the mask M."""
        return self.A_NE.shape[1] == 3 * self.n_features


def as_counts(X_ND: Tensor) -> Counts:
    """The kernel's form of a checked table.

    Args:
        X_ND: (N, D) float64 counts, NaN where missing.
    """
    M_ND = ~X_ND.isnan()
    X0_ND = X_ND.nan_to_num(0.0)
    blocks = [X0_ND, (X0_ND > 0).to(X_ND.dtype)]
    if not bool(M_ND.all()):
        blocks.append(M_ND.to(X_ND.dtype))
    return Counts(torch.cat(blocks, dim=1), torch.lgamma(X0_ND + 1).sum(1), X_ND.shape[1])


def as_table(X: Any, n_features: int | None = None) -> Table:
    """Any table of counts as a checked float64 tensor.

    Args:
        X: torch tensor, NumPy array, nested list, pandas frame, SciPy sparse matrix or AnnData, of shape (N, D) with
            N, D >= 1; whole numbers >= 0, NaN where missing.
        n_features: the number of columns to insist on, where a fit has fixed it.
    Returns:
        The table and the names of its columns ("x0", "x1", ... where X has none).
    Raises:
        InputError: negative, fractional, infinite or text entries, no rows or columns, or a wrong shape.
    """
    names: Sequence[Any] | None = None
    if hasattr(X, "var_names") and hasattr(X, "X"):
        X, names = X.X, list(X.var_names)
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):
        names = list(X.columns)
        _refuse_text_columns(X)
        X = X.to_numpy(dtype=np.float64, na_value=np.nan)
    if hasattr(X, "toarray"):
        X = X.toarray()
    X_ND = _as_float64(X)
    if X_ND.ndim != 2:
        hint = " For a single column, use X[:, None]." if X_ND.ndim == 1 else ""
        raise InputError(f"X must have two axes, rows and columns; got shape {tuple(X_ND.shape)}.{hint}")
    n_rows, n_columns = X_ND.shape
    if n_rows == 0 or n_columns == 0:
        raise InputError(f"X must have at least one row and one column; got {n_rows} rows and {n_columns} columns.")
    if n_features is not None and n_columns != n_features:
        raise InputError(f"X must have the {n_features} columns of the fit; got {n_columns}.")
    labels = tuple(str(name) for name in names) if names is not None else tuple(f"x{d}" for d in range(n_columns))
    _refuse(X_ND.isinf(), X_ND, labels, "infinite")
    _refuse(X_ND < 0, X_ND, labels, "negative")
    _refuse((X_ND.floor() != X_ND) & ~X_ND.isnan(), X_ND, labels, "fractional")
    return Table(X_ND, labels)


ALLOWED = "counts are whole numbers >= 0, with NaN for a missing cell"


def _refuse(bad_ND: Tensor, X_ND: Tensor, names: tuple[str, ...], word: str) -> None:
    if not bool(bad_ND.any()):
        return
    i, d = (int(index) for index in bad_ND.nonzero()[0])
    raise InputError(
        f"X has {int(bad_ND.sum())} {word} cell(s), the first in row {i}, column {d} ({names[d]!r}): "
        f"{X_ND[i, d].item():g}; {ALLOWED}."
    )


def _refuse_text_columns(frame: Any) -> None:
    import pandas as pd

    for d, name in enumerate(frame.columns):
        column = frame.iloc[:, d]
        no_count = column.dtype.kind in "cmM" or pd.to_numeric(column, errors="coerce").isna()
        bad = column.notna() & no_count
        if bad.any():
            i = int(bad.to_numpy().argmax())
            raise InputError(
                f"X has {int(bad.sum())} cell(s) that are no numbers, the first in row {i}, column {d} "
                f"({str(name)!r}): {column.iloc[i]!r}; {ALLOWED}."
            )


def _as_float64(X: Any) -> Tensor:
    try:
        if isinstance(X, Tensor):
            return _real(X).detach().to(device="cpu", dtype=torch.float64)
        if isinstance(X, np.ma.MaskedArray):
            X = np.ma.filled(X.astype(np.float64), np.nan)
        return torch.from_numpy(_real(np.array(X)).astype(np.float64))
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
