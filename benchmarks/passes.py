"""One pass over a table, and many starts at once: zipmix beside its limit, the broadcast form and other programs.

Before contestants are timed, answers that can be compared are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from core import PRIOR, broadcast_pass
from harness import Contestant, Finding, Outcome, Ratio, compared
from peers import FIT_OF_TWO, gaussian_mixture, numpyro_gradient, poisson_mixture, pyro_gradient, step_mix

import zipmix
from zipmix import Parameters
from zipmix.counts.distinct import distinct
from zipmix.counts.store import Counts, as_counts
from zipmix.counts.table import as_table
from zipmix.counts.threads import threads_for_parts
from zipmix.inference.em import em_step, evaluate
from zipmix.inference.problem import pose
from zipmix.inference.start import starts
from zipmix.models.kernel import Logs, expectation, logs

LIMIT = "bare products A @ W, R.T @ A"
ZIPMIX = "zipmix"
SINGLE = "zipmix, products in float32"
COURSEWORK = "broadcast N x K x D, ELBO piece by piece"
LEAN = "broadcast N x K x D, objective as a by-product"
SKLEARN = "scikit-learn GaussianMixture, diag"
STEPMIX = "StepMix, gaussian_diag"
POMEGRANATE = "pomegranate, mixture of Poissons"
PYRO = "Pyro, enumerated gradient"
NUMPYRO = "NumPyro, enumerated gradient"
NOTHING = "the table alone, and the imports"

# What is given a part of the rows, since all of them would take minutes, or more memory than there is.
IN_PART = (POMEGRANATE, LEAN, COURSEWORK, PYRO, NUMPYRO)

Makers = dict[str, Callable[[], Contestant]]


def drawn(n: int, d: int, k: int, density: float = 0.5) -> tuple[np.ndarray, Parameters]:
    """Counts from a mixture, (N, D) uint8, and the point that they are drawn from."""
    rng = np.random.default_rng(0)
    lam_KD = rng.gamma(2.0, 2.0, size=(k, d)) + 0.05
    omega_KD = rng.uniform(0, 2 * density / 0.87, size=(k, d)).clip(0.001, 0.999)
    z_N = rng.integers(k, size=n)
    X_ND = np.empty((n, d), dtype=np.uint8)
    for rows in np.array_split(np.arange(n), max(1, n * d // 2_000_000)):
        z = z_N[rows]
        X_ND[rows] = rng.poisson(lam_KD[z]) * (rng.random((len(rows), d)) < omega_KD[z])
    theta = Parameters(*(torch.from_numpy(value) for value in (np.full(k, 1 / k), omega_KD, lam_KD)))
    return X_ND, theta


def counted(X: Any) -> Counts:
    """A table as the kernel reads it."""
    return as_counts(as_table(X).X)


def as_in_a_fit(counts: Counts, tables: Logs, dtype: torch.dtype = torch.float64) -> Callable[[], object]:
    """A pass as EM makes it, which leaves torch's threads to the rows."""

    def run() -> object:
        with threads_for_parts():
            return expectation(counts, tables, dtype=dtype)

    return run


def pass_makers(X: np.ndarray, theta: Parameters, part: int) -> Makers:
    """What goes over the table once; those of IN_PART go over that many rows of it."""
    few, tables = X[:part], logs(theta)
    share, rows = len(few) / len(X), f"timed on {len(few):,} rows, and scaled"

    def products() -> Contestant:
        A = torch.from_numpy(np.concatenate([X, X > 0], axis=1).astype(np.float64))
        W, R = (torch.rand(n, len(theta.pi), dtype=torch.float64) for n in (A.shape[1], A.shape[0]))
        return Contestant(lambda: (A @ W, R.T @ A), note="the limit; A = [X, 1[X > 0]] in float64, made beforehand")

    def ours(dtype: torch.dtype) -> Contestant:
        return Contestant(as_in_a_fit(counted(X).totalled(), tables, dtype), ("zipmix", "torch"))

    def broadcast(elbo: bool) -> Contestant:
        table = torch.from_numpy(few.astype(np.float64))
        return Contestant(lambda: broadcast_pass(table, theta, elbo=elbo), share=share, note=rows)

    def gaussian(fit: Callable[[np.ndarray, Parameters], Callable[[], object]], program: str) -> Contestant:
        note = "no counts, no zeros: a mixture of normals; an iteration is a third of a fit of two"
        return Contestant(fit(X, theta), (program, "numpy"), share=FIT_OF_TWO, note=note)

    def enumerated(gradient: Any, programs: tuple[str, ...], note: str) -> Contestant:
        return Contestant(gradient(few, theta, PRIOR), programs, share=share, note=f"{note}{rows}")

    return {
        LIMIT: products,
        ZIPMIX: lambda: ours(torch.float64),
        SINGLE: lambda: ours(torch.float32),
        SKLEARN: lambda: gaussian(gaussian_mixture, "scikit-learn"),
        STEPMIX: lambda: gaussian(step_mix, "stepmix"),
        POMEGRANATE: lambda: Contestant(
            poisson_mixture(few, theta),
            ("pomegranate", "torch"),
            share=share,
            note=f"no structural zeros: omega = 1; {rows}",
        ),
        LEAN: lambda: broadcast(False),
        COURSEWORK: lambda: broadcast(True),
        PYRO: lambda: enumerated(pyro_gradient, ("pyro-ppl", "torch"), ""),
        NUMPYRO: lambda: enumerated(numpyro_gradient, ("numpyro", "jax"), "float64, compiled before the clock runs; "),
    }


