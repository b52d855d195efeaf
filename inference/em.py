"""EM: the posterior mode (MAP) of pi, omega and lambda, or the maximum likelihood with the flat prior.

Dempster, Laird and Rubin (1977). One pass over the data alternates

    E-step   expected sufficient statistics given the current point       kernel.expectation     (question 2a)
    M-step   mode of the complete conditionals at these statistics        conjugate.mode         (question 2b)

and never lowers log p(X, Theta | prior), which the same pass yields at the current point. All starts share one batch.

EM ends at the optimum that its start leads to, so the search for the best one matters more than any pass. Where starts
are sought, each is annealed, all take some steps, the best of them go on (a race), and split-and-merge moves from the
best optimum follow until they bring nothing. From starts that are given, EM goes to its end and no further.

Acceleration is SQUAREM (Varadhan and Roland, 2008, scheme S3): with r = M(theta) - theta and v = M(M(theta)) - M(theta)
- r in unconstrained coordinates, the next point is theta - 2 t r + t^2 v at t = -|r| / |v|. It is taken only where it
lowers nothing; elsewhere the EM step stands and the longest step allowed shrinks, down to plain EM.
"""

import time
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_flag, check_real, check_whole
from zipmix.counts.distinct import distinct
from zipmix.counts.store import Counts
from zipmix.counts.threads import threads_for_parts
from zipmix.inference.loop import Loop, Race, iterate, out_of_time, progress_bar, together
from zipmix.inference.result import SAME_OPTIMUM, Fit, Problem, Restarts, pose
from zipmix.inference.split_merge import proposals
from zipmix.inference.start import Init, starts
from zipmix.models.conjugate import as_conditionals, complete_conditionals, log_density_at, mode
from zipmix.models.kernel import exact_logs, expectation, floored, logs
from zipmix.models.parameters import Parameters, Prior, require_mode

Precision = Literal["float64", "float32"]
Auto = Literal["auto"]


class Search(NamedTuple):
    """What is done for a better optimum than the next one, besides many starts."""

    annealing: int  # passes
    race: Race | None
    split_merge: int  # rounds


# What came nearest to the best optima of hard tables, in less time than 20 starts to the end (benchmarks/search.py);
# and what is done with starts that the user gives.
N_STARTS = 40
SOUGHT = Search(annealing=30, race=Race(20, 6), split_merge=20)
GIVEN = Search(annealing=0, race=None, split_merge=0)

# Moves in a round of split-and-merge, the steps that each of them takes, how many then go on, and how many rounds
# running that bring nothing end them.
N_MOVES = 20
SHORT = 5
FINALISTS = 2
IN_VAIN = 2

# Relative gain below which an objective from float32 products is noise.
SETTLED = 1e-8


class State(NamedTuple):
    """R points, where EM takes each of them, and how good each is."""

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


