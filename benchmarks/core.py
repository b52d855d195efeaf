"""What leaving out the N x K x D array is worth: EM here beside its broadcast form, timed in the same process.

The broadcast form is what the formulas of the E-step, the M-step and the ELBO look like when they are typed in with
three axes. Both are the same mathematics, which is checked before anything is timed. Run it on an idle machine:

    python benchmarks/core.py
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zipmix import Parameters, Prior, simulate
from zipmix.inference.em import em_step, evaluate
from zipmix.inference.problem import pose
from zipmix.inference.start import starts
from zipmix.models.conjugate import as_conditionals, log_density

PRIOR = Prior()
# How many times faster a pass, and 50 restarts of 100 iterations, have to be.
PASS, RESTARTS = 40, 50


def broadcast_pass(X_ND: Tensor, theta: Parameters, *, elbo: bool) -> tuple[Parameters, Tensor]:
    """E-step, M-step and the objective log p(X | Theta) at theta with arrays of shape (N, K, D).

    Args:
        X_ND: (N, D) counts.
        theta: one point, or any number of them along axes in front, which the arrays then have as well.
        elbo: work the objective out piece by piece from the beliefs, as the coursework asks, or take the sum over
            components that the E-step has made anyway; the value is the same.
    """
    pi, omega, lam = theta.pi, theta.omega[..., None, :, :], theta.lam[..., None, :, :]
    alpha, a, b, e, f = PRIOR
    x, xlogy = X_ND[:, None, :], torch.special.xlogy
    poisson_NKD = x * lam.log() - lam - torch.lgamma(x + 1)
    on_NKD = omega.log() + poisson_NKD
    cell_NKD = torch.where(x > 0, on_NKD, torch.logaddexp((1 - omega).log(), on_NKD))
    joint_NK = pi.log()[..., None, :] + cell_NKD.sum(-1)
    log_likelihood_N = torch.logsumexp(joint_NK, -1)
    R_NK = (joint_NK - log_likelihood_N[..., None]).exp()
    Eb_NKD = torch.where(x > 0, 1.0, (on_NKD - cell_NKD).exp())
    objective = log_likelihood_N.sum(-1)
    if elbo:
        log_b_NKD = Eb_NKD * omega.log() + (1 - Eb_NKD) * (1 - omega).log()
        entropy_NKD = -xlogy(Eb_NKD, Eb_NKD) - xlogy(1 - Eb_NKD, 1 - Eb_NKD)
        objective = (R_NK[..., None] * (Eb_NKD * poisson_NKD + log_b_NKD + entropy_NKD)).sum((-1, -2, -3))
        objective = objective + (R_NK * pi.log()[..., None, :] - xlogy(R_NK, R_NK)).sum((-1, -2))
    n, s = R_NK.sum(-2), (R_NK[..., None] * x).sum(-3)
    m = (R_NK[..., None] * Eb_NKD).sum(-3)
    weight = alpha - 1 + n
    mapped = Parameters(
        weight / weight.sum(-1, keepdim=True), (a - 1 + m) / (a + b - 2 + n[..., None]), (e - 1 + s) / (f + m)
    )
    return mapped, objective


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The least wall time of several calls."""
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return min(taken)


class Times(NamedTuple):
    """Seconds of the same work done in three ways."""

    ours: float
    lean: float  # broadcast, the objective as a by-product
    coursework: float  # broadcast, the ELBO piece by piece


def one_pass(n: int, d: int, k: int, repeats: int) -> Times:
    """One EM pass."""
    X = simulate(n, d, k, seed=0).X
    problem = pose(X, k, PRIOR)
    theta = starts(problem.counts, problem.prior, n_components=k, n_starts=1, init="prior", start=None, seed=0)
    longest = torch.ones(1, dtype=torch.float64)
    one = Parameters(*(field[0] for field in theta))
    ours = evaluate(problem, theta, longest)
    for elbo in (False, True):
        mapped, objective = broadcast_pass(X, one, elbo=elbo)
        for mine, other in zip(ours.mapped, mapped, strict=True):
            torch.testing.assert_close(mine[0], other, rtol=1e-8, atol=1e-10)
        prior = log_density(as_conditionals(problem.prior), one)
        torch.testing.assert_close(ours.objective[0], objective + prior, rtol=1e-10, atol=0.0)
    return Times(
        seconds(lambda: evaluate(problem, theta, longest), 10 * repeats),
        seconds(lambda: broadcast_pass(X, one, elbo=False), repeats),
        seconds(lambda: broadcast_pass(X, one, elbo=True), repeats),
    )


def restarts(n: int, d: int, k: int, n_starts: int, n_iter: int, timed: int) -> Times:
    """All restarts: ours in one batch, broadcast one after another (the first few timed, and scaled)."""
    X = simulate(n, d, k, seed=0).X
    problem = pose(X, k, PRIOR)
    theta = starts(problem.counts, problem.prior, n_components=k, n_starts=n_starts, init="prior", start=None, seed=0)

    def ours() -> Tensor:
        state = evaluate(problem, theta, torch.ones(n_starts, dtype=torch.float64))
        for _ in range(n_iter):
            state = em_step(problem, state)
        return state.theta.lam

    def theirs(elbo: bool) -> Tensor:
        ends = []
        for r in range(timed):
            point = Parameters(*(field[r] for field in theta))
            for _ in range(n_iter):
                point, _ = broadcast_pass(X, point, elbo=elbo)
            ends.append(point.lam)
        return torch.stack(ends)

    torch.testing.assert_close(ours()[:timed], theirs(False), rtol=1e-4, atol=1e-6)
    scale = n_starts / timed
    return Times(seconds(ours, 3), scale * seconds(lambda: theirs(False), 1), scale * seconds(lambda: theirs(True), 1))


def main() -> int:
    """Prints both comparisons; status 1 where one falls short of the coursework's form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--timed-starts", type=int, default=5, help="starts of the broadcast form that are timed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), float64")
    short = False
    for name, least, times in (
        ("EM pass, N = 10 000, D = 50, K = 20", PASS, one_pass(10_000, 50, 20, options.repeats)),
        (
            "50 restarts x 100 iterations, N = 930, D = 20, K = 10",
            RESTARTS,
            restarts(930, 20, 10, 50, 100, options.timed_starts),
        ),
    ):
        print(f"{name}: {times.ours:.4g} s (at least {least} times faster wanted)")
        for form, taken in (("as the coursework asks", times.coursework), ("objective as a by-product", times.lean)):
            print(f"  broadcast, {form}: {taken:.4g} s, {taken / times.ours:.0f} times")
        short = short or times.coursework < least * times.ours
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
