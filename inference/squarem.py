"""SQUAREM: extrapolation of a fixed-point iteration (Varadhan and Roland, 2008, scheme S3).

With x1 = M(x0), x2 = M(x1), r = x1 - x0 and v = x2 - 2 x1 + x0 in unconstrained coordinates, the next point is

    x = x0 + 2 t r + t^2 v          t = |r| / |v|, between 1 (which gives x2) and the longest step allowed

It is taken only where it lowers nothing; elsewhere x2 stands. The longest step grows fourfold where a step of that
length is taken, and shrinks to a quarter of a step that is not, down to 1. Nothing here knows what M is.
"""

import torch
from torch import Tensor


def extrapolated(x0: Tensor, x1: Tensor, x2: Tensor, longest: Tensor) -> tuple[Tensor, Tensor]:
    """The SQUAREM point and its step length.

    Args:
        x0, x1, x2: (R, E) R points, M(x0) and M(x1), in unconstrained coordinates.
        longest: (R,) longest step length allowed, >= 1.
    Returns:
        x (R, E), t (R,)
    """
    r, v = x1 - x0, x2 - 2 * x1 + x0
    ratio = r.norm(dim=-1) / v.norm(dim=-1).clamp_min(1e-300)
    t = ratio.clamp_min(1.0).minimum(longest)
    return x0 + 2 * t[:, None] * r + t[:, None] ** 2 * v, t


def next_longest(longest: Tensor, t: Tensor, accepted: Tensor) -> Tensor:
    """The longest step length allowed from now on, (R,).

    Args:
        longest: (R,) allowed so far.
        t: (R,) length of the last step.
        accepted: (R,) bool, whether it was taken.
    """
    at_limit = t >= longest
    return torch.where(accepted, torch.where(at_limit, 4 * longest, longest), (t / 4).clamp_min(1.0))
