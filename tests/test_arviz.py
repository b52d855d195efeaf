"""Fits for ArviZ: groups, names, likelihood by plain loops, replicated tables, summary, loo and compare."""

import inspect
import warnings

import arviz as az
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from zipmix import METHODS, InputError, fit, load, log_evidence_exact, simulate
from zipmix.inference import arviz as arviz_module
from zipmix.inference.loo import loo

SHORT = {"n_warmup": 20, "n_draws": 60, "n_chains": 2}


@pytest.fixture(scope="module")
def frame():
    X = simulate(25, 3, 2, seed=1).X.numpy()
    X[3, 1] = np.nan
    return pd.DataFrame(X, columns=["hare", "lynx", "hare"], index=[f"plot {i // 2}" for i in range(25)])


@pytest.fixture(scope="module")
def gibbs(frame):
    return fit(frame, 2, "gibbs", **SHORT)


def test_groups_dimensions_and_names(frame, gibbs):
    data = gibbs.to_arviz()
    assert set(data.groups()) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "posterior_predictive",
        "observed_data",
    }
    assert dict(data["posterior"].sizes) == {"chain": 2, "draw": 60, "component": 2, "feature": 3}
    assert data["posterior"]["lam"].dims == ("chain", "draw", "component", "feature")
    assert data["posterior"]["pi"].dims == ("chain", "draw", "component")
    assert data["posterior_predictive"]["x"].dims == ("chain", "draw", "observation", "feature")
    for group in ("posterior", "posterior_predictive", "observed_data"):
        # Coordinates have to differ, so names that do not are numbered.
        assert list(data[group]["feature"].values) == ["hare [0]", "lynx", "hare [2]"]
    for group in ("log_likelihood", "posterior_predictive", "observed_data"):
        names = list(data[group]["observation"].values)
        assert names[:2] == ["plot 0 [0]", "plot 0 [1]"]
        assert names[-1] == "plot 12"
    np.testing.assert_array_equal(data["observed_data"]["x"], frame.to_numpy())
    np.testing.assert_array_equal(data["posterior"]["omega"], gibbs.draws.omega)
    plain = fit(frame.to_numpy(), 2, "em", n_starts=1).to_arviz()
    assert list(plain["observed_data"]["observation"].values) == list(range(25))
    assert list(plain["observed_data"]["feature"].values) == ["x0", "x1", "x2"]


def test_log_likelihood_is_that_of_whole_rows(frame, gibbs):
    found = gibbs.to_arviz()["log_likelihood"]["x"].values
    for c, s in ((0, 0), (1, 59)):
        pi, omega, lam = (value[c, s].numpy() for value in gibbs.draws)
        for i, row in enumerate(frame.to_numpy()):
            cells = omega * stats.poisson.pmf(np.nan_to_num(row), lam) + (1 - omega) * (row == 0)
            row_density = (pi * np.where(np.isnan(row), 1.0, cells).prod(1)).sum()
            assert found[c, s, i] == pytest.approx(np.log(row_density), rel=1e-10)


def test_log_posterior_is_the_trace_of_a_sampler(gibbs):
    np.testing.assert_allclose(gibbs.to_arviz()["sample_stats"]["lp"], gibbs.trace[:, -60:], rtol=1e-10)


def test_replicated_tables_have_the_moments_of_the_draws():
    """One parameter point, many rows: mean and share of zeros of each column within 4 standard errors."""
    theta = simulate(1, 4, 3, seed=2).parameters
    X = simulate(20_000, 4, 3, parameters=theta, seed=5).X
    found = fit(X, 3, "em", n_starts=1, start=theta, max_iter=1)
    x = found.to_arviz(seed=1)["posterior_predictive"]["x"].values[0, 0]
    pi, omega, lam = (value.numpy() for value in found.parameters)
    mean = pi @ (omega * lam)
    variance = pi @ (omega * (lam + lam**2)) - mean**2
    zero = pi @ (1 - omega + omega * np.exp(-lam))
    assert (np.abs(x.mean(0) - mean) < 4 * np.sqrt(variance / 20_000)).all()
    assert (np.abs((x == 0).mean(0) - zero) < 4 * np.sqrt(zero * (1 - zero) / 20_000)).all()
    # Columns go together only through z.
    both = pi @ ((omega * lam)[:, 0] * (omega * lam)[:, 1])
    product = x[:, 0] * x[:, 1]
    assert product.mean() == pytest.approx(both, abs=4 * product.std() / np.sqrt(20_000))


