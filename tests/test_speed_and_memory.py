"""No array of size N x K x D: every allocation of torch is watched."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zipmix import Prior, simulate
from zipmix.inference.em import evaluate, squarem_step
from zipmix.inference.gibbs import gibbs
from zipmix.inference.problem import pose
from zipmix.models.parameters import Parameters

SPEC = importlib.util.spec_from_file_location("core", Path(__file__).parents[1] / "benchmarks" / "core.py")
core = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(core)

N, D, K = 10_000, 50, 20
CUBE = 8 * N * K * D


class Watch(TorchDispatchMode):
    """Keeps the size in bytes of the largest memory behind any tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@pytest.fixture(scope="module", params=[False, True], ids=["complete", "missing cells"])
def data(request):
    X, *_, theta = simulate(N, D, K, seed=1)
    if request.param:
        X[::7, 3] = torch.nan
    return X, theta


def batch_of_one(theta):
    return Parameters(*(field[None] for field in theta))


def test_em_pass_makes_no_cube(data):
    X, theta = data
    with Watch() as watch:
        problem = pose(X, K, Prior())
        state = evaluate(problem, batch_of_one(theta), torch.ones(1, dtype=torch.float64))
        squarem_step(problem, state)
    # The table [X, P, M] is the largest that could be asked for.
    assert N * D <= watch.largest <= 8 * N * 3 * D < CUBE / 6


def test_answers_of_a_fit_make_no_cube(data):
    X, theta = data
    with Watch() as watch:
        fitted = gibbs(X, K, start=theta, n_chains=1, n_warmup=0, n_draws=1)
        fitted.responsibilities()
        fitted.impute()
        fitted.structural_zeros()
        fitted.score_samples()
    assert 8 * N * K <= watch.largest <= 8 * N * 3 * D


@pytest.mark.parametrize("elbo", [False, True])
def test_broadcast_form_is_seen_to_make_one(data, elbo):
    """And is the same pass, where nothing is missing."""
    X, theta = data
    with Watch() as watch:
        mapped, _ = core.broadcast_pass(X[:1000].nan_to_num(0.0), theta, elbo=elbo)
    assert watch.largest == CUBE / 10
    problem = pose(X[:1000].nan_to_num(0.0), K, Prior())
    ours = evaluate(problem, batch_of_one(theta), torch.ones(1, dtype=torch.float64)).mapped
    for mine, other in zip(ours, mapped, strict=True):
        torch.testing.assert_close(mine[0], other, rtol=1e-8, atol=1e-10)


def test_restarts_share_memory_by_the_row_and_not_by_the_cell():
    """50 restarts at N = 930, D = 20, K = 10 hold N x K numbers each, a twentieth of N x K x D."""
    problem = pose(simulate(930, 20, 10, seed=1).X, 10, Prior())
    theta = simulate(1, 20, 10, seed=2).parameters
    many = Parameters(*(field.expand(50, *field.shape).clone() for field in theta))
    with Watch() as watch:
        evaluate(problem, many, torch.ones(50, dtype=torch.float64))
    assert watch.largest <= 8 * 50 * 930 * 10


def test_benchmark_compares_the_same_work():
    """The benchmark itself, on a small problem: it checks that both forms agree before it times them."""
    assert all(seconds > 0 for seconds in core.one_pass(300, 4, 3, repeats=1))
    assert all(seconds > 0 for seconds in core.restarts(100, 3, 2, n_starts=3, n_iter=20, timed=2))
