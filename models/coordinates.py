"""Unconstrained coordinates of the parameters: log pi, logit omega and log lambda side by side.

On the boundary of the parameter space a coordinate is infinite. Three limits keep it finite, each for another use:

    EDGE            extrapolation in EM keeps a point on the boundary there: the sigmoid of 40 is 1 in float64
    GRADIENT_EDGE   gradient ascent stays inside: beyond a logit of 36.7, 1 - omega rounds to 0 and has no gradient
    INTERIOR        a starting point of gradient ascent or NUTS is moved well inside, where gradients are not tiny

Notation: models/zip_mixture.py.
"""

import torch
from torch import Tensor

from zipmix.models.parameters import Parameters

EDGE = 40.0
GRADIENT_EDGE = 35.0
INTERIOR = 1e-8


def unconstrain(theta: Parameters) -> Tensor:
    """Unconstrained coordinates, cut to [-EDGE, EDGE].

    Args:
        theta: pi (..., K), omega (..., K, D), lam (..., K, D).
    Returns:
        (..., K + 2 K D)
    """
    coordinates = (theta.pi.log(), theta.omega.logit().flatten(-2), theta.lam.log().flatten(-2))
    return torch.cat(coordinates, dim=-1).clamp(-EDGE, EDGE)


def constrain(x: Tensor, like: Parameters) -> Parameters:
    """The point with these coordinates; differentiable. The inverse of unconstrain, but for a constant in log pi.

    Args:
        x: (..., K + 2 K D); cut to [-EDGE, EDGE].
        like: any point with the same K and D.
    """
    K, D = like.omega.shape[-2:]
    log_pi, logit, log_lam = x.clamp(-EDGE, EDGE).split([K, K * D, K * D], dim=-1)
    return Parameters(
        torch.softmax(log_pi, -1), torch.sigmoid(logit).unflatten(-1, (K, D)), log_lam.exp().unflatten(-1, (K, D))
    )


def interior(theta: Parameters) -> Parameters:
    """The point moved off the boundary: pi, omega, 1 - omega and lambda are at least INTERIOR (pi up to its sum)."""
    pi, omega, lam = theta
    pi = pi.clamp_min(INTERIOR)
    return Parameters(pi / pi.sum(-1, keepdim=True), omega.clamp(INTERIOR, 1 - INTERIOR), lam.clamp_min(INTERIOR))
