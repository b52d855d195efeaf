"""The evidence log p(X | K, prior), for choosing K: Chib's estimator and annealing.

Chib (1995): log p(X) = log p(X | Theta*) + log p(Theta*) - log p(Theta* | X) at any Theta*. The last term is an average
over draws of the complete conditionals,

    p(Theta* | X) = E[ p(Theta* | X, z, m) | X ]                    Dirichlet x Beta x Gamma, conjugate.py

and Gibbs draws of (z, m) are needed from all K! labellings alike, which no sampler visits evenly. Every draw is
therefore averaged over all relabellings (Berkhof, van Mechelen and Gelman, 2003; Fruehwirth-Schnatter, 2004), which is
exact under a prior with one alpha:

    1/K! sum_perm prod_k w[k, perm(k)],          w[k, j] = density of component j of Theta* given the statistics of k

This permanent is a sum over subsets of components, 2^K K terms and not K!. Where the chains never switch labels, it is
one term, and the average amounts to Chib's plain estimate with log K! added.

Annealing (sequential Monte Carlo samplers, Del Moral, Doucet and Jasra, 2006; rows in batches as in Chopin, 2002)
leads particles from the prior to the posterior. Batches of rows join one after the other, each twice as large as all
before it, and the likelihood of a batch is raised to a power t that grows from 0 to 1,

    p_t(Theta, z, b) = p(Theta) p(X_old, z, b | Theta) p(z_new | pi) p(X_new, b_new | z_new, Theta)^t / Z_t

over the z and b that X allows, so that Z_0 of the first batch counts the b and the last Z_1 is the evidence. The kernel
sums z and b out of the weights, and every conditional stays conjugate (tempering.py): a move is a Gibbs sweep. The few
rows of the first batches settle what the components are, where all particles can still change their minds.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_real, check_whole
from zipmix.counts.store import Counts, as_counts
from zipmix.inference.gibbs import draw_statistics
from zipmix.inference.loop import progress_bar
from zipmix.inference.parallel_tempering import tempered_logs, tempered_statistics
from zipmix.inference.result import Fit, Problem, pose
from zipmix.models.conjugate import (
    Conditionals,
    as_conditionals,
    complete_conditionals,
    draw,
    log_normalisers,
    mean,
)
from zipmix.models.kernel import Statistics, expectation, log_joint, logs, responsibilities
from zipmix.models.parameters import Parameters, Prior, exchangeable, require_proper
from zipmix.models.posterior import blocks, log_posterior_at

# Components up to which the sum over relabellings is worked out.
RELABELLED = 14

# Rounds on the way to the point at which Chib's identity is evaluated; any point would be right, few are precise.
ROUNDS = 20

# Numbers in the tables over subsets of components that are worked on together.
SUBSETS = 4_000_000


class Evidence(NamedTuple):
    """An estimate of log p(X | K, prior)."""

    log_evidence: float
    error: float  # Monte-Carlo standard error
    reason: str  # how it was found, in words


def log_evidence_chib(fit: Fit, *, seed: int = 0) -> Evidence:
    """Chib's estimate of log p(X | K, prior) from posterior draws, averaged over all relabellings.

    Args:
        fit: draws from the posterior, such as those of method "gibbs"; K <= 14; a prior with one alpha.
        seed: of the (z, b) drawn given each draw of the parameters.
    Returns:
        The estimate at a point near fit.parameters. Its error is that of batch means, which holds where the chains have
        mixed, up to their labels; over 0.5, few draws carry the average, and neither is to be trusted.
    Raises:
        InputError: a fit without posterior draws, an alpha that differs between components, or too many components.
    """
    if fit.draws is None or fit.variational:
        raise InputError(
            f"fit must hold draws from the posterior, got a fit of method {fit.method!r}; use zipmix.fit(..., 'gibbs')."
        )
    K = fit.n_components
    if not exchangeable(fit.prior):
        raise InputError(
            "fit.prior.alpha must be the same for all components, since relabelling changes the posterior otherwise; "
            "use zipmix.log_evidence_annealed."
        )
    if K > RELABELLED:
        raise InputError(
            f"fit must have at most {RELABELLED} components, got {K}: the sum over relabellings has 2^K terms a draw. "
            "Use zipmix.log_evidence_annealed."
        )
    counts = as_counts(fit.X)
    rng = np.random.default_rng([seed, 1_000_003])
    flat = Parameters(*(value.flatten(0, 1) for value in fit.draws))
    point = central_point(counts, fit.parameters, fit.prior)
    log_density_S = torch.cat(
        [
            relabelled_log_density(
                complete_conditionals(draw_statistics(counts, logs(points), rng)[0], fit.prior), point
            )
            for points in blocks(flat, counts.n_rows)
        ]
    )
    log_ordinate, error = _log_mean(log_density_S.reshape(fit.draws.pi.shape[:2]))
    joint = log_posterior_at(counts, point, fit.prior).item()
    reason = f"averaged over {len(log_density_S)} draws and all relabellings of {K} components"
    return Evidence(joint - log_ordinate, error, reason + _doubt(error, "draws"))


def central_point(counts: Counts, parameters: Parameters, prior: Prior) -> Parameters:
    """A point amid the posterior mass around the parameters, where complete conditionals differ least in density.

    Rounds of EM with the mean in the place of the mode, which every proper prior has.
    """
    for _ in range(ROUNDS):
        parameters = mean(complete_conditionals(expectation(counts, logs(parameters))[0], prior))
    return parameters


def relabelled_log_density(conditionals: Conditionals, point: Parameters) -> Tensor:
    """log of the mean over all relabellings of the point of its density under the conditionals, (S,).

    Args:
        conditionals: (S, ...).
        point: pi (K,), omega (K, D), lam (K, D).
    """
    pi, omega, lam = point
    K = len(pi)
    normaliser = log_normalisers(conditionals)
    xlogy, xlog1py = torch.special.xlogy, torch.special.xlog1py
    a, b, e, f = (value[:, :, None, :] for value in conditionals[1:])
    # Rows are components of the statistics, columns are components of the point.
    beta = xlogy(a - 1, omega) + xlog1py(b - 1, -omega) - normaliser.omega[:, :, None]
    gamma = xlogy(e - 1, lam) - f * lam - normaliser.lam[:, :, None]
    weight_SKK = xlogy(conditionals.alpha[:, :, None] - 1, pi) + (beta + gamma).sum(-1)
    return log_permanent(weight_SKK) - normaliser.pi - math.lgamma(K + 1)


def log_permanent(weight_SKK: Tensor) -> Tensor:
    """log sum over permutations of exp(sum_k weight[k, perm(k)]), (S,), row by row over subsets of the columns."""
    K = weight_SKK.shape[-1]
    size = max(1, SUBSETS // 2**K)
    return torch.cat([_log_permanent(part) for part in weight_SKK.split(size)])


def _log_permanent(weight_SKK: Tensor) -> Tensor:
    n, K = weight_SKK.shape[:2]
    subsets = torch.arange(2**K)
    members_UK = (subsets[:, None] >> torch.arange(K)) & 1
    sizes_U = members_UK.sum(1)
    log_sum_SU = torch.full((n, 2**K), -torch.inf, dtype=weight_SKK.dtype)
    log_sum_SU[:, 0] = 0.0
    for k in range(K):
        # The first k + 1 rows fill a subset of k + 1 columns: row k takes one of them, rows before it the others.
        of_size = subsets[sizes_U == k + 1]
        chosen = members_UK[of_size].nonzero()[:, 1].reshape(len(of_size), k + 1)
        others = of_size[:, None] - (1 << chosen)
        log_sum_SU[:, of_size] = torch.logsumexp(log_sum_SU[:, others] + weight_SKK[:, k][:, chosen], -1)
    return log_sum_SU[:, -1]


def _log_mean(log_weight_CS: Tensor) -> tuple[float, float]:
    """log of the mean of correlated weights, and its standard error by batch means."""
    top = log_weight_CS.max()
    weight_CS = (log_weight_CS - top).exp()
    mean = weight_CS.mean()
    length = max(1, math.isqrt(weight_CS.shape[1]))
    n_batches = weight_CS.shape[1] // length
    batches = weight_CS[:, : n_batches * length].unflatten(1, (n_batches, length)).mean(-1).flatten()
    error = batches.std() / math.sqrt(len(batches)) if len(batches) > 1 else torch.tensor(math.inf)
    return (top + mean.log()).item(), (error / mean).item()


class Particles(NamedTuple):
    """G groups of S particles on their way from the prior to the posterior."""

    theta: Parameters  # (G * S, ...)
    log_weight_GS: Tensor  # since the last resampling
    log_evidence_G: Tensor  # log Z_t, as far as particles have been resampled


class Stage(NamedTuple):
    """Rows that have joined, and those that are joining."""

    old: Counts | None
    new: Counts
    prior: Prior


def log_evidence_annealed(
    X: Any,
    n_components: int,
    prior: Prior = Prior(),
    *,
    seed: int = 0,
    n_groups: int = 10,
    n_particles: int = 50,
    n_sweeps: int = 2,
    conditional_ess: float = 0.9,
    progress: bool = False,
) -> Evidence:
    """Annealed estimate of log p(X | K, prior) by sequential Monte Carlo, rows joining batch by batch.

    Args:
        X: (N, D) counts >= 0, NaN where missing.
        n_components: K >= 1.
        prior: hyperparameters, all > 0; alpha may differ between components.
        seed: of all randomness, the order of the rows included.
        n_groups: G >= 2, groups of particles that resample among themselves; how they differ gives the error.
        n_particles: S >= 2, particles per group.
        n_sweeps: Gibbs sweeps at each power, >= 1.
        conditional_ess: in (0, 1), the share of particles that stays effective from one power to the next: closer to 1
            takes more powers and is more accurate.
        progress: whether to show a progress bar, one step per batch.
    Returns:
        The log of the mean over groups. Its error says how groups differ, and nothing of modes that none has found;
        over 0.5, few groups carry the mean, and more particles or sweeps are needed.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    problem = pose(X, n_components, prior)
    require_proper(problem.prior, "log_evidence_annealed")
    check_whole(n_groups, "n_groups", at_least=2)
    check_whole(n_particles, "n_particles", at_least=2)
    check_whole(n_sweeps, "n_sweeps", at_least=1)
    if not 0 < check_real(conditional_ess, "conditional_ess") < 1:
        raise InputError(f"conditional_ess must lie between 0 and 1, got {conditional_ess!r}; 0.9 is usual.")
    rng = np.random.default_rng([seed, 1_000_003])
    particles = _prior_particles(problem, n_groups, n_particles, rng)
    stages, n_powers = list(_stages(problem, rng)), 0
    with progress_bar(len(stages), "log_evidence_annealed", enabled=progress) as advance:
        for stage in stages:
            power, step = 0.0, 1.0
            # At power 0 every b that X allows counts once, whatever theta is.
            number = _log_tempered_GS(stage, particles, 0.0)[0, 0]
            particles = particles._replace(log_evidence_G=particles.log_evidence_G + number)
            while power < 1:
                step, log_increment_GS = _longest_step(stage, particles, power, step, conditional_ess)
                power = min(power + step, 1.0)
                particles = _reweighted(particles, log_increment_GS, rng)
                for _ in range(n_sweeps):
                    particles = particles._replace(theta=_sweep(stage, particles.theta, power, rng))
                n_powers += 1
            advance()
    log_evidence_G = particles.log_evidence_G + torch.logsumexp(particles.log_weight_GS, 1) - math.log(n_particles)
    top = log_evidence_G.max()
    ratio_G = (log_evidence_G - top).exp()
    error = (ratio_G.std() / ratio_G.mean() / math.sqrt(n_groups)).item()
    reason = f"annealed over {n_powers} powers by {n_groups} groups of {n_particles} particles"
    return Evidence((top + ratio_G.mean().log()).item(), error, reason + _doubt(error, "groups"))


