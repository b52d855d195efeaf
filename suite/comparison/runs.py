"""Every method on the same data from the same starts."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from zipmix.comparison.peak_memory import peak_memory
from zipmix.counts.checks import InputError
from zipmix.inference import METHODS, fit
from zipmix.inference.cavi import cavi
from zipmix.inference.loop import progress_bar, time_budget
from zipmix.inference.problem import Problem
from zipmix.inference.registry import ABOUT
from zipmix.inference.result import Fit
from zipmix.inference.start import Init, starts
from zipmix.models.parameters import Parameters

# Candidates per chain among which the common starts are chosen, and passes of CAVI that choose them.
CANDIDATES = 5
RANKING_PASSES = 50


class Runs(NamedTuple):
    """Outcome of every method."""

    fits: dict[str, Fit]
    failures: dict[str, str]  # method -> the error
    memory: dict[str, int]  # method -> bytes


def run_methods(
    problem: Problem,
    methods: Sequence[str],
    *,
    settings: Mapping[str, dict[str, Any]],
    n_starts: int,
    n_chains: int,
    seed: int,
    budget: float | None,
    label: str,
    progress: bool,
) -> Runs:
    """Runs methods one after another; one that fails stops nothing.

    Args:
        problem: data, prior and K.
        methods: names in METHODS.
        settings: further settings per method.
        n_starts: starts of the methods that take many.
        n_chains: chains of the samplers.
        seed: of everything.
        budget: seconds after which a method returns what it has; None sets no limit.
        label: what the progress bar says.
        progress: whether to show it.
    """
    begin = _starts(problem, n_starts=n_starts, n_chains=n_chains, seed=seed)
    fits: dict[str, Fit] = {}
    failures: dict[str, str] = {}
    memory: dict[str, int] = {}
    X_ND, K, prior = problem.table.X_ND, problem.n_components, problem.prior
    with progress_bar(len(methods), label, enabled=progress) as advance:
        for name in methods:
            own = begin(name) | settings.get(name, {})
            try:
                with peak_memory() as peak, time_budget(budget):
                    fits[name] = fit(X_ND, K, name, prior=prior, seed=seed, **own)
                memory[name] = peak.bytes
            except KeyboardInterrupt:  # inside its iterations a method returns what it has; here it had nothing yet
                failures[name] = "interrupted by the user before it had any result"
            except Exception as error:  # whatever one method does, the others are still worth their time
                failures[name] = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            advance()
    return Runs(fits, failures, memory)


def _starts(problem: Problem, *, n_starts: int, n_chains: int, seed: int) -> Callable[[str], dict[str, Any]]:
    """What hands each method its share of the common starts, as settings."""

    def draw(init: Init, n: int) -> Parameters:
        counts, prior, K = problem.counts, problem.prior, problem.n_components
        return starts(counts, prior, n_components=K, n_starts=n, init=init, start=None, seed=seed)

    many = _best_first(problem, draw("small-em", min(n_starts, CANDIDATES * n_chains)))
    common = many.map(lambda value: value[:n_chains])
    if n_starts > len(many.pi):
        more = draw("kmeans++", n_starts - len(many.pi))
        many = Parameters.concatenate([many, more])
    first = common.at(0)

    def share(method: str) -> dict[str, Any]:
        own = inspect.signature(METHODS[method]).parameters
        if "start" not in own:
            return {}
        if ABOUT[method].all_starts:
            return {"start": many}
        return {"start": common, "n_chains": n_chains} if "n_chains" in own else {"start": first}

    return share


def _best_first(problem: Problem, points: Parameters) -> Parameters:
    """Starts in the order of the ELBO that CAVI reaches from them in a few passes; as they are under a flat prior."""
    if bool(problem.prior.f == 0):
        return points
    tried = cavi(
        problem.table.X_ND, problem.n_components, prior=problem.prior, start=points, max_iter=RANKING_PASSES, n_draws=1
    )
    assert tried.restarts is not None
    order = tried.restarts.objective_R.argsort(descending=True, stable=True)
    return points.at(order)
