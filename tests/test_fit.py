"""Fit: what it answers against enumeration, what it saves, and what ArviZ makes of it."""

import dataclasses
import itertools
import json
import math
import warnings

import arviz as az
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from scipy import stats
from scipy.sparse import csr_array

from zipmix import FLAT, InputError, Parameters, Prior, fit, load, log_evidence_exact, simulate
from zipmix.counts.table import as_table
from zipmix.inference.loo import loo
from zipmix.inference.restarts import Restarts
from zipmix.models.parameters import check_prior
from zipmix.models.zip_mixture import log_density

NAN = float("nan")
NEW = np.array([[0.0, NAN, 2], [NAN, NAN, NAN], [5, 0, NAN], [0, 0, 0], [NAN, 3, 0]])


def table(missing=True):
    X = simulate(14, 3, 2, seed=3).X
    if missing:
        X[0, 1], X[3, 0], X[3, 2], X[7] = NAN, NAN, NAN, NAN
    return X


def fits():
    X = table()
    start = simulate(1, 3, 2, seed=4).parameters
    return {
        "em": fit(X, 2, n_starts=3),
        "em from a start": fit(X, 2, start=start, accelerate=False, max_iter=7),
        "ml": fit(X, 2, prior=FLAT, n_starts=2, max_iter=30),
        "unequal alpha": fit(X, 2, prior=Prior(alpha=[1.5, 2.5]), n_starts=1),
        "pyro_map": fit(X, 2, "pyro_map", n_adam=3, max_iter=3, n_starts=2),
        "pyro_svi": fit(X, 2, "pyro_svi", n_steps=5, n_draws=30),
        "gibbs": fit(X, 2, "gibbs", n_draws=20, n_warmup=5, n_chains=3),
    }


@pytest.fixture(scope="module")
def fitted():
    return fits()


def points_of(one):
    """The points that a fit averages over, as NumPy arrays: its parameters, or all of its (fewer than 200) draws."""
    if one.draws is None:
        return [tuple(field.numpy() for field in one.parameters)]
    pi, omega, lam = (field.flatten(0, 1).numpy() for field in one.draws)
    return list(zip(pi, omega, lam, strict=True))


def enumerate_row(row, pi, omega, lam, largest=80):
    """P(z = k | x), P(b_d = 0 | x) and E[x_d | x] of one row: sums over z, over every b, and over missing counts."""
    K, D = omega.shape
    z_mass, off_mass, mean_mass = np.zeros(K), np.zeros(D), np.zeros(D)
    counts = np.arange(largest)
    for k in range(K):
        for b in itertools.product((0, 1), repeat=D):
            mass, expected = pi[k], np.zeros(D)
            for d, x in enumerate(row):
                mass *= omega[k, d] if b[d] else 1 - omega[k, d]
                pmf = stats.poisson.pmf(counts, lam[k, d]) if b[d] else 1.0 * (counts == 0)
                mass *= 1 if math.isnan(x) else pmf[int(x)]
                expected[d] = pmf @ counts if math.isnan(x) else x
            z_mass[k] += mass
            off_mass += mass * (1 - np.array(b))
            mean_mass += mass * expected
    total = z_mass.sum()
    return z_mass / total, off_mass / total, mean_mass / total, math.log(total)


@pytest.mark.parametrize("name", ["em", "ml", "gibbs", "pyro_svi"])
@pytest.mark.parametrize("X", [None, NEW])
def test_answers_are_those_of_enumeration(fitted, name, X):
    one = fitted[name]
    rows = one.X.numpy() if X is None else X
    answers = [[enumerate_row(row, *point) for row in rows] for point in points_of(one)]
    R_SNK, off_SND, mean_SND = (np.array([[row[j] for row in point] for point in answers]) for j in range(3))
    np.testing.assert_allclose(one.impute(X), mean_SND.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.structural_zeros(X), off_SND.mean(0), rtol=1e-9, atol=1e-12)
    affinity = np.einsum("snk,smk->nm", R_SNK, R_SNK) / len(R_SNK)
    np.fill_diagonal(affinity, 1)
    np.testing.assert_allclose(one.affinity(X), affinity, rtol=1e-9, atol=1e-12)
    at_the_point = [enumerate_row(row, *(field.numpy() for field in one.parameters)) for row in rows]
    R_NK = np.array([row[0] for row in at_the_point])
    np.testing.assert_allclose(one.responsibilities(X), R_NK, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.score_samples(X), [row[3] for row in at_the_point], rtol=1e-9, atol=1e-12)
    assert (one.predict(X).numpy() == R_NK.argmax(1)).all()


