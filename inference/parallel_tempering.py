"""Parallel tempering: hot chains see a flattened likelihood, move between modes, and swap states with colder ones.

Geyer (1991); Syed, Bouchard-Cote, Deligiannidis and Doucet (2022) for the order of swaps and the spacing of the ladder.
A chain at a power beta = 1 / temperature of the likelihood has the target

    p(pi, omega, lambda) p(z | pi) p(X, b | z, omega, lambda)^beta

whose marginal at beta = 1 is the posterior. The power is that of p(X, b | z, omega, lambda) and not of
p(X | Theta), so that every conditional keeps its family and the Gibbs step is exact: it is the untempered one with

    log omega, log(1 - omega), lambda and log lambda times beta     where z and b are drawn
    c, s, p and m times beta                                        where omega and lambda are drawn

p(z | pi) has no power: at beta = 0 all variables follow the prior. A swap exchanges (z, b) of two neighbours, with
omega and lambda integrated out and drawn anew right after it. With

    E(z, b; beta) = log integral p(omega, lambda) p(X, b | z, omega, lambda)^beta d(omega, lambda)

it is accepted with probability min(1, exp(E(1; beta_2) + E(2; beta_1) - E(1; beta_1) - E(2; beta_2))), where p(z) and
the x! cancel. Pairs with an even and with an odd lower neighbour take turns.

Notation: models/zip_mixture.py.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_whole
from zipmix.models.conjugate import complete_conditionals, log_normalisers
from zipmix.models.kernel import Logs, Statistics
from zipmix.models.parameters import Prior


class Ladder(NamedTuple):
    """Powers of C chains at T temperatures, the coldest (1) first, and how often neighbours swap."""

    beta: Tensor  # (C, T)  1 / temperature, falling from 1
    swap_rate: Tensor  # (C, T - 1)  acceptance probability of the swap between neighbours t and t + 1, last sweep
    rejected: Tensor  # (C, T - 1)  sum of 1 - swap_rate since the ladder was last spaced
    n_sweeps: Tensor  # (C,)


def ladder(n_chains: int, n_temperatures: int, hottest: float) -> Ladder:
    """Temperatures from 1 to the hottest in equal ratios.

    Raises:
        InputError: n_temperatures is below 1, or hottest is not a finite number above 1.
    """
    T = check_whole(n_temperatures, "n_temperatures", at_least=1)
    if isinstance(hottest, bool) or not isinstance(hottest, int | float) or not 1 < hottest < math.inf:
        raise InputError(f"hottest must be a finite temperature > 1 (the coldest is 1), got {hottest!r}.")
    beta_T = torch.logspace(0, -math.log10(hottest), T, dtype=torch.float64)
    none = torch.zeros(n_chains, T - 1, dtype=torch.float64)
    return Ladder(beta_T.repeat(n_chains, 1), none, none, torch.zeros(n_chains, dtype=torch.int64))


def tempered_logs(logs: Logs, beta: Tensor) -> Logs:
    """The tables from which z and b are drawn at powers beta (C, T) of the likelihood, (C, T, ...)."""
    return Logs(logs.log_pi, *(beta[..., None, None] * table for table in logs[1:]))


def tempered_statistics(statistics: Statistics, beta: Tensor) -> Statistics:
    """The statistics from which the parameters are drawn at powers beta (C, T) of the likelihood, (C, T, ...)."""
    return Statistics(statistics.n, *(beta[..., None, None] * table for table in statistics[1:]))


def swap(ladder: Ladder, statistics: Statistics, prior: Prior, rng: np.random.Generator) -> tuple[Statistics, Ladder]:
    """Exchanges the states of neighbouring temperatures.

    Args:
        ladder: T temperatures.
        statistics: of the drawn (z, b), (C, T, ...).
        prior: hyperparameters as check_prior returns them.
        rng: the source of randomness.
    Returns:
        The statistics after the swaps, and the ladder with the acceptance probabilities of all swaps.
    """
    beta = ladder.beta
    C, T = beta.shape
    n_sweeps = ladder.n_sweeps + 1
    if T == 1:
        return statistics, ladder._replace(n_sweeps=n_sweeps)

    def energy(states: slice, betas: slice) -> Tensor:
        chosen = Statistics(*(value[:, states] for value in statistics))
        after = log_normalisers(complete_conditionals(tempered_statistics(chosen, beta[:, betas]), prior))
        return (after.omega + after.lam).sum((-2, -1))

    cold, hot = slice(None, -1), slice(1, None)
    log_ratio = energy(cold, hot) + energy(hot, cold) - energy(cold, cold) - energy(hot, hot)
    swap_rate = log_ratio.clamp_max(0.0).exp()
    turn = (torch.arange(T - 1) + n_sweeps[:, None]) % 2 == 0
    accepted = (torch.from_numpy(rng.random((C, T - 1))) < swap_rate) & turn
    order = torch.arange(T).repeat(C, 1)
    order[:, cold] += accepted.long()
    order[:, hot] -= accepted.long()
    swapped = Statistics(*(value[torch.arange(C)[:, None], order] for value in statistics))
    return swapped, Ladder(beta, swap_rate, ladder.rejected + 1 - swap_rate, n_sweeps)


def spaced(ladder: Ladder) -> Ladder:
    """The ladder with its temperatures moved so that swaps between all neighbours are rejected equally often.

    The rejections of all chains are pooled. Summed from the coldest temperature on, they estimate the barrier between
    it and each of the others (Syed et al., 2022, section 5.1); the new temperatures share it evenly.
    """
    rejected = ladder.rejected.mean(0).numpy() + 1e-3
    barrier = np.concatenate([[0.0], np.cumsum(rejected)])
    log_beta = np.interp(np.linspace(0.0, barrier[-1], len(barrier)), barrier, np.log(ladder.beta[0].numpy()))
    beta = torch.from_numpy(np.exp(log_beta)).expand_as(ladder.beta)
    return ladder._replace(beta=beta, rejected=torch.zeros_like(ladder.rejected))
