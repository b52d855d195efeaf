"""What a Gibbs sweep costs beside an EM pass, and how many effective draws a second gives beside NUTS.

A sweep of C chains reads the table as often as C passes of EM do. Effective draws are those of the log posterior (bulk
ESS, Vehtari et al., 2021), which no label switching can spoil, per second of the whole run, warm-up included. What is
compared takes turns in one process. Run it on an idle machine:

    python benchmarks/samplers.py
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from harness import seconds
from torch import Tensor

from zipmix import Fit, Prior, fit, load_data, simulate
from zipmix.inference.diagnostics import ess, rhat
from zipmix.inference.em import evaluate
from zipmix.inference.gibbs import sweep
from zipmix.inference.parallel_tempering import ladder
from zipmix.inference.problem import pose
from zipmix.inference.start import starts
from zipmix.models.parameters import Parameters

PRIOR = Prior()
CHAINS = 4
# A sweep of four chains may take this many times as long as four passes of EM; a sampler has to give this many times
# the effective draws per second of NUTS.
SWEEP, RATE = 2.0, 20.0


class Cost(NamedTuple):
    """Median seconds of four chains' sweep and of four EM passes, and the median of the ratios of turns."""

    sweep: float
    passes: float
    ratio: float


def sweep_cost(X: Tensor, k: int, repeats: int) -> Cost:
    """A Gibbs sweep of four chains in one batch against four EM passes in one batch, from the same points."""
    problem = pose(X, k, PRIOR)
    theta = starts(problem.counts, problem.prior, n_components=k, n_starts=CHAINS, init="prior", start=None, seed=0)
    longest, rng = torch.ones(CHAINS, dtype=torch.float64), np.random.default_rng(0)
    one_temperature = ladder(CHAINS, 1, 8.0)
    tempered = Parameters(*(value.unsqueeze(1) for value in theta))
    state, swept = evaluate(problem, theta, longest), sweep(problem, tempered, one_temperature, rng)
    # Both have to be at work on the same density before they are timed.
    torch.testing.assert_close(swept.objective, state.objective, rtol=1e-10, atol=0.0)
    turns = [
        (
            seconds(lambda: sweep(problem, tempered, one_temperature, rng)),
            seconds(lambda: evaluate(problem, theta, longest)),
        )
        for _ in range(repeats)
    ]
    sweeps, passes = zip(*turns, strict=True)
    return Cost(statistics.median(sweeps), statistics.median(passes), statistics.median(s / p for s, p in turns))


class Run(NamedTuple):
    """One run of a sampler: effective draws per second, and whether its chains agree."""

    rate: float
    seconds: float
    rhat: float


def effective(fitted: Fit) -> Run:
    """Effective draws of the log posterior per second of the whole run."""
    assert fitted.draws is not None
    lp_CS = fitted.trace[:, -fitted.draws.pi.shape[1] :]
    return Run(ess(lp_CS) / fitted.seconds, fitted.seconds, rhat(lp_CS))


def rates(methods: Sequence[tuple[str, dict[str, int]]], repeats: int) -> dict[str, list[Run]]:
    """Runs of all methods on N = 100, D = 3, K = 2; a turn of each per repeat, with its own seed."""
    X = simulate(100, 3, 2, seed=0).X
    found: dict[str, list[Run]] = {name: [] for name, _ in methods}
    for seed in range(repeats):
        for name, lengths in methods:
            found[name].append(effective(fit(X, 2, name, prior=PRIOR, seed=seed, n_chains=CHAINS, **lengths)))
    return found


def main() -> int:
    """Prints both comparisons; status 1 where one falls short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31, help="turns of a sweep and an EM pass")
    parser.add_argument("--runs", type=int, default=3, help="turns of the samplers")
    parser.add_argument("--nuts-draws", type=int, default=20, help="draws per chain of NUTS, after as many to warm up")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, float64, {CHAINS} chains")
    short = False
    for name, X, k in (
        ("nmes1988, N = 4406, D = 6, K = 3", load_data("nmes1988").X, 3),
        ("N = 10 000, D = 50, K = 20", simulate(10_000, 50, 20, seed=0).X, 20),
    ):
        cost = sweep_cost(X, k, options.repeats)
        print(f"{name}: a Gibbs sweep of {CHAINS} chains {cost.sweep:.4g} s, {CHAINS} EM passes {cost.passes:.4g} s")
        print(f"  {cost.ratio:.2f} times (at most {SWEEP:g} wanted)")
        short = short or cost.ratio > SWEEP
    nuts = {"n_warmup": options.nuts_draws, "n_draws": options.nuts_draws}
    found = rates((("pyro_nuts", nuts), ("gibbs", {}), ("collapsed_gibbs", {})), options.runs)
    least = statistics.median(run.rate for run in found["pyro_nuts"])
    print("N = 100, D = 3, K = 2: effective draws of the log posterior per second, warm-up included")
    for name, runs in found.items():
        rate = statistics.median(run.rate for run in runs)
        took, worst = statistics.median(run.seconds for run in runs), max(run.rhat for run in runs)
        told = "" if name == "pyro_nuts" else f", {rate / least:.0f} times (at least {RATE:g} wanted)"
        print(f"  {name}: {rate:.4g} per second{told}; {took:.3g} s a run, R-hat at most {worst:.2f}")
        short = short or (name != "pyro_nuts" and rate < RATE * least)
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