def test_columns_in_another_order_are_refused():
    """Frames are told by the names of their columns; bare numbers are taken as they come."""
    X = pd.DataFrame(table(missing=False).numpy(), columns=["a", "b", "c"])
    one = fit(X, 2, n_starts=1)
    words = r"^X must have the columns of the fit in the same order; got 'c' in the place of 'b' \(column 1\)\."
    with pytest.raises(InputError, match=words):
        one.predict(X[["a", "c", "b"]])
    scores = one.score_samples(X)
    assert torch.equal(one.score_samples(X.to_numpy()), scores)
    assert torch.equal(fit(X.to_numpy(), 2, n_starts=1).score_samples(X), scores)


def test_imputing_beats_the_mean_of_the_column_and_zero_filling():
    """Two clusters, three of five columns hidden: zeros in their place would speak for the lower cluster."""
    omega, lam = (
        torch.full((2, 5), 0.95, dtype=torch.float64),
        torch.tensor([[2.0] * 5, [9.0] * 5], dtype=torch.float64),
    )
    theta = Parameters(torch.tensor([0.5, 0.5], dtype=torch.float64), omega, lam)
    X, test = (simulate(400, 5, 2, parameters=theta, seed=seed).X for seed in (1, 2))
    hidden, filled = test.clone(), test.clone()
    hidden[:, :3], filled[:, :3] = NAN, 0.0
    one = fit(X, 2, n_starts=5)

    def rmse(prediction):
        return (prediction - test[:, :3]).pow(2).mean().sqrt().item()

    naive = rmse(X[:, :3].mean(0))
    mistaken = (one.responsibilities(filled) @ (one.parameters.omega * one.parameters.lam))[:, :3]
    assert rmse(one.impute(hidden)[:, :3]) < min(0.8 * naive, 0.95 * rmse(mistaken))
    assert torch.equal(one.impute(hidden)[:, 3:], test[:, 3:])


def test_more_draws_than_are_averaged_are_spread_evenly():
    one = fit(table(), 2, "gibbs", n_draws=150, n_warmup=0, n_chains=2)
    kept = np.round(np.linspace(0, 299, 200)).astype(int)
    points = [points_of(one)[s] for s in kept]
    expected = np.mean([enumerate_row(NEW[0], *point)[2] for point in points], 0)
    np.testing.assert_allclose(one.impute(NEW)[0], expected, rtol=1e-9)


def test_fit_cannot_be_changed(fitted):
    with pytest.raises(dataclasses.FrozenInstanceError):
        fitted["em"].objective = 0.0


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


@pytest.mark.parametrize("name", ["em", "em from a start", "ml", "unequal alpha", "pyro_map", "pyro_svi", "gibbs"])
def test_save_and_load_give_back_the_same_fit(fitted, name, tmp_path):
    one = dataclasses.replace(fitted[name], names=("a b", "x/y", "a b"))
    path = one.save(tmp_path / "fit.nc")
    assert path == tmp_path / "fit.nc"
    again = load(str(path))
    for item in dataclasses.fields(one):
        assert_same(getattr(one, item.name), getattr(again, item.name))
    assert_same(one.impute(NEW), again.impute(NEW))
    if one.restarts is not None:
        assert isinstance(again.restarts, Restarts)
        assert again.restarts.table().equals(one.restarts.table())
    # Settings repeat the fit.
    if name in ("em", "gibbs"):
        repeated = fit(again.X, 2, again.method, prior=again.prior, seed=again.seed, **again.settings)
        assert_same(repeated.parameters, one.parameters)


def test_settings_may_be_numbers_of_numpy_and_lists(tmp_path):
    """Seeds come from np.arange, tolerances from np.logspace; a start may have been read from JSON."""
    start = Parameters([0.5, 0.5], [[0.5] * 3] * 2, np.array([[1.0] * 3, [5] * 3]))
    one = fit(table(), 2, seed=np.int64(3), max_iter=np.int64(4), tolerance=np.float32(0.5), start=start)
    again = load(one.save(tmp_path / "fit.nc"))
    assert again.seed == 3
    assert again.settings["max_iter"] == 4
    assert again.settings["tolerance"] == 0.5
    assert [field.tolist() for field in again.settings["start"]] == [np.asarray(field).tolist() for field in start]


