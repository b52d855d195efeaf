"""Entries of a sparse table in any order, brought into the order of rows on disk: a bucket sort.

Entries are dealt to buckets of neighbouring rows, a file each; a bucket that is too large is dealt again. One that is
small enough becomes a part of the table, checked, in canonical form. No more than one part is ever in memory.
"""

import itertools
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, load_npz, save_npz

from zipmix.counts.checks import InputError
from zipmix.counts.stream import Shard
from zipmix.counts.table import as_csr, check_cells

# A cell of the table, rows and columns counted from 0; cells that come more than once are summed.
ENTRY = np.dtype([("row", np.int64), ("column", np.int32), ("value", np.float64)])

# Entries of a part, and its rows, at most; a single row is never cut.
PART = 2**21

# Files that entries are dealt to at a time.
BUCKETS = 1024


def shard_in_row_order(
    entries: Iterable[np.ndarray], n_entries: int, *, source: str, n_rows: int, names: tuple[str, ...]
) -> Shard:
    """The table as a shard; its parts lie in a temporary folder, which goes when nothing reads the shard any more.

    Args:
        entries: arrays of ENTRY, every row and column within the table.
        n_entries: how many there are in all; they take up to 20 bytes each on disk.
        source: what messages call the table.
        n_rows: N.
        names: D names of columns.
    Raises:
        InputError: a cell that is no count, or no room on the disk.
    """
    folder = Path(tempfile.mkdtemp(prefix="zipmix-"))
    try:
        _refuse_full_disk(n_entries, folder, source)
        parts = [
            _part(bucket, rows, folder / f"{rows.start}.npz", source, names)
            for rows, bucket in _buckets(entries, n_entries, range(n_rows), folder)
        ]
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

    def read(n: int) -> Iterator[csr_array]:
        for part in parts:
            X = load_npz(part)
            for start in range(0, X.shape[0], n):
                yield X[start : start + n]

    weakref.finalize(read, shutil.rmtree, folder, ignore_errors=True)
    return Shard(source, n_rows, names, read)


def _buckets(
    entries: Iterable[np.ndarray], n_entries: int, rows: range, folder: Path
) -> Iterator[tuple[range, list[np.ndarray]]]:
    """Neighbouring rows and all of their entries, the first rows first."""
    size = max(n_entries, len(rows))
    if size <= PART or len(rows) == 1:
        yield rows, list(entries)
        return
    n_buckets = min(BUCKETS, 2 * -(-size // PART), len(rows))
    starts = np.linspace(rows.start, rows.stop, n_buckets + 1).astype(np.int64)
    counts = np.zeros(n_buckets, dtype=np.int64)
    files = [folder / f"{start}-{stop}" for start, stop in itertools.pairwise(starts)]
    for some in entries:
        bucket = np.searchsorted(starts, some["row"], side="right") - 1
        dealt, ends = some[np.argsort(bucket, kind="stable")], np.bincount(bucket, minlength=n_buckets)
        counts += ends
        for file, own in zip(files, np.split(dealt, np.cumsum(ends)[:-1]), strict=True):
            if len(own):
                with file.open("ab") as opened:
                    own.tofile(opened)
    for b in range(n_buckets):
        yield from _buckets(_stored(files[b]), int(counts[b]), range(int(starts[b]), int(starts[b + 1])), folder)
        files[b].unlink(missing_ok=True)


def _stored(file: Path) -> Iterator[np.ndarray]:
    start, step = 0, PART // 4
    while file.exists() and start * ENTRY.itemsize < file.stat().st_size:
        yield np.fromfile(file, dtype=ENTRY, count=step, offset=start * ENTRY.itemsize)
        start += step


def _part(bucket: list[np.ndarray], rows: range, file: Path, source: str, names: tuple[str, ...]) -> Path:
    """Writes the table of some rows."""
    entries = np.concatenate([np.zeros(0, dtype=ENTRY), *bucket])
    places = entries["row"] - rows.start, entries["column"]
    X = as_csr(csr_array((entries["value"], places), shape=(len(rows), len(names))))
    check_cells(X, names, first_row=rows.start, source=source)
    # A NaN is below nothing.
    save_npz(file, X.astype(np.int32 if X.data.max(initial=0) < 2**31 else np.float64), compressed=False)
    return file


def _refuse_full_disk(n_entries: int, folder: Path, source: str) -> None:
    needed, free = n_entries * ENTRY.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{source} has {n_entries} entries, which take {needed / 2**30:.1f} GiB in {folder.parent} while they are "
            f"brought into the order of rows, and {free / 2**30:.1f} GiB are free; set TMPDIR to a folder with room."
        )
