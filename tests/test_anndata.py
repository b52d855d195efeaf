"""AnnData: what the package writes is what is read; in backed mode it is streamed, in memory it is fitted as it is."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import zipmix
from zipmix import InputError, Prior
from zipmix.counts.store import as_dense

N, D, K = 400, 6, 3
SETTINGS = dict(n_starts=3, seed=2, max_iter=15)


@pytest.fixture(scope="module")
def X():
    return zipmix.simulate(N, D, K, prior=Prior(a=1.0, b=3.0), seed=0).X.numpy()


def table_of(source):
    return np.concatenate([as_dense(table.X).numpy() for table in source])


def in_memory(X):
    """With names of objects: anndata 0.12 does not write the strings of pandas 3."""
    cells, genes = (
        pd.DataFrame(index=pd.Index([f"{letter}{i}" for i in range(n)], dtype=object))
        for letter, n in zip("cg", X.shape, strict=True)
    )
    return AnnData(X, obs=cells, var=genes)


def h5ad(path, X, kind=sp.csr_matrix):
    in_memory(kind(X)).write_h5ad(path.with_suffix(".h5ad"))
    return path.with_suffix(".h5ad")


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csr_array, sp.csc_matrix, np.array])
def test_what_anndata_writes_is_read_with_its_names(kind, dtype, X, tmp_path):
    source = zipmix.stream(h5ad(tmp_path / "x", X.astype(dtype), kind), block_rows=150)
    assert source.names == tuple(f"g{d}" for d in range(D))
    np.testing.assert_array_equal(table_of(source), X)


def test_names_that_may_have_gaps_are_read(X, tmp_path):
    """A nullable string array, as later versions of AnnData write names: its layout by hand."""
    with h5py.File(h5ad(tmp_path / "x", X), "r+") as file:
        names = file["var"]["_index"].asstr()[:]
        del file["var"]["_index"]
        group = file["var"].create_group("_index")
        group.attrs["encoding-type"] = "nullable-string-array"
        group["values"], group["mask"] = list(names), np.zeros(D, dtype=bool)
    assert zipmix.stream(tmp_path / "x.h5ad").names == tuple(names)


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, np.array])
def test_anndata_in_backed_mode_is_streamed_from_its_file(kind, mode, X, tmp_path, monkeypatch):
    backed = anndata.read_h5ad(h5ad(tmp_path / "x", X, kind), backed=mode)
    monkeypatch.setattr(AnnData, "to_memory", None)
    monkeypatch.setattr(AnnData, "X", property(lambda self: pytest.fail("the table is loaded")))
    alone = zipmix.stream(backed, block_rows=50)
    assert alone.shards[0].source == str(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(table_of(alone), X)
    shards = zipmix.stream([backed, pd.DataFrame(X[:7], columns=alone.names), tmp_path / "x.h5ad"])
    np.testing.assert_array_equal(table_of(shards), np.concatenate([X, X[:7], X]))
    assert zipmix.fit(alone, K, **SETTINGS).objective == pytest.approx(
        zipmix.fit(X, K, **SETTINGS).objective, rel=1e-10
    )
    # What is set on the object stands: the file keeps its old names.
    backed.var_names = [f"renamed {d}" for d in range(D)]
    assert zipmix.stream(backed).names[2] == "renamed 2"
    with pytest.raises(InputError, match="shard 0 is a view of an AnnData in backed mode"):
        zipmix.stream(backed[:50])
    with pytest.raises(InputError, match=r"AnnData in backed mode; pass zipmix.stream\(X\)"):
        zipmix.fit(backed, K)
    backed.file.close()


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, np.array])
def test_anndata_in_memory_is_fitted_as_it_is(kind, X):
    adata = in_memory(kind(X))
    fitted = zipmix.fit(adata, K, **SETTINGS)
    assert sp.issparse(fitted.X) == (kind is not np.array)
    assert fitted.names[1] == "g1"
    assert fitted.row_names[:2] == ("c0", "c1")
    assert fitted.objective == pytest.approx(zipmix.fit(X, K, **SETTINGS).objective, rel=1e-10)
    some = zipmix.fit(adata[100:200], K, **SETTINGS)
    assert some.row_names[0] == "c100"
    assert some.objective == pytest.approx(zipmix.fit(X[100:200], K, **SETTINGS).objective, rel=1e-10)
    np.testing.assert_array_equal(table_of(zipmix.stream(adata)), X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["X"].attrs.__setitem__("encoding-type", "coo_matrix"), "holds X as coo_matrix of float64"),
        (lambda file: file.__delitem__("var"), r"is not a whole .h5ad file with X and var"),
        (lambda file: file["X"].attrs.__setitem__("shape", (400, 9)), "has 9 columns in X and 6 in var"),
    ],
)
def test_h5ad_files_that_are_none_are_refused(change, message, X, tmp_path):
    with h5py.File(h5ad(tmp_path / "x", X), "r+") as file:
        change(file)
    with pytest.raises(InputError, match=message):
        zipmix.stream(tmp_path / "x.h5ad")


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize(("array", "value"), [("indices", 10**6), ("indices", -1), ("indptr", 10**6)])
def test_a_damaged_file_is_told_as_such(kind, array, value, X, tmp_path):
    with h5py.File(h5ad(tmp_path / "x", X, kind), "r+") as file:
        file["X"][array][3] = value
    with pytest.raises(InputError, match=r"x.h5ad is damaged"):
        list(zipmix.stream(tmp_path / "x.h5ad"))