def annealed(problem: Problem, theta: Parameters, n_passes: int, *, progress: bool = False) -> Parameters:
    """Deterministic annealing (Ueda and Nakano, 1998): EM passes in which responsibilities start out alike.

    They are in proportion to p(x_i, z_i = k)^power, and the power rises from 1 / n_passes to 1 in equal steps.
    """
    with progress_bar(n_passes, "em: annealing", enabled=progress and n_passes > 0) as advance:
        for t in range(1, n_passes + 1):
            if out_of_time():
                break
            statistics, _ = expectation(problem.counts, logs(theta), power=t / n_passes)
            theta = mode(complete_conditionals(statistics, problem.prior))
            advance()
    return theta


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

    Args:
        X: (N, D) counts >= 0, NaN where missing; or a zipmix.stream of them.
        n_components: K >= 1.
        prior: hyperparameters; alpha, a, b, e >= 1, since below 1 no MAP exists.
        seed: of the starts and the moves.
        n_starts: R >= 1, how many starts run, all in one batch.
        init: "kmeans++", "small-em" or "prior", where starts come from.
        start: starting points to use instead, (K, D) or (R, K, D). EM runs from exactly these to its end, unless
            annealing, a race or moves are asked for.
        annealing: passes of deterministic annealing between a start and EM; "auto": 30, or none where start is given.
        race: (t, r): after t iterations the best r starts alone go on; None: all run to their ends; "auto": (20, 6),
            or None where start is given.
        split_merge: most rounds of split-and-merge moves, each from the best optimum so far, which two rounds running
            that bring nothing end; "auto": 20, or none where start is given.
        accelerate: SQUAREM (an iteration is two passes) or plain EM (one pass).
        dtype: "float64", or "float32" for products in float32 wherever a row's log joint stays within 1e-4; the
            objectives at the end are worked out in float64, and the tolerance is 1e-8 at least.
        max_iter: most iterations of a start, and of a move; there are no moves from a point that has not converged.
        tolerance: relative gain of the objective at which a start has converged.
        progress: whether to show a progress bar.
    Returns:
        The fit of the best run; `restarts` tells of all starts, and of the moves after them.
    Raises:
        InputError: data, prior or settings that cannot be used, or a prior without a MAP.
    """
    problem = pose(X, n_components, prior, streams=True)
    require_mode(problem.prior, "em")
    check_whole(max_iter, "max_iter", at_least=1)
    check_real(tolerance, "tolerance", zero=True)
    check_flag(accelerate, "accelerate")
    search = _check_search(annealing, race, split_merge, SOUGHT if start is None else GIVEN)
    if dtype not in get_args(Precision):
        raise InputError(f"dtype must be 'float64' or 'float32', got {dtype!r}.")
    precision: torch.dtype = getattr(torch, dtype)
    # A pass looks at equal rows once; starts and moves draw from all rows.
    passes = problem._replace(counts=distinct(problem.counts))
    if dtype == "float32" and isinstance(passes.counts, Counts):
        passes = passes._replace(counts=passes.counts.totalled())
    step = squarem_step if accelerate else em_step

    def run(theta: Parameters, race: Race | None, label: str) -> tuple[Parameters, Loop]:
        """The best end of EM from these points, and how all of them went, on the clock of the whole fit."""
        later, one_R = time.perf_counter() - began, torch.ones(len(theta.pi), dtype=torch.float64)
        state, loop = iterate(
            lambda state: step(passes, state, precision),
            evaluate(passes, theta, one_R, precision),
            lambda state: state.objective,
            max_iter=max_iter,
            tolerance=tolerance if dtype == "float64" else max(tolerance, SETTLED),
            progress=progress,
            label=label,
            race=race,
        )
        if dtype != "float64":
            loop = loop._replace(objective_R=evaluate(passes, state.theta, one_R).objective)
        best = int(loop.objective_R.argmax())
        return Parameters(*(value[best] for value in state.theta)), loop._replace(seconds_T=later + loop.seconds_T)

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
        n_starts, began = len(theta.pi), time.perf_counter()
        point, loop = run(annealed(passes, theta, search.annealing, progress=progress), search.race, "em")
        clocks, rounds = [loop.seconds_T], [0] * n_starts
        rng, in_vain = np.random.default_rng([seed, 1_000_003]), 0
        for t in range(1, 1 + search.split_merge * (problem.n_components > 1)):
            best = int(loop.objective_R.argmax())
            if loop.interrupted or in_vain == IN_VAIN or not loop.converged_R[best]:
                break
            if out_of_time():
                loop = loop._replace(reason=f"its budget of time ended before round {t} of split and merge")
                break
            found = loop.objective_R[best].item()
            better = found + SAME_OPTIMUM * (1 + abs(found))
            try:
                moves = proposals(problem.counts, problem.prior, point, N_MOVES, rng)
                label = f"em: split and merge, round {t}"
                moved, moved_loop = run(moves, Race(SHORT, FINALISTS, better), label)
            except KeyboardInterrupt:
                loop = loop._replace(reason=f"interrupted by the user before round {t} of split and merge")
                break
            top = moved_loop.objective_R.max().item()
            point, loop = moved if top > found else point, together(loop, moved_loop)
            clocks.append(moved_loop.seconds_T)
            rounds += [t] * N_MOVES
            in_vain = 0 if top > better else in_vain + 1
    best = int(loop.objective_R.argmax())
    length = int(loop.n_iter_R[best]) + 1
    return Fit(
        method="em",
        parameters=point,
        draws=None,
        objective=loop.objective_R[best].item(),
        trace=loop.trace_TR[:length, best],
        trace_seconds=clocks[rounds[best]][:length],
        converged=bool(loop.converged_R[best]),
        reason=loop.reason,
        n_iter=length - 1,
        seconds=time.perf_counter() - problem.began,
        settings=dict(
            n_starts=n_starts,
            init=init,
            start=start,
            annealing=search.annealing,
            race=search.race and [search.race.after, search.race.finalists],
            split_merge=search.split_merge,
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
        restarts=Restarts(
            loop.objective_R, loop.n_iter_R, loop.converged_R, loop.trace_TR, loop.left_R, torch.tensor(rounds)
        ),
    )


def _check_search(
    annealing: int | Auto, race: tuple[int, int] | Auto | None, split_merge: int | Auto, auto: Search
) -> Search:
    passes = auto.annealing if annealing == "auto" else check_whole(annealing, "annealing", at_least=0)
    rounds = auto.split_merge if split_merge == "auto" else check_whole(split_merge, "split_merge", at_least=0)
    if race == "auto" or race is None:
        return Search(passes, race and auto.race, rounds)
    if not isinstance(race, tuple | list) or len(race) != 2:
        raise InputError(
            f"race must be two whole numbers, (iterations, starts that go on), or None or 'auto'; got {race!r}."
        )
    return Search(passes, Race(*(check_whole(value, "race", at_least=1) for value in race)), rounds)


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
