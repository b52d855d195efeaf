"""EM: the posterior mode (MAP) of pi, omega and lambda, or the maximum likelihood with the flat prior.

Dempster, Laird and Rubin (1977). One pass over the data alternates

    E-step   expected sufficient statistics given the current point       kernel.expectation     (question 2a)
    M-step   mode of the complete conditionals at these statistics        conjugate.mode         (question 2b)

and never lowers log p(X, Theta | prior), which the same pass yields at the current point. All starts share one batch.

Search (search.py): drawn starts are annealed, the best go on after some steps (a race), and split-and-merge moves from
the best optimum follow until they find nothing better. From given starts EM goes to its end and no further.

Acceleration (squarem.py): a step is two EM passes and an extrapolation, which is taken where it lowers nothing.

Notation: models/zip_mixture.py.
"""

import time
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_flag, check_real, check_whole
from zipmix.counts.distinct import distinct
from zipmix.counts.store import Counts
from zipmix.counts.threads import threads_for_parts
from zipmix.inference.loop import Loop, iterate, never
from zipmix.inference.problem import Problem, pose
from zipmix.inference.restarts import Restarts
from zipmix.inference.result import Fit
from zipmix.inference.search import (
    GIVEN,
    N_STARTS,
    SOUGHT,
    Auto,
    Found,
    Race,
    Search,
    annealed,
    check_search,
    split_and_merge,
)
from zipmix.inference.squarem import extrapolated, next_longest
from zipmix.inference.start import Init, starts
from zipmix.models.conjugate import as_conditionals, complete_conditionals, log_density_at, mode
from zipmix.models.coordinates import constrain, unconstrain
from zipmix.models.kernel import exact_logs, expectation, floored
from zipmix.models.parameters import Parameters, Prior, require_mode

Precision = Literal["float64", "float32"]

# Least relative tolerance in float32: a smaller gain of the objective is rounding.
FLOAT32_TOLERANCE = 1e-8


class State(NamedTuple):
    """R points, their EM images, and their objectives."""

    theta: Parameters  # (R, ...)
    mapped: Parameters  # (R, ...) M(theta)
    objective: Tensor  # (R,) log p(X, theta | prior)
    longest: Tensor  # (R,) longest SQUAREM step |t| allowed


def evaluate(problem: Problem, theta: Parameters, longest: Tensor, dtype: torch.dtype = torch.float64) -> State:
    """One pass: E-step at theta, M-step, and the objective at theta."""
    tables = exact_logs(theta)
    statistics, log_likelihood = expectation(problem.counts, floored(tables), dtype=dtype)
    conditionals = complete_conditionals(statistics, problem.prior)
    objective = log_likelihood + log_density_at(as_conditionals(problem.prior), tables)
    return State(theta, mode(conditionals), objective, longest)


def em_step(problem: Problem, state: State, dtype: torch.dtype = torch.float64) -> State:
    """Moves to M(theta), one pass."""
    return evaluate(problem, state.mapped, state.longest, dtype)


def squarem_step(problem: Problem, state: State, dtype: torch.dtype = torch.float64) -> State:
    """Extrapolates two EM steps, two passes; falls back to the EM step where the objective would fall."""
    plain = em_step(problem, state, dtype)
    x0, x1, x2 = (unconstrain(point) for point in (state.theta, state.mapped, plain.mapped))
    x, t = extrapolated(x0, x1, x2, state.longest)
    bold = evaluate(problem, constrain(x, plain.mapped), state.longest, dtype)
    accepted = bold.objective >= plain.objective
    return _where(accepted, bold, plain)._replace(longest=next_longest(state.longest, t, accepted))


class Ascent(NamedTuple):
    """Data and settings of EM that all starts and moves share."""

    passes: Problem  # equal rows merged into one with a multiplicity
    accelerate: bool
    dtype: torch.dtype
    max_iter: int
    tolerance: float
    progress: bool


