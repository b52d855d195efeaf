"""Labels: matching against every permutation, the distance against a summed series."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from zipmix import Parameters
from zipmix.inference.labels import distances, match, matching, reorder


def point(K, D, seed, batch=()):
    rng = np.random.default_rng(seed)
    pi, omega, lam = rng.dirichlet(np.ones(K), size=batch), rng.random((*batch, K, D)), rng.gamma(1, 4, (*batch, K, D))
    return Parameters(*map(torch.from_numpy, (pi, omega, lam)))


def overlap(omega, lam, omega_ref, lam_ref):
    """sum_x sqrt(p(x) q(x)) term by term."""
    x = np.arange(2000)
    p, q = (o * stats.poisson.pmf(x, r) + (1 - o) * (x == 0) for o, r in ((omega, lam), (omega_ref, lam_ref)))
    return np.sqrt(p * q).sum()


def test_distance_is_the_summed_series():
    here, there = point(3, 4, 0), point(3, 4, 1)
    (_, omega, lam), (_, omega_ref, lam_ref) = ([field.numpy() for field in theta] for theta in (here, there))
    expected = np.zeros((3, 3))
    for k, j, d in itertools.product(range(3), range(3), range(4)):
        expected[k, j] -= np.log(overlap(omega[j, d], lam[j, d], omega_ref[k, d], lam_ref[k, d]))
    np.testing.assert_allclose(distances(here, there), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ((0.0, 5.0), (0.5, 2.0)),
        ((1.0, 5.0), (1.0, 7.0)),
        ((1.0, 0.0), (0.3, 2.0)),
        ((0.7, 0.0), (0.2, 0.0)),
        ((0.0, 1.0), (1.0, 30.0)),
        ((1.0, 900.0), (1.0, 850.0)),
        ((1.0, 900.0), (0.01, 900.0)),
    ],
)
def test_distance_on_the_boundary(here, there):
    one, other = (
        Parameters(torch.ones(1), *(torch.tensor([[v]], dtype=torch.float64) for v in pair)) for pair in (here, there)
    )
    expected = -np.log(overlap(*here, *there))
    assert distances(one, other).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_distance_of_a_component_from_itself_is_zero():
    theta = point(4, 5, 3)
    np.testing.assert_allclose(distances(theta, theta).diagonal(), 0, atol=1e-12)
    assert (distances(theta, theta) >= -1e-12).all()


@pytest.mark.parametrize("seed", range(10))
def test_matching_is_the_best_of_all_permutations(seed):
    K = 2 + seed % 4
    here, there = point(K, 2, seed, batch=(2, 3)), point(K, 2, 100 + seed)
    order = matching(here, there)
    assert order.shape == (2, 3, K)
    for index in itertools.product(range(2), range(3)):
        one = Parameters(*(field[index] for field in here))
        cost = distances(one, there).numpy()
        best = min(itertools.permutations(range(K)), key=lambda p: sum(cost[k, j] for k, j in enumerate(p)))
        assert tuple(order[index].tolist()) == best
        for whole, alone in zip(match(here, there), one, strict=True):
            np.testing.assert_array_equal(whole[index], alone[list(best)])


def test_matching_undoes_a_permutation():
    theta = point(6, 3, 5)
    shuffled = reorder(theta, torch.tensor([4, 2, 0, 5, 1, 3]))
    for found, true in zip(match(shuffled, theta), theta, strict=True):
        assert torch.equal(found, true)


def test_matching_where_components_do_not_overlap_at_all():
    """omega 1 and rates 0 and 1e6: the overlap underflows, and the matching is still the right one."""
    lam = torch.tensor([[0.0], [1e6], [2e6]]).double()
    theta = Parameters(torch.full((3,), 1 / 3).double(), torch.ones(3, 1).double(), lam)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(match(reorder(theta, order), theta).lam, lam)
