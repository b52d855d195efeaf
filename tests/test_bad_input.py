"""What cannot be used is told in one sentence; what is unusual but allowed gives finite numbers."""

import datetime
import math
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from zipmix import FLAT, METHODS, InputError, Parameters, Prior, fit, load_data, log_posterior

NAN = float("nan")
GOOD = np.array([[0, 3], [2, 0], [1, 1], [0, 0]])
ALLOWED = r"counts are whole numbers >= 0, with NaN for a missing cell\.$"

BAD_TABLES = {
    "negative": (
        [[0, -2], [1, -1]],
        rf"^X has 2 negative cell\(s\), the first in row 0, column 1 \('x1'\): -2; {ALLOWED}",
    ),
    "fractional": ([[0, 2], [1.5, 1]], rf"^X has 1 fractional .* row 1, column 0 \('x0'\): 1\.5; {ALLOWED}"),
    "infinite": ([[0, math.inf]], rf"^X has 1 infinite .* row 0, column 1 \('x1'\): inf; {ALLOWED}"),
    "negative frame": (
        pd.DataFrame({"u": [1, 0], "v": [0, -3]}),
        rf"negative .* row 1, column 1 \('v'\): -3; {ALLOWED}",
    ),
    "text frame": (
        pd.DataFrame({"u": [1, 2], "v": [1, "many"]}),
        rf"non-numeric cell\(s\), .* row 1, column 1 \('v'\): 'many'; {ALLOWED}",
    ),
    "dates": (
        pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}),
        rf"non-numeric cell\(s\), .* column 0 \('t'\): .*; {ALLOWED}",
    ),
    "text": ("a table", rf"^X must be a table of numbers, got 'a table'; {ALLOWED}"),
    "text array": (
        np.array([["1", "two"]]),
        rf"^X must be a table of numbers, got 'two' in row 0, column 1; {ALLOWED}",
    ),
    "object array": (np.array([[1, "two"]], dtype=object), rf"got 'two' in row 0, column 1; {ALLOWED}"),
    "objects": (np.array([[1, {}]], dtype=object), rf"got \{{\}} in row 0, column 1; {ALLOWED}"),
    "date array": (np.array([[datetime.date(2020, 1, 1)]], dtype="M8[D]"), rf"got datetime\.date.* row 0.*; {ALLOWED}"),
    "complex": (np.array([[1 + 2j]]), rf"got \(1\+2j\) in row 0, column 0; {ALLOWED}"),
    "complex tensor": (torch.tensor([[1 + 2j]]), rf"^X must be .* got Tensor of torch\.complex64; {ALLOWED}"),
    "ragged": ([[1, 2], [3]], rf"^X must be a table of numbers, got \[1, 2\] in row 0; {ALLOWED}"),
    "dictionary": ({"X": 1}, rf"^X must be a table of numbers, got \{{'X': 1\}}; {ALLOWED}"),
    "one axis": (np.ones(3), r"^X must have two axes, rows and columns; got shape \(3,\)\. For .*X\[:, None\]\.$"),
    "three axes": (np.ones((2, 2, 2)), r"^X must have two axes, rows and columns; got shape \(2, 2, 2\)\.$"),
    "a number": (5, r"^X must have two axes, rows and columns; got shape \(\)\.$"),
    "nothing": (None, r"^X must have two axes, rows and columns; got shape \(\)\.$"),
    "no rows": (np.ones((0, 3)), r"^X must have at least one row and one column; got 0 rows and 3 columns\.$"),
    "no columns": (np.ones((3, 0)), r"^X must have at least one row and one column; got 3 rows and 0 columns\.$"),
    "empty frame": (pd.DataFrame(), r"^X must have at least one row and one column; got 0 rows and 0 columns\.$"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_table(name):
    X, words = BAD_TABLES[name]
    with pytest.raises(InputError, match=words) as caught:
        fit(X, 2)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=words):
        log_posterior(X, Parameters(torch.ones(1), torch.ones(1, 2), torch.ones(1, 2)))


