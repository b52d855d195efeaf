"""The contract that every method of METHODS keeps: signature, result, seeds, files, symmetries, and no NaN."""

import inspect
import math
import random
import warnings
from dataclasses import fields

import numpy as np
import pyro
import pytest
import torch
from scipy.sparse import csr_array, issparse

from zipmix import METHODS, Fit, Parameters, Prior, fit, load, log_posterior, simulate
from zipmix.counts.store import as_counts
from zipmix.inference.diagnostics import ess
from zipmix.inference.problem import pose
from zipmix.inference.registry import ABOUT
from zipmix.models.conjugate import complete_conditionals, expected_logs, mean, mode
from zipmix.models.kernel import Statistics, expectation, logs

NAN = float("nan")
COMMON = ("X", "n_components", "prior", "seed", "progress")

# Enough to run every line of a method; a method takes those of them that it has.
TINY = {
    "n_starts": 2,
    "max_iter": 6,
    "n_adam": 2,
    "n_steps": 4,
    "n_chains": 2,
    "n_warmup": 3,
    "n_draws": 5,
    "n_passes": 2,
    "chunk_size": 4,
}


def own_settings(method, **wanted):
    """Those of the settings that the method has."""
    return {name: value for name, value in wanted.items() if name in inspect.signature(METHODS[method]).parameters}


def tiny(X, K, method, **wanted):
    return METHODS[method](X, K, **own_settings(method, **(TINY | wanted)))


def table(n=8, d=2, k=2, seed=3):
    X = simulate(n, d, k, prior=Prior(f=0.2), seed=seed).X
    X[1, 0] = NAN
    return X


def numbers(fitted):
    """Every tensor of a fit by name."""
    found = {name: getattr(fitted, name) for name in ("trace", "X")}
    found |= {f"parameters.{name}": value for name, value in fitted.parameters._asdict().items()}
    found |= {f"prior.{name}": torch.as_tensor(value) for name, value in fitted.prior._asdict().items()}
    found |= {f"diagnostics.{name}": value for name, value in fitted.diagnostics.items()}
    if fitted.draws is not None:
        found |= {f"draws.{name}": value for name, value in fitted.draws._asdict().items()}
    if fitted.restarts is not None:
        found |= {f"restarts.{name}": value for name, value in fitted.restarts._asdict().items()}
    return found


def same(one, other):
    one, other = numbers(one), numbers(other)
    return one.keys() == other.keys() and all(torch.equal(one[n].nan_to_num(-1), other[n].nan_to_num(-1)) for n in one)


@pytest.mark.parametrize("method", METHODS)
def test_signature(method):
    function = METHODS[method]
    signature = inspect.signature(function)
    names = list(signature.parameters)
    assert names[:4] == ["X", "n_components", "prior", "seed"]
    for name, parameter in list(signature.parameters.items())[2:]:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name
        assert parameter.default is not inspect.Parameter.empty, name
        own, shared = f"        {name}: " in function.__doc__, f"        {name}: " in fit.__doc__
        assert own or shared, name
    assert signature.parameters["prior"].default == Prior()
    assert signature.parameters["seed"].default == 0
    assert signature.return_annotation is Fit
    assert function.__name__ == method


