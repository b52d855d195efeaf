"""Split-and-merge moves: ways out of a local optimum of EM (Ueda, Nakano, Ghahramani and Hinton, 2000).

A move merges two components that share many rows and splits a third, so K stays. All moves of a round are proposed at
once and run as one batch of starts.
"""

import numpy as np
import torch
from torch import Tensor

from zipmix.counts.store import Counts
from zipmix.inference.start import few_rows, nearest_seeds
from zipmix.models.conjugate import complete_conditionals, mean
from zipmix.models.kernel import log_joint, logs, responsibilities, statistics
from zipmix.models.parameters import Parameters, Prior

# Expected rows below which a component is empty, so that there is nothing to split.
EMPTY = 1e-9


def proposals(counts: Counts, prior: Prior, theta: Parameters, n_moves: int, rng: np.random.Generator) -> Parameters:
    """Points that differ from theta by one move each, (n_moves, K, D).

    Args:
        counts: N rows of D counts, of which some thousands are looked at.
        prior: hyperparameters as check_prior returns them.
        theta: one point, K >= 2.
        n_moves: how many.
        rng: of the choice of moves.
    """
    few = few_rows(counts, rng)
    R_NK = responsibilities(log_joint(few, logs(theta)))[0]
    K = R_NK.shape[1]
    # Two components share many rows where their columns of responsibilities point the same way (equation 3.1).
    unit_NK = R_NK / R_NK.norm(dim=0).clamp_min(1e-300)
    overlap_KK = ((unit_NK.T @ unit_NK).triu(1) + torch.full((K, K), 1e-3).triu(1)).numpy()
    pairs = rng.choice(K * K, size=n_moves, p=(overlap_KK / overlap_KK.sum()).flatten())
    proposed_RNK = torch.stack([_moved(few, R_NK, *divmod(int(pair), K), rng) for pair in pairs])
    # Half of the zeros are taken to be structural, as at a start.
    moved = statistics(few, proposed_RNK, lambda zeros_KD: zeros_KD / 2)
    return mean(complete_conditionals(moved, prior))


def _moved(counts: Counts, R_NK: Tensor, i: int, j: int, rng: np.random.Generator) -> Tensor:
    """Responsibilities with j merged into i, and a third component split between its own place and j's, (N, K)."""
    R_NK = R_NK.clone()
    R_NK[:, i] += R_NK[:, j]
    n_K = R_NK.sum(0)
    others = [k for k in range(len(n_K)) if k not in (i, j) and n_K[k] > EMPTY] or [i]
    k = int(rng.choice(others))
    near_first_N = nearest_seeds(counts, 2, [rng], weight_N=R_NK[:, k])[0] == 0
    R_NK[:, j] = torch.where(near_first_N, 0.0, R_NK[:, k])
    R_NK[:, k] = torch.where(near_first_N, R_NK[:, k], 0.0)
    return R_NK
