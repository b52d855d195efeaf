"""EM: the posterior mode (MAP) of pi, omega and lambda, or the maximum likelihood with the flat prior.

Dempster, Laird and Rubin (1977). One pass over the data alternates

    E-step   expected sufficient statistics given the current point       kernel.expectation     (question 2a)
    M-step   mode of the complete conditionals at these statistics        conjugate.mode         (question 2b)

and never lowers log p(X, Theta | prior), which the same pass yields at the current point. All starts share one batch.

Acceleration is SQUAREM (Varadhan and Roland, 2008, scheme S3): with r = M(theta) - theta and v = M(M(theta)) - M(theta)
- r in unconstrained coordinates, the next point is theta - 2 t r + t^2 v at t = -|r| / |v|. It is taken only where it
lowers nothing; elsewhere the EM step stands and the longest step allowed shrinks, down to plain EM.
"""

import time
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from zipmix.inference.loop import Loop, Race, iterate, joined, out_of_time, together
from zipmix.inference.result import Fit, Problem, Restarts, pose
from zipmix.inference.split_merge import proposals
from zipmix.inference.start import Init, starts
from zipmix.models.conjugate import as_conditionals, complete_conditionals, log_density, mode
from zipmix.models.counts import Counts
from zipmix.models.kernel import expectation, logs
from zipmix.models.parameters import InputError, Parameters, Prior, check_flag, check_real, check_whole, require_mode
from zipmix.models.rows import threads_for_parts

Precision = Literal["float64", "float32"]


class State(NamedTuple):
    """R points, where EM takes each of them, and how good each is."""

    theta: Parameters  # (R, ...)
    mapped: Parameters  # (R, ...) M(theta)
    objective: Tensor  # (R,) log p(X, theta | prior)
    longest: Tensor  # (R,) longest SQUAREM step |t| allowed


def evaluate(problem: Problem, theta: Parameters, longest: Tensor, dtype: torch.dtype = torch.float64) -> State:
    """One pass: E-step at theta, M-step, and the objective at theta."""
    statistics, log_likelihood = expectation(problem.counts, logs(theta), dtype=dtype)
    conditionals = complete_conditionals(statistics, problem.prior)
    objective = log_likelihood + log_density(as_conditionals(problem.prior), theta)
    return State(theta, mode(conditionals), objective, longest)


def em_step(problem: Problem, state: State, dtype: torch.dtype = torch.float64) -> State:
    """Goes to M(theta): one pass."""
    return evaluate(problem, state.mapped, state.longest, dtype)


def squarem_step(problem: Problem, state: State, dtype: torch.dtype = torch.float64) -> State:
    """Goes along the extrapolated EM path: two passes, never downhill."""
    plain = em_step(problem, state, dtype)
    theta, t = _extrapolate(state, plain)
    bold = evaluate(problem, theta, state.longest, dtype)
    accepted = bold.objective >= plain.objective
    at_limit = t >= state.longest
    longest = torch.where(accepted, torch.where(at_limit, 4 * state.longest, state.longest), (t / 4).clamp_min(1.0))
    chosen = _where(accepted, bold, plain)
    return chosen._replace(longest=longest)


def annealed(problem: Problem, theta: Parameters, n_passes: int) -> Parameters:
    """Deterministic annealing (Ueda and Nakano, 1998): EM passes in which responsibilities start out alike.

    They are in proportion to p(x_i, z_i = k)^power, and the power rises from 1 / n_passes to 1 in equal steps.
    """
    for t in range(1, n_passes + 1):
        statistics, _ = expectation(problem.counts, logs(theta), power=t / n_passes)
        theta = mode(complete_conditionals(statistics, problem.prior))
    return theta


