"""Streams: every kind of file gives the fit of the table in memory, and says what is wrong with it and where."""

import gzip
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import torch
from anndata import AnnData

import zipmix
from zipmix import InputError, Prior
from zipmix.inference.loop import progress_bar

NAN = float("nan")
N, D, K = 400, 6, 3


@pytest.fixture(scope="module")
def X():
    return zipmix.simulate(N, D, K, prior=Prior(a=1.0, b=3.0), seed=0).X.numpy()


def npy(path, X):
    np.save(path.with_suffix(".npy"), X.astype(np.uint16) if not np.isnan(X).any() else X)
    return path.with_suffix(".npy")


def parquet(path, X):
    frame = pd.DataFrame(X, columns=[f"g{d}" for d in range(X.shape[1])]).astype("Int32")
    frame.to_parquet(path.with_suffix(".parquet"), row_group_size=70)
    return path.with_suffix(".parquet")


def matrix_market(path, X, kind=sp.csr_array):
    scipy.io.mmwrite(path.with_suffix(".mtx"), kind(X))
    return path.with_suffix(".mtx")


def by_columns(path, X):
    return matrix_market(path, X, sp.csc_array)


def gzipped(path, X):
    packed = path.with_suffix(".mtx.gz")
    packed.write_bytes(gzip.compress(by_columns(path, X).read_bytes()))
    return packed


def h5ad(path, X, kind=sp.csr_matrix):
    """With names of objects: anndata 0.12 does not write the strings of pandas 3."""
    names = (
        pd.DataFrame(index=pd.Index([f"{letter}{i}" for i in range(n)], dtype=object))
        for letter, n in zip("cg", X.shape, strict=True)
    )
    AnnData(kind(X), *names).write_h5ad(path.with_suffix(".h5ad"))
    return path.with_suffix(".h5ad")


def csc_h5ad(path, X):
    return h5ad(path, X, sp.csc_matrix)


def dense_h5ad(path, X):
    return h5ad(path, X, np.array)


WRITERS = [npy, parquet, matrix_market, by_columns, gzipped, h5ad, csc_h5ad, dense_h5ad]
SETTINGS = dict(n_starts=3, seed=2, max_iter=15)


@pytest.mark.parametrize(
    ("write", "missing"),
    [*((write, False) for write in WRITERS), *((write, True) for write in (npy, parquet, h5ad, csc_h5ad, dense_h5ad))],
)
def test_a_streamed_fit_is_the_fit_in_memory(write, missing, X, tmp_path):
    if missing:
        X = X.copy()
        X[np.random.default_rng(0).random(X.shape) < 0.1] = NAN
    memory = zipmix.fit(X, K, **SETTINGS)
    source = zipmix.stream(write(tmp_path / "x", X), block_rows=33)
    streamed = zipmix.fit(source, K, **SETTINGS)
    assert streamed.objective == pytest.approx(memory.objective, rel=1e-10)
    torch.testing.assert_close(streamed.trace, memory.trace, rtol=1e-10, atol=0)
    for one, other in zip(streamed.parameters, memory.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)
    assert source.n_rows == N
    assert streamed.names[1] in ("x1", "g1")
    torch.testing.assert_close(streamed.responsibilities(), memory.responsibilities(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(streamed.score_samples(source), memory.score_samples(X), rtol=1e-6, atol=1e-6)
    again = zipmix.load(streamed.save(tmp_path / "fit.nc"))
    torch.testing.assert_close(again.predict(X), memory.predict(X))
    with pytest.raises(InputError, match="ArviZ holds all data in memory"):
        streamed.to_arviz()


def test_what_a_streamed_fit_answers_is_what_one_in_memory_does(X):
    X = X.copy()
    X[3, 1] = NAN
    rows = zipmix.stream([X[:150], X[150:]])
    streamed = zipmix.fit(rows, K, n_starts=2, max_iter=20)
    for name in ("responsibilities", "score_samples", "affinity", "impute", "structural_zeros"):
        torch.testing.assert_close(getattr(streamed, name)(), getattr(streamed, name)(X), rtol=1e-12, atol=1e-12)
    at = streamed.parameters, streamed.prior
    assert zipmix.log_posterior(rows, *at).item() == pytest.approx(zipmix.log_posterior(X, *at).item(), rel=1e-12)


def test_shards_of_any_kind_are_one_table(X, tmp_path):
    parts = [npy(tmp_path / "a", X[:100]), X[100:150], sp.csr_array(X[150:300]), torch.from_numpy(X[300:])]
    streamed = zipmix.fit(zipmix.stream(parts, block_rows=64), K, **SETTINGS)
    assert streamed.objective == pytest.approx(zipmix.fit(X, K, **SETTINGS).objective, rel=1e-10)


def test_online_reads_a_stream_once(X, tmp_path, monkeypatch):
    source, passes = zipmix.stream(npy(tmp_path / "x", X), block_rows=50), []
    parts = type(source).parts
    monkeypatch.setattr(type(source), "parts", lambda self: passes.append(1) or parts(self))
    fitted = zipmix.fit(source, K, "online", n_starts=2)
    assert len(passes) == 1
    assert "400 rows in all" in fitted.reason


@pytest.mark.parametrize("method", ["gibbs", "cavi", "pyro_map", "exact"])
def test_methods_that_need_all_rows_say_so(method, X, tmp_path):
    with pytest.raises(InputError, match="X is a stream, which method 'em' reads"):
        zipmix.fit(zipmix.stream(npy(tmp_path / "x", X)), K, method)


@pytest.mark.parametrize(("value", "word"), [(-2.0, "negative"), (0.5, "fractional"), (np.inf, "infinite")])
@pytest.mark.parametrize("write", [npy, by_columns, h5ad, csc_h5ad, dense_h5ad])
def test_bad_cells_are_named_by_file_row_and_column(value, word, write, X, tmp_path):
    X = X.copy()
    X[217, 4] = value
    path = tmp_path / "bad.npy"
    np.save(path, X) if write is npy else (path := write(tmp_path / "bad", X))
    with pytest.raises(InputError, match=rf"{path.name}.* has 1 {word} cell\(s\), the first in row 217, column 4 \("):
        zipmix.fit(zipmix.stream([X[:5].clip(0, 9).round(), path][1:], block_rows=50), K, n_starts=1)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (npy, "is truncated"),
        (parquet, "is truncated"),
        (matrix_market, "truncated"),
        (gzipped, "truncated"),
        (h5ad, "is not a whole .h5ad file"),
        (csc_h5ad, "is not a whole .h5ad file"),
    ],
)
def test_a_truncated_file_is_refused_before_any_work(write, message, X, tmp_path):
    with pytest.raises(InputError, match=message):
        list(zipmix.stream(truncate(write(tmp_path / "half", X))))


