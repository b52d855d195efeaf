"""Tables of counts by name or from a file: those that ship with zipmix, CSV, .npy, coursework pickles, sparse files."""

import csv
import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from scipy.sparse import csr_array
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.memory import check_room
from zipmix.counts.store import as_dense
from zipmix.counts.stream import whole
from zipmix.counts.table import Table, as_table
from zipmix.files.streams import READERS as STREAM_READERS
from zipmix.files.streams import ending_of, h5ad_row_names, stream


class Data(NamedTuple):
    """A table of counts and where it came from."""

    X: Tensor | csr_array  # (N, D) counts, NaN where missing; float64 where dense
    names: tuple[str, ...]  # D names of columns
    labels: tuple[str, ...] | None  # N known groups of the rows, where there are any
    source: str  # where they come from, as a phrase
    row_names: tuple[str, ...] | None = None  # N names of rows, where the table has them

    @property
    def X_ND(self) -> Tensor:
        """The counts made dense, float64, for what needs every cell."""
        return as_dense(self.X)


def load_data(name_or_path: str | Path) -> Data:
    """A data set by name, or a table from a file.

    Args:
        name_or_path: "nmes1988" (six health-care counts of 4 406 people), "digits" (pixels of 1 797 handwritten digits,
            labels kept), or a file: .csv (a header row; an empty cell or NA is missing; a first column without a name
            holds names of rows), .npy, a coursework .pkl, or what zipmix.stream reads as well: .parquet, .mtx, .mtx.gz
            and .h5ad.
    Returns:
        The counts with names of columns, known labels of rows and their source; sparse from .mtx and a sparse .h5ad.
    Raises:
        InputError: an unknown name, no such file, a kind of file that is not read, a table that is no counts, or one
            that takes more memory than is free.
    """
    name = str(name_or_path)
    if name in BUILT_IN:
        return BUILT_IN[name]()
    path = Path(name)
    kind = ending_of(path, (*READERS, *STREAMED))
    if kind is None and not path.suffix:
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(
            f"data: {name!r} is neither a data set of zipmix ({', '.join(BUILT_IN)}) nor a file ending in "
            f"{', '.join((*READERS, *STREAMED))}.{hint}"
        )
    if not path.is_file():
        raise InputError(f"data: there is no file {name!r}; give a path or one of {', '.join(BUILT_IN)}.")
    if kind is None:
        allowed = ", ".join((*READERS, *STREAMED))
        raise InputError(f"data: {name!r} is of a kind that is not read; allowed are {allowed}.")
    if kind in STREAMED:
        return _streamed(path, kind)
    check_room(path.stat().st_size, str(path), "make it smaller, or fit a zipmix.stream of a .npy or .parquet file")
    try:
        table = READERS[kind](path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return Data(table.X_ND, table.names, None, str(path), table.row_names)


def _streamed(path: Path, kind: str) -> Data:
    rows = stream(path)
    X = whole(rows)
    row_names = h5ad_row_names(path) if kind == ".h5ad" else None
    return Data(as_dense(X) if isinstance(X, Tensor) else X, rows.names, None, str(path), row_names)


def _nmes1988() -> Data:
    import pandas as pd

    with files("zipmix").joinpath("datasets/nmes1988.csv").open() as file:
        table = as_table(pd.read_csv(file))
    source = "US National Medical Expenditure Survey 1987-88, as analysed by Deb and Trivedi (1997)"
    return Data(table.X_ND, table.names, None, source)


def _digits() -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    names = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
    labels = tuple(str(label) for label in digits.target)
    return Data(as_table(digits.data).X_ND, names, labels, "Optical recognition of handwritten digits (scikit-learn)")


def _csv(path: Path) -> Table:
    import pandas as pd

    head = _header(path)
    # A first column without a name holds names of rows, as pandas writes them.
    frame = pd.read_csv(path, index_col=0 if len(head) > 1 and not head[0] else False, encoding="utf-8-sig")
    return as_table(frame)


def _header(path: Path) -> list[str]:
    """The names of the columns of a CSV file of which every row has as many cells as the header.

    Raises:
        InputError: an empty file, another encoding or separator, no header, or a row of another length.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            head = [name.strip() for name in next(rows, [])]
            if not head:
                raise InputError("X is an empty file; write a header row, then a row of counts for each line.")
            _refuse_header(head)
            for row in rows:
                if row and len(row) != len(head):
                    raise InputError(
                        f"X has {len(row)} cells in line {rows.line_num} and {len(head)} names in its header; give "
                        "every column a name (none for a first column of row names) and every row as many cells."
                    )
    except UnicodeDecodeError:
        raise InputError("X is a CSV file that is not text in UTF-8; save it again as such.") from None
    except csv.Error as error:
        raise InputError(
            f"X is not a readable CSV table ({error}); save it again, with commas between cells."
        ) from None
    return head


def _refuse_header(head: list[str]) -> None:
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(head) == 1 and sign in head[0]:
            raise InputError(f"X has {name} between its cells; save it with commas (and a point for decimals).")
    if all(_is_number(name) for name in head):
        raise InputError(
            f"X has numbers alone in its first row ({', '.join(head[:3])}, ...), where the names of columns are looked "
            "for; write a header row, then counts."
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _npy(path: Path) -> Table:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"X is not a readable .npy array: {error}; save it with numpy.save, as numbers.") from None
    return as_table(array)


def _pickle(path: Path) -> Table:
    from zipmix.files.safe_pickle import load_pickle

    content: Any = load_pickle(path)
    for key in ("X_ND", "Y_MD_obs"):
        if isinstance(content, dict) and key in content:
            return as_table(content[key])
    raise InputError('X is a pickle without the coursework\'s key "X_ND"; save {"X_ND": counts}.')


BUILT_IN = {"nmes1988": _nmes1988, "digits": _digits}
READERS = {".csv": _csv, ".npy": _npy, ".pkl": _pickle, ".pickle": _pickle}
STREAMED = tuple(ending for ending in STREAM_READERS if ending not in READERS)
