"""Sparse tables from a file to a report: read as they are, the same answers as dense ones, refused where too large."""

import gzip
import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
import pytest
import scipy.io
import scipy.sparse as sp
import torch
from anndata import AnnData
from typer.testing import CliRunner

import zipmix
from zipmix import InputError, load_data
from zipmix.cli import app
from zipmix.study.file import read_study

N, D = 60, 4
NAMES = tuple(f"g{d}" for d in range(D))


@pytest.fixture(scope="module")
def X():
    return zipmix.simulate(N, D, 2, prior=zipmix.Prior(a=1.0, b=3.0), seed=0).X.numpy()


def matrix_market(folder, X):
    scipy.io.mmwrite(folder / "x.mtx", sp.csc_array(X))
    return folder / "x.mtx"


def gzipped(folder, X):
    (folder / "X.MTX.GZ").write_bytes(gzip.compress(matrix_market(folder, X).read_bytes()))
    return folder / "X.MTX.GZ"


def parquet(folder, X):
    pd.DataFrame(X, columns=NAMES).to_parquet(folder / "x.parquet")
    return folder / "x.parquet"


def h5ad(kind):
    def write(folder, X):
        frames = (
            pd.DataFrame(index=pd.Index([f"{letter}{i}" for i in range(n)], dtype=object))
            for letter, n in zip("cg", X.shape, strict=True)
        )
        AnnData(kind(X), *frames).write_h5ad(folder / "x.h5ad")
        return folder / "x.h5ad"

    return write


