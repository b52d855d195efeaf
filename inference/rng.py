"""Random streams: one generator for each use of a seed, so that no two uses share random numbers.

A stream is the pair (seed, number) that seeds NumPy's generator. Start r has number r, so that the first starts do not
depend on how many there are. The number of "method" lies far above any number of starts. "held-out" and "replicates"
are numbers of starts too: they are used in the comparison only, for draws of another kind.
"""

from typing import Literal

import numpy as np

Stream = Literal["method", "held-out", "replicates"]

STREAMS: dict[Stream, int] = {
    "method": 1_000_003,  # all that a method or an estimator draws: moves, chains, latent variables, order of rows
    "held-out": 11,  # the choice of held-out rows and cells
    "replicates": 7,  # replicated tables of a posterior predictive check
}


def generator(seed: int, stream: Stream) -> np.random.Generator:
    """The generator of a named stream."""
    return np.random.default_rng([seed, STREAMS[stream]])


def start_generators(seed: int, n_starts: int) -> list[np.random.Generator]:
    """One generator for each start."""
    return [np.random.default_rng([seed, r]) for r in range(n_starts)]