# Standard error of a log mean above which few terms carry the mean, and neither is to be trusted.
DOUBTFUL = 0.5


def _doubt(error: float, terms: str) -> str:
    return f"; few {terms} carry the average, so that neither it nor its error is to be trusted" * (error > DOUBTFUL)


def log_tempered(counts: Counts, theta: Parameters, power: float) -> Tensor:
    """log sum over z and b of p(z | pi) p(X, b | z, theta)^power, for every theta, (...)."""
    tables = tempered_logs(logs(theta), torch.tensor(power, dtype=torch.float64))
    rows_N = responsibilities(log_joint(counts, tables))[1]
    # The kernel takes log x! off once, whatever the power.
    return rows_N.sum(-1) + (1 - power) * counts.log_factorial_N.sum()


def _stages(problem: Problem, rng: np.random.Generator) -> Iterator[Stage]:
    """The rows in random order, in batches each as large as all before it."""
    rows_N = torch.from_numpy(rng.permutation(problem.counts.n_rows))
    n_old, n_new = 0, FIRST
    while n_old < len(rows_N):
        old = problem.counts.take(rows_N[:n_old]) if n_old else None
        yield Stage(old, problem.counts.take(rows_N[n_old : n_old + n_new]), problem.prior)
        n_old, n_new = n_old + n_new, n_old + n_new


