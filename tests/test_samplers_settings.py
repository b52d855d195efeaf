"""Settings, interruption and what a sampler's fit reports."""

import math
from importlib import import_module

import numpy as np
import pytest
import torch
from pyro.infer.mcmc import NUTS

import zipmix
from zipmix import METHODS, InputError, Parameters, simulate

SAMPLERS = ("gibbs", "collapsed_gibbs", "pyro_nuts")
X = simulate(12, 2, 2, seed=3).X


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("n_chains", 0, r"n_chains must be a whole number >= 1, got 0"),
        ("n_draws", -5, r"n_draws must be a whole number >= 1, got -5"),
        ("n_draws", 2.5, r"n_draws must be a whole number >= 1, got 2\.5"),
        ("n_warmup", -1, r"n_warmup must be a whole number >= 0, got -1"),
        ("init", "best", r"init must be one of .*'small-em'.*; got 'best'"),
    ],
)
def test_bad_settings_are_named_with_the_allowed_range(method, setting, value, words):
    with pytest.raises(InputError, match=words):
        zipmix.fit(X, 2, method, **{setting: value})


@pytest.mark.parametrize(
    ("method", "setting", "value", "words"),
    [
        ("gibbs", "n_temperatures", 0, r"n_temperatures must be a whole number >= 1, got 0"),
        ("gibbs", "hottest", 1.0, r"hottest must be a finite temperature > 1 .* got 1\.0"),
        ("gibbs", "hottest", math.inf, r"hottest must be a finite temperature > 1 .* got inf"),
        ("gibbs", "hottest", "warm", r"hottest must be a finite temperature > 1 .* got 'warm'"),
        ("pyro_nuts", "target_accept", 1.0, r"target_accept must be a number between 0 and 1, got 1\.0"),
        ("pyro_nuts", "max_tree_depth", 0, r"max_tree_depth must be a whole number >= 1, got 0"),
    ],
)
def test_bad_settings_of_one_method(method, setting, value, words):
    with pytest.raises(InputError, match=words):
        zipmix.fit(X, 2, method, **{setting: value})


@pytest.mark.parametrize("method", SAMPLERS)
def test_unknown_settings_are_a_type_error(method):
    with pytest.raises(TypeError, match=r"has no setting 'n_draw'.*Did you mean 'n_draws'"):
        zipmix.fit(X, 2, method, n_draw=3)


@pytest.mark.parametrize("method", SAMPLERS)
def test_starts_must_be_one_or_one_per_chain(method):
    start = Parameters(torch.ones(3, 1).double(), torch.full((3, 1, 2), 0.5).double(), torch.ones(3, 1, 2).double())
    with pytest.raises(InputError, match="start must hold one point or n_chains = 2 points, got 3"):
        zipmix.fit(X, 1, method, start=start, n_chains=2)


def interrupt(monkeypatch, method, after):
    """Presses Ctrl-C in the middle of a sweep or iteration."""
    owner, name = {
        "gibbs": (import_module("zipmix.inference.gibbs"), "complete_conditionals"),
        "collapsed_gibbs": (import_module("zipmix.inference.collapsed_gibbs"), "gammaln"),
        "pyro_nuts": (NUTS, "_build_tree"),
    }[method]
    original, calls = getattr(owner, name), []

    def pressed(*arguments, **keywords):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, pressed)


@pytest.mark.parametrize(("method", "after"), [("gibbs", 40), ("collapsed_gibbs", 40 * 36), ("pyro_nuts", 1500)])
def test_ctrl_c_returns_the_draws_so_far(monkeypatch, method, after):
    interrupt(monkeypatch, method, after)
    fit = zipmix.fit(X, 2, method, n_chains=2, n_warmup=10, n_draws=10_000)
    assert fit.reason.startswith("interrupted by the user after")
    assert not fit.converged
    S = fit.draws.pi.shape[1]
    assert 0 < S == fit.n_iter - 10 < 100
    assert fit.draws.omega.shape == (2, S, 2, 2)
    assert fit.trace.shape == (2, fit.n_iter + 1)
    assert fit.trace.isfinite().all()
    assert all(value.shape[:2] == (2, S) for value in fit.diagnostics.values())


@pytest.mark.parametrize(("method", "after"), [("gibbs", 1), ("collapsed_gibbs", 1), ("pyro_nuts", 1)])
def test_ctrl_c_in_the_first_step_returns_the_start(monkeypatch, method, after):
    interrupt(monkeypatch, method, after)
    fit = zipmix.fit(X, 2, method, n_chains=2)
    assert fit.reason.startswith("interrupted by the user after 0 of")
    assert fit.draws.pi.shape == (2, 1, 2)


@pytest.mark.parametrize("method", SAMPLERS)
def test_the_global_random_state_is_neither_used_nor_changed(method):
    def short():
        return METHODS[method](X, 2, seed=5, n_chains=2, n_warmup=2, n_draws=5)

    torch.manual_seed(0)
    before, before_numpy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = short()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()  # noqa: NPY002
    torch.manual_seed(1)
    again = short()
    for value, same in zip(first.draws, again.draws, strict=True):
        assert torch.equal(value, same)
    assert not torch.equal(METHODS[method](X, 2, seed=6, n_chains=2, n_warmup=2, n_draws=5).draws.lam, first.draws.lam)


@pytest.mark.parametrize(
    ("method", "settings", "names"),
    [
        ("gibbs", {"n_temperatures": 3}, {"temperature", "swap_rate"}),
        ("pyro_nuts", {}, {"step_size", "n_gradients", "diverging", "acceptance_rate"}),
        ("collapsed_gibbs", {}, set()),
    ],
)
def test_diagnostics_survive_saving_and_reach_arviz(tmp_path, method, settings, names):
    fit = zipmix.fit(X, 2, method, n_chains=2, n_warmup=10, n_draws=20, **settings)
    assert set(fit.diagnostics) == names
    loaded = zipmix.load(fit.save(tmp_path / "fit.nc"))
    assert set(loaded.diagnostics) == names
    statistics = fit.to_arviz()["sample_stats"]
    for name, value in fit.diagnostics.items():
        assert value.shape[:2] == (2, 20)
        assert torch.equal(loaded.diagnostics[name], value)
        assert loaded.diagnostics[name].dtype == value.dtype
        np.testing.assert_array_equal(statistics[name].to_numpy(), value.numpy())


def test_ladder_runs_from_one_to_the_hottest_and_swaps_equally_often():
    fit = METHODS["gibbs"](simulate(40, 3, 2, seed=1).X, 2, n_temperatures=6, hottest=20.0, n_warmup=200, n_draws=200)
    temperature_CST, rate_P = fit.diagnostics["temperature"], fit.diagnostics["swap_rate"].mean((0, 1))
    assert torch.equal(temperature_CST, temperature_CST[:1, :1].expand_as(temperature_CST))
    ladder_T = temperature_CST[0, 0]
    assert ladder_T[0] == 1
    assert ladder_T[-1].item() == pytest.approx(20.0)
    assert (ladder_T.diff() > 0).all()
    assert f"swap rates of 6 temperatures are {rate_P.min():.2f} to {rate_P.max():.2f}" in fit.reason
    # Equal ratios, from which the spacing starts, give rates from 0.5 to over 0.9 here.
    assert rate_P.max() - rate_P.min() < 0.15
