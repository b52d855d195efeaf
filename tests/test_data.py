"""Data by name and from files: what is read is what was written, and a pickle runs no code."""

import hashlib
import io
import os
import pickle
from collections import OrderedDict
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.datasets import load_digits

from zipmix import InputError, fit, load_data
from zipmix.counts.table import as_table
from zipmix.files.data import Data

NAN = float("nan")
TABLE = np.array([[0.0, 3, NAN], [12, NAN, 1], [0, 0, 7]])


def test_nmes1988_is_the_survey():
    data = load_data("nmes1988")
    assert data.names == ("visits", "nvisits", "ovisits", "novisits", "emergency", "hospital")
    assert tuple(data.X.shape) == (4406, 6)
    assert data.X.dtype == torch.float64
    assert data.labels is None
    assert "1987-88" in data.source
    # The file is read again by hand; the means are those of Deb and Trivedi (1997), table I: 5.77, 1.62, ...
    lines = files("zipmix").joinpath("datasets/nmes1988.csv").read_text().splitlines()
    np.testing.assert_array_equal(data.X, [[int(cell) for cell in line.split(",")] for line in lines[1:]])
    np.testing.assert_allclose(data.X.mean(0), [5.77, 1.62, 0.75, 0.54, 0.26, 0.30], atol=0.006)


def test_digits_keep_their_labels():
    data, source = load_data("digits"), load_digits()
    assert tuple(data.X.shape) == (1797, 64)
    np.testing.assert_array_equal(data.X, source.data)
    assert [int(label) for label in data.labels] == source.target.tolist()
    assert data.names[:2] + data.names[-1:] == ("pixel_0_0", "pixel_0_1", "pixel_7_7")


def test_data_go_straight_into_a_fit():
    assert fit(load_data("digits").X[:50], 2, n_starts=1).X.shape == (50, 64)


@pytest.mark.parametrize("gone", ["", "NA", "nan", "NaN", "NULL", "N/A"])
def test_csv(gone, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f'a,"b, c",d\n0,3,{gone}\n12,{gone},1\n0,0,7\n')
    data = load_data(path)
    np.testing.assert_array_equal(data.X, TABLE)
    assert data.names == ("a", "b, c", "d")
    assert data.source == str(path)
    assert data.labels is None
    assert load_data(str(path)).names == data.names


def test_csv_without_a_header_is_refused_and_no_row_lost(tmp_path):
    path = tmp_path / "bare.csv"
    path.write_text("1,0,2\n3,0,0\n")
    with pytest.raises(InputError, match=r"numbers alone in its first row \(1, 0, 2, \.\.\.\)"):
        load_data(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2,\n3,4,\n", r"3 cells in line 2 and 2 names in its header"),
        ("a,b\nfirst,1,2\n", r"3 cells in line 2 and 2 names in its header"),
        ("a,b,c\n1,2,3\n\n4,5\n", r"2 cells in line 4 and 3 names in its header"),
        ("a;b;c\n0,5;0,0;0,0\n", r"semicolons between its cells; save it with commas"),
        ("a\tb\n1\t2\n", r"tabs between its cells"),
        ("", r"empty file"),
        ('a,b\n1,"2\n', r"not a readable CSV table \(unexpected end of data\)"),
    ],
)
def test_csv_that_would_be_read_wrong_is_refused(tmp_path, content, words):
    path = tmp_path / "odd.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        load_data(path)


def test_a_column_of_names_is_told_from_a_cell_of_text(tmp_path):
    path = tmp_path / "ids.csv"
    path.write_text("id,a\np0,1\np1,0\n")
    with pytest.raises(InputError, match=r"column 0 \('id'\): 'p0' \(does it name the rows\?"):
        load_data(path)
    path.write_text("id,a\n4,1\np1,0\n")
    with pytest.raises(InputError, match=r"column 0 \('id'\): 'p1'; counts are"):
        load_data(path)


def test_commas_that_part_thousands_are_told_as_such(tmp_path):
    path = tmp_path / "thousands.csv"
    path.write_text('a,b\n3,"1,234"\n0,"12,345,678"\n')
    with pytest.raises(InputError, match=r"'1,234' \(does the comma part thousands\? then write them without it\)"):
        load_data(path)
    path.write_text('a,b\n3,"1,234"\n0,"1,23"\n')
    with pytest.raises(InputError, match=r"'1,234'; counts are"):
        load_data(path)


