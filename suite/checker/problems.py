"""Drawn problems on which a solution is tried: counts, parameters, beliefs and latent variables of many kinds.

Every number is drawn from a seed and is exact in float32, so that the right answer is the same whether a solution
works in float32 or float64. Weights and beliefs are multiples of 1/1024, which sum to one exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from zipmix.models.parameters import Parameters, Prior

GRID = 1024


@dataclass(frozen=True, eq=False)
class Problem:
    """One drawn problem; the arguments of a function are a part of it."""

    kind: str
    X_ND: Tensor  # (N, D) counts
    prior: Prior  # tensors; alpha (K,)
    theta: Parameters  # pi (K,), omega (K, D), lam (K, D)
    Ezeta_NK: Tensor  # (N, K) beliefs, arbitrary
    Eb_NKD: Tensor  # (N, K, D) beliefs, arbitrary where x = 0, and 1 where x > 0 unless the kind says otherwise
    z_N: Tensor  # (N,) components
    b_ND: Tensor  # (N, D) zeros and ones, 1 where x > 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """N, D, K."""
        N, D = self.X_ND.shape
        return N, D, len(self.theta.pi)

    @property
    def scale(self) -> float:
        """Size of the terms that the log joint of a row is summed from; rounding grows with it."""
        X_ND, lam = self.X_ND, self.theta.lam
        return float((X_ND * lam.log().abs().amax(0) + lam.amax(0) + torch.lgamma(X_ND + 1)).sum(1).max())


# The spread of problems: kind, N, D, K. Those of a quick check come first.
SPREAD: tuple[tuple[str, int, int, int], ...] = (
    ("plain", 3, 2, 2),
    ("uneven priors", 9, 4, 3),
    ("all-zero columns", 6, 4, 2),
    ("one component", 5, 3, 1),
    ("large counts", 6, 4, 3),
    ("many columns", 3, 480, 2),
    ("first beliefs", 4, 3, 2),
    ("sure beliefs", 7, 2, 3),
    ("omega near 0 and 1", 8, 3, 2),
    ("one row", 1, 3, 2),
    ("one column", 7, 1, 3),
    ("empty component", 6, 3, 4),
    ("plain", 12, 5, 4),
)
QUICK = 8


@lru_cache(maxsize=8)
def spread(*, quick: bool, seed: int) -> tuple[Problem, ...]:
    """The drawn problems, in the order of SPREAD; the same objects for the same seed.

    Args:
        quick: whether to leave out the second half.
        seed: of all draws.
    """
    chosen = SPREAD[:QUICK] if quick else SPREAD
    return tuple(draw(*row, rng=np.random.default_rng([seed, number])) for number, row in enumerate(chosen))


def draw(kind: str, N: int, D: int, K: int, *, rng: np.random.Generator) -> Problem:
    """One problem of a kind."""
    even = kind not in ("uneven priors", "empty component")
    step = 1 if even else 5
    prior = Prior(
        alpha=_exact(1.25 + rng.integers(1, 8, K) * step / 8),
        **{name: _exact(1.25 + rng.integers(1, 16) * step / 8) for name in "abe"},
        f=_exact(rng.integers(2, 12) / 8),
    )
    lam = rng.gamma(2.0, 2.0, (K, D)) + 0.25
    omega = rng.uniform(0.2, 0.9, (K, D))
    if kind == "large counts":
        lam = rng.uniform(150.0, 600.0, (K, D))
    if kind == "omega near 0 and 1":
        omega = np.where(rng.random((K, D)) < 0.5, 1e-6, 1 - 1e-6)
    theta = Parameters(_simplex(rng, K), _exact(omega), _exact(lam))

    z = rng.integers(0, K, N)
    b = rng.random((N, D)) < omega[z]
    X = np.where(b, rng.poisson(lam[z]), 0)
    if kind == "all-zero columns":
        X[:, ::2] = 0
    X[0, 0] = 0  # both branches of equation (6), where there is room
    b[0, 0] = False
    if X.size > 1 and kind != "all-zero columns":
        X[-1, -1] = max(X[-1, -1], 2)
        b[-1, -1] = True
    Ezeta = torch.stack([_simplex(rng, K) for _ in range(N)])
    if kind == "empty component":
        Ezeta[:, 0] += Ezeta[:, -1]
        Ezeta[:, -1] = 0
    if kind == "sure beliefs":
        Ezeta = torch.nn.functional.one_hot(torch.from_numpy(z), K).to(torch.float64)
    Eb = torch.from_numpy(rng.integers(1, GRID, (N, K, D)) / GRID)
    X_ND = torch.from_numpy(X).to(torch.float64)
    Eb = torch.where(X_ND[:, None] > 0, 1.0, Eb)
    if kind == "first beliefs":
        Eb = torch.full((N, K, D), 0.75, dtype=torch.float64)
    b_ND = torch.from_numpy(b).to(torch.float64)
    return Problem(kind, X_ND, prior, theta, Ezeta, Eb, torch.from_numpy(z), torch.where(X_ND > 0, 1.0, b_ND))


def clusters(kind: str, *, rng: np.random.Generator) -> Problem:
    """Rows of three clusters far apart, on which EM converges quickly; parameters and beliefs play no part."""
    problem = draw(kind, 45, 4, 3, rng=rng)
    z = np.arange(45) % 3
    lam = np.array([[1.0, 8.0, 20.0, 3.0], [15.0, 1.0, 4.0, 12.0], [30.0, 25.0, 1.0, 40.0]])
    X = np.where(rng.random((45, 4)) < 0.8, rng.poisson(lam[z]), 0)
    return replace(problem, X_ND=torch.from_numpy(X).to(torch.float64), z_N=torch.from_numpy(z))


def smallest(problem: Problem, still_wrong: Callable[[Problem], bool]) -> Problem:
    """The problem with components, columns and rows taken away as long as the mistake still shows.

    Args:
        problem: on which the mistake shows.
        still_wrong: whether it shows on a smaller one.
    """
    # Columns, of which there may be hundreds, come last: trials on fewer rows are cheap, and may be limited in number.
    for axis in ("components", "rows", "columns"):
        size = {"components": problem.sizes[2], "columns": problem.sizes[1], "rows": problem.sizes[0]}[axis]
        kept = list(range(size))
        chunk = size // 2
        while chunk:
            start = 0
            while start < len(kept) and len(kept) > 1:
                fewer = kept[:start] + kept[start + chunk :]
                smaller = _take(problem, axis, fewer) if fewer else None
                if smaller is not None and still_wrong(smaller):
                    kept = fewer
                else:
                    start += chunk
            chunk //= 2
        problem = _take(problem, axis, kept)
    return problem


def _take(problem: Problem, axis: str, kept: list[int]) -> Problem:
    index = torch.tensor(kept)
    pi, omega, lam = problem.theta
    if axis == "rows":
        return replace(
            problem,
            X_ND=problem.X_ND[index],
            Ezeta_NK=problem.Ezeta_NK[index],
            Eb_NKD=problem.Eb_NKD[index],
            z_N=problem.z_N[index],
            b_ND=problem.b_ND[index],
        )
    if axis == "columns":
        return replace(
            problem,
            X_ND=problem.X_ND[:, index],
            theta=Parameters(pi, omega[:, index], lam[:, index]),
            Eb_NKD=problem.Eb_NKD[..., index],
            b_ND=problem.b_ND[:, index],
        )
    # The mass of what goes is given to the first component that stays, so that sums remain exactly one.
    gone = [k for k in range(len(pi)) if k not in kept]
    pi_kept, Ezeta = pi[index].clone(), problem.Ezeta_NK[:, index].clone()
    pi_kept[0] += pi[gone].sum()
    Ezeta[:, 0] += problem.Ezeta_NK[:, gone].sum(1)
    place = {k: new for new, k in enumerate(kept)}
    return replace(
        problem,
        prior=problem.prior._replace(alpha=torch.as_tensor(problem.prior.alpha)[index]),
        theta=Parameters(pi_kept, omega[index], lam[index]),
        Ezeta_NK=Ezeta,
        Eb_NKD=problem.Eb_NKD[:, index],
        z_N=torch.tensor([place.get(int(k), 0) for k in problem.z_N]),
    )


def _exact(value: object) -> Tensor:
    """Rounded to float32, kept as float64."""
    return torch.from_numpy(np.asarray(value, dtype=np.float32)).to(torch.float64)


def _simplex(rng: np.random.Generator, K: int) -> Tensor:
    parts = np.maximum(np.round(rng.dirichlet(np.full(K, 1.5)) * GRID), 1)
    parts[parts.argmax()] += GRID - parts.sum()
    return torch.from_numpy(parts / GRID)
