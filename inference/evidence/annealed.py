"""Annealed estimate of the evidence log p(X | K, prior), by sequential Monte Carlo.

Sequential Monte Carlo (Del Moral, Doucet and Jasra, 2006; rows in batches as in Chopin, 2002) moves particles from the
prior to the posterior. Batches of rows join one after the other, each as large as all before it together, and the
likelihood of a batch is raised to a power beta that grows from 0 to 1,

    p_beta(Theta, z, b) = p(Theta) p(X_old, z, b | Theta) p(z_new | pi) p(X_new, b_new | z_new, Theta)^beta / Z_beta

over the z and b that X allows, so that Z_0 of the first batch counts the b and the last Z_1 is the evidence. The kernel
sums z and b out of the weights, and every conditional stays conjugate (parallel_tempering.py): a move is a Gibbs sweep.
The first batches hold few rows, so that components form while particles still move between modes.

Notation: models/zip_mixture.py.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_real, check_whole
from zipmix.counts.store import Counts
from zipmix.inference.evidence.estimate import Evidence, doubt
from zipmix.inference.gibbs import draw_statistics
from zipmix.inference.loop import progress_bar
from zipmix.inference.parallel_tempering import tempered_logs, tempered_statistics
from zipmix.inference.problem import Problem, pose
from zipmix.inference.rng import generator
from zipmix.models.conjugate import Conditionals, as_conditionals, complete_conditionals, draw
from zipmix.models.kernel import Statistics, log_joint, logs, responsibilities
from zipmix.models.parameters import Parameters, Prior, require_proper
from zipmix.models.posterior import blocks

# Rows of the first batch.
FIRST = 4


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
        n_sweeps: Gibbs sweeps at each beta, >= 1.
        conditional_ess: in (0, 1), the share of particles that stays effective from one beta to the next: closer to 1
            takes more betas and is more accurate.
        progress: whether to show a progress bar, one step per batch.
    Returns:
        The log of the mean over groups. Its error says how groups differ, and nothing of modes that none has found;
        over 0.5, few groups dominate the mean, and more particles or sweeps are needed.
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
    rng = generator(seed, "method")
    particles = _prior_particles(problem, n_groups, n_particles, rng)
    stages, n_betas = list(_stages(problem, rng)), 0
    with progress_bar(len(stages), "log_evidence_annealed", enabled=progress) as advance:
        for stage in stages:
            particles, taken = _annealed(stage, particles, n_sweeps, conditional_ess, rng)
            n_betas += taken
            advance()
    log_evidence_G = particles.log_evidence_G + torch.logsumexp(particles.log_weight_GS, 1) - math.log(n_particles)
    top = log_evidence_G.max()
    ratio_G = (log_evidence_G - top).exp()
    error = (ratio_G.std() / ratio_G.mean() / math.sqrt(n_groups)).item()
    reason = f"annealed over {n_betas} powers by {n_groups} groups of {n_particles} particles"
    return Evidence((top + ratio_G.mean().log()).item(), error, reason + doubt(error, "groups"))


def _annealed(
    stage: Stage, particles: Particles, n_sweeps: int, conditional_ess: float, rng: np.random.Generator
) -> tuple[Particles, int]:
    """The particles after the rows of the stage have joined, beta rising from 0 to 1, and the number of steps."""
    beta, step, n_betas = 0.0, 1.0, 0
    # At beta = 0 every b that X allows counts once, whatever theta is.
    number = _log_tempered_GS(stage, particles, 0.0)[0, 0]
    particles = particles._replace(log_evidence_G=particles.log_evidence_G + number)
    while beta < 1:
        step, log_increment_GS = _longest_step(stage, particles, beta, step, conditional_ess)
        beta = min(beta + step, 1.0)
        particles = _reweighted(particles, log_increment_GS, rng)
        for _ in range(n_sweeps):
            particles = particles._replace(theta=_sweep(stage, particles.theta, beta, rng))
        n_betas += 1
    return particles, n_betas


def log_tempered(counts: Counts, theta: Parameters, beta: float) -> Tensor:
    """log sum over z and b of p(z | pi) p(X, b | z, theta)^beta, for every theta, (...)."""
    tables = tempered_logs(logs(theta), torch.tensor(beta, dtype=torch.float64))
    rows_N = responsibilities(log_joint(counts, tables))[1]
    # The kernel takes log x! off once, whatever the beta.
    return rows_N.sum(-1) + (1 - beta) * counts.log_factorial_N.sum()


def _stages(problem: Problem, rng: np.random.Generator) -> Iterator[Stage]:
    """The rows in random order, in batches each as large as all before it."""
    rows_N = torch.from_numpy(rng.permutation(problem.counts.n_rows))
    n_old, n_new = 0, FIRST
    while n_old < len(rows_N):
        old = problem.counts.take(rows_N[:n_old]) if n_old else None
        yield Stage(old, problem.counts.take(rows_N[n_old : n_old + n_new]), problem.prior)
        n_old, n_new = n_old + n_new, n_old + n_new


def _prior_particles(problem: Problem, n_groups: int, n_particles: int, rng: np.random.Generator) -> Particles:
    K, D, n = problem.n_components, problem.counts.n_features, n_groups * n_particles
    alpha, *fields = as_conditionals(problem.prior)
    theta = draw(Conditionals(alpha.expand(n, K), *(field.expand(n, K, D) for field in fields)), rng)
    log_weight_GS = torch.zeros(n_groups, n_particles, dtype=torch.float64)
    return Particles(theta, log_weight_GS, torch.zeros(n_groups, dtype=torch.float64))


def _longest_step(stage: Stage, particles: Particles, beta: float, step: float, share: float) -> tuple[float, Tensor]:
    """A step in the beta after which the share of particles is still effective, and the log weights it brings."""
    now_GS = _log_tempered_GS(stage, particles, beta)
    step = min(2 * step, 1 - beta)
    while True:
        increment_GS = _log_tempered_GS(stage, particles, min(beta + step, 1.0)) - now_GS
        effective = _conditional_ess(particles.log_weight_GS, increment_GS)
        if effective >= share:
            return step, increment_GS
        # 1 / effective - 1 is about the variance of the log weights, which is about quadratic in the step.
        step *= 0.9 * math.sqrt((1 / share - 1) / (1 / effective - 1))


def _log_tempered_GS(stage: Stage, particles: Particles, beta: float) -> Tensor:
    values = [log_tempered(stage.new, part, beta) for part in blocks(particles.theta, stage.new.n_rows)]
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
        theta.at(parent),
        torch.where(poor_G[:, None], 0.0, log_weight_GS),
        log_evidence_G + torch.where(poor_G, log_mean_G, 0.0),
    )


def _sweep(stage: Stage, theta: Parameters, beta: float, rng: np.random.Generator) -> Parameters:
    """One Gibbs sweep at a beta of the rows that are joining, for all particles."""
    drawn, beta_ = [], torch.tensor(beta, dtype=torch.float64)
    for part in blocks(theta, stage.new.n_rows + (stage.old.n_rows if stage.old else 0)):
        tables = logs(part)
        found = tempered_statistics(draw_statistics(stage.new, tempered_logs(tables, beta_), rng)[0], beta_)
        if stage.old is not None:
            settled = draw_statistics(stage.old, tables, rng)[0]
            found = Statistics(*(one + other for one, other in zip(settled, found, strict=True)))
        drawn.append(draw(complete_conditionals(found, stage.prior), rng))
    return Parameters.concatenate(drawn)
