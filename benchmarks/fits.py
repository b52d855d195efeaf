"""Whole fits from the same start: seconds until the log posterior is within 1e-6 (relative) of the best reached.

What climbs from a start is zipmix's EM, plain and accelerated, the broadcast form, Pyro and NumPyro by gradients. Each
tells its objective and its clock after every iteration; what does not come that far says how far it came.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from core import PRIOR, broadcast_pass
from harness import Contestant, Finding, Outcome, available, faster_than, in_turns, spread, versions
from torch import Tensor

import zipmix
from zipmix import Parameters
from zipmix.models.conjugate import as_conditionals, log_density
from zipmix.models.parameters import check_prior

ENOUGH = 1e-6

# Settings of em by which it goes from its start to the next optimum and no further.
STRAIGHT: dict[str, Any] = dict(annealing=0, race=None, split_merge=0)


class Climb(NamedTuple):
    """The log posterior on the way, and seconds since the beginning."""

    objective_T: np.ndarray
    seconds_T: np.ndarray

    def reaches(self, goal: float) -> float:
        """Seconds until the goal; infinity where it is not reached."""
        there = self.objective_T >= goal
        return float(self.seconds_T[there.argmax()]) if there.any() else float("inf")


DEFAULT = "zipmix em, its default, from starts of its own"
OURS = "zipmix em from the start"
PLAIN = "zipmix em from the start, plain"
LEAN = "broadcast EM, objective as a by-product"
COURSEWORK = "broadcast EM, ELBO piece by piece"
PYRO = "Pyro, Adam and L-BFGS (zipmix pyro_map)"
ADAM = "Pyro, Adam alone"
NUMPYRO = "NumPyro, L-BFGS of SciPy on its density"
NUMPYRO_ADAM = "NumPyro, AutoDelta and Adam"


def climbers(X: Tensor, k: int, start: Parameters, n_steps: int) -> dict[str, Callable[[], Contestant]]:
    """Every contestant; n_steps is what Adam takes, the others take at most a multiple of it."""

    def ours(method: str, **settings: Any) -> Contestant:
        def run() -> Climb:
            done = zipmix.fit(X, k, method, prior=PRIOR, **settings)
            seconds_T = done.trace_seconds.numpy()
            # What comes before the first iteration counts as well.
            return Climb(done.trace.numpy(), seconds_T + done.seconds - seconds_T[-1])

        return Contestant(run, ("zipmix", "torch") if method == "em" else ("zipmix", "pyro-ppl", "torch"))

    def broadcast(elbo: bool) -> Contestant:
        prior = as_conditionals(check_prior(PRIOR, k))

        def run() -> Climb:
            began, point, objective, seconds = time.perf_counter(), start, [], []
            while len(objective) < 5 * n_steps and not _settled(objective):
                mapped, log_likelihood = broadcast_pass(X, point, elbo=elbo)
                objective.append(float(log_likelihood + log_density(prior, point)))
                seconds.append(time.perf_counter() - began)
                point = mapped
            return Climb(np.array(objective), np.array(seconds))

        return Contestant(run)

    def numpyro(climb: str) -> Contestant:
        import numpyro_program

        most = n_steps if climb == "adam" else 5 * n_steps
        run = getattr(numpyro_program, climb)(X.numpy(), start, PRIOR, most)
        return Contestant(lambda: Climb(*run()), ("numpyro", "jax", "scipy"), note="compiled before the clock runs")

    return {
        DEFAULT: lambda: ours("em"),
        OURS: lambda: ours("em", start=start, **STRAIGHT),
        PLAIN: lambda: ours("em", start=start, accelerate=False, **STRAIGHT),
        LEAN: lambda: broadcast(False),
        COURSEWORK: lambda: broadcast(True),
        PYRO: lambda: ours("pyro_map", start=start),
        ADAM: lambda: ours("pyro_map", start=start, n_adam=n_steps, max_iter=1),
        NUMPYRO: lambda: numpyro("lbfgs"),
        NUMPYRO_ADAM: lambda: numpyro("adam"),
    }


def _settled(objective: list[float]) -> bool:
    """Where em leaves off by default."""
    return len(objective) > 2 and objective[-1] - objective[-3] <= 1e-12 * abs(objective[-1])


Problem = tuple[str, Tensor, int]


def problems() -> list[Problem]:
    """Real counts, and a simulated table."""
    return [
        ("nmes1988, K = 3", zipmix.load_data("nmes1988").X, 3),
        ("simulated, N = 1,500, D = 10, K = 4", zipmix.simulate(1500, 10, 4, seed=1).X, 4),
    ]


def fits(tables: Sequence[Problem] | None = None, n_steps: int = 200, repeats: int = 3) -> Outcome:
    """Time to equal objective on every table."""
    each = [on_table(*table, n_steps, repeats) for table in tables or problems()]
    return Outcome(
        "Whole fits: seconds to equal objective, from the same start",
        [row for outcome in each for row in outcome.rows],
        [finding for outcome in each for finding in outcome.findings],
        (
            f"Until the log posterior is within {ENOUGH:g} (relative) of the best reached from the start, which"
            f" is 5 passes of EM after k-means++. Adam alone takes {n_steps} steps.",
        ),
        each[0].left_out,
    )


def on_table(title: str, X: Tensor, k: int, n_steps: int, repeats: int) -> Outcome:
    """Time to equal objective on one table."""
    contestants, left_out = available(climbers(X, k, a_start(X, k), n_steps))
    climbs: dict[str, list[Climb]] = {name: [] for name in contestants}
    in_turns({name: lambda name=name: climbs[name].append(contestants[name].run()) for name in contestants}, repeats)
    ends = {name: float(runs[0].objective_T.max()) for name, runs in climbs.items()}
    # The default may find a better optimum, which is not asked of those that climb from the start.
    best = max(end for name, end in ends.items() if name != DEFAULT)
    goal = best - ENOUGH * abs(best)
    rows, median = [], {}
    for name, (first, *timed) in climbs.items():
        taken = [run.reaches(goal) for run in timed]
        median[name] = statistics.median(taken)
        steps, whole = len(first.objective_T) - 1, statistics.median(run.seconds_T[-1] for run in timed)
        short = f"no: {goal - ends[name]:.3g} nats short after {steps} steps, {whole:.3g} s"
        reached = max(taken) < float("inf")
        rows.append(
            {
                "table": title,
                "contestant": name,
                **(spread(taken) if reached else {"median_s": None, "quartiles_s": None, "repeats": len(taken)}),
                "reached": "yes" if reached else short,
                "log posterior": f"{ends[name]:.4f}",
                "versions": versions(contestants[name].programs),
                "note": contestants[name].note,
            }
        )
    findings = [
        Finding(f"{title}: {faster_than(OURS, name)}", median[name] / median[OURS])
        for name in contestants
        if name != OURS and median[name] < float("inf")
    ]
    return Outcome(title, rows, findings, left_out=left_out)


def a_start(X: Tensor, k: int) -> Parameters:
    """One point off the optimum for all contestants."""
    return zipmix.fit(X, k, prior=PRIOR, seed=1, n_starts=1, accelerate=False, max_iter=5, **STRAIGHT).parameters
