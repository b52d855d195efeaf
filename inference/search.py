"""The search for the best optimum of EM: annealing before it, a race between starts, split-and-merge moves after it.

EM ends at the optimum that its start leads to. Three means lead further:

    annealing         the first passes use responsibilities in proportion to p(x_i, z_i = k)^power, and the power rises
                      from 1 / n_passes to 1 in equal steps (deterministic annealing, Ueda and Nakano, 1998)
    race              after some steps only the best runs go on
    split and merge   a move from the best optimum merges two components that share many rows and splits a third, so
                      that K stays (Ueda, Nakano, Ghahramani and Hinton, 2000)

The moves of a round are one batch of starts. They race too: after SHORT steps the FINALISTS best go on, as long as
they can still exceed the best optimum. Rounds end once IN_VAIN consecutive ones have found nothing better.

Notation: models/zip_mixture.py.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_whole
from zipmix.counts.store import Counts, CountTable
from zipmix.inference.ending import Ending
from zipmix.inference.loop import Loop, out_of_time, progress_bar, together
from zipmix.inference.problem import Problem
from zipmix.inference.restarts import SAME_OPTIMUM
from zipmix.inference.rng import generator
from zipmix.inference.start import few_rows, nearest_seeds
from zipmix.models.conjugate import complete_conditionals, mean, mode
from zipmix.models.kernel import expectation, log_joint, logs, responsibilities, statistics
from zipmix.models.parameters import Parameters, Prior

Auto = Literal["auto"]


# Steps by which a finalist must reach what it has to beat, each as large as the larger of its last two.
CATCH_UP = 20


class Race(NamedTuple):
    """Short runs, of which the best go on (small-EM; Biernacki, Celeux and Govaert, 2003)."""

    after: int  # steps that every run takes
    finalists: int  # runs that go on
    beat: float = -math.inf  # objective that they must still be able to reach

    def leaving(self, t: int, objective_A: Tensor, rise_A: Tensor, last_rise_A: Tensor) -> Tensor:
        """Which runs give up after step t, (A,) bool (loop.Leaving)."""
        if t < self.after:
            return torch.zeros(len(objective_A), dtype=torch.bool)
        hopeless_A = objective_A + CATCH_UP * rise_A.maximum(last_rise_A) < self.beat
        if t > self.after:
            return hopeless_A
        return hopeless_A | (objective_A.argsort(descending=True).argsort() >= self.finalists)


class Search(NamedTuple):
    """How the best optimum is searched for, besides many starts."""

    annealing: int  # passes
    race: Race | None
    split_merge: int  # most rounds

    def settings(self) -> dict[str, Any]:
        """As a fit records it."""
        race = self.race and [self.race.after, self.race.finalists]
        return dict(annealing=self.annealing, race=race, split_merge=self.split_merge)


# Defaults chosen by benchmarks/search.py, for starts that are drawn and for starts that the user gives.
N_STARTS = 40
SOUGHT = Search(annealing=30, race=Race(20, 6), split_merge=20)
GIVEN = Search(annealing=0, race=None, split_merge=0)

# Moves of a round, steps that each of them takes, how many then go on, and consecutive rounds without gain that end
# the search.
N_MOVES = 20
SHORT = 5
FINALISTS = 2
IN_VAIN = 2

# Expected rows below which a component is empty, so that there is nothing to split.
EMPTY = 1e-9


class Found(NamedTuple):
    """The best point so far, and the runs that led to it."""

    point: Parameters  # (K, D)
    loop: Loop  # of all R runs: starts, then moves
    clocks: list[Tensor]  # seconds after each iteration, of the starts and of each round
    round_R: list[int]  # 0 for a start, t for a move of round t


# EM from a batch of points to their ends, with a race between them, and a label for the progress bar: the best end,
# and the outcome of all runs.
Run = Callable[[Parameters, Race | None, str], tuple[Parameters, Loop]]


def check_search(
    annealing: int | Auto, race: tuple[int, int] | Auto | None, split_merge: int | Auto, auto: Search
) -> Search:
    """The settings of the search, with those of auto where they are "auto".

    Raises:
        InputError: a setting that is not allowed.
    """
    passes = auto.annealing if annealing == "auto" else check_whole(annealing, "annealing", at_least=0)
    rounds = auto.split_merge if split_merge == "auto" else check_whole(split_merge, "split_merge", at_least=0)
    if race == "auto" or race is None:
        return Search(passes, race and auto.race, rounds)
    if not isinstance(race, tuple | list) or len(race) != 2:
        raise InputError(
            f"race must be two whole numbers, (iterations, starts that go on), or None or 'auto'; got {race!r}."
        )
    return Search(passes, Race(*(check_whole(value, "race", at_least=1) for value in race)), rounds)


def annealed(problem: Problem, theta: Parameters, n_passes: int, *, progress: bool = False) -> Parameters:
    """The points after n_passes annealed passes of EM.

    Args:
        problem: data, prior and K.
        theta: (R, K, D).
        n_passes: 0 leaves the points as they are; fewer are made if the budget of time ends.
        progress: whether to show a progress bar.
    """
    with progress_bar(n_passes, "em: annealing", enabled=progress and n_passes > 0) as advance:
        for t in range(1, n_passes + 1):
            if out_of_time():
                break
            statistics, _ = expectation(problem.counts, logs(theta), power=t / n_passes)
            theta = mode(complete_conditionals(statistics, problem.prior))
            advance()
    return theta


def split_and_merge(problem: Problem, point: Parameters, loop: Loop, run: Run, n_rounds: int, seed: int) -> Found:
    """Rounds of split-and-merge moves from the best end of the starts.

    There are none from a point that has not converged, nor for K = 1. Ctrl-C or the end of the budget of time ends
    them, and loop.ending says so.

    Args:
        problem: data, prior and K.
        point: the best end of the starts.
        loop: outcome of the starts.
        run: EM from a batch of points.
        n_rounds: most rounds.
        seed: of the moves.
    """
    clocks, round_R = [loop.seconds_T], [0] * len(loop.objective_R)
    rng, in_vain = generator(seed, "method"), 0
    for t in range(1, 1 + n_rounds * (problem.n_components > 1)):
        best = int(loop.objective_R.argmax())
        if loop.ending.early or in_vain == IN_VAIN or not loop.converged_R[best]:
            break
        if out_of_time():
            loop = _stopped(loop, Ending.BUDGET, t)
            break
        highest = loop.objective_R[best].item()
        better = highest + SAME_OPTIMUM * (1 + abs(highest))
        try:
            moves = proposals(problem.counts, problem.prior, point, N_MOVES, rng)
            moved, moved_loop = run(moves, Race(SHORT, FINALISTS, better), f"em: split and merge, round {t}")
        except KeyboardInterrupt:
            loop = _stopped(loop, Ending.INTERRUPTED, t)
            break
        top = moved_loop.objective_R.max().item()
        point, loop = moved if top > highest else point, together(loop, moved_loop)
        clocks.append(moved_loop.seconds_T)
        round_R += [t] * N_MOVES
        in_vain = 0 if top > better else in_vain + 1
    return Found(point, loop, clocks, round_R)


def _stopped(loop: Loop, ending: Ending, t: int) -> Loop:
    return loop._replace(ending=ending, reason=f"{ending.stopped_by} before round {t} of split and merge")


def proposals(
    counts: CountTable, prior: Prior, theta: Parameters, n_moves: int, rng: np.random.Generator
) -> Parameters:
    """Points that differ from theta by one split-and-merge move each, (n_moves, K, D).

    Args:
        counts: N rows of D counts, of which at most SEEDING_ROWS (start.py) are used.
        prior: hyperparameters as check_prior returns them.
        theta: one point, K >= 2.
        n_moves: how many.
        rng: the source of randomness.
    """
    few = few_rows(counts, rng)
    R_NK = responsibilities(log_joint(few, logs(theta)))[0]
    K = R_NK.shape[1]
    # Two components share many rows where their columns of responsibilities point the same way (equation 3.1).
    unit_NK = R_NK / R_NK.norm(dim=0).clamp_min(1e-300)
    overlap_KK = ((unit_NK.T @ unit_NK).triu(1) + torch.full((K, K), 1e-3).triu(1)).numpy()
    pairs = rng.choice(K * K, size=n_moves, p=(overlap_KK / overlap_KK.sum()).flatten())
    proposed_RNK = torch.stack([_moved(few, R_NK, *divmod(int(pair), K), rng) for pair in pairs])
    # Half of the zeros count as structural, as at a start.
    moved = statistics(few, proposed_RNK, lambda zeros_KD: zeros_KD / 2)
    return mean(complete_conditionals(moved, prior))


def _moved(counts: Counts, R_NK: Tensor, i: int, j: int, rng: np.random.Generator) -> Tensor:
    """Responsibilities with j merged into i, and a third component split between its own place and j's, (N, K)."""
    R_NK = R_NK.clone()
    R_NK[:, i] += R_NK[:, j]
    n_K = R_NK.sum(0)
    others = [k for k in range(len(n_K)) if k not in (i, j) and n_K[k] > EMPTY] or [i]
    k = int(rng.choice(others))
    near_first_N = nearest_seeds(counts, 2, [rng], weight_N=R_NK[:, k])[0] == 0
    R_NK[:, j] = torch.where(near_first_N, 0.0, R_NK[:, k])
    R_NK[:, k] = torch.where(near_first_N, R_NK[:, k], 0.0)
    return R_NK
