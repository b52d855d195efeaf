"""Matrix Market files as shards of a stream: a banner, comments, a line of sizes, and a line for each entry.

The format is that of the National Institute of Standards and Technology (Boisvert, Pozo and Remington, 1996): rows and
columns are counted from 1, entries come in any order, and entries of the same cell are summed, as SciPy does.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zipmix.counts.checks import InputError
from zipmix.counts.progress import bar
from zipmix.counts.stream import Shard
from zipmix.counts.table import default_names
from zipmix.files.row_order import ENTRY, shard_in_row_order


def matrix_market(path: Path, progress: bool) -> Shard:
    """A Matrix Market file, gzipped or not, as a shard; it is read once, with entries in any order.

    Args:
        path: of the file; its rows are those of the table.
        progress: whether to show entries per second and time left.
    Raises:
        InputError: another kind of matrix, a truncated file, entries out of range, or cells that are no counts.
    """
    head = _head_of(path)
    copies = 2 if head.symmetric else 1
    with bar(head.n_entries, path.name, "entries", enabled=progress) as advance:
        return shard_in_row_order(
            _entries(path, head, advance),
            copies * head.n_entries,
            source=str(path),
            n_rows=head.n_rows,
            names=default_names(head.n_columns),
        )


class _Head(NamedTuple):
    """What a Matrix Market file says of itself."""

    n_rows: int
    n_columns: int
    n_entries: int  # lines
    width: int  # numbers in a line
    symmetric: bool  # whether entries below the diagonal stand for those above as well
    n_lines: int  # before the first entry


def _head_of(path: Path) -> _Head:
    try:
        with gzip.open(path, "rt") if path.suffix.lower() == ".gz" else path.open() as file:
            banner = file.readline().lower().split()
            n_lines, sizes = next(
                ((i, line.split()) for i, line in enumerate(file, start=2) if line.strip() and line[0] != "%"), (2, [])
            )
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable Matrix Market file ({error}); write it again.") from None
    if (
        len(banner) != 5
        or banner[:3] != ["%%matrixmarket", "matrix", "coordinate"]
        or banner[3] not in ("integer", "real", "pattern")
        or banner[4] not in ("general", "symmetric")
    ):
        raise InputError(
            f"{path} must begin with '%%MatrixMarket matrix coordinate integer general' (or real, pattern; or "
            f"symmetric), got {' '.join(banner)[:80]!r}."
        )
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise InputError(f"{path} must give rows, columns and entries in line {n_lines}, got {' '.join(sizes)!r}.")
    width = 2 if banner[3] == "pattern" else 3
    n_rows, n_columns, n_entries = map(int, sizes)
    return _Head(n_rows, n_columns, n_entries, width, banner[4] == "symmetric", n_lines)


def _entries(path: Path, head: _Head, advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    """The entries of a coordinate file, some hundred thousand at a time."""
    seen = 0
    for lines in _lines(path, head.n_lines):
        places = lines[:, :2]
        if lines.shape[1] != head.width or np.isnan(lines).any():
            short = 0 if lines.shape[1] != head.width else int(np.isnan(lines).any(axis=1).argmax())
            raise InputError(
                f"{path} has other than {head.width} numbers in entry {seen + short + 1}; it is truncated."
            )
        outside = (places < 1) | (places > (head.n_rows, head.n_columns)) | (places % 1 != 0)
        if outside.any():
            at = int(outside.any(axis=1).argmax())
            row, column = places[at]
            raise InputError(
                f"{path} has no cell in row {row:g}, column {column:g} (entry {seen + at + 1}, all counted from 1); "
                f"it announces {head.n_rows} rows and {head.n_columns} columns."
            )
        seen += len(lines)
        if seen > head.n_entries:
            raise InputError(f"{path} has more than the {head.n_entries} entries that it announces; write it again.")
        some = np.empty(len(lines), dtype=ENTRY)
        some["row"], some["column"] = places.T - 1
        some["value"] = lines[:, 2] if head.width == 3 else 1.0
        yield some
        if head.symmetric:
            mirrored = some[some["row"] != some["column"]]
            mirrored["row"], mirrored["column"] = mirrored["column"], mirrored["row"].copy()
            yield mirrored
        advance(len(lines))
    if seen < head.n_entries:
        raise InputError(f"{path} ends after {seen} entries, and {head.n_entries} are announced; it is truncated.")


def _lines(path: Path, n_lines: int) -> Iterator[np.ndarray]:
    import pandas as pd

    try:
        with pd.read_csv(
            path, sep=r"\s+", header=None, skiprows=n_lines, chunksize=500_000, dtype=np.float64, comment="%"
        ) as parts:
            for part in parts:
                yield part.to_numpy()
    except pd.errors.EmptyDataError:
        return
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path} cannot be read to its end ({error}); it is truncated.") from None
    except ValueError as error:
        raise InputError(f"{path} has entries that are no numbers ({str(error).strip()}).") from None