def test_a_parquet_file_that_is_damaged_within_is_told_as_such(X, tmp_path):
    path = parquet(tmp_path / "x", X)
    path.write_bytes(path.read_bytes()[:40] + bytes(400) + path.read_bytes()[440:])
    with pytest.raises(InputError, match=r"x.parquet is damaged"):
        list(zipmix.stream(path))


def test_shards_that_differ_in_columns_are_refused_by_name(X, tmp_path):
    with pytest.raises(InputError, match=r"b.npy has 5 columns, and .*a.npy has 6"):
        zipmix.stream([npy(tmp_path / "a", X), npy(tmp_path / "b", X[:, :5])])
    frame = pd.DataFrame(X, columns=list("abcdef"))
    with pytest.raises(InputError, match=r"shard 1 has the column 'z' where shard 0 has 'c' \(column 2\)"):
        zipmix.stream([frame, frame.rename(columns={"c": "z"})])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "none.npy", "there is no file"),
        (lambda path: path / "x.csv", "is of a kind that is not streamed; allowed are .npy"),
        (lambda path: [], "empty list"),
        (lambda path: np.save(path / "x.npy", np.arange(3)) or path / "x.npy", r"must hold a table of numbers"),
        (lambda path: np.save(path / "x.npy", np.zeros((0, 3))) or path / "x.npy", "has 0 rows and 3 columns"),
        (lambda path: pd.DataFrame({"n": [1], "s": ["a"]}).to_parquet(path / "x.parquet") or path / "x.parquet",
         r"has no numbers in column 1 \('s'\)"),
        (lambda path: [np.eye(3), -np.eye(3)], "shard 1: X has 3 negative"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_refused_in_a_sentence(make, message, tmp_path):
    with pytest.raises(InputError, match=message):
        zipmix.stream(make(tmp_path))


@pytest.fixture
def screen(monkeypatch, capsys):
    """What is drawn on a terminal of 120 columns since it was last asked for."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda: re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)


def test_progress_shows_rows_per_second_and_time_left(X, tmp_path, screen):
    list(zipmix.stream(npy(tmp_path / "x", X), block_rows=50, progress=True))
    assert re.search(r"pass 1 ━+ 400 of 400 rows [\d,]+ rows/s 0:00:00", screen())


def test_progress_of_a_pass_stands_below_that_of_the_method(X, tmp_path, screen):
    """One display for both: two would draw over each other."""
    source = zipmix.stream(npy(tmp_path / "x", X), block_rows=50, progress=True)
    with progress_bar(2, "em", enabled=True) as advance:
        for _ in range(2):
            for _ in source:
                time.sleep(0.04)  # ten frames a second are drawn
            advance()
    both = r"em +[╸╺━ ]+ 1 of 2 .*\npass 2 [╸╺━ ]+ \d+ of 400 rows +[\d,]+ rows/s \d:\d\d:\d\d"
    assert re.search(both, screen())


LARGE = """
import sys, zipmix
fit = zipmix.fit(zipmix.stream(sys.argv[1], block_rows=20_000), 3, n_starts=1, max_iter=1)
print(*(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_a_file_is_never_in_memory_as_a_whole(tmp_path):
    """A file of 400 MB adds less than 150 MB to a process that has read one of 2 MB."""
    used = []
    for n_rows in (20_000, 4_000_000):
        path = tmp_path / f"{n_rows}.npy"
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n_rows, 100))
        file[::3, ::7] = 2
        del file
        done = subprocess.run([sys.executable, "-c", LARGE, str(path)], capture_output=True, text=True, check=True)
        used.append(float(done.stdout.split()[0]))
        path.unlink()
    assert used[1] - used[0] < 150e6