def em(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    n_starts: int = N_STARTS,
    init: Init = "kmeans++",
    start: Parameters | None = None,
    annealing: int | Auto = "auto",
    race: tuple[int, int] | Auto | None = "auto",
    split_merge: int | Auto = "auto",
    accelerate: bool = True,
    dtype: Precision = "float64",
    max_iter: int = 2000,
    tolerance: float = 1e-12,
    progress: bool = False,
) -> Fit:
    """MAP by EM, the best of several starts; maximum likelihood with prior=zipmix.FLAT.

    Args (those of every method: zipmix.fit):
        prior: hyperparameters; alpha, a, b, e >= 1, since below 1 no MAP exists.
        n_starts: R >= 1, starts that run in one batch.
        start: starting points to use instead, (K, D) or (R, K, D). EM runs from exactly these to its end, unless
            annealing, a race or moves are set.
        annealing: passes of deterministic annealing before EM; "auto": 30, or 0 where start is given.
        race: (t, r): after t iterations only the best r starts go on; None: all do; "auto": (20, 6) or None.
        split_merge: most rounds of split-and-merge moves, which two rounds without gain end; "auto": 20 or 0.
        accelerate: SQUAREM (an iteration is two passes) or plain EM (one pass).
        dtype: "float64", or "float32" for the products of rows whose log joint stays within 1e-4; the tolerance is
            then at least 1e-8, and the final objectives are in float64.
        max_iter: most iterations of a start, and of a move; there are no moves from a point that has not converged.
        tolerance: relative gain of the objective at which a start has converged.
    Returns:
        The fit of the best run; `restarts` holds the outcome of all starts and moves.
    Raises:
        InputError: data, prior or settings that cannot be used, or a prior without a MAP.
    """
    problem = pose(X, n_components, prior, streams=True)
    search = check_search(annealing, race, split_merge, SOUGHT if start is None else GIVEN)
    ascent = _ascent(problem, accelerate, dtype, max_iter, tolerance, progress)
    counts, K = problem.counts, problem.n_components
    with threads_for_parts():
        theta = starts(counts, problem.prior, n_components=K, n_starts=n_starts, init=init, start=start, seed=seed)
        found = _searched(problem, ascent, theta, search, seed)
    settings = dict(n_starts=len(theta.pi), init=init, start=start) | search.settings()
    settings |= dict(accelerate=accelerate, dtype=dtype, max_iter=max_iter, tolerance=tolerance)
    return _fit(problem, found, settings, seed)


def _ascent(
    problem: Problem, accelerate: bool, dtype: Precision, max_iter: int, tolerance: float, progress: bool
) -> Ascent:
    """The settings of EM, checked.

    Raises:
        InputError: a setting that is not allowed, or a prior without a MAP.
    """
    require_mode(problem.prior, "em")
    check_whole(max_iter, "max_iter", at_least=1)
    check_real(tolerance, "tolerance", zero=True)
    check_flag(accelerate, "accelerate")
    if dtype not in get_args(Precision):
        raise InputError(f"dtype must be 'float64' or 'float32', got {dtype!r}.")
    passes = problem._replace(counts=distinct(problem.counts))
    if dtype == "float32":
        tolerance = max(tolerance, FLOAT32_TOLERANCE)
        if isinstance(passes.counts, Counts):
            passes = passes._replace(counts=passes.counts.totalled())
    return Ascent(passes, accelerate, getattr(torch, dtype), max_iter, tolerance, progress)


def _searched(problem: Problem, ascent: Ascent, theta: Parameters, search: Search, seed: int) -> Found:
    """Annealing, EM and split-and-merge moves from the starts; the clock of all runs begins here."""
    began = time.perf_counter()

    def run(theta: Parameters, race: Race | None, label: str) -> tuple[Parameters, Loop]:
        later = time.perf_counter() - began
        point, loop = _run(ascent, theta, race, label)
        return point, loop._replace(seconds_T=later + loop.seconds_T)

    point, loop = run(annealed(ascent.passes, theta, search.annealing, progress=ascent.progress), search.race, "em")
    return split_and_merge(problem, point, loop, run, search.split_merge, seed)


def _run(ascent: Ascent, theta: Parameters, race: Race | None, label: str) -> tuple[Parameters, Loop]:
    """EM from a batch of points: the best end, and the outcome of all runs, their objectives in float64."""
    one_R = torch.ones(len(theta.pi), dtype=torch.float64)
    step = squarem_step if ascent.accelerate else em_step
    state, loop = iterate(
        lambda state: step(ascent.passes, state, ascent.dtype),
        evaluate(ascent.passes, theta, one_R, ascent.dtype),
        lambda state: state.objective,
        max_iter=ascent.max_iter,
        tolerance=ascent.tolerance,
        progress=ascent.progress,
        label=label,
        leaving=never if race is None else race.leaving,
    )
    if ascent.dtype != torch.float64:
        loop = loop._replace(objective_R=evaluate(ascent.passes, state.theta, one_R).objective)
    return state.theta.at(int(loop.objective_R.argmax())), loop


def _fit(problem: Problem, found: Found, settings: dict[str, Any], seed: int) -> Fit:
    """The fit of the best run."""
    point, loop, clocks, round_R = found
    best = int(loop.objective_R.argmax())
    length = int(loop.n_iter_R[best]) + 1
    return problem.fit(
        "em",
        parameters=point,
        objective=loop.objective_R[best].item(),
        trace=loop.trace_TR[:length, best],
        trace_seconds=clocks[round_R[best]][:length],
        converged=bool(loop.converged_R[best]),
        ending=loop.ending,
        reason=loop.reason,
        n_iter=length - 1,
        settings=settings,
        seed=seed,
        restarts=Restarts(
            loop.objective_R, loop.n_iter_R, loop.converged_R, loop.trace_TR, loop.left_R, torch.tensor(round_R)
        ),
    )


def _where(chosen_R: Tensor, yes: State, no: State) -> State:
    """The runs of yes where chosen, of no elsewhere."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(chosen_R.reshape(-1, *(1 for _ in a.shape[1:])), a, b)

    return State(
        Parameters(*map(pick, yes.theta, no.theta)),
        Parameters(*map(pick, yes.mapped, no.mapped)),
        pick(yes.objective, no.objective),
        pick(yes.longest, no.longest),
    )
