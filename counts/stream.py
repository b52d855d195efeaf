"""Tables larger than memory: rows that are read anew, block by block, in every pass.

Statistics of rows add, so a pass over a stream is the sum of passes over its blocks. The cells of a block are checked
each time it is read; one block at a time is in memory.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.memory import check_room
from zipmix.counts.progress import bar
from zipmix.counts.store import Counts, Fold, Source, as_counts
from zipmix.counts.table import Table, check_cells

# Cells of a block of a dense table.
BLOCK_CELLS = 2**22


class Shard(NamedTuple):
    """One file or table of a stream."""

    source: str  # what messages call it
    n_rows: int
    names: tuple[str, ...]  # D names of columns
    read: Callable[[int], Iterator[Tensor | csr_array]]  # at most that many rows at a time, from the first row on


@dataclass(frozen=True)
class Stream:
    """Rows of counts in one or more shards; `zipmix.fit` with method "em" or "online" takes it as X.

    Iterating reads it once, as tables of counts.
    """

    shards: tuple[Shard, ...]
    block_rows: int
    progress: bool
    passes: Iterator[int] = field(default_factory=lambda: itertools.count(1))  # numbers of those to come

    @property
    def n_rows(self) -> int:
        """N."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_features(self) -> int:
        """D."""
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return self.n_rows, self.n_features

    @property
    def names(self) -> tuple[str, ...]:
        """D names of columns."""
        return self.shards[0].names

    def parts(self) -> Iterator[Tensor | csr_array]:
        """The rows in order, checked, a block at a time, NaN where missing.

        Raises:
            InputError: a shard holds other rows than when the stream was made, or cells that are no counts.
        """
        with bar(self.n_rows, f"pass {next(self.passes)}", "rows", enabled=self.progress) as advance:
            for shard in self.shards:
                seen = 0
                for block in shard.read(self.block_rows):
                    check_cells(block, shard.names, first_row=seen, source=shard.source)
                    seen += block.shape[0]
                    yield block
                    advance(block.shape[0])
                if seen != shard.n_rows:
                    raise InputError(
                        f"{shard.source} ends after row {seen - 1}, and {shard.n_rows} rows are announced; "
                        "the file is truncated or was changed: write it again."
                    )

    def __iter__(self) -> Iterator[Table]:
        for part in self.parts():
            yield Table(part, self.names)

    def blocks(self) -> Iterator[Counts]:
        """The rows in order as passes read them, a block at a time."""
        for part in self.parts():
            yield as_counts(part)

    def fold(self, function: Fold) -> tuple[Tensor, ...]:
        """The sums over blocks of function(block, its rows in the stream), field by field, in one pass."""
        start, total = 0, None
        for block in self.blocks():
            part = function(block, slice(start, start + block.n_rows))
            total = part if total is None else tuple(map(torch.add, total, part))
            start += block.n_rows
        return total or ()

    def cut(self, size: int) -> Iterator[Tensor | csr_array]:
        """The rows in order in chunks of one size, the last one shorter, whatever blocks and shards they come in."""
        waiting: list[Tensor | csr_array] = []
        missing = size
        for part in self.parts():
            start = 0
            while start < part.shape[0]:
                waiting.append(part[start : start + missing])
                start, missing = start + missing, missing - waiting[-1].shape[0]
                if missing == 0:
                    yield stacked(waiting)
                    waiting, missing = [], size
        if waiting:
            yield stacked(waiting)

    def take(self, rows_N: Tensor) -> Counts:
        """The counts of some rows, in rising order, found in one pass."""
        found, first = [], 0
        for part in self.parts():
            n_rows = part.shape[0]
            here = rows_N[(rows_N >= first) & (rows_N < first + n_rows)] - first
            found.append(part[here if isinstance(part, Tensor) else here.numpy()])
            first += n_rows
        return as_counts(stacked(found))


def whole(source: Stream) -> Tensor | csr_array:
    """All rows as one table in memory.

    Raises:
        InputError: they take more memory than is free, or a shard cannot be read.
    """
    parts: list[Tensor | csr_array] = []
    n_bytes = 0
    for part in source.parts():
        parts.append(part)
        n_bytes += part.nbytes if isinstance(part, Tensor) else part.data.nbytes + part.indices.nbytes
        # The blocks read so far are in memory already; their copy as one table is to come.
        check_room(
            n_bytes,
            f"a copy of the first {sum(part.shape[0] for part in parts)} of {source.n_rows} rows of "
            f"{source.shards[0].source}",
            "fit a zipmix.stream of it by method em or online",
        )
    return stacked(parts)


def stacked(parts: Sequence[Tensor | csr_array]) -> Tensor | csr_array:
    """Blocks of rows as one table, sparse where any of them is."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts))
    return csr_array(vstack([csr_array(part) for part in parts], format="csr"))


def block_rows_for(n_features: int) -> int:
    """Rows of a block by default."""
    return max(1, BLOCK_CELLS // n_features)


def same_columns(shards: tuple[Shard, ...]) -> None:
    """Refuses shards that differ in columns.

    Raises:
        InputError: naming the shard and the first column that differs.
    """
    first = shards[0]
    for shard in shards[1:]:
        if len(shard.names) != len(first.names):
            raise InputError(
                f"{shard.source} has {len(shard.names)} columns, and {first.source} has {len(first.names)}; "
                "all shards of a stream must have the same columns."
            )
        for d, (name, expected) in enumerate(zip(shard.names, first.names, strict=True)):
            if name != expected:
                raise InputError(
                    f"{shard.source} has the column {name!r} where {first.source} has {expected!r} (column {d}); "
                    "all shards of a stream must have the same columns in the same order."
                )


def table_shard(table: Table, source: str) -> Shard:
    """A table in memory as a shard."""

    X = table.X
    if isinstance(X, Source):
        raise InputError(f"{source} is a stream itself; pass its shards.")

    def read(n: int) -> Iterator[Tensor | csr_array]:
        for start in range(0, X.shape[0], n):
            yield X[start : start + n]

    return Shard(source, int(X.shape[0]), table.names, read)


def as_numbers(block: np.ndarray) -> Tensor:
    """A block of a file as a tensor: integers of a type that tensors know as they are, everything else as float64."""
    known = block.dtype in (np.uint8, np.int16, np.int32, np.int64)
    return torch.from_numpy(np.ascontiguousarray(block if known else block.astype(np.float64)))
