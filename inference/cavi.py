"""CAVI: coordinate-ascent variational Bayes, q(z) q(b | z) q(pi) q(omega) q(lambda).

Beal (2003, chapter 2) for conjugate models; Bishop (2006, section 10.2) for mixtures. q(pi) is Dirichlet, q(omega_kd)
Beta, q(lambda_kd) Gamma. One pass over the data alternates

    q(z), q(b | z)   responsibilities and rho at expected logs             conjugate.expected_logs, kernel.expectation
    q(Theta)         the complete conditionals at the expected statistics  conjugate.complete_conditionals

With q(z) q(b | z) at its best for q(Theta), the ELBO is what the first step sums to, less a divergence, all constants
in:

    ELBO(q) = sum_i log sum_k exp(E_q[log p(x_i, b_i, z_i = k | Theta)] with b_i summed out) - KL(q(Theta) || p(Theta))

and never above log p(X). It never falls from one pass to the next. All starts share one batch.
"""

from typing import Any, NamedTuple

from torch import Tensor
from torch.distributions import kl_divergence

from zipmix.counts.checks import check_real, check_whole
from zipmix.counts.distinct import distinct
from zipmix.inference.loop import iterate
from zipmix.inference.problem import Problem, pose
from zipmix.inference.restarts import restarts_alone
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.inference.start import Init, starts
from zipmix.models.conjugate import (
    Conditionals,
    as_conditionals,
    as_distributions,
    complete_conditionals,
    draw,
    expected_logs,
    mean,
)
from zipmix.models.kernel import expectation, logs
from zipmix.models.parameters import Parameters, Prior, require_proper


class State(NamedTuple):
    """R variational posteriors, where a pass takes each of them, and how good each is."""

    q: Conditionals  # (R, ...)
    following: Conditionals  # (R, ...)
    objective: Tensor  # (R,) ELBO at q(Theta) and the best q(z) q(b | z) for it


def evaluate(problem: Problem, q: Conditionals) -> State:
    """One pass: q(z) q(b | z) at q(Theta), the next q(Theta), and the ELBO."""
    statistics, log_normaliser = expectation(problem.counts, expected_logs(q))
    following = complete_conditionals(statistics, problem.prior)
    return State(q, following, log_normaliser - divergence(q, as_conditionals(problem.prior)))


def divergence(q: Conditionals, p: Conditionals) -> Tensor:
    """KL(q || p) of pi, omega and lambda together, (...)."""
    pi, omega, lam = (kl_divergence(*pair) for pair in zip(as_distributions(q), as_distributions(p), strict=True))
    return pi + (omega + lam).sum((-2, -1))


def cavi(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    n_starts: int = 20,
    init: Init = "kmeans++",
    start: Parameters | None = None,
    max_iter: int = 5000,
    tolerance: float = 1e-12,
    n_draws: int = 1000,
    progress: bool = False,
) -> Fit:
    """Variational posterior by coordinate ascent, the best of several starts.

    Args (those of every method: zipmix.fit):
        prior: hyperparameters, all > 0.
        n_starts: R >= 1, how many starts run, all in one batch.
        max_iter: most passes over the data.
        tolerance: relative gain of the ELBO at which a start has converged.
        n_draws: S, draws of the final q to keep.
    Returns:
        parameters: the mean of q; draws (1, S, ...) from q; objective: the ELBO; `restarts`: the outcome of all
        starts.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    problem = pose(X, n_components, prior)
    require_proper(problem.prior, "cavi")
    check_whole(max_iter, "max_iter", at_least=1)
    check_real(tolerance, "tolerance", zero=True)
    check_whole(n_draws, "n_draws", at_least=1)
    counts, K = problem.counts, problem.n_components
    theta = starts(counts, problem.prior, n_components=K, n_starts=n_starts, init=init, start=start, seed=seed)
    # Passes merge equal rows; starts draw from all rows.
    passes = problem._replace(counts=distinct(problem.counts))
    statistics, _ = expectation(passes.counts, logs(theta))
    state, loop = iterate(
        lambda state: evaluate(passes, state.following),
        evaluate(passes, complete_conditionals(statistics, problem.prior)),
        lambda state: state.objective,
        max_iter=max_iter,
        tolerance=tolerance,
        progress=progress,
        label="cavi",
    )
    best = int(loop.objective_R.argmax())
    length = int(loop.n_iter_R[best]) + 1
    q = Conditionals(*(value[best] for value in state.q))
    many = Conditionals(*(value.expand(1, n_draws, *value.shape) for value in q))
    return problem.fit(
        "cavi",
        parameters=mean(q),
        draws=draw(many, generator(seed, "method")),
        objective=loop.objective_R[best].item(),
        trace=loop.trace_TR[:length, best],
        trace_seconds=loop.seconds_T[:length],
        converged=bool(loop.converged_R[best]),
        ending=loop.ending,
        reason=loop.reason,
        n_iter=length - 1,
        settings=dict(
            n_starts=len(theta.pi),
            init=init,
            start=start,
            max_iter=max_iter,
            tolerance=tolerance,
            n_draws=n_draws,
        ),
        seed=seed,
        restarts=restarts_alone(loop.objective_R, loop.n_iter_R, loop.converged_R, loop.trace_TR),
    )
