"""Matrix Market files and CSC tables: entries in any order, told from files that are damaged before any work."""

import gc
import re
import shutil
import tempfile

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

import zipmix
from zipmix import InputError
from zipmix.counts.store import as_dense
from zipmix.files import row_order

BANNER = "%%MatrixMarket matrix coordinate integer general\n"


def table_of(source):
    return np.concatenate([as_dense(table.X).numpy() for table in source])


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """What lies in the folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return lambda: list(tmp_path.glob("zipmix-*"))


def by_columns(path, X):
    scipy.io.mmwrite(path.with_suffix(".mtx"), sp.csc_array(X))
    return path.with_suffix(".mtx")


def csc_h5ad(path, X):
    names = (pd.DataFrame(index=pd.Index([f"n{i}" for i in range(n)], dtype=object)) for n in X.shape)
    AnnData(sp.csc_matrix(X), *names).write_h5ad(path.with_suffix(".h5ad"))
    return path.with_suffix(".h5ad")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: (path / "x.mtx").write_text("1 2 3\n") and path / "x.mtx", "must begin with '%%MatrixMarket"),
        (lambda path: (path / "x.mtx").write_text(BANNER) and path / "x.mtx", "columns and entries in line 2, got ''"),
        (lambda path: (path / "x.mtx").write_bytes(b"\xff\xfe") and path / "x.mtx", "not a readable Matrix Market"),
        (lambda path: (path / "x.mtx.gz").write_text(BANNER) and path / "x.mtx.gz", "not a readable Matrix Market"),
        (lambda path: scipy.io.mmwrite(path / "x.mtx", np.eye(3)) or path / "x.mtx", "matrix array"),
        (lambda path: scipy.io.mmwrite(path / "x.mtx", sp.csr_array(1j * np.eye(3))) or path / "x.mtx", "complex"),
    ],
)
def test_other_files_are_refused_in_a_sentence(write, message, tmp_path):
    with pytest.raises(InputError, match=message):
        zipmix.stream(write(tmp_path))


def written(path, entries, head="3 2 2", banner=BANNER):
    (path / "x.mtx").write_text(f"{banner}% a comment\n{head}\n{entries}")
    return path / "x.mtx"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("1 1 5\n4 1 4\n", "has no cell in row 4, column 1 (entry 2, all counted from 1); it announces 3 rows"),
        ("1 0 5\n3 1 4\n", "has no cell in row 1, column 0 (entry 1"),
        ("1 1.5 5\n3 1 4\n", "has no cell in row 1, column 1.5 (entry 1"),
        ("1 1 5\n2 x 4\n", "has entries that are no numbers (could not convert string to float: 'x')"),
        ("1 1 5\n2 2\n", "has other than 3 numbers in entry 2"),
        ("1 1\n2 2\n", "has other than 3 numbers in entry 1"),
        ("1 1 5\n", "ends after 1 entries, and 2 are announced; it is truncated"),
        ("", "ends after 0 entries, and 2 are announced; it is truncated"),
        ("1 1 5\n2 2 4\n1 1 5\n", "has more than the 2 entries that it announces"),
        ("3 2 4\n1 2 -5\n", "x.mtx has 1 negative cell(s), the first in row 0, column 1 ('x1'): -5"),
    ],
)
def test_faults_of_matrix_market_files_are_told_before_any_work(entries, message, tmp_path, temporary):
    with pytest.raises(InputError, match=re.escape(message)):
        zipmix.stream(written(tmp_path, entries))
    assert temporary() == []


@pytest.mark.parametrize(
    ("entries", "banner"),
    [
        ("3 1 2\n1 1 0\n3 1 3\n1 2 7\n", BANNER),
        ("2 1 4\n1 1 5\n2 2 9\n3 3 0\n", BANNER.replace("general", "symmetric")),
        ("3 1\n1 2\n2 2\n1 1\n", BANNER.replace("integer", "pattern")),
        ("3 1 2e0\n1 1 0.0\n2 1 3\n1 2 7\n", BANNER.replace("integer", "real")),
    ],
)
def test_matrix_market_files_are_read_as_scipy_reads_them(entries, banner, tmp_path):
    """Explicit zeros, cells that come twice, and every kind of file that holds counts; SciPy is the oracle."""
    path = written(tmp_path, entries, head="3 3 4", banner=banner)
    source = zipmix.stream(path)
    np.testing.assert_array_equal(table_of(source), scipy.io.mmread(path).toarray())
    assert all(table.X.data.all() and table.X.has_canonical_format for table in source)


@pytest.mark.parametrize("write", [by_columns, csc_h5ad])
def test_entries_in_any_order_are_dealt_again_until_they_fit(write, tmp_path, monkeypatch, temporary):
    """Parts of 40 entries from 3 files at a time: rows of very different length, empty ones and cells stored twice."""
    rng = np.random.default_rng(3)
    X = rng.poisson(np.where(np.arange(300) < 20, 5.0, 0.02)[:, None], (300, 30))
    path = write(tmp_path / "x", X.astype(float))
    if write is by_columns:
        head, entries = path.read_text().split("\n", 3)[:3], path.read_text().splitlines()[3:]
        rng.shuffle(entries)
        rows, columns, n = head[2].split()
        twice = [entry.rsplit(" ", 1)[0] + " 1" for entry in entries[:100]]
        path.write_text("\n".join([*head[:2], f"{rows} {columns} {int(n) + 100}", *entries, *twice]) + "\n")
        X = scipy.io.mmread(path).toarray()
    monkeypatch.setattr(row_order, "PART", 40)
    monkeypatch.setattr(row_order, "BUCKETS", 3)
    source = zipmix.stream(path, block_rows=7)
    blocks = [table.X for table in source]
    assert max(block.shape[0] for block in blocks) == 7
    np.testing.assert_array_equal(sp.vstack(blocks).toarray(), X)
    np.testing.assert_array_equal(table_of(source), X)
    # What is held at once: no part has more entries than a part may, but for single rows.
    read = [np.diff(sp.load_npz(part).indptr) for part in temporary()[0].iterdir()]
    assert sum(map(len, read)) == 300
    assert max(lengths.sum() for lengths in read if len(lengths) > 1) <= 40


def test_the_temporary_folder_goes_with_the_stream(tmp_path, temporary):
    source = zipmix.stream(by_columns(tmp_path / "x", np.eye(5)))
    fitted = zipmix.fit(source, 2, n_starts=1, max_iter=1)
    del source
    assert len(temporary()) == 1
    assert len(fitted.predict()) == 5
    del fitted
    gc.collect()
    assert temporary() == []


def test_a_full_disk_is_told_before_any_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    path = written(tmp_path, "1 1 1\n", head="3 2 100000")
    with pytest.raises(InputError, match=r"x.mtx has 100000 entries, which take 0.0 GiB in .*; set TMPDIR to a folder"):
        zipmix.stream(path)


def test_bad_cells_of_a_later_part_keep_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr(row_order, "PART", 40)
    X = np.ones((60, 5))
    X[47, 3] = 0.5
    with pytest.raises(
        InputError, match=r"x.mtx has 1 fractional cell\(s\), the first in row 47, column 3 \('x3'\): 0.5"
    ):
        zipmix.stream(by_columns(tmp_path / "x", X))