def em(
    X: Any,
    n_components: int,
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    n_starts: int = 20,
    init: Init = "kmeans++",
    start: Parameters | None = None,
    annealing: int = 0,
    race: Race | tuple[int, int] | None = None,
    split_merge: int = 0,
    accelerate: bool = True,
    dtype: Precision = "float64",
    max_iter: int = 2000,
    tolerance: float = 1e-12,
    progress: bool = False,
) -> Fit:
    """MAP by EM, the best of several starts; maximum likelihood with prior=zipmix.FLAT.

    Args:
        X: (N, D) counts >= 0, NaN where missing; or a zipmix.stream of them.
        n_components: K >= 1.
        prior: hyperparameters; alpha, a, b, e >= 1, since below 1 no MAP exists.
        seed: of the starts and the moves.
        n_starts: R >= 1, how many starts run, all in one batch.
        init: "kmeans++", "small-em" or "prior", where starts come from.
        start: starting points to use instead, (K, D) or (R, K, D).
        annealing: passes of deterministic annealing between a start and EM.
        race: (t, r): after t iterations the best r starts alone go on.
        split_merge: rounds of split-and-merge moves, each from the best point so far.
        accelerate: SQUAREM (an iteration is two passes) or plain EM (one pass).
        dtype: "float64", or "float32" for products in float32 wherever a row's log joint stays within 1e-4; the
            objectives at the end are worked out in float64, and the tolerance is 1e-8 at least.
        max_iter: most iterations.
        tolerance: relative gain of the objective at which a start has converged.
        progress: whether to show a progress bar.
    Returns:
        The fit of the best start; `restarts` tells of all of them, and of the moves after them.
    Raises:
        InputError: data, prior or settings that cannot be used, or a prior without a MAP.
    """
    problem = pose(X, n_components, prior, streams=True)
    require_mode(problem.prior, "em")
    check_whole(max_iter, "max_iter", at_least=1)
    check_whole(annealing, "annealing", at_least=0)
    check_whole(split_merge, "split_merge", at_least=0)
    check_real(tolerance, "tolerance", zero=True)
    check_flag(accelerate, "accelerate")
    short = _check_race(race)
    if dtype not in get_args(Precision):
        raise InputError(f"dtype must be 'float64' or 'float32', got {dtype!r}.")
    precision: torch.dtype = getattr(torch, dtype)
    if dtype == "float32" and isinstance(problem.counts, Counts):
        problem = problem._replace(counts=problem.counts.totalled())
    step = squarem_step if accelerate else em_step

    def run(theta: Parameters, race: Race | None, label: str) -> tuple[State, Loop]:
        return iterate(
            lambda state: step(problem, state, precision),
            evaluate(problem, theta, torch.ones(len(theta.pi), dtype=torch.float64), precision),
            lambda state: state.objective,
            max_iter=max_iter,
            tolerance=tolerance if dtype == "float64" else max(tolerance, SETTLED),
            progress=progress,
            label=label,
            race=race,
        )

    with threads_for_parts():
        theta = starts(
            problem.counts,
            problem.prior,
            n_components=problem.n_components,
            n_starts=n_starts,
            init=init,
            start=start,
            seed=seed,
        )
        began = time.perf_counter()
        state, loop = run(annealed(problem, theta, annealing), short, "em")
        clocks = [loop.seconds_T.expand(len(loop.objective_R), -1)]
        rng = np.random.default_rng([seed, 1_000_003])
        for t in range(split_merge if problem.n_components > 1 else 0):
            if loop.interrupted or out_of_time():
                break
            best = int(loop.objective_R.argmax())
            top = Parameters(*(value[best] for value in state.theta))
            moves = proposals(problem.counts, problem.prior, top, N_MOVES, rng)
            later = time.perf_counter() - began
            moved, moved_loop = run(moves, Race(SHORT, FINALISTS), f"em: split and merge {t + 1}/{split_merge}")
            clocks.append((later + moved_loop.seconds_T).expand(len(moved_loop.objective_R), -1))
            state, loop = joined(state, moved), together(loop, moved_loop)
        if dtype != "float64":
            loop = loop._replace(objective_R=evaluate(problem, state.theta, state.longest).objective)
    best = int(loop.objective_R.argmax())
    length = int(loop.n_iter_R[best]) + 1
    return Fit(
        method="em",
        parameters=Parameters(*(value[best] for value in state.theta)),
        draws=None,
        objective=loop.objective_R[best].item(),
        trace=loop.trace_TR[:length, best],
        trace_seconds=[seconds_T for clock in clocks for seconds_T in clock][best][:length],
        converged=bool(loop.converged_R[best]),
        reason=loop.reason,
        n_iter=length - 1,
        seconds=time.perf_counter() - problem.began,
        settings=dict(
            n_starts=len(theta.pi),
            init=init,
            start=start,
            annealing=annealing,
            race=None if race is None else list(race),
            split_merge=split_merge,
            accelerate=accelerate,
            dtype=dtype,
            max_iter=max_iter,
            tolerance=tolerance,
        ),
        seed=seed,
        prior=problem.prior,
        X=problem.table.X,
        names=problem.table.names,
        row_names=problem.table.row_names,
        restarts=Restarts(loop.objective_R, loop.n_iter_R, loop.converged_R, loop.trace_TR),
    )


# Relative gain below which an objective from float32 products is noise.
SETTLED = 1e-8

# Moves in a round of split-and-merge, the iterations that each of them gets, and how many then go on.
N_MOVES = 10
SHORT = 10
FINALISTS = 2


def _check_race(race: Race | tuple[int, int] | None) -> Race | None:
    if race is None:
        return None
    if not isinstance(race, (tuple, list)) or len(race) != 2:
        raise InputError(f"race must be two whole numbers, (iterations, starts that go on), got {race!r}.")
    return Race(*(check_whole(value, "race", at_least=1) for value in race))


def _extrapolate(state: State, plain: State) -> tuple[Parameters, Tensor]:
    """The SQUAREM point and its step length t, (R,)."""
    x0, x1, x2 = (_unconstrained(point) for point in (state.theta, state.mapped, plain.mapped))
    r, v = x1 - x0, x2 - 2 * x1 + x0
    ratio = r.norm(dim=-1) / v.norm(dim=-1).clamp_min(1e-300)
    t = ratio.clamp_min(1.0).minimum(state.longest)
    x = x0 + 2 * t[:, None] * r + t[:, None] ** 2 * v
    return _constrained(x, plain.mapped), t


# Beyond this, a log or a logit is a point on the boundary; extrapolation leaves it there.
EDGE = 40.0


def _unconstrained(theta: Parameters) -> Tensor:
    """log pi, logit omega and log lambda side by side, (R, K + 2 K D)."""
    coordinates = (theta.pi.log(), theta.omega.logit().flatten(1), theta.lam.log().flatten(1))
    return torch.cat(coordinates, dim=1).clamp(-EDGE, EDGE)


def _constrained(x: Tensor, like: Parameters) -> Parameters:
    K, D = like.omega.shape[-2:]
    log_pi, logit, log_lam = x.clamp(-EDGE, EDGE).split([K, K * D, K * D], dim=1)
    return Parameters(
        torch.softmax(log_pi, -1), torch.sigmoid(logit).unflatten(1, (K, D)), log_lam.exp().unflatten(1, (K, D))
    )


def _where(chosen_R: Tensor, yes: State, no: State) -> State:
    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(chosen_R.reshape(-1, *(1 for _ in a.shape[1:])), a, b)

    return State(
        Parameters(*map(pick, yes.theta, no.theta)),
        Parameters(*map(pick, yes.mapped, no.mapped)),
        pick(yes.objective, no.objective),
        pick(yes.longest, no.longest),
    )
