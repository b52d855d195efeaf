"""The checker's right answers, from sites of the Pyro program, against Pyro's enumeration and against one another."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zipmix.checker import oracle
from zipmix.checker.problems import SPREAD, Problem, smallest, spread
from zipmix.counts.store import as_counts
from zipmix.models.kernel import log_joint, logs, responsibilities
from zipmix.models.parameters import Parameters
from zipmix.models.zip_mixture import log_density

PROBLEMS = [problem for problem in spread(quick=False, seed=3) if problem.sizes[1] < 100]


def each(fits: Callable[[Problem], bool]) -> pytest.MarkDecorator:
    """A test of each problem that fits."""
    suited = [problem for problem in PROBLEMS if fits(problem)]
    return pytest.mark.parametrize("problem", suited, ids=lambda problem: problem.kind)


def exact_beliefs(problem: Problem) -> tuple[Tensor, Tensor]:
    t = oracle.tables(problem)
    return oracle.responsibilities(t), oracle.b_given_z(t)


@each(lambda problem: True)
def test_the_four_pieces_are_the_log_density_at_the_exact_beliefs(problem: Problem) -> None:
    pieces = oracle.elbo_pieces(oracle.tables(problem), *exact_beliefs(problem))
    expected = log_density(problem.X_ND, problem.theta, problem.prior).item()
    assert sum(piece.item() for piece in pieces.values()) == pytest.approx(expected, rel=1e-9)


@each(lambda problem: True)
def test_fishers_identity_ties_the_m_step_to_the_gradient_of_the_log_density(problem: Problem) -> None:
    q = exact_beliefs(problem)
    found = oracle.gradient(problem, problem.theta, *q)
    logits = problem.theta.pi.log().requires_grad_()
    omega, lam = (value.clone().requires_grad_() for value in problem.theta[1:])
    theta = Parameters(torch.softmax(logits, 0), omega, lam)
    expected = torch.autograd.grad(log_density(problem.X_ND, theta, problem.prior), [logits, omega, lam])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7)


# The first beliefs give b = 0 a chance where x > 0: the objective is minus infinity everywhere.
@each(lambda problem: problem.kind != "first beliefs")
def test_the_maximiser_has_a_zero_gradient_and_beats_every_point_around_it(problem: Problem) -> None:
    q = problem.Ezeta_NK, problem.Eb_NKD
    best = oracle.maximiser(problem, *q)

    def objective(theta: Parameters) -> float:
        pieces = oracle.elbo_pieces(oracle.tables_at(problem, theta), *q)
        return float(pieces["likelihood"] + pieces["latents"] + pieces["prior"])

    gradient = oracle.gradient(problem, best, *q)
    rows, _, _ = problem.sizes
    # On the scale of the terms that cancel in it: rows for pi, curvature times the point for the others.
    assert float(gradient.pi.abs().max()) < 1e-9 * rows
    size = float((problem.X_ND.sum() + rows) / best.lam.min())
    assert float(gradient.lam.abs().max()) < 1e-9 * size
    assert float((gradient.omega * best.omega * (1 - best.omega)).abs().max()) < 1e-9 * rows
    top = objective(best)
    random = torch.Generator().manual_seed(0)
    assert top > objective(problem.theta)
    for _ in range(5):
        # The smaller of two distances from 0 and 1 is the room that omega has.
        noise = [0.1 * torch.randn(value.shape, generator=random, dtype=torch.float64) for value in best]
        pi = torch.softmax(best.pi.log() + noise[0], 0)
        near = Parameters(pi, torch.sigmoid(best.omega.logit() + noise[1]), best.lam * noise[2].exp())
        assert objective(near) < top


@each(lambda problem: problem.sizes[1] > 1)
def test_missing_counts_have_the_mean_that_the_kernel_gives(problem: Problem) -> None:
    X_ND = problem.X_ND.clone()
    X_ND[:, :1] = torch.nan
    R_NK, _ = responsibilities(log_joint(as_counts(X_ND), logs(problem.theta)))
    expected = (R_NK @ (problem.theta.omega * problem.theta.lam))[:, :1]
    torch.testing.assert_close(oracle.expected_missing(problem, 1), expected, rtol=1e-9, atol=1e-12)


def test_the_spread_covers_what_it_names_and_every_number_is_exact_in_float32() -> None:
    problems = {problem.kind: problem for problem in spread(quick=False, seed=3)}
    assert len({size for _, *sizes in SPREAD for size in [tuple(sizes)]}) >= 8
    assert bool((problems["all-zero columns"].X_ND.sum(0) == 0).any())
    assert problems["one component"].sizes[2] == 1
    assert float(problems["large counts"].X_ND.max()) > 100
    omega = problems["omega near 0 and 1"].theta.omega
    assert float(omega.min()) < 1e-5
    assert float(omega.max()) > 1 - 1e-5
    assert len(problems["uneven priors"].prior.alpha.unique()) > 1  # type: ignore[union-attr]
    for problem in problems.values():
        for value in (problem.X_ND, *problem.theta, problem.Ezeta_NK, problem.Eb_NKD, *problem.prior):
            number = torch.as_tensor(value)
            assert torch.equal(number.float().double(), number), problem.kind
        assert bool((problem.Ezeta_NK.sum(1) == 1).all())
        assert float(problem.theta.pi.sum()) == 1


@pytest.mark.parametrize(
    ("shows", "sizes"),
    [
        (lambda problem: True, (1, 1, 1)),
        (lambda problem: problem.sizes[2] >= 2, (1, 1, 2)),
        (lambda problem: float(problem.X_ND.max()) > 2, (1, 1, 1)),
        (lambda problem: len(problem.X_ND[:, 0].unique()) > 1, (2, 1, 1)),
    ],
)
def test_a_problem_is_reduced_to_what_still_shows_the_mistake(
    shows: Callable[[Problem], bool], sizes: tuple[int, int, int]
) -> None:
    problem = next(problem for problem in PROBLEMS if problem.sizes == (12, 5, 4))
    small = smallest(problem, shows)
    assert small.sizes == sizes
    assert shows(small)
    assert float(small.theta.pi.sum()) == 1
    assert bool((small.Ezeta_NK.sum(1) == 1).all())
    assert int(small.z_N.max()) < sizes[2]