# Rows of the first batch.
FIRST = 4


def _prior_particles(problem: Problem, n_groups: int, n_particles: int, rng: np.random.Generator) -> Particles:
    K, D, n = problem.n_components, problem.counts.n_features, n_groups * n_particles
    alpha, *fields = as_conditionals(problem.prior)
    theta = draw(Conditionals(alpha.expand(n, K), *(field.expand(n, K, D) for field in fields)), rng)
    log_weight_GS = torch.zeros(n_groups, n_particles, dtype=torch.float64)
    return Particles(theta, log_weight_GS, torch.zeros(n_groups, dtype=torch.float64))


def _longest_step(stage: Stage, particles: Particles, power: float, step: float, share: float) -> tuple[float, Tensor]:
    """A step in the power after which the share of particles is still effective, and the log weights it brings."""
    now_GS = _log_tempered_GS(stage, particles, power)
    step = min(2 * step, 1 - power)
    while True:
        increment_GS = _log_tempered_GS(stage, particles, min(power + step, 1.0)) - now_GS
        effective = _conditional_ess(particles.log_weight_GS, increment_GS)
        if effective >= share:
            return step, increment_GS
        # 1 / effective - 1 is about the variance of the log weights, which is about quadratic in the step.
        step *= 0.9 * math.sqrt((1 / share - 1) / (1 / effective - 1))


