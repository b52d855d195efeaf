"""Partitions: losses from their definitions by plain loops, the minimiser against every partition of a few rows."""

import itertools
import math

import numpy as np
import pytest
import torch

from zipmix import InputError, Prior, exact_posterior, fit, simulate
from zipmix.inference.partition import coclustering, draw_partitions, expected_loss, point_partition


def partitions(n):
    """Every partition of n rows as restricted growth strings."""
    grown = [[0]]
    for _ in range(n - 1):
        grown = [[*labels, k] for labels in grown for k in range(max(labels) + 2)]
    return grown


def by_loops(c, z, loss):
    n = len(c)
    if loss == "binder":
        return sum((c[i] == c[j]) != (z[i] == z[j]) for i, j in itertools.combinations(range(n), 2))
    total = 0.0
    for i in range(n):
        a = sum(c[j] == c[i] for j in range(n)) / n
        b = sum(z[j] == z[i] for j in range(n)) / n
        both = sum(c[j] == c[i] and z[j] == z[i] for j in range(n)) / n
        # VI = H(c | z) + H(z | c).
        total += (math.log(b / both) + math.log(a / both)) / n
    return total


def some_draws(seed, n=6, s=15):
    """Noisy copies of one partition, under names that differ from draw to draw."""
    rng = np.random.default_rng(seed)
    true = rng.integers(3, size=n)
    z = np.where(rng.random((s, n)) < 0.35, rng.integers(4, size=(s, n)), true)
    return torch.from_numpy(np.stack([rng.permutation(4)[row] for row in z]))


@pytest.mark.parametrize("loss", ["vi", "binder"])
@pytest.mark.parametrize("seed", range(12))
def test_no_partition_of_the_rows_is_better(loss, seed):
    z = some_draws(seed)
    losses = {tuple(c): np.mean([by_loops(c, row, loss) for row in z.tolist()]) for c in partitions(6)}
    found = point_partition(z, loss=loss)
    label = tuple(found.label_N.tolist())
    assert found.expected_loss == pytest.approx(losses[label], rel=1e-12, abs=1e-12)
    assert losses[label] == pytest.approx(min(losses.values()), rel=1e-12, abs=1e-12)


def test_the_search_goes_beyond_the_candidates():
    """On longer tables: no move of one row lowers the loss, by plain loops, and no draw is better."""
    z = some_draws(3, n=25, s=40)
    for loss in ("vi", "binder"):
        found = point_partition(z, loss=loss)
        label = found.label_N.tolist()
        for i, k in itertools.product(range(25), range(max(label) + 2)):
            moved = [*label[:i], k, *label[i + 1 :]]
            assert expected_loss(torch.tensor(moved), z, loss) >= found.expected_loss - 1e-9
        assert found.expected_loss <= min(expected_loss(row, z, loss) for row in z) + 1e-12


def test_expected_loss_by_plain_loops():
    z = some_draws(5, n=9)
    label = [0, 1, 1, 2, 0, 2, 2, 3, 0]
    for loss in ("vi", "binder"):
        expected = np.mean([by_loops(label, row, loss) for row in z.tolist()])
        assert expected_loss(torch.tensor(label), z, loss) == pytest.approx(expected, rel=1e-12)


def test_coclustering_by_plain_loops():
    z = some_draws(1).tolist()
    expected = [[np.mean([row[i] == row[j] for row in z]) for j in range(6)] for i in range(6)]
    np.testing.assert_allclose(coclustering(torch.tensor(z)), expected, rtol=1e-12)


def test_drawn_partitions_agree_with_the_exact_posterior():
    """Partitions drawn given independent draws are independent: 4 standard errors sqrt(p (1 - p) / S)."""
    X = simulate(7, 2, 3, prior=Prior(f=0.1), seed=4).X
    z = draw_partitions(fit(X, 3, "exact", n_draws=8000), n_draws=8000, seed=2)
    expected = exact_posterior(X, 3).coclustering_NN
    error = (expected * (1 - expected) / 8000).clamp_min(0).sqrt()
    assert ((coclustering(z) - expected).abs() <= 4 * error + 1e-12).all()
    assert error.max() > 0.003


def test_draws_are_seeded_and_a_point_has_draws_too():
    X = simulate(20, 3, 2, seed=0).X
    em, gibbs = fit(X, 2, "em", n_starts=2), fit(X, 2, "gibbs", n_warmup=5, n_draws=30, n_chains=2)
    assert draw_partitions(em, n_draws=7).shape == (7, 20)
    assert draw_partitions(gibbs, n_draws=500).shape == (60, 20)
    assert torch.equal(draw_partitions(gibbs, seed=1), draw_partitions(gibbs, seed=1))
    assert not torch.equal(draw_partitions(gibbs, seed=1), draw_partitions(gibbs, seed=2))


def test_one_row_and_one_draw():
    assert point_partition(torch.tensor([[3]])).label_N.tolist() == [0]
    assert point_partition(torch.tensor([[7, 2, 7]])) == (pytest.approx(torch.tensor([0, 1, 0])), pytest.approx(0.0))


def test_refuses_what_is_no_loss_and_no_draw():
    with pytest.raises(InputError, match=r"loss must be one of 'vi', 'binder'; got 'VI'"):
        point_partition(torch.tensor([[0, 1]]), loss="VI")
    with pytest.raises(InputError, match="at least one partition"):
        point_partition(torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="n_draws"):
        draw_partitions(fit([[1.0]], 1, "em"), n_draws=0)