def test_existing_file_is_not_overwritten_unasked(fitted, tmp_path):
    path = tmp_path / "fit.nc"
    fitted["em"].save(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"^path: .*fit\.nc exists already; .* or pass overwrite=True"):
        fitted["gibbs"].save(path)
    assert path.read_bytes() == before
    fitted["gibbs"].save(path, overwrite=True)
    assert load(path).method == "gibbs"
    with pytest.raises(InputError, match=r"^path: the folder .*nowhere does not exist; make it first"):
        fitted["em"].save(tmp_path / "nowhere" / "fit.nc")
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.nc"]


@pytest.mark.parametrize("fails_at", [0, 3])
def test_file_is_written_whole_or_not_at_all(fitted, tmp_path, monkeypatch, fails_at):
    path = tmp_path / "fit.nc"
    fitted["em"].save(path)
    before = path.read_bytes()
    write, calls = xr.Dataset.to_netcdf, itertools.count()

    def full(*arguments, **settings):
        if next(calls) == fails_at:
            raise OSError("no space left on device")
        return write(*arguments, **settings)

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(OSError, match="no space"):
        fitted["gibbs"].save(path, overwrite=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.nc"]


def test_what_is_no_fit_is_not_loaded(fitted, tmp_path):
    with pytest.raises(InputError, match=r"^path: there is no file .*fit\.nc"):
        load(tmp_path / "fit.nc")
    (tmp_path / "text.nc").write_text("no fit")
    xr.Dataset({"x": ("i", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    for name in ("text.nc", "other.nc"):
        with pytest.raises(InputError, match=rf"^path: .*{name} is not a fit that zipmix has saved"):
            load(tmp_path / name)
    whole = fitted["em"].save(tmp_path / "whole.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"^path: .*cut\.nc is not a fit that zipmix has saved"):
        load(tmp_path / "cut.nc")


@pytest.mark.parametrize(
    ("reason", "said", "ending", "converged"),
    [
        ("the objective rose by no more than 1e-12 (relative) in two iterations running", True, "converged", True),
        ("2 of 2 runs reached max_iter = 2 before the objective settled to 1e-12", False, "max_iter", False),
        ("L-BFGS: ABNORMAL; largest gradient 1.0e-01", False, "max_iter", False),
        ("interrupted by the user before round 1 of split and merge", True, "interrupted", False),
        ("its budget of time ended before round 1 of split and merge", True, "budget", False),
        ("interrupted by its budget of time: read 2 chunks of the table, 20 rows in all", False, "budget", False),
        ("took all 400 iterations; R-hat of the log posterior over 4 chains is 1.001", True, "completed", True),
        ("read 9 chunks of the stream, 90 rows in all", True, "completed", True),
        ("summed over all 5 partitions; the log evidence is -3.000000", True, "completed", True),
    ],
)
def test_a_file_without_an_ending_says_it_in_its_reason(fitted, reason, said, ending, converged, tmp_path):
    path = fitted["em"].save(tmp_path / "fit.nc")
    with xr.open_dataset(path, engine="h5netcdf") as root:
        record = json.loads(root.attrs["zipmix"])
    del record["ending"]
    older = json.dumps(record | {"format": 1, "reason": reason, "converged": said})
    xr.Dataset(attrs={"zipmix": older}).to_netcdf(path, mode="a", engine="h5netcdf")
    again = load(path)
    assert again.reason == reason
    assert again.ending == ending
    assert again.converged is converged


def test_fit_of_a_newer_version_is_refused(fitted, tmp_path):
    path = fitted["em"].save(tmp_path / "fit.nc")
    with xr.open_dataset(path, engine="h5netcdf") as root:
        metadata = json.loads(root.attrs["zipmix"])
    newer = json.dumps(metadata | {"format": 999, "version": "9.9"})
    xr.Dataset(attrs={"zipmix": newer}).to_netcdf(path, mode="a", engine="h5netcdf")
    with pytest.raises(InputError, match=r"was saved by a newer zipmix \(9\.9\); install that version"):
        load(path)


def test_arviz_reads_the_saved_file(fitted, tmp_path):
    one = fitted["gibbs"]
    read = az.from_netcdf(one.save(tmp_path / "fit.nc"))
    np.testing.assert_array_equal(read["posterior"]["lam"], one.draws.lam)
    np.testing.assert_array_equal(read["observed_data"]["x"], one.X)


@pytest.mark.parametrize("name", ["em", "pyro_svi", "gibbs"])
def test_arviz_groups(fitted, name):
    one = fitted[name]
    data = one.to_arviz()
    draws = one.draws or Parameters(*(field[None, None] for field in one.parameters))
    C, S = draws.pi.shape[:2]
    assert dict(data["posterior"].sizes) == {"chain": C, "draw": S, "component": 2, "feature": 3}
    np.testing.assert_array_equal(data["posterior"]["omega"], draws.omega)
    assert list(data["posterior"]["feature"].values) == ["x0", "x1", "x2"]
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "observation")
    for c, s in ((0, 0), (C - 1, S - 1)):
        point = Parameters(*(field[c, s] for field in draws))
        value = log_density(one.X, point, check_prior(one.prior, 2)).item()
        assert float(data["sample_stats"]["lp"][c, s]) == pytest.approx(value, rel=1e-10)
        rows = [enumerate_row(row, *(field.numpy() for field in point))[3] for row in one.X.numpy()]
        np.testing.assert_allclose(data["log_likelihood"]["x"][c, s], rows, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(data["observed_data"]["x"], one.X)


def test_arviz_summary_is_that_of_the_draws(fitted):
    one = fitted["gibbs"]
    summary = az.summary(one.to_arviz(), round_to="none")
    assert len(summary) == 2 + 6 + 6
    assert summary.loc["lam[1, x2]", "mean"] == pytest.approx(one.draws.lam[..., 1, 2].mean().item())
    assert summary.loc["pi[0]", "sd"] == pytest.approx(one.draws.pi[..., 0].std().item())
    assert (summary["r_hat"] > 0.9).all()


def test_arviz_loo_is_the_ratio_of_exact_evidences():
    """log p(x_i | the other rows) = log p(X) - log p(X without row i), for draws of the exact posterior."""
    X = table()[:7]
    one = fit(X, 2, "exact", n_draws=4000)
    found = az.loo(one.to_arviz(), pointwise=True)
    everything = log_evidence_exact(X, 2)
    exact = [everything - log_evidence_exact(torch.cat([X[:i], X[i + 1 :]]), 2) for i in range(7)]
    # 4000 independent draws leave PSIS an error of a few hundredths where Pareto's k is below 0.7, as it is here.
    assert (found.pareto_k < 0.7).all()
    np.testing.assert_allclose(found.loo_i, exact, atol=0.1)
    assert found.elpd_loo == pytest.approx(sum(exact), abs=0.2)


@pytest.mark.parametrize("form", [np.asarray, csr_array])
def test_loo_of_a_row_of_which_nothing_is_observed(form):
    """It changes nothing: its score is 0 under every draw."""
    X = table(missing=False).numpy()
    with_row = np.insert(X, 3, NAN, axis=0)
    one = fit(X, 2, "gibbs", n_draws=60, n_warmup=20)
    more = dataclasses.replace(one, X=as_table(form(with_row)).X)
    assert loo(more) == pytest.approx(loo(one), rel=1e-9)
    assert loo(dataclasses.replace(one, X=torch.full((2, 3), NAN))) == (0, 0, 0, 0)


def test_arviz_compares_fits():
    X = torch.cat([simulate(60, 3, 1, seed=1).X, 30 + simulate(60, 3, 1, seed=2).X])
    settings = dict(n_draws=150, n_warmup=50, n_chains=2)
    both = {f"K = {K}": fit(X, K, "gibbs", **settings).to_arviz() for K in (1, 2)}
    with warnings.catch_warnings():
        # PSIS has a hard time with the wrong K, and ArviZ 0.23 with the newest pandas.
        warnings.simplefilter("ignore")
        ranking = az.compare(both)
    # Two clusters far apart are no single one.
    assert list(ranking.index) == ["K = 2", "K = 1"]
    assert ranking.elpd_diff["K = 1"] > 10 * ranking.dse["K = 1"] > 0


def test_a_fit_is_told_in_one_line():
    fitted = fit(np.array([[1, 0], [3, 2], [0, 0]]), 2, "gibbs", n_draws=10, n_warmup=1)
    assert repr(fitted).startswith("<Fit by 'gibbs' of 3 x 2 counts, 2 components: objective -")
    assert "\n" not in repr(fitted)
