"""Equal rows are merged: the same sums, fits and errors, from fewer rows."""

import importlib

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import zipmix
from zipmix.counts import distinct as distinct_module
from zipmix.counts.distinct import distinct
from zipmix.counts.store import as_counts
from zipmix.counts.table import as_table
from zipmix.models.kernel import expectation, logs

NAN = float("nan")
FORMS = {"dense": lambda X: X, "integer": lambda X: X.astype(np.uint16), "csr": sp.csr_array}


def point(seed, d, batch=(4,), k=3):
    rng = np.random.default_rng(seed)
    pi, omega = rng.dirichlet(np.ones(k), size=batch), rng.beta(1, 1, size=(*batch, k, d))
    return zipmix.Parameters(*(torch.from_numpy(v) for v in (pi, omega, rng.gamma(1.0, 4.0, size=omega.shape))))


def close(got, want, tolerance=1e-10):
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1.0)


def n_distinct(X):
    return len(np.unique(np.nan_to_num(X, nan=-1.0), axis=0))


def repeated(seed, missing=0.0, scale=6.0, n=300, different=40, d=7):
    """A table in which rows occur many times, in no order."""
    rng = np.random.default_rng(seed)
    few = rng.poisson(scale, size=(different, d)) * (rng.random((different, d)) < 0.4).astype(float)
    few[rng.random(few.shape) < missing] = NAN
    return few[rng.integers(different, size=n)]


@pytest.mark.parametrize(
    ("form", "missing"), [("dense", 0.0), ("dense", 0.2), ("integer", 0.0), ("csr", 0.0), ("csr", 0.2)]
)
@pytest.mark.parametrize("scale", [6.0, 4000.0], ids=["few kinds", "many kinds"])
@pytest.mark.parametrize("power", [1.0, 0.3])
def test_distinct_rows_give_the_sums_of_all_rows(form, missing, scale, power):
    X, theta = repeated(1, missing=missing, scale=scale), point(2, d=7)
    every = as_counts(as_table(FORMS[form](X)).X)
    few = distinct(every)
    assert few.n_rows == n_distinct(X) < len(X)
    assert few.times_N.sum() == len(X)
    want, log_likelihood = expectation(every, logs(theta), power)
    got, got_log_likelihood = expectation(few, logs(theta), power)
    if power == 1:
        close(got_log_likelihood, log_likelihood)
    for a, b in zip(got, want, strict=True):
        close(a, b)
    close(few.totals(), every.totals(), 1e-14)


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_distinct_rows_in_float32_and_those_too_far_for_it(form):
    """A few distinct rows of large counts, which go through float64, many times over."""
    rng = np.random.default_rng(0)
    few = rng.poisson(2.0, size=(400, 100)) * (rng.random((400, 100)) < 0.5)
    few[::50] *= 3000
    X, theta = few[rng.integers(400, size=3000)].astype(float), point(3, d=100)
    counts = distinct(as_counts(as_table(FORMS[form](X)).X))
    single, value = expectation(counts, logs(theta), dtype=torch.float32)
    exact, exact_value = expectation(as_counts(as_table(X).X), logs(theta))
    assert not torch.equal(single.n, exact.n)
    assert (value - exact_value).abs().max() < 1e-4 * len(X)
    for a, b in zip(single, exact, strict=True):
        close(a, b, 1e-4)


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_a_missing_cell_is_no_zero(form):
    X = np.array([[0.0, 1.0], [NAN, 1.0]])[[0, 1, 0, 1, 1, 0, 1, 1]]
    counts = distinct(as_counts(as_table(FORMS[form](X)).X))
    assert sorted(counts.times_N.tolist()) == [3, 5]


def test_what_occurs_once_or_comes_in_a_stream_stays_as_it_is(tmp_path):
    counts = as_counts(as_table(np.arange(60).reshape(20, 3)).X)
    assert distinct(counts) is counts
    np.save(tmp_path / "x.npy", repeated(5).astype(np.uint8))
    stream = zipmix.stream(tmp_path / "x.npy")
    assert distinct(as_counts(stream)) is stream


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_rows_that_share_a_key_by_chance_are_no_equal_rows(form, monkeypatch):
    X = repeated(6)
    X[:, 0] = np.arange(len(X)) % 2
    monkeypatch.setattr(distinct_module, "_keys", lambda counts: np.zeros(counts.n_rows, dtype=np.uint64))
    counts = as_counts(as_table(FORMS[form](X)).X)
    assert distinct(counts) is counts


def test_rows_are_compared_in_portions(monkeypatch):
    monkeypatch.setattr(distinct_module, "CELLS", 50)
    X = repeated(7, missing=0.1)
    for form in (X, sp.csr_array(X)):
        assert distinct(as_counts(as_table(form).X)).n_rows == n_distinct(X)


@pytest.mark.parametrize(("method", "init"), [("em", "kmeans++"), ("em", "small-em"), ("cavi", "kmeans++")])
def test_a_fit_looks_at_distinct_rows_and_ends_where_that_of_all_rows_does(method, init, monkeypatch):
    X = zipmix.simulate(400, 3, 2, prior=zipmix.Prior(a=1.0, b=3.0), seed=1).X
    seen = set()

    def watched(counts, *args, **kwargs):
        seen.add(counts.n_rows)
        return expectation(counts, *args, **kwargs)

    module = importlib.import_module(f"zipmix.inference.{method}")
    start = importlib.import_module("zipmix.inference.start")
    for where in (module, start):
        monkeypatch.setattr(where, "expectation", watched)
    few = zipmix.fit(X, 2, method, init=init, n_starts=3)
    assert seen == {len(X.unique(dim=0))}
    for where in (module, start):
        monkeypatch.setattr(where, "distinct", lambda counts: counts)
    every = zipmix.fit(X, 2, method, init=init, n_starts=3)
    assert seen == {len(X.unique(dim=0)), len(X)}
    assert few.objective == pytest.approx(every.objective, rel=1e-11)
    close(few.parameters.lam.sort(0)[0], every.parameters.lam.sort(0)[0], 1e-4)
    assert few.responsibilities().shape == (len(X), 2)