WRITERS = {
    "mtx": matrix_market,
    "mtx.gz": gzipped,
    "parquet": parquet,
    "h5ad, CSR": h5ad(sp.csr_matrix),
    "h5ad, CSC": h5ad(sp.csc_matrix),
    "h5ad, dense": h5ad(lambda X: X.astype(np.int64)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_are_read_sparse_where_they_are(kind, X, tmp_path):
    path = WRITERS[kind](tmp_path, X)
    data = load_data(path)
    assert sp.issparse(data.X) == (kind not in ("parquet", "h5ad, dense"))
    np.testing.assert_array_equal(data.X_ND, X)
    assert data.X_ND.dtype == torch.float64
    assert data.names == (tuple(f"x{d}" for d in range(D)) if "mtx" in kind else NAMES)
    assert data.row_names == (tuple(f"c{i}" for i in range(N)) if "h5ad" in kind else None)
    assert data.source == str(path)
    fitted, expected = (zipmix.fit(table, 2, n_starts=2) for table in (data.X, X))
    assert sp.issparse(fitted.X) == sp.issparse(data.X)
    assert fitted.objective == pytest.approx(expected.objective, rel=1e-10)


def test_what_is_wrong_with_a_file_is_told_once(X, tmp_path):
    path = matrix_market(tmp_path, np.where(X == 0, X, X + 0.5))
    with pytest.raises(InputError, match=rf"^{path} has \d+ fractional cell\(s\), the first in row \d+, column \d"):
        load_data(path)


def test_commands_take_sparse_files(X, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(X, columns=NAMES, index=[f"c{i}" for i in range(N)]).to_csv("dense.csv", index_label="")
    WRITERS["h5ad, CSC"](tmp_path, X)
    # Of starts that end alike, rounding says which is the best, and with it the order of the components.
    one_start = "--set n_starts=1 --set split_merge=0"
    for file in ("x.h5ad", "dense.csv"):
        arguments = f"fit {file} -k 2 {one_start} --save {file}.nc --rows {file}.rows --impute {file}.full".split()
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    for written in ("rows", "full"):
        one, other = (pd.read_csv(f"{file}.{written}", index_col=0) for file in ("x.h5ad", "dense.csv"))
        pd.testing.assert_frame_equal(one, other, rtol=1e-6, atol=1e-9)
    assert sp.issparse(zipmix.load("x.h5ad.nc").X)


def test_a_comparison_of_a_sparse_file_is_that_of_its_table(X, tmp_path, monkeypatch):
    """All that needs single cells has them: methods, held-out scores, tables and JSON."""
    monkeypatch.chdir(tmp_path)
    matrix_market(tmp_path, X)
    pd.DataFrame(X, columns=[f"x{d}" for d in range(D)]).to_csv("x.csv", index=False)
    records = []
    for file in ("x.mtx", "x.csv"):
        folder = f"results of {file}"
        arguments = ["compare", file, "-k", "2", "-m", "em", "-m", "cavi", "--starts", "4", "--output", folder]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        records.append(json.loads((tmp_path / folder / "comparison.json").read_text()))
    sparse, dense = records
    assert sparse["data"] | {"source": ""} == dense["data"] | {"source": ""}
    for one, other in zip(sparse["methods"], dense["methods"], strict=True):
        assert one["log_posterior"] == pytest.approx(other["log_posterior"], rel=1e-9)
        assert one["held_out"]["cells"]["mean"] == pytest.approx(other["held_out"]["cells"]["mean"], rel=1e-6)


def test_a_study_knows_a_table_by_its_counts(X, tmp_path):
    matrix_market(tmp_path, X)
    np.save(tmp_path / "y.npy", X)
    (tmp_path / "study.toml").write_text('data = ["x.mtx", "y.npy"]\ncomponents = [2]\nmethods = ["em"]\n')
    one, other = read_study(tmp_path / "study.toml")[1]
    assert one.digest == other.digest


@pytest.mark.parametrize("kind", [sp.csr_array, zipmix.stream])
def test_figures_of_a_fit_to_sparse_counts_or_a_stream(kind, X):
    fitted, expected = (zipmix.fit(table, 2, n_starts=2) for table in (kind(X), X))
    assert repr(fitted).split(",")[0] == repr(expected).split(",")[0]
    for draw in (zipmix.plot_structural_zeros, lambda fit: zipmix.plot_rootogram(fit, 1)):
        bars = [[(bar.get_y(), bar.get_height()) for bar in draw(fit).patches] for fit in (fitted, expected)]
        np.testing.assert_allclose(*bars, atol=1e-6)
    plt.close("all")


@pytest.fixture
def little_memory(monkeypatch):
    """One MiB is free, and more than that is asked about."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    monkeypatch.setattr("zipmix.counts.memory.SMALL", 2**20)


WIDE = sp.csr_array(([3.0, 1.0], ([0, 7], [5, 999])), shape=(200, 1000))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("method", ["pyro_map", "pyro_svi", "pyro_nuts", "collapsed_gibbs"])
def test_a_sparse_table_too_large_to_be_made_dense_is_refused(method):
    with pytest.raises(
        InputError, match=r"X of 200 rows and 1000 columns as a dense table of float64 takes 1.5 MiB of "
    ):
        zipmix.fit(WIDE, 2, method)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("method", ["em", "online", "cavi", "gibbs"])
def test_methods_that_take_sparse_tables_need_no_dense_one(method):
    assert np.isfinite(zipmix.fit(WIDE, 2, method, **({"n_draws": 5} if method == "gibbs" else {})).objective)


@pytest.mark.usefixtures("little_memory")
def test_commands_tell_what_memory_does_not_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matrix_market(tmp_path, WIDE)
    done = CliRunner().invoke(app, ["compare", "x.mtx", "-k", "2"])
    assert isinstance(done.exception, InputError)
    assert "take fewer columns or rows, or one of the methods em, online, cavi and gibbs" in str(done.exception)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ["x.npy", "x.h5ad", "x.mtx"])
def test_a_file_that_memory_does_not_hold_is_refused(name, tmp_path):
    X = np.ones((400, 1000))
    {
        "x.npy": lambda: np.save(tmp_path / name, X),
        "x.mtx": lambda: matrix_market(tmp_path, X),
        "x.h5ad": lambda: h5ad(np.array)(tmp_path, X),
    }[name]()
    with pytest.raises(InputError, match=rf"{name}.* takes .* MiB of memory, and 1.0 MiB are free; .*zipmix.stream"):
        load_data(tmp_path / name)
