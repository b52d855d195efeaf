"""Labels of components: matching those of two fits, and one order for all draws of a fit.

The posterior is the same under every permutation of the components, so components are compared only after they are
matched to those of a reference: the permutation that minimises the sum of distances (the assignment problem, Kuhn
1955, by scipy). The distance of two components is Bhattacharyya's, -log of sum_x sqrt(p(x) q(x)), which is a closed
form for zero-inflated Poissons and adds over columns.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from zipmix.counts.checks import check_whole
from zipmix.counts.store import Counts, as_counts
from zipmix.counts.table import as_table
from zipmix.models.cells import log_bhattacharyya
from zipmix.models.kernel import log_joint, logs, responsibilities
from zipmix.models.parameters import Parameters
from zipmix.models.posterior import blocks

if TYPE_CHECKING:
    import pandas as pd


def distances(parameters: Parameters, reference: Parameters) -> Tensor:
    """Bhattacharyya distance between every component and every component of the reference.

    Args:
        parameters: omega, lam (..., K, D).
        reference: omega, lam (K, D).
    Returns:
        (..., K, K): rows are components of the reference.
    """
    return -log_bhattacharyya(parameters, reference).sum(-1)


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


class Relabelled(NamedTuple):
    """Draws with the components in the same order in all draws."""

    draws: Parameters  # (C, S, ...)
    order: Tensor  # (C, S, K) int64: entry k is the component of the draw that has become component k
    divergence: Tensor  # (T,) Stephens' loss after every round; it never rises


def relabel(draws: Parameters, X: Any, reference: Parameters, *, max_iter: int = 100) -> Relabelled:
    """Reorders the components of every draw so that responsibilities agree (Stephens, 2000, algorithm 2).

    Two steps alternate: Q_ik is the mean of the responsibilities of all draws, relabelled; every draw takes the
    permutation that minimises its Kullback-Leibler divergence sum_ik r_ik log(r_ik / Q_ik), an assignment problem.
    The responsibilities of a draw are computed anew in each round, not stored.

    Args:
        draws: (chain, draw, ...).
        X: (N, D) counts, NaN where missing.
        reference: one point; the first round starts from draws matched to it.
        max_iter: most rounds.
    Raises:
        InputError: X or max_iter that cannot be used.
    """
    check_whole(max_iter, "max_iter", at_least=1)
    counts = as_counts(as_table(X, n_features=draws.omega.shape[-1]).X)
    flat = draws.flat(2)
    order_SK = matching(flat, reference)
    losses: list[float] = []
    for _ in range(max_iter):
        Q_NK = _mean_responsibilities(counts, flat, order_SK)
        before, (order_SK, loss) = order_SK, _closest(counts, flat, Q_NK)
        losses.append(loss)
        if bool((order_SK == before).all()):
            break
    shape = draws.pi.shape[:2]
    return Relabelled(reorder(draws, order_SK.unflatten(0, shape)), order_SK.unflatten(0, shape), torch.tensor(losses))


def _mean_responsibilities(counts: Counts, flat: Parameters, order_SK: Tensor) -> Tensor:
    total_NK = torch.zeros(counts.log_factorial_N.shape[0], flat.pi.shape[-1], dtype=torch.float64)
    ordered = reorder(flat, order_SK)
    for part in blocks(ordered, len(total_NK)):
        total_NK += responsibilities(log_joint(counts, logs(part)))[0].sum(0)
    return total_NK / len(flat.pi)


def _closest(counts: Counts, flat: Parameters, Q_NK: Tensor) -> tuple[Tensor, float]:
    """The permutation of every draw that is closest to Q, (S, K), and the loss summed over draws."""
    log_Q_NK = Q_NK.clamp_min(1e-300).log()
    orders, loss = [], 0.0
    for part in blocks(flat, len(Q_NK)):
        R_SNK = responsibilities(log_joint(counts, logs(part)))[0]
        loss -= torch.special.entr(R_SNK).sum().item()
        # Rows are components of Q, columns those of the draw.
        cost_SKK = -(log_Q_NK.T @ R_SNK)
        for cost_KK in cost_SKK.numpy():
            rows, columns = linear_sum_assignment(cost_KK)
            orders.append(columns)
            loss += cost_KK[rows, columns].sum()
    return torch.from_numpy(np.stack(orders)), loss


def mixing(draws: Parameters, relabelled: Parameters) -> "pd.DataFrame":
    """R-hat and bulk ESS of the parameters before and after relabelling.

    Args:
        draws: (chain, draw, ...) before relabelling.
        relabelled: the same draws after relabelling.
    Returns:
        One row per parameter: the largest R-hat and the smallest ESS over its entries, before and after.
    """
    import pandas as pd

    from zipmix.inference.diagnostics import least_ess, rhat

    rows = {
        name: {
            "rhat_before": rhat(before),
            "rhat_after": rhat(after),
            "ess_before": least_ess(before),
            "ess_after": least_ess(after),
        }
        for name, before, after in zip(Parameters._fields, draws, relabelled, strict=True)
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameter")
