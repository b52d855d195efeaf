"""A budget of time: every method that iterates ends at it, hands back what it has, and says so."""

import math
import time

import pytest
import torch

import zipmix
from zipmix.inference.loop import out_of_time, time_budget

X = zipmix.simulate(40, 3, 2, seed=2).X

# Settings with which each method would take hours.
ENDLESS: dict[str, dict[str, object]] = {
    "em": {"tolerance": 0.0, "max_iter": 10**8, "accelerate": False, "n_starts": 200},
    "cavi": {"tolerance": 0.0, "max_iter": 10**8, "n_starts": 200, "n_draws": 5},
    "pyro_map": {"n_adam": 10**6},
    "pyro_svi": {"n_steps": 10**6, "n_draws": 5},
    "online": {"n_passes": 10**6, "chunk_size": 10},
    "gibbs": {"n_warmup": 10, "n_draws": 10**6, "n_chains": 2},
    "collapsed_gibbs": {"n_warmup": 10, "n_draws": 10**6, "n_chains": 2},
    "pyro_nuts": {"n_warmup": 10**6, "n_draws": 10, "n_chains": 1},
}


@pytest.mark.parametrize("method", ENDLESS)
def test_a_fit_ends_at_its_budget(method: str) -> None:
    zipmix.fit(X, 2, method, **QUICK.get(method, {}))
    began = time.perf_counter()
    with time_budget(0.05 if method in FAST else 0.5):
        fitted = zipmix.fit(X, 2, method, **ENDLESS[method])
    assert time.perf_counter() - began < 30
    assert not fitted.converged
    assert "budget of time" in fitted.reason
    assert len(fitted.trace_seconds) == fitted.trace.shape[-1]
    assert math.isfinite(fitted.objective)
    assert all(bool(torch.isfinite(value).all()) for value in fitted.parameters)
    assert not out_of_time()


# These would be at rest in half a second.
FAST = ("em", "cavi")

# What comes before the first iteration is not what is tested.
QUICK: dict[str, dict[str, object]] = {
    "pyro_map": {"n_adam": 1, "max_iter": 1},
    "pyro_svi": {"n_steps": 1},
    "gibbs": {"n_warmup": 1, "n_draws": 1},
    "collapsed_gibbs": {"n_warmup": 1, "n_draws": 1},
    "pyro_nuts": {"n_warmup": 1, "n_draws": 1, "n_chains": 1},
}


def test_a_budget_within_compare_is_that_of_each_method() -> None:
    settings = {
        "gibbs": ENDLESS["gibbs"] | {"n_chains": 1},
        "collapsed_gibbs": ENDLESS["collapsed_gibbs"] | {"n_chains": 1},
    }
    compared = zipmix.compare(
        X,
        2,
        methods=("gibbs", "collapsed_gibbs", "em"),
        n_starts=2,
        n_chains=1,
        held_out=0,
        budget=0.4,
        settings=settings,
    )
    assert [row.converged for row in compared.summaries] == [False, False, True]
    for name in ("gibbs", "collapsed_gibbs"):
        assert compared.fits[name].seconds > 0.4
        assert "interrupted by its budget of time" in compared.fits[name].reason


@pytest.mark.parametrize("budget", [0, -1.0, math.nan, "long"])
def test_a_budget_that_is_none_is_refused(budget: object) -> None:
    with pytest.raises(zipmix.InputError, match="budget must be a finite number > 0"):
        zipmix.compare(X, 2, budget=budget)  # type: ignore[arg-type]
