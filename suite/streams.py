"""`zipmix.stream`: tables larger than memory from files, for `zipmix.fit` with method "em" or "online"."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from zipmix.models.counts import as_csr, as_table, default_names
from zipmix.models.parameters import InputError, check_flag, check_whole
from zipmix.models.stream import Shard, Stream, as_numbers, block_rows_for, same_columns, table_shard


def stream(source: Any, *, block_rows: int | None = None, progress: bool = False) -> Stream:
    """A table that is read block by block in every pass, and never held in memory as a whole.

    Args:
        source: a file, or a list of shards, each a file or a table in memory, all with the same columns. Files: .npy
            (two axes, rows first), .parquet (by row group; null is missing; needs pyarrow), .mtx (Matrix Market,
            coordinates in the order of rows) and .h5ad (AnnData, X dense or CSR).
        block_rows: rows that are read at a time; None takes as many as make about four million cells.
        progress: whether to show rows per second and time left in every pass.
    Returns:
        The stream: X of `zipmix.fit` (method "em", many passes, or "online", one), of Fit.predict and the like.
    Raises:
        InputError: no such file, a kind of file that is not read, a truncated file, or shards that differ in columns.
            Cells that are no counts are refused when they are read, by file, row and column.
    """
    check_flag(progress, "progress")
    sources = list(source) if isinstance(source, list | tuple) else [source]
    if not sources:
        raise InputError("source is an empty list; give one file or table at least.")
    shards = tuple(_shard(one, f"shard {number}") for number, one in enumerate(sources))
    same_columns(shards)
    for shard in shards:
        if shard.n_rows == 0 or not shard.names:
            raise InputError(
                f"{shard.source} has {shard.n_rows} rows and {len(shard.names)} columns; one at least of each."
            )
    rows = block_rows_for(len(shards[0].names)) if block_rows is None else block_rows
    return Stream(shards, check_whole(rows, "block_rows", at_least=1), progress)


def _shard(source: Any, label: str) -> Shard:
    if not isinstance(source, str | Path):
        try:
            return table_shard(as_table(source), label)
        except InputError as error:
            raise InputError(f"{label}: {error}") from None
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is of a kind that is not streamed; allowed are {', '.join(READERS)}.")
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the path of a table of counts.")
    return reader(path)


def _npy(path: Path) -> Shard:
    def mapped() -> np.ndarray:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(
                f"{path} is not a whole .npy array of numbers ({error}); it is truncated, or not of numpy.save."
            ) from None

    array = mapped()
    if array.ndim != 2 or array.dtype.kind not in "buif":
        raise InputError(f"{path} must hold a table of numbers, got {array.dtype} of shape {array.shape}.")

    def read(n: int) -> Iterator[Tensor]:
        for start in range(0, array.shape[0], n):
            # Mapped anew for every block, so that pages already read do not count as memory in use.
            yield as_numbers(np.array(mapped()[start : start + n]))

    return Shard(str(path), array.shape[0], default_names(array.shape[1]), read)


def _parquet(path: Path) -> Shard:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(f"{path} needs pyarrow to be read; run pip install 'zipmix[parquet]'.") from None
    try:
        with ParquetFile(path) as file:
            n_rows, schema = file.metadata.num_rows, file.schema_arrow
    except (ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a whole Parquet file ({error}); it is truncated or something else.") from None
    for d, field in enumerate(schema):
        if not str(field.type).startswith(("int", "uint", "float", "double", "halffloat", "bool")):
            raise InputError(f"{path} has no numbers in column {d} ({field.name!r}) but {field.type}; leave it out.")

    def read(n: int) -> Iterator[Tensor]:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=n):
                yield as_numbers(np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1))

    return Shard(str(path), n_rows, tuple(schema.names), read)


def _matrix_market(path: Path) -> Shard:
    with path.open() as file:
        banner = file.readline().lower().split()
        if banner[:2] != ["%%matrixmarket", "matrix"] or banner[2:3] != ["coordinate"] or banner[4:] != ["general"]:
            raise InputError(
                f"{path} must begin with '%%MatrixMarket matrix coordinate ... general', got {' '.join(banner)!r}."
            )
        n_skipped, sizes = next((i, line.split()) for i, line in enumerate(file, start=1) if not line.startswith("%"))
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise InputError(
            f"{path} must give rows, columns and entries in line {n_skipped + 1}, got {' '.join(sizes)!r}."
        )
    n_rows, n_columns, n_entries = map(int, sizes)

    def read(n: int) -> Iterator[csr_array]:
        rows, columns, values = (np.zeros(0, dtype=kind) for kind in (np.int64, np.int64, np.float64))
        start, seen, last = 0, 0, 0
        for part in itertools.chain(_entries(path, n_skipped + 1), [None]):
            if part is not None:
                i, j, x = part
                seen += len(i)
                order = np.diff(i, prepend=last)
                if (order < 0).any():
                    at = int((order < 0).argmax())
                    raise InputError(
                        f"{path} has row {i[at]} after row {i[at] - order[at]}; a stream needs entries in the order of "
                        "rows: sort them, or read the file with scipy.io.mmread, which is sparse in memory too."
                    )
                if i.max() >= n_rows or j.max() >= n_columns or i.min() < 0 or j.min() < 0:
                    raise InputError(f"{path} has an entry outside of its {n_rows} rows and {n_columns} columns.")
                last = int(i[-1])
                rows, columns, values = (np.concatenate(pair) for pair in ((rows, i), (columns, j), (values, x)))
            elif seen != n_entries:
                raise InputError(f"{path} ends after {seen} entries, and {n_entries} are announced; it is truncated.")
            # A block is whole once an entry of a later row has come.
            while start < n_rows and (part is None or last >= start + n):
                stop = min(start + n, n_rows)
                cut = int(np.searchsorted(rows, stop))
                entries = (values[:cut], (rows[:cut] - start, columns[:cut]))
                yield as_csr(csr_array(entries, shape=(stop - start, n_columns)))
                rows, columns, values, start = rows[cut:], columns[cut:], values[cut:], stop

    return Shard(str(path), n_rows, default_names(n_columns), read)


def _entries(path: Path, n_skipped: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, columns (from 0) and values of a coordinate file, some hundred thousand at a time."""
    import pandas as pd

    try:
        with pd.read_csv(
            path, sep=r"\s+", header=None, skiprows=n_skipped, chunksize=500_000, dtype=np.float64, comment="%"
        ) as parts:
            for part in parts:
                table = part.to_numpy()
                values = table[:, 2] if table.shape[1] == 3 else np.ones(len(table))
                if np.isnan(table).any():
                    raise InputError(f"{path} has an entry without row, column or value; it is truncated.")
                yield table[:, 0].astype(np.int64) - 1, table[:, 1].astype(np.int64) - 1, values
    except pd.errors.EmptyDataError:
        return
    except (ValueError, pd.errors.ParserError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} has entries that are no numbers ({str(error).strip()}).") from None