BAD_SETTINGS = {
    "K = 0": (dict(n_components=0), r"^n_components must be a whole number >= 1, got 0\.$"),
    "K = 2.5": (dict(n_components=2.5), r"^n_components must be a whole number >= 1, got 2\.5\.$"),
    "K text": (dict(n_components="3"), r"^n_components must be a whole number >= 1, got '3'\.$"),
    "K True": (dict(n_components=True), r"^n_components must be a whole number >= 1, got True\.$"),
    "method": (dict(method="emm"), r"^method must be one of em, .*; got 'emm'\. Did you mean 'em'\?$"),
    "method type": (dict(method=None), r"^method must be one of em, .*; got None\.$"),
    "seed": (dict(seed=-1), r"^seed must be a whole number >= 0, got -1\.$"),
    "seed text": (dict(seed="x"), r"^seed must be a whole number >= 0, got 'x'\.$"),
    "prior type": (dict(prior=1.5), r"^prior must be a zipmix\.Prior, got float; write zipmix\.Prior\(alpha=1\.5\)\.$"),
    "prior text": (dict(prior=Prior(a="x")), r"^prior\.a must be a number or an array of numbers, got 'x'\.$"),
    "prior NaN": (dict(prior=Prior(e=NAN)), r"^prior\.e must be finite and greater than 0, got NaN\.$"),
    "prior infinite": (dict(prior=Prior(b=math.inf)), r"^prior\.b must be finite and greater than 0, got inf\.$"),
    "prior array": (
        dict(prior=Prior(a=torch.ones(2))),
        r"^prior\.a must be one number, got an array of shape \(2,\)\.$",
    ),
    "alpha shape": (
        dict(prior=Prior(alpha=[1.0] * 3)),
        r"^prior\.alpha must be one number or one per .*\(2\), got shape \(3,\)\.$",
    ),
    "alpha values": (
        dict(prior=Prior(alpha=[1.0, -2.0])),
        r"^prior\.alpha must be .* greater than 0, got values from -2 to 1\.$",
    ),
    "f = 0": (
        dict(prior=Prior(f=0)),
        r"^prior\.f must be .* greater than 0 \(0 only with e = 1, the flat prior\), got 0\.$",
    ),
    "n_starts": (dict(n_starts=0), r"^n_starts must be a whole number >= 1, got 0\.$"),
    "max_iter": (dict(max_iter=1.5), r"^max_iter must be a whole number >= 1, got 1\.5\.$"),
    "tolerance": (dict(tolerance=-1.0), r"^tolerance must be a finite number >= 0, got -1\.0\.$"),
    "tolerance NaN": (dict(tolerance=NAN), r"^tolerance must be a finite number >= 0, got nan\.$"),
    "tolerance text": (dict(tolerance="small"), r"^tolerance must be a finite number >= 0, got 'small'\.$"),
    "accelerate": (dict(accelerate="no"), r"^accelerate must be True or False, got 'no'\.$"),
    "init": (dict(init="random"), r"^init must be one of 'kmeans\+\+', 'small-em', 'prior'; got 'random'\.$"),
    "start": (dict(start=3), r"^start must be a zipmix\.Parameters\(pi, omega, lam\), got int\.$"),
    "init flat": (dict(init="prior", prior=FLAT), r"^prior\.f is 0, .* method \"init='prior'\" needs f > 0"),
    "rate": (dict(method="pyro_map", learning_rate=0), r"^learning_rate must be a finite number > 0, got 0\.$"),
    "n_adam": (dict(method="pyro_map", n_adam=-1), r"^n_adam must be a whole number >= 0, got -1\.$"),
    "svi rate": (
        dict(method="pyro_svi", learning_rate="big"),
        r"^learning_rate must be a finite number > 0, got 'big'\.$",
    ),
    "n_steps": (dict(method="pyro_svi", n_steps=0), r"^n_steps must be a whole number >= 1, got 0\.$"),
    "n_particles": (dict(method="pyro_svi", n_particles=0), r"^n_particles must be a whole number >= 1, got 0\.$"),
    "n_draws": (dict(method="gibbs", n_draws=0), r"^n_draws must be a whole number >= 1, got 0\.$"),
    "n_chains": (dict(method="gibbs", n_chains=None), r"^n_chains must be a whole number >= 1, got None\.$"),
    "n_warmup": (dict(method="gibbs", n_warmup=-5), r"^n_warmup must be a whole number >= 0, got -5\.$"),
} | {
    f"{field} = {value}": (
        dict(prior=Prior(**{field: value})),
        rf"^prior\.{field} must be finite and greater than 0.*, got {value:g}\.$",
    )
    for field in Prior._fields
    for value in (0.0, -1.0)
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_setting(name):
    settings, words = BAD_SETTINGS[name]
    with pytest.raises(InputError, match=words) as caught:
        fit(GOOD, **(dict(n_components=2) | settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["em", "pyro_map"])
@pytest.mark.parametrize("field", ["alpha", "a", "b", "e"])
def test_map_that_does_not_exist(method, field):
    words = rf"^prior\.{field} is 0\.5, and below 1 the posterior is unbounded: there is no MAP for method '{method}'"
    with pytest.raises(InputError, match=words) as caught:
        fit(GOOD, 2, method, prior=Prior(**{field: 0.5}))
    # The methods that the sentence names do work.
    named = [name for name in METHODS if f"'{name}'" in str(caught.value) and name != method]
    assert {"gibbs", "cavi"} <= set(named)
    few = {"gibbs": dict(n_draws=5, n_warmup=0), "pyro_svi": dict(n_steps=2, n_draws=2)}
    for name in named:
        assert math.isfinite(fit(GOOD, 2, name, prior=Prior(**{field: 0.5}), **few.get(name, {})).objective)


@pytest.mark.parametrize("method", ["pyro_map", "pyro_svi", "gibbs", "cavi"])
def test_flat_prior_is_for_em_alone(method):
    words = rf"^prior\.f is 0, a flat prior on lambda that is no distribution: method '{method}' needs f > 0"
    with pytest.raises(InputError, match=words):
        fit(GOOD, 2, method, prior=FLAT)


@pytest.mark.parametrize("method", METHODS)
def test_setting_that_a_method_does_not_have_is_a_type_error(method):
    with pytest.raises(TypeError, match=rf"^method '{method}' has no setting 'n_foo'; it has .*"):
        fit(GOOD, 2, method, n_foo=3)
    with pytest.raises(TypeError):
        METHODS[method](GOOD, 2, n_foo=3)


def test_setting_that_is_nearly_right_is_suggested():
    with pytest.raises(TypeError, match=r"has no setting 'n_start'; .* Did you mean 'n_starts'\?$"):
        fit(GOOD, 2, n_start=3)


def test_rows_that_do_not_fit_the_fit():
    fitted = fit(GOOD, 2, n_starts=1)
    for ask in (fitted.responsibilities, fitted.predict, fitted.score_samples, fitted.impute, fitted.affinity):
        with pytest.raises(InputError, match=r"^X must have the 2 columns of the fit; got 3\.$"):
            ask(np.ones((4, 3)))
        with pytest.raises(InputError, match=r"negative"):
            ask([[1, -1]])


BAD_FILES = {
    "negative.csv": ("a,b\n1,-2\n", r"negative\.csv: X has 1 negative cell.* row 0, column 1 \('b'\): -2"),
    "text.csv": ("a,b\n1,two\n", r"text\.csv: X has 1 non-numeric cell\(s\), .* column 1 \('b'\): 'two'"),
    "empty.csv": ("", r"empty\.csv: X is an empty file; write a header row, then a row of counts for each line\.$"),
    "header.csv": ("a,b\n", r"header\.csv: X must have at least one row and one column; got 0 rows"),
    "ragged.csv": (
        "a,b\n1,2\n1,2,3,4\n",
        r"ragged\.csv: X has 4 cells in line 3 and 2 names in its header; give every column a name",
    ),
    "binary.csv": (
        b"\xff\xfe\x00\x01\n\x80",
        r"binary\.csv: X is a CSV file that is not text in UTF-8; save it again as such\.$",
    ),
    "text.npy": ("1 2 3", r"text\.npy: X is not a readable \.npy array: .*; save it with numpy\.save"),
    "empty.npy": (b"", r"empty\.npy: X is not a readable \.npy array"),
    "text.pkl": ("1 2 3", r"text\.pkl.* cannot be read as a pickle"),
    "table.xlsx": ("", r"^data: '.*table\.xlsx' is of a kind that is not read; allowed are \.csv, "),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(name, tmp_path):
    content, words = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words) as caught:
        load_data(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.csv", r"^data: there is no file 'nowhere\.csv'; give a path or one of nmes1988, digits"),
        ("nmes", r"^data: 'nmes' is neither a data set of zipmix .* nor a file ending in .*Did you mean 'nmes1988'\?$"),
        (7, r"^data: '7' is neither a data set of zipmix"),
    ],
)
def test_missing_file(name, words):
    with pytest.raises(InputError, match=words):
        load_data(name)


def test_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"^data: there is no file .*folder\.csv"):
        load_data(tmp_path / "folder.csv")