def passes(n: int = 200_000, d: int = 100, k: int = 20, part: int = 2_000, repeats: int = 15) -> Outcome:
    """One pass: E-step, statistics and objective; one iteration or gradient of other programs."""
    X, theta = drawn(n, d, k)
    same_answers(X[:500], theta)
    outcome = compared(
        f"One pass, dense: N = {n:,}, D = {d}, K = {k}",
        pass_makers(X, theta, part),
        (
            Ratio(ZIPMIX, LIMIT),
            Ratio(SINGLE, ZIPMIX, 1.7),
            *(Ratio(ZIPMIX, name) for name in (SKLEARN, STEPMIX, POMEGRANATE, LEAN, COURSEWORK, PYRO, NUMPYRO)),
        ),
        repeats=repeats,
    )
    median = {row["contestant"]: row["median_s"] for row in outcome.rows}
    limit = Finding(
        "zipmix: its time over that of the bare products", median[ZIPMIX] / median[LIMIT], 1.15, at_most=True
    )
    return outcome._replace(findings=[limit, *outcome.findings])


def same_answers(X: np.ndarray, theta: Parameters) -> tuple[str, ...]:
    """Holds what contestants compute at theta against one another; returns the names of those that it could compare.

    Raises:
        AssertionError: two of them differ.
    """
    problem = pose(X, len(theta.pi), PRIOR)
    state = evaluate(problem, Parameters(*(field[None] for field in theta)), torch.ones(1, dtype=torch.float64))
    mapped = Parameters(*(field[0] for field in state.mapped))
    log_likelihood = expectation(problem.counts, logs(theta))[1]
    table, compared_ones = torch.from_numpy(X.astype(np.float64)), [ZIPMIX, SINGLE]
    single = expectation(problem.counts, logs(theta), dtype=torch.float32)[1]
    torch.testing.assert_close(single, log_likelihood, rtol=1e-6, atol=0.0)
    for name, elbo in ((LEAN, False), (COURSEWORK, True)):
        other, objective = broadcast_pass(table, theta, elbo=elbo)
        torch.testing.assert_close(objective, log_likelihood, rtol=1e-10, atol=0.0)
        close(other, mapped, rtol=1e-8)
        compared_ones.append(name)
    value, slope = pyro_gradient(X, theta, PRIOR)()
    torch.testing.assert_close(value, state.objective.item(), rtol=1e-10, atol=0.0)
    compared_ones.append(PYRO)
    try:
        other_value, other_slope = numpyro_gradient(X, theta, PRIOR)()
        torch.testing.assert_close(other_value, value, rtol=1e-10, atol=0.0)
        for name, expected in slope.items():
            found = torch.tensor(np.asarray(other_slope[name]))
            if name == "pi":  # only along the simplex; off it the programs go on differently
                found, expected = found - found.mean(), expected - expected.mean()
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
        compared_ones.append(NUMPYRO)
    except ModuleNotFoundError:
        pass
    try:
        # Without structural zeros and prior, EM's next point is pomegranate's, whose sums are in float32.
        poisson = theta._replace(omega=torch.ones_like(theta.omega))
        value, point = poisson_mixture(X, theta)()
        statistics, log_likelihood = expectation(problem.counts, logs(poisson))
        torch.testing.assert_close(value, log_likelihood.item(), rtol=1e-5, atol=0.0)
        ours = Parameters(statistics.n / len(X), poisson.omega, statistics.s / statistics.n[:, None])
        close(point, ours, rtol=1e-4)
        compared_ones.append(POMEGRANATE)
    except ModuleNotFoundError:
        pass
    return tuple(compared_ones)


def close(one: Parameters, other: Parameters, rtol: float) -> None:
    """Refuses points that differ."""
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine.to(theirs.dtype), theirs, rtol=rtol, atol=1e-10)