def test_csv_in_another_encoding_is_refused_as_such(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("größe,b\n1,2\n".encode("latin-1"))
    with pytest.raises(InputError, match="not text in UTF-8"):
        load_data(path)


def test_csv_whose_first_column_has_no_name_has_names_of_rows(tmp_path):
    path = tmp_path / "pandas.csv"
    path.write_text(",a,b\nfirst,1,0\nsecond,4,2\n")
    data = load_data(path)
    assert data.names == ("a", "b")
    assert data.X.tolist() == [[1.0, 0.0], [4.0, 2.0]]


def test_csv_with_a_byte_order_mark_and_windows_lines(tmp_path):
    path = tmp_path / "TABLE.CSV"
    path.write_bytes(b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4\r\n")
    assert load_data(path).names == ("a", "b")
    np.testing.assert_array_equal(load_data(path).X, [[1, 2], [3, 4]])


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint8", "bool"])
def test_npy(dtype, tmp_path):
    array = np.array([[0, 3], [1, 1]]).astype(dtype)
    np.save(tmp_path / "table.npy", array)
    data = load_data(tmp_path / "table.npy")
    np.testing.assert_array_equal(data.X, array.astype(float))
    assert data.names == ("x0", "x1")


def test_npy_of_objects_is_refused(tmp_path):
    np.save(tmp_path / "table.npy", np.array([[1, None]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"table\.npy: X is not a readable \.npy array: .*; save it with numpy\.save"):
        load_data(tmp_path / "table.npy")


PICKLED = {
    "tensor": torch.tensor(TABLE),
    "float32 tensor": torch.tensor(TABLE, dtype=torch.float32),
    "turned tensor": torch.tensor(TABLE.T.copy()).T,
    "integers": torch.tensor([[1, 2], [0, 3]]),
    "lists": [[1, 2], [0, 3]],
}


@pytest.mark.parametrize("key", ["X_ND", "Y_MD_obs"])
@pytest.mark.parametrize("kind", PICKLED)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_coursework_pickle(kind, key, protocol, tmp_path):
    path = tmp_path / "data.pkl"
    content = OrderedDict({key: PICKLED[kind], "seed": 617, "who": {"name": "x", "tags": {1, 2}}})
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    np.testing.assert_array_equal(load_data(path).X, np.asarray(PICKLED[kind], dtype=float))


def test_pickle_by_torch_save(tmp_path):
    torch.save({"X_ND": torch.tensor(TABLE)}, tmp_path / "new.pkl")
    torch.save({"X_ND": torch.tensor(TABLE)}, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    for name in ("new.pkl", "old.pkl"):
        np.testing.assert_array_equal(load_data(tmp_path / name).X, TABLE)


def test_pickle_without_the_key(tmp_path):
    for content in ({"X": [[1]]}, [1, 2], "text"):
        (tmp_path / "data.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match=r'without the coursework\'s key "X_ND"; save \{"X_ND": counts\}'):
            load_data(tmp_path / "data.pkl")


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(mark):
    """Pickles that would make a folder if they were believed."""
    return {
        "os": Runs(os.mkdir, mark),
        "system": Runs(os.system, f"mkdir {mark}"),
        "exec": Runs(exec, f"import os; os.mkdir({mark!r})"),
        "eval": Runs(eval, f"__import__('os').mkdir({mark!r})"),
        "import": Runs(__import__, "antigravity"),
        "getattr": Runs(getattr, "text", "upper"),
        "load": Runs(pickle.loads, pickle.dumps(Runs(os.mkdir, mark))),
        "torch.load": Runs(torch.load, mark),
        "numpy.load": Runs(np.load, mark),
        "object": Runs(object),
        "array": TABLE,
        "hash": Runs(hashlib.md5),
        "nested": {"X_ND": [[1, Runs(os.mkdir, mark)]]},
    }


@pytest.mark.parametrize("name", attacks("x"))
@pytest.mark.parametrize("wrapped", [False, True])
def test_malicious_pickle_is_refused_and_runs_nothing(name, wrapped, tmp_path):
    mark = tmp_path / "mark"
    attack = attacks(str(mark))[name]
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps({"X_ND": [[1]], "note": attack} if wrapped else attack))
    with pytest.raises(InputError, match=r"data\.pkl.*(holds|cannot be read).*only torch tensors, plain containers"):
        load_data(path)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_by_torch_save_is_refused(zipped, tmp_path):
    mark = tmp_path / "mark"
    torch.save({"X_ND": Runs(os.mkdir, str(mark))}, tmp_path / "data.pkl", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"only torch tensors, plain containers"):
        load_data(tmp_path / "data.pkl")
    assert not mark.exists()


def test_tensor_inside_a_malicious_storage_is_refused(tmp_path):
    """A tensor's bytes are a pickle of their own, which is read as strictly."""
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save(Runs(os.mkdir, str(mark)), buffer, _use_new_zipfile_serialization=False)
    inner = Runs(torch.storage._load_from_bytes, buffer.getvalue())
    (tmp_path / "data.pkl").write_bytes(pickle.dumps({"X_ND": inner}))
    with pytest.raises(InputError, match=r"only torch tensors, plain containers"):
        load_data(tmp_path / "data.pkl")
    assert not mark.exists()


FRAME = pd.DataFrame({"u": [0, 12, 0], "v": [3, None, 0], "w": pd.array([None, 1, 7], dtype="Int64")})


@pytest.mark.parametrize(
    ("X", "names"),
    [
        (TABLE, ("x0", "x1", "x2")),
        (TABLE.tolist(), ("x0", "x1", "x2")),
        (torch.tensor(TABLE, requires_grad=True), ("x0", "x1", "x2")),
        (np.array([[0, 3, None], [12, None, 1], [0, 0, 7]], dtype=object), ("x0", "x1", "x2")),
        (np.ma.masked_array(np.nan_to_num(TABLE, nan=99), mask=np.isnan(TABLE)), ("x0", "x1", "x2")),
        (FRAME, ("u", "v", "w")),
        (FRAME.rename(columns={"v": "u"}), ("u", "u", "w")),
        (FRAME.set_axis([1988, 1989, 1990], axis=1), ("1988", "1989", "1990")),
        (scipy.sparse.csr_array(TABLE), ("x0", "x1", "x2")),
        (scipy.sparse.coo_matrix(TABLE), ("x0", "x1", "x2")),
        (Data(torch.tensor(TABLE), ("u", "v", "w"), None, "a test"), ("u", "v", "w")),
    ],
)
def test_tables_of_every_kind(X, names):
    table = as_table(X)
    np.testing.assert_array_equal(table.X_ND, TABLE)
    assert table.X_ND.dtype == torch.float64
    assert table.names == names
    fitted = fit(X, 2, n_starts=2)
    assert fitted.names == names
    assert fitted.objective == pytest.approx(fit(TABLE, 2, n_starts=2).objective, rel=1e-12)


def test_what_load_data_returns_keeps_its_names(tmp_path):
    (tmp_path / "x.csv").write_text(",u,v\none,1,0\ntwo,0,3\n")
    data = load_data(tmp_path / "x.csv")
    fitted = fit(data, 1)
    assert (fitted.names, fitted.row_names) == (("u", "v"), ("one", "two"))
    assert torch.equal(fitted.predict(data), fitted.predict(data.X))


def test_a_sparse_table_without_any_count_is_a_table():
    for method in ("em", "cavi"):
        sparse, dense = (fit(X, 2, method, n_starts=2) for X in (scipy.sparse.csr_array((9, 3)), np.zeros((9, 3))))
        assert sparse.objective == pytest.approx(dense.objective, rel=1e-12)


def test_what_is_handed_over_is_not_changed():
    X, tensor = TABLE.copy(), torch.tensor(TABLE)
    for given in (X, tensor):
        fit(given, 2, n_starts=1).impute()
        np.testing.assert_array_equal(given, TABLE)
    fitted = fit(X, 2, n_starts=1)
    X[:] = 5
    np.testing.assert_array_equal(fitted.X, TABLE)
