"""Whether a method draws from the posterior, by simulation: for any entry of METHODS that returns draws.

`sbc`, simulation-based calibration (Talts et al., 2018; Modrak et al., 2023, for quantities that depend on the data):
with parameters from the prior and a table from the model given them, the rank of the true value of any quantity among
thinned draws of the posterior is uniform. Uniformity is judged by simultaneous bands for the ECDF of the ranks
(Sailynoja, Buerkner and Vehtari, 2022), whose coverage is computed, not simulated.

`geweke`, the joint-distribution test (Geweke, 2004): to draw a table given the parameters and then the parameters given
the table, again and again, leaves the joint distribution as it is. Replications are independent and each compares its
end with its own beginning, which is a draw from the joint distribution, so that no autocorrelation has to be estimated.

All quantities are the same under every permutation of the components.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from zipmix.counts.checks import InputError, check_whole
from zipmix.counts.store import as_counts
from zipmix.inference import METHODS, check_settings
from zipmix.inference.loop import progress_bar
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.models.conjugate import as_conditionals, log_density
from zipmix.models.kernel import log_joint, logs, responsibilities
from zipmix.models.parameters import Parameters, Prior, check_components, check_prior
from zipmix.models.zip_mixture import simulate

if TYPE_CHECKING:
    import pandas as pd

# Tail probabilities below this are taken for 0, which keeps the bands narrow enough to sum over.
TAIL = 1e-12


class Calibration(NamedTuple):
    """Ranks of the true values among draws, one row per replication."""

    names: tuple[str, ...]  # Q quantities
    rank_RQ: Tensor  # (R, Q) int64 in 0..n_ranks - 1
    n_ranks: int
    p_value_Q: Tensor  # (Q,) of uniformity
    interrupted: bool  # whether Ctrl-C ended it early

    @property
    def p_value(self) -> float:
        """Of all quantities together, by Bonferroni's bound."""
        return min(1.0, len(self.names) * float(self.p_value_Q.min()))

    def table(self) -> "pd.DataFrame":
        """One row per quantity: p_value; bias, the mean rank on the scale 0 to 1 less 1/2; and width.

        width is the spread of a draw's uniform rank over that of the ranks: below 1 the draws are too narrow.
        """
        import pandas as pd

        scaled_RQ = self.rank_RQ.to(torch.float64) / (self.n_ranks - 1)
        uniform = math.sqrt((self.n_ranks + 1) / (12 * (self.n_ranks - 1)))
        return pd.DataFrame(
            {
                "p_value": self.p_value_Q.numpy(),
                "bias": (scaled_RQ.mean(0) - 0.5).numpy(),
                "width": (uniform / (scaled_RQ - 0.5).square().mean(0).sqrt()).numpy(),
            },
            index=pd.Index(self.names, name="quantity"),
        )


class Geweke(NamedTuple):
    """Ends of the successive-conditional simulations compared with their beginnings."""

    names: tuple[str, ...]  # 2 Q: quantities and their squares
    z_Q: Tensor  # (2 Q,) mean difference over its standard error
    n_replications: int
    interrupted: bool  # whether Ctrl-C ended it early

    @property
    def p_value(self) -> float:
        """Of all quantities together, by Bonferroni's bound."""
        worst = float(self.z_Q.abs().max())
        return min(1.0, len(self.names) * 2 * float(stats.t.sf(worst, self.n_replications - 1)))


def quantities(X_ND: Tensor, theta: Parameters, prior: Prior) -> dict[str, Tensor]:
    """What is ranked and compared, by name, each (...).

    Args:
        X_ND: (N, D) counts.
        theta: with any batch axes in front.
        prior: hyperparameters as check_prior returns them.
    """
    pi, omega, lam = theta
    R_NK, log_likelihood_N = responsibilities(log_joint(as_counts(X_ND), logs(theta)))
    found = {
        "log_likelihood": log_likelihood_N.sum(-1),
        "log_prior": log_density(as_conditionals(prior), theta),
        "sum pi^2": pi.square().sum(-1),
        "P(first and last row together)": (R_NK[..., 0, :] * R_NK[..., -1, :]).sum(-1),
    }
    for name, table_KD in (("omega", omega), ("lambda", lam), ("omega lambda", omega * lam)):
        mean_D = (pi[..., None] * table_KD).sum(-2)
        found |= {f"mean {name}, column {d}": mean_D[..., d] for d in range(mean_D.shape[-1])}
    return found