def sparse(n: int = 200_000, d: int = 100, k: int = 20, repeats: int = 25) -> Outcome:
    """One pass over few non-zeros, dense and sparse."""
    X, theta = drawn(n, d, k, density=0.025)
    dense_counts, sparse_counts, tables = counted(X), counted(sp.csr_array(X)), logs(theta)
    few_counts = distinct(sparse_counts)
    for mine, other in zip(expectation(dense_counts, tables)[0], expectation(sparse_counts, tables)[0], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-8)
    programs = ("zipmix", "torch", "scipy")
    return compared(
        f"One pass, {(X > 0).mean():.1%} non-zero: N = {n:,}, D = {d}, K = {k}",
        {
            "zipmix, dense": lambda: Contestant(as_in_a_fit(dense_counts, tables), programs),
            "zipmix, sparse": lambda: Contestant(as_in_a_fit(sparse_counts, tables), programs),
            "zipmix, sparse, equal rows once": lambda: Contestant(
                as_in_a_fit(few_counts, tables),
                programs,
                note=f"what a fit does: {few_counts.n_rows:,} rows differ",
            ),
        },
        (
            # SciPy's public operators alone: its private routines, which add to a table that is there, make this pass a
            # fifth faster and no fit of a sparse table, so that 4 is asked for.
            Ratio("zipmix, sparse", "zipmix, dense", 4.0),
            Ratio("zipmix, sparse, equal rows once", "zipmix, sparse"),
        ),
        repeats=repeats,
    )


BATCH = "zipmix, all starts in one batch"
ALONE = "zipmix, one start after another"
STARTS = "broadcast R x N x K x D, all starts at once, objective as a by-product"


def restarts(
    n: int = 930, d: int = 20, k: int = 10, n_starts: int = 50, n_iter: int = 100, repeats: int = 11
) -> Outcome:
    """Many starts of EM, each for as many iterations."""
    X = zipmix.simulate(n, d, k, seed=0).X
    problem = pose(X, k, PRIOR)
    theta = starts(problem.counts, problem.prior, n_components=k, n_starts=n_starts, init="prior", start=None, seed=0)
    each = [Parameters(*(value[r : r + 1] for value in theta)) for r in range(n_starts)]
    first = Parameters(*(value[0] for value in theta))
    longest = torch.ones(n_starts, dtype=torch.float64)
    few, work, programs = min(10, n_iter), n_starts * n_iter, ("zipmix", "torch")

    def ours(point: Parameters, steps: int = n_iter) -> Parameters:
        with threads_for_parts():
            state = evaluate(problem, point, longest[: len(point.pi)])
            for _ in range(steps - 1):
                state = em_step(problem, state)
        return state.mapped

    def broadcast(point: Parameters, steps: int, elbo: bool) -> Parameters:
        for _ in range(steps):
            point, _ = broadcast_pass(X, point, elbo=elbo)
        return point

    def enumerated(gradient: Any, programs: tuple[str, ...], note: str) -> Contestant:
        run = gradient(X.numpy(), first, PRIOR)
        return Contestant(lambda: [run() for _ in range(few)], programs, share=few / work, note=note)

    after = ours(theta, few)
    close(broadcast(first, few, True), Parameters(*(value[0] for value in after)), rtol=1e-6)
    close(broadcast(theta, few, False), after, rtol=1e-6)
    close(ours(each[-1], few), Parameters(*(value[-1:] for value in after)), rtol=1e-6)

    some = f"timed on {few} iterations of a start, and scaled"
    one = f"timed on {few} gradients at a start, and scaled"
    return compared(
        f"{n_starts} starts, {n_iter} iterations: N = {n}, D = {d}, K = {k}",
        {
            BATCH: lambda: Contestant(lambda: ours(theta), programs),
            ALONE: lambda: Contestant(lambda: [ours(point) for point in each], programs),
            LEAN: lambda: Contestant(lambda: broadcast(first, few, False), share=few / work, note=some),
            COURSEWORK: lambda: Contestant(lambda: broadcast(first, few, True), share=few / work, note=some),
            STARTS: lambda: Contestant(
                lambda: broadcast(theta, 1, False), share=1 / n_iter, note="timed on one iteration, and scaled"
            ),
            PYRO: lambda: enumerated(pyro_gradient, ("pyro-ppl", "torch"), one),
            NUMPYRO: lambda: enumerated(numpyro_gradient, ("numpyro", "jax"), f"compiled; {one}"),
        },
        (
            Ratio(BATCH, ALONE, 4.0),
            Ratio(BATCH, COURSEWORK, 100.0),
            *(Ratio(BATCH, name) for name in (LEAN, STARTS, PYRO, NUMPYRO)),
        ),
        repeats=repeats,
    )