def test_replicated_tables_are_seeded_and_thinned(gibbs, monkeypatch):
    one, same, other = (gibbs.to_arviz(seed=seed)["posterior_predictive"]["x"] for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.equals(other)
    assert one.sizes["draw"] == 60
    monkeypatch.setattr(arviz_module, "PREDICTIVE_CELLS", 2 * 25 * 3 * 12)
    few = gibbs.to_arviz()["posterior_predictive"]
    assert list(few["draw"].values) == list(range(0, 60, 5))


def test_summary_loo_and_compare(frame, gibbs):
    data = gibbs.to_arviz()
    summary = az.summary(data)
    assert "lam[1, lynx]" in summary.index
    assert summary.loc["pi[0]", "mean"] == pytest.approx(gibbs.draws.pi[..., 0].mean().item(), abs=1e-3)
    single = fit(frame, 1, "gibbs", **SHORT)
    # A Pareto shape over 0.7 is a warning, and not what is tested here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = az.loo(data)
        table = az.compare({"two": data, "one": single.to_arviz()})
    assert result.n_data_points == 25
    assert set(table.index) == {"one", "two"}
    own = loo(gibbs)
    assert own.elpd == pytest.approx(result.elpd_loo, rel=1e-12)
    assert table.loc["two", "elpd_loo"] == pytest.approx(own.elpd, rel=1e-9)


def test_loo_is_the_predictive_density_of_rows_left_out():
    """Against refits without the row, by exact evidences: log p(x_i | rest) = log p(X) - log p(X without i)."""
    X = torch.tensor([[0.0, 4], [3, 5], [0, 0], [2, 6], [1, 3], [0, 5], [2, 0]])
    exact = fit(X, 2, "exact", n_draws=20_000)
    own = loo(exact)
    rest = [torch.cat([X[:i], X[i + 1 :]]) for i in range(7)]
    expected = sum(log_evidence_exact(X, 2) - log_evidence_exact(without, 2) for without in rest)
    # Importance sampling from independent draws: the relative error of each term is about sd(1 / p) / sqrt(S).
    inverse = np.exp(-exact.to_arviz()["log_likelihood"]["x"].values[0])
    error = np.sqrt(((inverse.std(0) / inverse.mean(0)) ** 2).sum() / len(inverse))
    assert own.elpd == pytest.approx(expected, abs=4 * error + 0.01)
    assert error < 0.05
    with pytest.raises(InputError, match="must hold draws"):
        loo(fit(X, 2, "em"))


def test_row_names_survive_save_and_load(gibbs, tmp_path):
    assert load(gibbs.save(tmp_path / "fit.nc")).row_names == gibbs.row_names
    assert gibbs.row_names[:3] == ("plot 0", "plot 0", "plot 1")


def test_names_of_anndata_and_frames_that_are_only_numbered(frame):
    class Annotated:
        X, var_names, obs_names = np.array([[0, 1], [2, 0]]), ["g1", "g2"], ["c1", "c2"]

    data = fit(Annotated(), 1, "em").to_arviz()
    assert list(data["observed_data"]["observation"].values) == ["c1", "c2"]
    assert list(data["observed_data"]["feature"].values) == ["g1", "g2"]
    assert fit(frame.reset_index(drop=True), 1, "em").row_names is None
    assert fit(frame.set_axis(range(5, 30)), 1, "em").row_names[0] == "5"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_to_arviz(method):
    X = simulate(8, 2, 2, seed=0).X
    sizes = {"n_warmup": 5, "n_draws": 6, "n_chains": 2, "n_steps": 5, "n_starts": 2}
    own = inspect.signature(METHODS[method]).parameters
    data = fit(X, 2, method, **{name: value for name, value in sizes.items() if name in own}).to_arviz()
    for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "observed_data"):
        for name, variable in data[group].data_vars.items():
            assert np.isfinite(variable.values).all(), (group, name)
