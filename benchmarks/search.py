"""What the settings of `em` are worth: passes saved by acceleration, and optima found by ways to search."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from harness import Finding, Outcome, versions
from torch import Tensor

import zipmix

PROGRAMS = ("zipmix", "torch")
Problem = tuple[str, Tensor, int]  # name, X, K

# An objective may fall behind by rounding.
ROUNDING = 1e-10


def small_problems() -> list[Problem]:
    """Fourteen tables on which plain EM is run to its end."""
    found: list[Problem] = [
        ("nmes1988, 1,500 rows", zipmix.load_data("nmes1988").X[:1500], 4),
        ("digits, 300 rows", zipmix.load_data("digits").X[:300], 6),
    ]
    for seed in range(12):
        n, d, k = 250 + 50 * seed, 3 + seed % 9, 2 + seed % 5
        prior = zipmix.Prior(1.5, 2.0, 2.0 + seed % 3, 2.0 + seed % 2, 0.5)
        found.append((f"simulated, N = {n}, D = {d}, K = {k}", zipmix.simulate(n, d, k, prior=prior, seed=seed).X, k))
    return found


def acceleration(problems: Sequence[Problem] | None = None, max_iter: int = 4000) -> Outcome:
    """Passes until the objective is within 1e-7 of the end of plain EM, by plain EM and by SQUAREM."""
    rows, ratios, losses = [], [], []
    for seed, (name, X, k) in enumerate(problems or small_problems()):
        settings: dict[str, Any] = dict(
            n_starts=5, annealing=0, race=None, split_merge=0, max_iter=max_iter, tolerance=1e-12, seed=seed
        )
        plain, bold = (zipmix.fit(X, k, accelerate=fast, **settings) for fast in (False, True))
        goal = min(plain.objective, bold.objective) - 1e-7 * abs(plain.objective)
        # An iteration of SQUAREM is two passes.
        passes = [each * max(1, int((fit.trace >= goal).int().argmax())) for each, fit in ((1, plain), (2, bold))]
        ratios.append(passes[0] / passes[1])
        losses.append((plain.objective - bold.objective) / abs(plain.objective))
        rows.append(
            {
                "problem": name,
                "plain EM, passes": passes[0],
                "SQUAREM, passes": passes[1],
                "ratio": ratios[-1],
                "relative loss of objective": losses[-1],
                "repeats": 1,
                "versions": versions(PROGRAMS),
            }
        )
    return Outcome(
        f"Acceleration: passes to 1e-7 of the optimum on {len(rows)} problems",
        rows,
        [
            Finding("median of plain EM's passes over SQUAREM's", statistics.median(ratios), 2.5, ratio=True),
            Finding("largest relative loss of objective", max(losses), ROUNDING, at_most=True),
        ],
        ("Five starts each, of which the best is followed. Passes are counted, not timed: a repeat gives the same.",),
    )


PLAIN = "20 starts to the end"
STRATEGIES: dict[str, dict[str, Any]] = {
    "the default": {},
    "the default without annealing": dict(annealing=0),
    "the default without a race": dict(race=None),
    "the default without moves": dict(split_merge=0),
    "the default from small-em": dict(init="small-em"),
    "the default from draws from the prior": dict(init="prior"),
    PLAIN: dict(n_starts=20, annealing=0, race=None, split_merge=0),
    "6 starts of small-em to the end": dict(n_starts=6, init="small-em", annealing=0, race=None, split_merge=0),
    "20 draws from the prior to the end": dict(n_starts=20, init="prior", annealing=0, race=None, split_merge=0),
}

# Objectives no further apart than this, in nats, are the same optimum.
SAME = 0.01


def hard_problems() -> list[Problem]:
    """Tables with many optima: six of clusters that overlap, two of clusters that are well apart."""
    shapes = [(500, 8, 6), (1000, 10, 8), (600, 30, 8), (500, 15, 6), (1500, 12, 9)]
    prior = zipmix.Prior(a=1.5, b=4.0)
    found = [(f"N = {n}, D = {d}, K = {k}", zipmix.simulate(n, d, k, prior=prior, seed=n).X, k) for n, d, k in shapes]
    found.append(("digits, 300 rows", zipmix.load_data("digits").X[:300], 10))
    apart = zipmix.Prior(alpha=3.0, a=2.0, b=2.0, e=1.5, f=0.1)
    for n, d, k in [(1000, 20, 12), (800, 12, 10)]:
        found.append((f"N = {n}, D = {d}, K = {k}, well apart", zipmix.simulate(n, d, k, prior=apart, seed=n).X, k))
    return found


def strategies(problems: Sequence[Problem] | None = None, seeds: Sequence[int] = (0, 1, 2)) -> Outcome:
    """Gaps to the best optimum that any way to search has found, and processor seconds."""
    gaps: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    seconds: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    for _, X, k in problems or hard_problems():
        for seed in seeds:
            found = {}
            for name, settings in STRATEGIES.items():
                began = time.process_time()
                found[name] = zipmix.fit(X, k, seed=seed, tolerance=1e-10, **settings).objective
                seconds[name].append(time.process_time() - began)
            for name, objective in found.items():
                gaps[name].append(max(found.values()) - objective)
    rows = [
        {
            "way to search": name,
            "mean_gap_nats": statistics.fmean(gaps[name]),
            "largest_gap_nats": max(gaps[name]),
            "best in": f"{sum(gap < SAME for gap in gaps[name])} of {len(gaps[name])}",
            "processor_s": sum(seconds[name]),
            "repeats": len(gaps[name]),
            "versions": versions(PROGRAMS),
        }
        for name in STRATEGIES
    ]
    row = dict(zip(STRATEGIES, rows, strict=True))
    default, plain = row["the default"], row[PLAIN]
    time_allowed = max(default["processor_s"], plain["processor_s"])
    affordable = [each["way to search"] for each in rows if each["processor_s"] <= time_allowed]
    best = min(affordable, key=lambda name: row[name]["mean_gap_nats"])
    behind = [mine - its for mine, its in zip(gaps["the default"], gaps[best], strict=True)]
    error = statistics.stdev(behind) / len(behind) ** 0.5 if len(behind) > 1 else 0.0
    return Outcome(
        f"Ways to search, on {len(gaps['the default'])} problems with many optima",
        rows,
        [
            Finding(
                "nats by which the default is behind the best way that takes no longer than it or than "
                f"{PLAIN}, beyond two standard errors",
                max(0.0, statistics.fmean(behind) - 2 * error),
                SAME,
                at_most=True,
            ),
            Finding(
                f"processor time of the default over that of {PLAIN}", default["processor_s"] / plain["processor_s"]
            ),
            Finding(
                f"mean gap of {PLAIN} over that of the default, nats", plain["mean_gap_nats"] - default["mean_gap_nats"]
            ),
        ],
        (f"Gaps are to the best objective that any of these ways found; best in: within {SAME} nats of it.",),
    )
