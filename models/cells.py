"""The distribution of one cell given its component, with b summed out: a zero-inflated Poisson.

    p(x = 0 | k, d) = 1 - omega + omega exp(-lambda)
    p(x | k, d)     = omega Poisson(x; lambda)            x > 0
    E[x | k, d]     = omega lambda

Notation: models/zip_mixture.py.
"""

import torch
from torch import Tensor

from zipmix.models.kernel import log_zero, logs
from zipmix.models.parameters import Parameters


def p_zero(theta: Parameters) -> Tensor:
    """p(x = 0 | k, d), (..., K, D)."""
    return log_zero(logs(theta)).exp()


def cell_mean(theta: Parameters) -> Tensor:
    """E[x | k, d] = omega lambda, (..., K, D)."""
    return theta.omega * theta.lam


def log_pmf(theta: Parameters, x: Tensor) -> Tensor:
    """log p(x | k, d).

    Args:
        theta: omega, lam (..., K, D).
        x: counts, of any shape that broadcasts against (..., K, D).
    Returns:
        The broadcast shape.
    """
    tables = logs(theta)
    log_poisson = tables.u + torch.special.xlogy(x, theta.lam) - theta.lam - torch.lgamma(x + 1)
    return torch.where(x == 0, log_zero(tables), log_poisson)


def log_bhattacharyya(theta: Parameters, reference: Parameters) -> Tensor:
    """Log Bhattacharyya coefficient of the cells of every pair of components.

    With p_0 = p(x = 0), sum_x sqrt(p q) = sqrt(p_0 q_0) + sqrt(omega omega') e^-(lam + lam')/2 (e^sqrt(lam lam') - 1).

    Args:
        theta: omega, lam (..., K, D).
        reference: omega, lam (K, D).
    Returns:
        (..., K, K, D): rows are components of the reference.
    """
    here, there = logs(theta), logs(reference)
    lam, lam_ref = here.w[..., None, :, :], there.w[:, None, :]
    root = (lam * lam_ref).sqrt()
    both_zero = (log_zero(here)[..., None, :, :] + log_zero(there)[:, None, :]) / 2
    # log(e^root - 1) without overflow; root = 0 has no mass above zero.
    log_rest = root + torch.log(-torch.expm1(-root)).clamp_min(-1e15)
    above = (here.u[..., None, :, :] + there.u[:, None, :] - lam - lam_ref) / 2 + log_rest
    return torch.logaddexp(both_zero, above)