def sbc(
    method: str | Callable[..., Fit],
    *,
    n_rows: int,
    n_features: int,
    n_components: int,
    prior: Prior = Prior(),
    n_replications: int = 500,
    n_ranks: int = 50,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    """Simulation-based calibration of a method.

    Args:
        method: name in METHODS, or a function with that signature, whose fit has draws.
        n_rows: N of every simulated table.
        n_features: D.
        n_components: K.
        prior: that parameters are drawn from and that the method is given.
        n_replications: R simulated tables, at least 2.
        n_ranks: the draws of a fit are thinned evenly to n_ranks - 1, which should be nearly independent.
        settings: of the method.
        seed: of everything.
        progress: whether to show a progress bar.
    Raises:
        InputError: a setting that cannot be used, or a method that has no draws or fewer than n_ranks - 1.
    """
    function, settings = _method(method, settings)
    prior = check_prior(prior, check_components(n_components))
    check_whole(n_replications, "n_replications", at_least=2)
    check_whole(n_ranks, "n_ranks", at_least=2)
    rng = generator(seed, "method")
    names: tuple[str, ...] = ()
    ranks: list[list[int]] = []
    interrupted = False
    with progress_bar(n_replications, "sbc", enabled=progress) as advance:
        try:
            for _ in range(n_replications):
                table_seed, fit_seed = (int(value) for value in rng.integers(2**31, size=2))
                truth = simulate(n_rows, n_features, n_components, prior=prior, seed=table_seed)
                fit = function(truth.X, n_components, prior=prior, seed=fit_seed, **settings)
                if fit.ending.early:
                    raise KeyboardInterrupt
                drawn = quantities(truth.X, _thinned(fit, n_ranks - 1), prior)
                true = quantities(truth.X, truth.parameters, prior)
                names = tuple(drawn)
                ranks.append([_rank(drawn[name], true[name], rng) for name in names])
                advance()
        except KeyboardInterrupt:
            interrupted = True
    rank_RQ = torch.tensor(ranks, dtype=torch.int64).reshape(len(ranks), len(names))
    p_value_Q = torch.tensor([uniformity(rank_R, n_ranks) for rank_R in rank_RQ.T], dtype=torch.float64)
    return Calibration(names, rank_RQ, n_ranks, p_value_Q, interrupted)


def geweke(
    method: str | Callable[..., Fit],
    *,
    n_rows: int,
    n_features: int,
    n_components: int,
    prior: Prior = Prior(),
    n_replications: int = 500,
    n_steps: int = 3,
    n_sweeps: int = 5,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Geweke:
    """Geweke's joint-distribution test of the step of a sampler.

    Args:
        method: name in METHODS, or a function with that signature: a sampler that takes start, n_chains, n_warmup and
            n_draws, and whose first draw is one sweep from its start.
        n_rows: N of every simulated table.
        n_features: D.
        n_components: K.
        prior: that parameters are drawn from and that the method is given.
        n_replications: independent runs, at least 2.
        n_steps: how often each run draws a table and then parameters.
        n_sweeps: sweeps of the sampler for each table; more of them let an error grow.
        settings: of the method; n_chains, n_warmup and n_draws are 1, 0 and n_sweeps.
        seed: of everything.
        progress: whether to show a progress bar.
    Raises:
        InputError: a setting that cannot be used, or a method that has no draws.
    """
    function, settings = _method(method, settings)
    settings = settings | {"n_chains": 1, "n_warmup": 0, "n_draws": n_sweeps}
    prior = check_prior(prior, check_components(n_components))
    check_whole(n_replications, "n_replications", at_least=2)
    check_whole(n_steps, "n_steps", at_least=1)
    check_whole(n_sweeps, "n_sweeps", at_least=1)
    rng = generator(seed, "method")
    names: tuple[str, ...] = ()
    differences: list[Tensor] = []
    interrupted = False

    def moments(X_ND: Tensor, theta: Parameters) -> Tensor:
        nonlocal names
        found = quantities(X_ND, theta, prior)
        names = tuple(found) + tuple(f"({name})^2" for name in found)
        first = torch.stack(list(found.values()))
        return torch.cat([first, first.square()])

    with progress_bar(n_replications, "geweke", enabled=progress) as advance:
        try:
            for _ in range(n_replications):
                seeds = iter(rng.integers(2**31, size=2 * n_steps).tolist())
                X_ND, _, _, theta = simulate(n_rows, n_features, n_components, prior=prior, seed=next(seeds))
                beginning = moments(X_ND, theta)
                for step in range(n_steps):
                    if step:
                        table_seed = next(seeds)
                        X_ND = simulate(n_rows, n_features, n_components, parameters=theta, seed=table_seed).X
                    fit = function(X_ND, n_components, prior=prior, seed=next(seeds), start=theta, **settings)
                    if fit.ending.early:
                        raise KeyboardInterrupt
                    theta = _flat(fit).at(-1)
                differences.append(moments(X_ND, theta) - beginning)
                advance()
        except KeyboardInterrupt:
            interrupted = True
    if len(differences) < 2:
        return Geweke((), torch.zeros(0), len(differences), interrupted)
    difference_RQ = torch.stack(differences)
    error_Q = difference_RQ.std(0) / math.sqrt(len(differences))
    # What never moves, such as pi where K = 1, differs by rounding alone.
    z_Q = torch.where(error_Q > 1e-12, difference_RQ.mean(0) / error_Q, 0.0)
    return Geweke(names, z_Q, len(differences), interrupted)


def uniformity(rank_R: Tensor, n_ranks: int) -> float:
    """p-value of the hypothesis that ranks are uniform on 0..n_ranks - 1, from simultaneous bands of their ECDF.

    The ECDF is evaluated where it should be 1/n_ranks, 2/n_ranks, ...; its least likely value, by the tail of a
    Binomial distribution, is the statistic (Sailynoja et al., 2022, section 2.2).

    Args:
        rank_R: (R,) whole numbers.
        n_ranks: how many ranks there are.
    """
    if n_ranks < 2 or not len(rank_R):
        return 1.0
    count = np.bincount(rank_R.numpy(), minlength=n_ranks).cumsum()[:-1]
    tail = _tails(len(rank_R), n_ranks)[np.arange(n_ranks - 1), count].min()
    return 1 - _coverage(len(rank_R), n_ranks, tail)


def ecdf_band(n_replications: int, n_ranks: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Simultaneous bands of the ECDF of uniform ranks: all of it is inside with at least the probability level.

    Args:
        n_replications: R ranks.
        n_ranks: how many ranks there are.
        level: in (0, 1).
    Returns:
        Lower and upper bounds, (n_ranks - 1,) each, at 1/n_ranks, 2/n_ranks, ...
    """
    tails = _tails(n_replications, n_ranks)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _coverage(n_replications, n_ranks, middle) >= level else (low, middle)
    inside = tails > low
    lower = inside.argmax(1)
    upper = n_replications - inside[:, ::-1].argmax(1)
    return lower / n_replications, upper / n_replications


def _tails(n_replications: int, n_ranks: int) -> np.ndarray:
    """Twice the smaller tail of Binomial(R, i / n_ranks) at every count, (n_ranks - 1, R + 1)."""
    count = np.arange(n_replications + 1)
    share = np.arange(1, n_ranks)[:, None] / n_ranks
    below = stats.binom.cdf(count, n_replications, share)
    above = stats.binom.sf(count - 1, n_replications, share)
    return 2 * np.minimum(below, above)


def _coverage(n_replications: int, n_ranks: int, tail: float) -> float:
    """Probability that all counts of uniform ranks have a tail above the given one.

    Counts form a Markov chain: of those not yet counted, each falls into the next rank with the same probability.
    """
    inside = _tails(n_replications, n_ranks) > max(tail, TAIL)
    count, mass = np.zeros(1, dtype=np.int64), np.ones(1)
    for i, allowed in enumerate(inside):
        following = allowed.nonzero()[0]
        if not len(following):
            return 0.0
        left = n_replications - count[:, None]
        mass = mass @ stats.binom.pmf(following - count[:, None], left, 1 / (n_ranks - i))
        count = following
    return float(min(mass.sum(), 1.0))


def _rank(drawn_L: Tensor, true: Tensor, rng: np.random.Generator) -> int:
    """How many draws are below the true value; equal ones are put below or above at random."""
    ties = int((drawn_L == true).sum())
    return int((drawn_L < true).sum()) + int(rng.integers(ties + 1))


def _flat(fit: Fit) -> Parameters:
    """Draws of all chains in a row, (C * S, ...)."""
    if fit.draws is None:
        raise InputError(f"method must be one whose fit has draws; {fit.method!r} has none.")
    return fit.draws.flat(2)


def _thinned(fit: Fit, n_points: int) -> Parameters:
    flat = _flat(fit)
    if len(flat.pi) < n_points:
        raise InputError(
            f"n_ranks needs {n_points} draws per fit, and settings give {len(flat.pi)}; ask for more draws."
        )
    return flat.thin(n_points)


def _method(
    method: str | Callable[..., Fit], settings: dict[str, Any] | None
) -> tuple[Callable[..., Fit], dict[str, Any]]:
    settings = settings or {}
    if callable(method):
        return method, settings
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    check_settings(method, settings)
    return METHODS[method], settings
