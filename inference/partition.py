"""Partitions of the rows: draws of them, how often two rows share a cluster, and one partition to report.

Partitions do not depend on labels. The one to report minimises a posterior expected loss (Wade and Ghahramani, 2018):
the variation of information VI = H(c) + H(z) - 2 I(c, z) of Meila (2007), or Binder's (1978), the number of pairs of
rows on which two partitions differ. With n_ab rows in cluster a of c and cluster b of z, both are

    sum_a h(n_a) + sum_b h(n_b) - 2 sum_ab h(n_ab)          h(n) = n log n / N for VI in nats, n^2 / 2 for Binder's

averaged over draws of z. The search begins at the best of the drawn partitions and of the
cuts of an average-linkage tree of 1 - P(z_i = z_j | X), and then moves one row at a time to the cluster, or the new
one, that lowers the loss most, until no move does (SALSO's sweetening step, Dahl, Johnson and Mueller, 2022).
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy.cluster.hierarchy import average, fcluster
from scipy.spatial.distance import squareform
from scipy.special import xlogy
from torch import Tensor

from zipmix.counts.checks import InputError, check_whole
from zipmix.counts.store import as_counts
from zipmix.inference.gibbs import draw_z
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.models.kernel import log_joint, logs, responsibilities
from zipmix.models.posterior import blocks

Loss = Literal["vi", "binder"]

# Number of best candidates from which the search continues.
CANDIDATES = 3

# Rounds of moves of all rows; few are ever needed.
ROUNDS = 50


class Partition(NamedTuple):
    """The partition of least expected loss that was found."""

    label_N: Tensor  # (N,) int64: 0, 1, ... in the order of first appearance
    expected_loss: float  # VI in nats, or pairs of rows


def draw_partitions(fit: Fit, *, n_draws: int = 500, seed: int = 0) -> Tensor:
    """Components of the rows drawn from P(z | X, Theta), one partition for each of evenly spaced draws of Theta.

    Args:
        fit: with draws, or a point, at which all partitions are then drawn.
        n_draws: S >= 1, number of partitions, at most the number of draws of Theta where the fit has draws.
        seed: of z.
    Returns:
        (S, N) int64
    Raises:
        InputError: n_draws is below 1.
    """
    check_whole(n_draws, "n_draws", at_least=1)
    rng = generator(seed, "method")
    if fit.draws is None:
        points = fit.parameters.map(lambda value: value.expand(n_draws, *value.shape))
    else:
        points = fit.draws.flat(2).thin(n_draws)
    counts = as_counts(fit.X)
    parts = blocks(points, counts.n_rows)
    return torch.cat([draw_z(responsibilities(log_joint(counts, logs(part)))[0], rng).argmax(-1) for part in parts])


def coclustering(z_SN: Tensor) -> Tensor:
    """Share of the drawn partitions in which two rows share a cluster, (N, N); the diagonal is 1.

    Args:
        z_SN: (S, N) int64 labels; their names may differ between draws.
    """
    together_NN = torch.zeros(z_SN.shape[1], z_SN.shape[1], dtype=torch.float64)
    for z_N in z_SN:
        member_NK = torch.nn.functional.one_hot(z_N).to(torch.float64)
        together_NN.addmm_(member_NK, member_NK.T)
    return together_NN.div_(len(z_SN))


def expected_loss(label_N: Tensor, z_SN: Tensor, loss: Loss = "vi") -> float:
    """Average loss of one partition against drawn ones: variation of information in nats, or pairs that differ.

    Args:
        label_N: (N,) int64.
        z_SN: (S, N) int64.
        loss: "vi" or "binder".
    Raises:
        InputError: another loss.
    """
    h = _summand(loss, label_N.shape[0])
    return _expected_loss(_canonical(label_N.numpy()), _canonical_rows(z_SN), h)


def point_partition(z_SN: Tensor, *, loss: Loss = "vi") -> Partition:
    """The partition of least posterior expected loss.

    Args:
        z_SN: (S, N) int64 drawn partitions, as draw_partitions returns them; N x N numbers are held.
        loss: "vi" (variation of information, which splits less) or "binder".
    Raises:
        InputError: another loss, or no draws.
    """
    if z_SN.ndim != 2 or not z_SN.numel():
        raise InputError(f"z_SN must hold at least one partition of at least one row, got shape {tuple(z_SN.shape)}.")
    h = _summand(loss, z_SN.shape[1])
    drawn_SN = _canonical_rows(z_SN)
    candidates = np.unique(np.concatenate([drawn_SN, _cuts(z_SN, int(drawn_SN.max()) + 1)]), axis=0)
    losses = np.array([_expected_loss(label_N, drawn_SN, h) for label_N in candidates])
    best = candidates[losses.argsort(kind="stable")[:CANDIDATES]]
    found = [_canonical(_sweetened(label_N, drawn_SN, h)) for label_N in best]
    label_N = min(found, key=lambda label_N: _expected_loss(label_N, drawn_SN, h))
    return Partition(torch.from_numpy(label_N), _expected_loss(label_N, drawn_SN, h))


def _summand(loss: Loss, n_rows: int) -> np.ndarray:
    """h(n) for n = 0, 1, ..., N."""
    if loss not in get_args(Loss):
        raise InputError(f"loss must be one of {', '.join(map(repr, get_args(Loss)))}; got {loss!r}.")
    n = np.arange(n_rows + 1, dtype=np.float64)
    return xlogy(n, n) / n_rows if loss == "vi" else n**2 / 2


def _expected_loss(label_N: np.ndarray, drawn_SN: np.ndarray, h: np.ndarray) -> float:
    n_SAB = _contingency(label_N, drawn_SN)
    n_A, n_SB = n_SAB[0].sum(1), n_SAB.sum(1)
    return float(h[n_A].sum() + (h[n_SB].sum(1) - 2 * h[n_SAB].sum((1, 2))).mean())


def _contingency(label_N: np.ndarray, drawn_SN: np.ndarray) -> np.ndarray:
    """Rows in cluster a of the partition and cluster b of each draw, (S, A, B)."""
    n_draws, A, B = len(drawn_SN), int(label_N.max()) + 1, int(drawn_SN.max()) + 1
    cell_SN = (np.arange(n_draws)[:, None] * A + label_N) * B + drawn_SN
    return np.bincount(cell_SN.ravel(), minlength=n_draws * A * B).reshape(n_draws, A, B)


def _sweetened(label_N: np.ndarray, drawn_SN: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The partition after single-row moves that lower the loss, until none does."""
    label_N, rise, draw = label_N.copy(), np.diff(h), np.arange(len(drawn_SN))
    # One cluster is kept empty, for a row that is best alone.
    n_SAB = np.pad(_contingency(label_N, drawn_SN), ((0, 0), (0, 1), (0, 0)))
    for _ in range(ROUNDS):
        moved = False
        for i, b_S in enumerate(drawn_SN.T):
            here = label_N[i]
            n_SAB[draw, here, b_S] -= 1
            n_A = n_SAB[0].sum(1)
            loss_A = rise[n_A] - 2 * rise[n_SAB[draw, :, b_S]].mean(0)
            there = int(loss_A.argmin())
            if loss_A[there] >= loss_A[here] - ROUNDING:
                there = here
            n_SAB[draw, there, b_S] += 1
            label_N[i] = there
            moved = moved or there != here
            if n_SAB[0].sum(1).all():
                n_SAB = np.pad(n_SAB, ((0, 0), (0, 1), (0, 0)))
        if not moved:
            break
    return label_N


# A loss has to fall by more than this for a row to move.
ROUNDING = 1e-12


def _cuts(z_SN: Tensor, most: int) -> np.ndarray:
    """Cuts of the average-linkage tree of 1 - P(z_i = z_j | X) into 1, 2, ... clusters, (T, N)."""
    n_rows = z_SN.shape[1]
    if n_rows == 1:
        return np.zeros((1, 1), dtype=np.int64)
    tree = average(squareform((1 - coclustering(z_SN)).numpy(), checks=False))
    return np.stack([_canonical(fcluster(tree, k, "maxclust")) for k in range(1, min(most + 2, n_rows) + 1)])


def _canonical(label_N: np.ndarray) -> np.ndarray:
    """Labels renamed 0, 1, ... in the order of first appearance."""
    _, first, inverse = np.unique(label_N, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse].astype(np.int64)


def _canonical_rows(z_SN: Tensor) -> np.ndarray:
    return np.stack([_canonical(z_N) for z_N in z_SN.numpy()])
