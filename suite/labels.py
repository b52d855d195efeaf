"""Labels of components: matching those of two fits, and what does not depend on labels.

The posterior is the same under every permutation of the components, so components are compared only after they are
matched to those of a reference: the permutation that minimises the sum of distances (the assignment problem, Kuhn
1955, by scipy). The distance of two components is Bhattacharyya's, -log of sum_x sqrt(p(x) q(x)), which is a closed
form for zero-inflated Poissons and adds over columns.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zipmix.models.kernel import log_zero, logs
from zipmix.models.parameters import Parameters


def distances(parameters: Parameters, reference: Parameters) -> Tensor:
    """Bhattacharyya distance between every component and every component of the reference.

    With p_0 = p(x = 0), sum_x sqrt(p q) = sqrt(p_0 q_0) + sqrt(omega omega') e^-(lam + lam')/2 (e^sqrt(lam lam') - 1).

    Args:
        parameters: omega, lam (..., K, D).
        reference: omega, lam (K, D).
    Returns:
        (..., K, K): rows are components of the reference.
    """
    here, there = logs(parameters), logs(reference)
    lam, lam_ref = here.w[..., None, :, :], there.w[:, None, :]
    root = (lam * lam_ref).sqrt()
    both_zero = (log_zero(here)[..., None, :, :] + log_zero(there)[:, None, :]) / 2
    # log(e^root - 1) without overflow; root = 0 has no mass above zero.
    log_rest = root + torch.log(-torch.expm1(-root)).clamp_min(-1e15)
    above = (here.u[..., None, :, :] + there.u[:, None, :] - lam - lam_ref) / 2 + log_rest
    return -torch.logaddexp(both_zero, above).sum(-1)


def matching(parameters: Parameters, reference: Parameters) -> Tensor:
    """The permutation that brings components into the order of the reference.

    Args:
        parameters: with any batch axes in front.
        reference: one point.
    Returns:
        (..., K) int64: entry k is the component that corresponds to component k of the reference.
    """
    cost = distances(parameters, reference).clamp_max(1e12)
    flat = cost.reshape(-1, *cost.shape[-2:]).numpy()
    orders = np.stack([linear_sum_assignment(table)[1] for table in flat])
    return torch.from_numpy(orders).reshape(cost.shape[:-1])


def reorder(parameters: Parameters, order: Tensor) -> Parameters:
    """Parameters with components in the given order.

    Args:
        parameters: with any batch axes in front.
        order: (..., K) as matching returns it.
    """
    pi, omega, lam = parameters
    wide = order[..., None].expand(omega.shape)
    return Parameters(pi.gather(-1, order), omega.gather(-2, wide), lam.gather(-2, wide))


def match(parameters: Parameters, reference: Parameters) -> Parameters:
    """Parameters with components in the order of the reference, each draw by itself."""
    return reorder(parameters, matching(parameters, reference))