def _log_tempered_GS(stage: Stage, particles: Particles, power: float) -> Tensor:
    values = [log_tempered(stage.new, part, power) for part in blocks(particles.theta, stage.new.n_rows)]
    return torch.cat(values).reshape(particles.log_weight_GS.shape)


def _conditional_ess(log_weight_GS: Tensor, log_increment_GS: Tensor) -> float:
    """Effective share of the particles after the increments alone (Zhou, Johansen and Aston, 2016), over all groups."""
    weight = torch.softmax(log_weight_GS, 1) / len(log_weight_GS)
    increment = (log_increment_GS - log_increment_GS.max()).exp()
    return ((weight * increment).sum() ** 2 / (weight * increment**2).sum()).item()


def _reweighted(particles: Particles, log_increment_GS: Tensor, rng: np.random.Generator) -> Particles:
    """The particles with their new weights; groups of which less than half is effective are resampled."""
    theta, log_weight_GS, log_evidence_G = particles
    log_weight_GS = log_weight_GS + log_increment_GS
    n_groups, n_particles = log_weight_GS.shape
    weight_GS = torch.softmax(log_weight_GS, 1)
    poor_G = 1 / (weight_GS**2).sum(1) < n_particles / 2
    # Systematic resampling: one uniform number per group.
    grid_GS = (torch.arange(n_particles) + torch.from_numpy(rng.random((n_groups, 1)))) / n_particles
    parent_GS = torch.searchsorted(weight_GS.cumsum(1), grid_GS).clamp_max(n_particles - 1)
    parent_GS = torch.where(poor_G[:, None], parent_GS, torch.arange(n_particles))
    parent = (parent_GS + n_particles * torch.arange(n_groups)[:, None]).flatten()
    log_mean_G = torch.logsumexp(log_weight_GS, 1) - math.log(n_particles)
    return Particles(
        Parameters(*(value[parent] for value in theta)),
        torch.where(poor_G[:, None], 0.0, log_weight_GS),
        log_evidence_G + torch.where(poor_G, log_mean_G, 0.0),
    )


def _sweep(stage: Stage, theta: Parameters, power: float, rng: np.random.Generator) -> Parameters:
    """One Gibbs sweep at a power of the rows that are joining, for all particles."""
    drawn, beta = [], torch.tensor(power, dtype=torch.float64)
    for part in blocks(theta, stage.new.n_rows + (stage.old.n_rows if stage.old else 0)):
        tables = logs(part)
        found = tempered_statistics(draw_statistics(stage.new, tempered_logs(tables, beta), rng)[0], beta)
        if stage.old is not None:
            settled = draw_statistics(stage.old, tables, rng)[0]
            found = Statistics(*(one + other for one, other in zip(settled, found, strict=True)))
        drawn.append(draw(complete_conditionals(found, stage.prior), rng))
    return Parameters(*(torch.cat(fields) for fields in zip(*drawn, strict=True)))
