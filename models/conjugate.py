"""The complete conditionals of pi, omega and lambda from sufficient statistics (questions 1a-1c, 2b).

    pi     | z       ~ Dirichlet(alpha + n)
    omega  | z, b    ~ Beta(a + m, b + c - m)
    lambda | z, b, X ~ Gamma(e + s, f + m)

with the statistics of kernel.py: n_k rows of component k, c_kd of them with an observed cell in column d (c = n where
no cell is missing), m_kd cells with b = 1, s_kd the sum of the counts. EM takes the mode of these conditionals, Gibbs
draws from them, variational Bayes takes expected logs. The prior is the complete conditional without data, so its
density is the same function.

Notation: models/zip_mixture.py.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributions

from zipmix.models.kernel import Logs, Statistics, exact_logs
from zipmix.models.parameters import Parameters, Prior

# Least denominator, so that 0 / 0 is 0 where a conditional has no mass, and least value of a draw.
TINY = 1e-300

# The largest float64 below 1.
BELOW_ONE = 1 - 2.0**-53


class Conditionals(NamedTuple):
    """Dirichlet, Beta and Gamma parameters: complete conditionals, the prior, or a variational factor q."""

    alpha: Tensor  # (..., K)
    a: Tensor  # (..., K, D) or broadcastable
    b: Tensor
    e: Tensor
    f: Tensor


def as_conditionals(prior: Prior) -> Conditionals:
    """The prior, checked by check_prior, as conditionals without data: scalars broadcast over (K, D)."""
    return Conditionals(*(torch.as_tensor(field, dtype=torch.float64) for field in prior))


def complete_conditionals(statistics: Statistics, prior: Prior) -> Conditionals:
    """The complete conditionals given the sufficient statistics of (z, b, X).

    Args:
        statistics: n (..., K) and c, s, p, m (..., K, D).
        prior: hyperparameters as check_prior returns them.
    """
    n, c, s, _, m = statistics
    return Conditionals(prior.alpha + n, prior.a + m, prior.b + c - m, prior.e + s, prior.f + m)


def as_distributions(
    conditionals: Conditionals,
) -> tuple[distributions.Dirichlet, distributions.Beta, distributions.Gamma]:
    """The conditionals of pi, omega and lambda as torch.distributions."""
    alpha, a, b, e, f = conditionals
    return distributions.Dirichlet(alpha), distributions.Beta(a, b), distributions.Gamma(e, f)


def mode(conditionals: Conditionals) -> Parameters:
    """The joint mode (the M-step, question 2b). Needs alpha, a, b, e >= 1.

    Where a conditional is flat (an empty component under the flat prior) every value is a mode: omega = 1/2 and
    lambda = 0 are returned.
    """
    alpha, a, b, e, f = conditionals
    pi, both = alpha - 1, a + b - 2
    omega = torch.where(both > 0, (a - 1) / both.clamp_min(TINY), 0.5)
    lam = (e - 1) / f.clamp_min(TINY)
    return Parameters(pi / pi.sum(-1, keepdim=True), omega.clamp(0.0, 1.0), lam)


def mean(conditionals: Conditionals) -> Parameters:
    """The mean: (alpha / sum alpha, a / (a + b), e / f)."""
    alpha, a, b, e, f = conditionals
    return Parameters(alpha / alpha.sum(-1, keepdim=True), a / (a + b), e / f.clamp_min(TINY))


def draw(conditionals: Conditionals, rng: np.random.Generator) -> Parameters:
    """One draw of (pi, omega, lambda) for every batch entry.

    Args:
        conditionals: any batch axes in front; every field > 0.
        rng: the source of randomness.
    """
    alpha, a, b, e, f = (field.numpy() for field in conditionals)
    # A Gamma(alpha) variate is Gamma(alpha + 1) U^(1/alpha); in logs it does not underflow for small alpha.
    log_gamma = np.log(rng.standard_gamma(alpha + 1)) + np.log1p(-rng.random(alpha.shape)) / alpha
    pi = torch.softmax(torch.from_numpy(log_gamma), dim=-1)
    omega = torch.from_numpy(np.asarray(rng.beta(a, b)))
    lam = torch.from_numpy(np.asarray(rng.standard_gamma(e) / f))
    # A draw that rounds to the boundary, where the density may be infinite, is moved to the nearest number inside.
    return Parameters(pi.clamp_min(TINY), omega.clamp(TINY, BELOW_ONE), lam.clamp_min(TINY))


class LogNormalisers(NamedTuple):
    """Logs of the integrals of the unnormalised densities; ratios of them are marginal likelihoods."""

    pi: Tensor  # (...)  of prod_k pi_k^(alpha_k - 1)
    omega: Tensor  # (..., K, D)  of omega^(a - 1) (1 - omega)^(b - 1)
    lam: Tensor  # (..., K, D)  of lambda^(e - 1) exp(-f lambda)


def log_normalisers(conditionals: Conditionals) -> LogNormalisers:
    """Log multivariate Beta, Beta and Gamma integrals; 0 for the flat improper prior f = 0."""
    alpha, a, b, e, f = conditionals
    lgamma = torch.lgamma
    return LogNormalisers(
        lgamma(alpha).sum(-1) - lgamma(alpha.sum(-1)),
        lgamma(a) + lgamma(b) - lgamma(a + b),
        torch.where(f > 0, lgamma(e) - torch.special.xlogy(e, f), 0.0),
    )


def log_density(conditionals: Conditionals, parameters: Parameters) -> Tensor:
    """Log density of the parameters under the conditionals, all constants in; 0 * log 0 is 0.

    Args:
        conditionals: Dirichlet, Beta and Gamma parameters; f = 0 with e = 1 is the flat improper prior, of density 1.
        parameters: with any batch axes in front.
    Returns:
        (...)
    """
    return log_density_at(conditionals, exact_logs(parameters))


def log_density_at(conditionals: Conditionals, logs: Logs) -> Tensor:
    """log_density from the logs of the parameters, where these are known already.

    Args:
        conditionals: as for log_density.
        logs: exact_logs of the parameters, not floored.
    Returns:
        (...)
    """
    alpha, a, b, e, f = conditionals
    log_normaliser = log_normalisers(conditionals)
    dirichlet = _product(alpha - 1, logs.log_pi).sum(-1) - log_normaliser.pi
    beta = _product(a - 1, logs.u) + _product(b - 1, logs.v) - log_normaliser.omega
    gamma = _product(e - 1, logs.l) - f * logs.w - log_normaliser.lam
    return dirichlet + (beta + gamma).sum((-2, -1))


def _product(power: Tensor, log: Tensor) -> Tensor:
    """power * log, where 0 * log 0 is 0; a third of the time of torch's xlogy and xlog1py."""
    return torch.where(power == 0, 0.0, power * log)


def expected_logs(conditionals: Conditionals) -> Logs:
    """E[log pi], E[log omega], E[log(1 - omega)], E[lambda] and E[log lambda]: the kernel's tables under q.

    Args:
        conditionals: a variational factor q, every field > 0, with any batch axes in front.
    """
    alpha, a, b, e, f = conditionals
    digamma = torch.digamma
    both = digamma(a + b)
    return Logs(
        digamma(alpha) - digamma(alpha.sum(-1, keepdim=True)),
        digamma(a) - both,
        digamma(b) - both,
        e / f,
        digamma(e) - torch.log(f),
    )