UNUSUAL = {
    "all zero": np.zeros((5, 3)),
    "rows and columns of zeros": [[0, 0, 3], [0, 0, 0], [0, 2, 1], [0, 5, 0]],
    "a row all missing": [[NAN, NAN], [1, 0], [3, NAN], [0, 0]],
    "a column all missing": [[NAN, 2], [NAN, 0], [NAN, 1]],
    "all missing": np.full((3, 2), NAN),
    "one row": [[3, 0]],
    "one cell": [[0]],
    "fewer rows than components": [[3, 0], [0, 1]],
    "one column": [[3], [0], [9]],
    "counts of a million": [[1e6, 0], [0, 999_999], [1e6, 1e6]],
    "all rows the same": np.full((4, 2), 4),
    "a single one": [[0, 0], [0, 1], [0, 0], [0, 0]],
}
PRIORS = {
    "default": Prior(),
    "boundary": Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=1e-3),
    "flat": FLAT,
    "sparse": Prior(alpha=0.01, a=0.3, b=0.3, e=0.3, f=0.01),
    "strong": Prior(alpha=1e6, a=1e6, b=1e6, e=1e6, f=1e6),
}
RUNS = {
    "em": (dict(n_starts=4, max_iter=300), ("default", "boundary", "flat", "strong")),
    "pyro_map": (dict(n_adam=2, max_iter=8), ("default", "boundary")),
    "pyro_svi": (dict(n_steps=4, n_draws=5), ("default", "boundary", "sparse", "strong")),
    "gibbs": (dict(n_draws=15, n_warmup=3, n_chains=2), ("default", "boundary", "sparse", "strong")),
}