@pytest.mark.parametrize("method", METHODS)
def test_result(method):
    X, K = table(n=6, d=3), 2
    fitted = fit(X, K, method, **own_settings(method, **TINY))
    assert fitted.method == method
    assert [tuple(value.shape) for value in fitted.parameters] == [(K,), (K, 3), (K, 3)]
    if fitted.draws is not None:
        n_chains, n_draws = fitted.draws.pi.shape[:2]
        assert n_draws == TINY["n_draws"]
        assert n_chains in (1, TINY["n_chains"])
        for value, axes in zip(fitted.draws, [(K,), (K, 3), (K, 3)], strict=True):
            assert value.shape == (n_chains, n_draws, *axes)
            assert value.dtype == torch.float64
        assert fitted.draws.pi.sum(-1).allclose(torch.ones(n_chains, n_draws, dtype=torch.float64))
    assert fitted.trace.ndim == (2 if fitted.draws is not None and not fitted.variational else 1)
    assert fitted.trace_seconds.shape == fitted.trace.shape[-1:]
    assert (fitted.trace_seconds.diff() >= 0).all()
    assert set(fitted.settings) == set(inspect.signature(METHODS[method]).parameters) - set(COMMON)
    assert math.isfinite(fitted.objective)
    assert fitted.reason
    assert fitted.seconds > 0
    assert fitted.n_iter >= 1
    assert fitted.responsibilities().shape == (6, K)
    assert fitted.responsibilities().sum(1).allclose(torch.ones(6, dtype=torch.float64))
    assert fitted.predict().shape == (6,)
    assert fitted.score_samples().shape == (6,)
    assert fitted.affinity().shape == (6, 6)
    assert fitted.impute().isfinite().all()
    zeros = fitted.structural_zeros()
    assert ((zeros >= 0) & (zeros <= 1)).all()
    assert (zeros[X > 0] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_seeds(method):
    X = table(d=4)
    first, again, other = (tiny(X, 2, method, seed=seed) for seed in (1, 1, 2))
    assert same(first, again)
    # Other draws, or the same optimum from other starts.
    assert not same(first, other)


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load(method, tmp_path):
    start = simulate(1, 2, 2, seed=5).parameters
    fitted = tiny(table(), 2, method, **own_settings(method, start=start))
    loaded = load(fitted.save(tmp_path / "fit.nc"))
    assert same(fitted, loaded)
    plain = [field.name for field in fields(Fit) if field.name not in ("settings", *COMPARED)]
    for name in plain:
        assert getattr(loaded, name) == getattr(fitted, name), name
    assert torch.equal(loaded.trace_seconds, fitted.trace_seconds)
    for name, value in fitted.settings.items():
        if isinstance(value, Parameters):
            assert all(torch.equal(*pair) for pair in zip(value, loaded.settings[name], strict=True))
        else:
            assert loaded.settings[name] == value
    assert torch.equal(loaded.responsibilities(), fitted.responsibilities())


COMPARED = ("parameters", "draws", "trace", "trace_seconds", "prior", "X", "restarts", "diagnostics")


@pytest.mark.parametrize("method", METHODS)
def test_leaves_the_world_as_it_was(method):
    """The data, the global random states and Pyro's parameters; and does not depend on the latter two."""
    X = table()
    copy = X.clone()
    with pyro.get_param_store().scope():
        pyro.param("q_alpha", torch.tensor([9.0]))
        torch.manual_seed(0)
        states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        first = tiny(X, 2, method)
        assert torch.equal(torch.random.get_rng_state(), states[0])
        assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
        assert random.getstate() == states[2]
        assert list(pyro.get_param_store()) == ["q_alpha"]
        assert pyro.param("q_alpha").item() == 9.0
        torch.manual_seed(1)
    assert torch.equal(X.nan_to_num(-1), copy.nan_to_num(-1))
    assert torch.get_default_dtype() == torch.float32
    assert same(first, tiny(X, 2, method))
    kept = first.X.clone()
    X.fill_(7.0)
    assert torch.equal(first.X.nan_to_num(-1), kept.nan_to_num(-1))


# Methods whose randomness does not see the order of rows, or of rows and columns, given the start.
BLIND_TO_ROWS = ("em", "pyro_map", "cavi", "online", "pyro_svi", "pyro_nuts")
BLIND_TO_COLUMNS = ("em", "pyro_map", "cavi", "online")
ROWS, COLUMNS = torch.tensor([4, 0, 7, 2, 6, 1, 5, 3]), torch.tensor([2, 0, 1])
LONG = {"n_chains": 4, "n_warmup": 50, "n_draws": 400, "chunk_size": 8}


def new_rows(fitted):
    """Label-invariant quantities of every draw: mean of a new row, and the chance that two rows are together."""
    pi, omega, lam = fitted.draws
    return torch.cat([torch.einsum("csk,cskd->csd", pi, omega * lam), (pi**2).sum(-1, keepdim=True)], -1)


def agree(one, other):
    """Means over draws, within 4 standard errors sd / sqrt(ESS) of their difference."""
    for a, b in zip(one.movedim(-1, 0), other.movedim(-1, 0), strict=True):
        error = math.hypot(*(value.std() / math.sqrt(ess(value)) for value in (a, b)))
        assert abs(a.mean() - b.mean()) < 4 * error


@pytest.mark.parametrize("method", METHODS)
def test_permuted_rows_give_permuted_results(method):
    X = table(d=3)
    start = simulate(1, 3, 2, seed=5).parameters
    if method in BLIND_TO_ROWS:
        settings = own_settings(method, start=start, chunk_size=8)
        one, other = tiny(X, 2, method, **settings), tiny(X[ROWS], 2, method, **settings)
        for value, turned in zip((*one.parameters, one.trace), (*other.parameters, other.trace), strict=True):
            torch.testing.assert_close(value, turned, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(one.responsibilities()[ROWS], other.responsibilities(), rtol=1e-6, atol=1e-6)
    else:
        one, other = (METHODS[method](x, 2, **own_settings(method, **LONG)) for x in (X, X[ROWS]))
        agree(new_rows(one), new_rows(other))
    torch.testing.assert_close(one.responsibilities(X)[ROWS], one.responsibilities(X[ROWS]))


@pytest.mark.parametrize("method", METHODS)
def test_permuted_columns_give_permuted_results(method):
    X = table(d=3)
    pi, omega, lam = simulate(1, 3, 2, seed=5).parameters
    start, turned_start = Parameters(pi, omega, lam), Parameters(pi, omega[:, COLUMNS], lam[:, COLUMNS])
    if method in BLIND_TO_COLUMNS:
        one = tiny(X, 2, method, start=start, chunk_size=8)
        other = tiny(X[:, COLUMNS], 2, method, start=turned_start, chunk_size=8)
        assert other.objective == pytest.approx(one.objective, rel=1e-9)
        torch.testing.assert_close(one.parameters.pi, other.parameters.pi, rtol=1e-7, atol=1e-7)
        for value, turned in zip(one.parameters[1:], other.parameters[1:], strict=True):
            torch.testing.assert_close(value[:, COLUMNS], turned, rtol=1e-7, atol=1e-7)
    elif method == "pyro_svi":
        # Other noise in other columns: the ELBO within 4 standard errors, and a nat for the steps that are not taken.
        one = fit(X, 2, method, n_steps=150, start=start)
        other = fit(X[:, COLUMNS], 2, method, n_steps=150, start=turned_start)
        assert abs(one.objective - other.objective) < 4 * math.hypot(one.objective_error, other.objective_error) + 1
    else:
        settings = own_settings(method, **(LONG | SHORTER.get(method, {})))
        one, other = (METHODS[method](x, 2, **settings) for x in (X, X[:, COLUMNS]))
        agree(new_rows(one)[..., [2, 0, 1, 3]], new_rows(other))


SHORTER = {"pyro_nuts": {"n_chains": 2, "n_warmup": 15, "n_draws": 25}}


@pytest.mark.parametrize("method", METHODS)
def test_duplicated_data_is_doubled_statistics(method):
    """Scores and responsibilities repeat; one pass of EM, CAVI and online sees twice the statistics, to the letter."""
    X = table(d=3)
    twice = torch.cat([X, X])
    start = simulate(1, 3, 2, seed=5).parameters
    prior = pose(X, 2, Prior()).prior
    fitted = tiny(X, 2, method)
    for ask in (fitted.responsibilities, fitted.score_samples, fitted.structural_zeros, fitted.impute):
        torch.testing.assert_close(ask(twice), torch.cat([ask(X), ask(X)]))

    def doubled(tables):
        return Statistics(*(2 * value for value in expectation(as_counts(X), tables)[0]))

    if method == "em":
        found = METHODS[method](twice, 2, start=start, accelerate=False, max_iter=1)
        expected = mode(complete_conditionals(doubled(logs(start)), prior))
    elif method == "cavi":
        found = METHODS[method](twice, 2, start=start, max_iter=1)
        q = complete_conditionals(doubled(logs(start)), prior)
        expected = mean(complete_conditionals(doubled(expected_logs(q)), prior))
    elif method == "online":
        found = METHODS[method](twice, 2, start=start, chunk_size=16, n_passes=1)
        expected = mode(complete_conditionals(doubled(logs(start)), prior))
    else:
        return
    heaviest_first = expected.pi.argsort(descending=True)
    for value, by_hand in zip(found.parameters, expected, strict=True):
        torch.testing.assert_close(value, by_hand[heaviest_first], rtol=1e-10, atol=1e-12)


def test_the_registry_says_of_every_method_what_it_is():
    assert list(ABOUT) == list(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_components_come_heaviest_first(method):
    """With their own rates and draws: nothing but their order is changed; under unequal alpha that stays too."""
    fitted = tiny(table(n=9), 3, method)
    assert (fitted.parameters.pi.diff() <= 0).all()
    objective = log_posterior(table(n=9), fitted.parameters)
    if fitted.variational:
        torch.testing.assert_close(fitted.draws.pi.mean((0, 1)), fitted.parameters.pi, rtol=0.0, atol=0.2)
    elif method != "online":
        assert fitted.objective == pytest.approx(objective.item(), rel=1e-8)
    alpha = torch.tensor([1.0, 1.5, 9.0])
    unequal = tiny(table(n=9), 3, method, prior=Prior(alpha=alpha))
    if unequal.draws is None or unequal.variational:
        assert unequal.parameters.pi.argmax() == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_keeps_a_sparse_table_sparse(method):
    X = table().nan_to_num(0.0).to(torch.int64)
    one, other = tiny(X, 2, method), tiny(csr_array(X.numpy()), 2, method)
    assert issparse(other.X)
    assert (other.X.toarray() == X.numpy()).all()
    assert other.X.dtype == one.X.numpy().dtype == np.int64
    assert other.objective == pytest.approx(one.objective, rel=1e-9)


EXTREMES = {
    "all zero": [[0.0, 0], [0, 0], [0, 0]],
    "a row and a column of zeros": [[0.0, 0, 3], [0, 0, 0], [0, 2, 1], [0, 5, 0]],
    "a row all missing": [[NAN, NAN], [1, 0], [3, NAN]],
    "one row": [[3.0, 0]],
    "one column": [[3.0], [0], [9]],
    "counts of a million": [[1e6, 0], [0, 999_999]],
}
SPARSE = Prior(alpha=0.01, a=0.3, b=0.3, e=0.3, f=20.0)
CRITICAL = Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=20.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EXTREMES)
def test_no_nan(method, name):
    """More components than rows, one component, rates near 0; a prior below 1 where the method needs no mode."""
    X = torch.tensor(EXTREMES[name])
    needs_mode = "no MAP" in _refusal(method)
    runs = [(4, Prior()), (1, CRITICAL if needs_mode else SPARSE)]
    for K, prior in runs:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted = tiny(X, K, method, prior=prior, n_chains=1, n_warmup=2, n_draws=2)
        found = numbers(fitted) | {
            "objective": torch.tensor(fitted.objective),
            "responsibilities": fitted.responsibilities(),
            "score": fitted.score_samples(),
            "affinity": fitted.affinity(),
            "impute": fitted.impute(),
            "structural zeros": fitted.structural_zeros(),
        }
        for what, value in found.items():
            if what not in ("X", "restarts.trace_TR"):
                assert value.isfinite().all(), (what, K)
        assert ((fitted.parameters.omega >= 0) & (fitted.parameters.omega <= 1)).all()
        assert (fitted.parameters.lam >= 0).all()


def _refusal(method):
    try:
        tiny(torch.tensor([[1.0]]), 1, method, prior=SPARSE)
    except ValueError as error:
        return str(error)
    return ""
