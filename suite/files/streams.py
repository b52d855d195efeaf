"""`zipmix.stream`: tables larger than memory from files, for `zipmix.fit` with method "em" or "online"."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from zipmix.counts.checks import InputError, check_flag, check_whole
from zipmix.counts.progress import bar
from zipmix.counts.stream import Shard, Stream, as_numbers, block_rows_for, same_columns, table_shard
from zipmix.counts.table import as_csr, as_table, default_names
from zipmix.files.matrix_market import matrix_market
from zipmix.files.row_order import ENTRY, shard_in_row_order


def stream(source: Any, *, block_rows: int | None = None, progress: bool = False) -> Stream:
    """A table that is read block by block in every pass, and never held in memory as a whole.

    Args:
        source: a file, an AnnData in backed mode, or a list of shards, each of these or a table in memory, all with the
            same columns. Files: .npy (two axes, rows first), .parquet (by row group; null is missing; needs pyarrow),
            .h5ad (AnnData; X dense, CSR or CSC), .mtx and .mtx.gz (Matrix Market; its rows are the rows, so that a
            table of genes by cells must be written transposed).
        block_rows: rows that are read at a time, at most; None takes as many as make about four million cells.
        progress: whether to show rows per second and time left in every pass.
    Returns:
        The stream: X of `zipmix.fit` (method "em", many passes, or "online", one), of Fit.predict and the like.
        Matrix Market files, and .h5ad where X is CSC, hold their entries in no order of rows: they are read once, here,
        and kept by rows in a temporary folder (up to 20 bytes an entry; TMPDIR says where), which goes with the stream.
    Raises:
        InputError: no such file, a kind of file that is not read, a truncated file, shards that differ in columns, or
            no room in the temporary folder. Cells that are no counts are refused when they are read, by file, row and
            column.
    """
    check_flag(progress, "progress")
    sources = list(source) if isinstance(source, list | tuple) else [source]
    if not sources:
        raise InputError("source is an empty list; give one file or table at least.")
    shards = tuple(_shard(one, f"shard {number}", progress) for number, one in enumerate(sources))
    same_columns(shards)
    for shard in shards:
        if shard.n_rows == 0 or not shard.names:
            raise InputError(
                f"{shard.source} has {shard.n_rows} rows and {len(shard.names)} columns; one at least of each."
            )
    rows = block_rows_for(len(shards[0].names)) if block_rows is None else block_rows
    return Stream(shards, check_whole(rows, "block_rows", at_least=1), progress)


def _shard(source: Any, label: str, progress: bool) -> Shard:
    if getattr(source, "isbacked", False):
        if source.is_view:
            raise InputError(
                f"{label} is a view of an AnnData in backed mode, and files are streamed as a whole; write the view to "
                "a file of its own (view.to_memory().write_h5ad(path))."
            )
        return _shard(source.filename, label, progress)._replace(names=tuple(map(str, source.var_names)))
    if not isinstance(source, str | Path):
        try:
            return table_shard(as_table(source), label)
        except InputError as error:
            raise InputError(f"{label}: {error}") from None
    path = Path(source)
    kind = ending_of(path, READERS)
    if kind is None:
        raise InputError(f"{path} is of a kind that is not streamed; allowed are {', '.join(READERS)}.")
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the path of a table of counts.")
    return READERS[kind](path, progress)


def ending_of(path: Path, endings: Iterable[str]) -> str | None:
    """Which of the endings, such as .npy or .mtx.gz, the name of a file has; None where it has none of them."""
    return next((ending for ending in endings if path.name.lower().endswith(ending)), None)


def _npy(path: Path, progress: bool) -> Shard:
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


def _parquet(path: Path, progress: bool) -> Shard:
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
        with _undamaged(path), ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=n):
                yield as_numbers(np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1))

    return Shard(str(path), n_rows, tuple(schema.names), read)


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Says of a file that opens and cannot be read to its end that it is damaged."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); write it again.") from None


def _h5ad(path: Path, progress: bool) -> Shard:
    import h5py

    try:
        with h5py.File(path) as file:
            X, names = file["X"], _index(file["var"])
            sparse = isinstance(X, h5py.Group)
            kind = str(X.attrs["encoding-type"]) if sparse else "array"
            n_rows, n_columns = (int(size) for size in (X.attrs["shape"] if sparse else X.shape))
            data = X["data"] if sparse else X
            n_entries, dtype = data.size, data.dtype
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a whole .h5ad file with X and var ({error}); write it with AnnData.") from None
    if kind not in ("array", "csr_matrix", "csc_matrix") or dtype.kind not in "buif":
        raise InputError(f"{path} holds X as {kind} of {dtype}; it must be a table of numbers, dense, CSR or CSC.")
    if len(names) != n_columns:
        raise InputError(f"{path} has {n_columns} columns in X and {len(names)} in var; write it again with AnnData.")
    if kind == "csc_matrix":
        with bar(n_entries, path.name, "entries", enabled=progress) as advance:
            entries = _column_entries(path, n_rows, advance)
            return shard_in_row_order(entries, n_entries, source=str(path), n_rows=n_rows, names=names)

    def read(n: int) -> Iterator[Tensor | csr_array]:
        with _undamaged(path), h5py.File(path) as file:
            X = file["X"]
            for start in range(0, n_rows, n):
                stop = min(start + n, n_rows)
                if not sparse:
                    yield as_numbers(X[start:stop])
                    continue
                indptr = X["indptr"][start : stop + 1]
                cells = slice(int(indptr[0]), int(indptr[-1]))
                parts = (X["data"][cells], X["indices"][cells], indptr - indptr[0])
                block = csr_array(parts, shape=(stop - start, n_columns))
                # SciPy trusts what it does not check, and would read outside of its memory.
                block.check_format(full_check=True)
                yield as_csr(block)

    return Shard(str(path), n_rows, names, read)


def _index(frame: Any) -> tuple[str, ...]:
    """The names of the rows of a data frame that AnnData has written."""
    index = frame[frame.attrs["_index"]]
    # A string array that may have gaps is a group of its own.
    text = index if hasattr(index, "asstr") else index["values"]
    return tuple(str(name) for name in (text.asstr() if text.dtype.kind == "O" else text)[:])


def h5ad_row_names(path: Path) -> tuple[str, ...]:
    """The obs_names of an .h5ad file that can be streamed."""
    import h5py

    with h5py.File(path) as file:
        return _index(file["obs"])


def _column_entries(path: Path, n_rows: int, advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    """The entries of a CSC table, some hundred thousand at a time."""
    import h5py

    with _undamaged(path), h5py.File(path) as file:
        X = file["X"]
        indptr = X["indptr"][:]
        if indptr[0] != 0 or indptr[-1] != X["data"].size or (np.diff(indptr) < 0).any():
            raise InputError(f"{path} is damaged: the columns of X do not follow one another; write it again.")
        for start in range(0, int(indptr[-1]), 500_000):
            values = X["data"][start : start + 500_000]
            some = np.empty(len(values), dtype=ENTRY)
            some["row"], some["value"] = X["indices"][start : start + 500_000], values
            if ((some["row"] < 0) | (some["row"] >= n_rows)).any():
                raise InputError(f"{path} is damaged: a cell of X is in none of its {n_rows} rows; write it again.")
            some["column"] = np.searchsorted(indptr, np.arange(start, start + len(values)), side="right") - 1
            yield some
            advance(len(values))


READERS = {".npy": _npy, ".parquet": _parquet, ".mtx": matrix_market, ".mtx.gz": matrix_market, ".h5ad": _h5ad}