@pytest.mark.parametrize(
    ("method", "prior"), [(method, prior) for method, (_, names) in RUNS.items() for prior in names]
)
def test_never_nan(method, prior):
    """Every number of a fit, and of what can be asked of it, is finite, with K = 3 and K = 1; nothing even warns."""
    settings = RUNS[method][0]
    for (name, X), K in [(item, K) for item in UNUSUAL.items() for K in ((3,) if method == "pyro_map" else (3, 1))]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted = fit(X, K, method, prior=PRIORS[prior], **settings)
        where = f"{name}, K = {K}"
        assert math.isfinite(fitted.objective), where
        if method != "pyro_svi":
            held = log_posterior(X, fitted.parameters, PRIORS[prior]).item()
            assert fitted.objective == pytest.approx(held, rel=1e-9, abs=1e-9), where
        pi, omega, lam = fitted.parameters
        assert ((omega >= 0) & (omega <= 1)).all(), where
        assert ((lam >= 0) & lam.isfinite()).all(), where
        assert pi.sum().item() == pytest.approx(1), where
        N, D = fitted.X.shape
        answers = {
            "responsibilities": (fitted.responsibilities(), (N, K)),
            "scores": (fitted.score_samples(), (N,)),
            "affinity": (fitted.affinity(), (N, N)),
            "impute": (fitted.impute(), (N, D)),
            "structural zeros": (fitted.structural_zeros(), (N, D)),
            "trace": (fitted.trace, fitted.trace.shape),
        } | ({name: (value, value.shape) for name, value in fitted.draws._asdict().items()} if fitted.draws else {})
        for what, (value, shape) in answers.items():
            assert value.shape == shape, f"{where}: {what}"
            assert value.isfinite().all(), f"{where}: {what}"
        np.testing.assert_allclose(fitted.responsibilities().sum(1), 1, err_msg=where)


def test_autodiff_map_of_a_column_that_is_all_missing():
    """The modes of its rates are 0, minus infinity on the scale of the search, which stops short of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(UNUSUAL["a column all missing"], 2, "pyro_map", prior=PRIORS["boundary"], n_adam=10, max_iter=60)
    assert (fitted.trace.diff()[10:] >= -1e-9).all()
    assert fitted.objective == pytest.approx(fit(fitted.X, 2, prior=PRIORS["boundary"]).objective, abs=1e-3)
    assert (fitted.parameters.lam[:, 0] < 1e-6).all()


def test_import_is_light():
    """`import zipmix` and `zipmix --help` do not wait for torch, Pyro, ArviZ or pandas."""
    heavy = "torch", "pyro", "arviz", "pandas", "scipy", "sklearn", "numpy", "xarray", "matplotlib"
    code = f"import sys, zipmix; print([m for m in {heavy} if m in sys.modules], 'fit' in dir(zipmix))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_public_names_are_there_and_others_are_not():
    import zipmix

    for name in zipmix.__all__:
        assert getattr(zipmix, name) is not None
    with pytest.raises(AttributeError, match=r"module 'zipmix' has no attribute 'fitt'"):
        zipmix.fitt  # noqa: B018


def test_counts_too_large_to_be_told_from_log_zero_are_refused():
    with pytest.raises(
        InputError, match=r"1 too large \(over 1e12\) cell\(s\), the first in row 0, column 1 .*: 1e\+19; "
    ):
        fit([[1, 1e19], [3, 2]], 1)
    assert np.isfinite(fit([[1, 1e12], [3, 2]], 1).objective)