def _h5ad(path: Path) -> Shard:
    import h5py

    try:
        with h5py.File(path) as file:
            X, index = file["X"], file["var"].attrs["_index"]
            names = tuple(str(name) for name in file["var"][index].asstr()[:])
            sparse = isinstance(X, h5py.Group)
            kind = X.attrs["encoding-type"] if sparse else "array"
            n_rows, n_columns = (int(size) for size in (X.attrs["shape"] if sparse else X.shape))
    except (OSError, KeyError) as error:
        raise InputError(f"{path} is not a whole .h5ad file with X and var ({error}); write it with AnnData.") from None
    if kind not in ("array", "csr_matrix"):
        raise InputError(f"{path} holds X as {kind}, which has no rows to stream; store adata.X = adata.X.tocsr().")

    def read(n: int) -> Iterator[Tensor | csr_array]:
        with h5py.File(path) as file:
            X = file["X"]
            for start in range(0, n_rows, n):
                stop = min(start + n, n_rows)
                if not sparse:
                    yield as_numbers(X[start:stop])
                    continue
                indptr = X["indptr"][start : stop + 1]
                cells = slice(int(indptr[0]), int(indptr[-1]))
                parts = (X["data"][cells], X["indices"][cells], indptr - indptr[0])
                yield as_csr(csr_array(parts, shape=(stop - start, n_columns)))

    return Shard(str(path), n_rows, names, read)


READERS = {".npy": _npy, ".parquet": _parquet, ".mtx": _matrix_market, ".h5ad": _h5ad}
