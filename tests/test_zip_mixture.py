"""The Pyro program: what it draws, what it depends on, and that its density can be differentiated."""

import math

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

from zipmix import FLAT, InputError, Parameters, Prior, simulate
from zipmix.models.parameters import check_prior
from zipmix.models.zip_mixture import log_density, relations

PRIOR = Prior(alpha=torch.tensor([1.5, 0.4, 3.0]), a=1.7, b=0.6, e=2.5, f=0.3)
THETA = Parameters(
    torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64),
    torch.tensor([[0.9, 0.2], [1.0, 0.5], [0.0, 0.7]], dtype=torch.float64),
    torch.tensor([[3.0, 0.4], [40.0, 1.0], [2.0, 0.0]], dtype=torch.float64),
)


def test_simulate_gives_a_table_its_latents_and_its_parameters():
    drawn = simulate(50, 3, 4, seed=1)
    assert drawn.X.shape == drawn.b.shape == (50, 3)
    assert drawn.z.shape == (50,)
    assert (drawn.X.dtype, drawn.z.dtype, drawn.b.dtype) == (torch.float64, torch.int64, torch.bool)
    assert [tuple(field.shape) for field in drawn.parameters] == [(4,), (4, 3), (4, 3)]
    assert (drawn.X >= 0).all()
    assert (drawn.X.round() == drawn.X).all()
    assert drawn.z.unique().tolist() == [0, 1, 2, 3]


def test_simulate_draws_z_b_and_x_from_equations_4_to_6():
    """Shares and means of 40 000 rows are within 4.5 standard errors of the truth."""
    N = 40_000
    X, z, b, theta = simulate(N, 2, 3, prior=PRIOR, parameters=THETA, seed=3)
    assert all(torch.equal(given, kept) for given, kept in zip(THETA, theta, strict=True))
    pi, omega, lam = (field.numpy() for field in THETA)
    share = np.bincount(z, minlength=3) / N
    assert (np.abs(share - pi) < 4.5 * np.sqrt(pi * (1 - pi) / N)).all()
    assert (X[~b] == 0).all()
    for k in range(3):
        rows, n = z == k, int((z == k).sum())
        on = b[rows].numpy()
        assert (np.abs(on.mean(0) - omega[k]) <= 4.5 * np.sqrt(omega[k] * (1 - omega[k]) / n)).all()
        for d in range(2):
            x, m = X[rows][:, d][b[rows][:, d]].numpy(), int(on[:, d].sum())
            rate = lam[k, d]
            if m:
                assert abs(x.mean() - rate) <= 4.5 * math.sqrt(rate / m)
                # The variance of a squared deviation from a Poisson mean is rate + 2 rate^2.
                assert abs(((x - rate) ** 2).mean() - rate) <= 4.5 * math.sqrt((rate + 2 * rate**2) / m)
    # Given z, cells of a row are independent.
    rows = z == 0
    r = np.corrcoef(X[rows].T.numpy())[0, 1]
    assert abs(r) < 4.5 / math.sqrt(int(rows.sum()))


def test_simulate_draws_parameters_from_the_prior():
    """Kolmogorov-Smirnov tests of 3 x 1000 draws each, and of pi's marginals over 300 seeds."""
    wide = simulate(1, 1000, 3, prior=PRIOR, seed=8).parameters
    assert stats.kstest(wide.omega.flatten(), stats.beta(1.7, 0.6).cdf).pvalue > 0.001
    assert stats.kstest(wide.lam.flatten(), stats.gamma(2.5, scale=1 / 0.3).cdf).pvalue > 0.001
    pi_SK = np.stack([simulate(1, 1, 3, prior=PRIOR, seed=s).parameters.pi for s in range(300)])
    np.testing.assert_allclose(pi_SK.sum(1), 1)
    for k, alpha in enumerate([1.5, 0.4, 3.0]):
        assert stats.kstest(pi_SK[:, k], stats.beta(alpha, 4.9 - alpha).cdf).pvalue > 0.001


def test_seed_alone_decides_and_global_random_state_is_left_alone():
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    pyro.get_param_store().clear()
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = simulate(30, 4, 2, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    assert list(pyro.get_param_store().keys()) == []
    torch.manual_seed(999)
    again, other = simulate(30, 4, 2, seed=5), simulate(30, 4, 2, seed=6)
    for a, b in zip([*first[:3], *first.parameters], [*again[:3], *again.parameters], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.X, other.X)
    assert not torch.equal(first.parameters.pi, other.parameters.pi)


def test_graphical_model_is_that_of_the_coursework():
    found = relations()
    assert found.parents == {
        "pi": {"alpha_0"},
        "omega": {"a_0", "b_0"},
        "lam": {"e_0", "f_0"},
        "z": {"pi"},
        "b": {"omega", "z"},
        "x": {"lam", "b", "z"},
    }
    assert found.plates == {
        "pi": (),
        "omega": ("component", "feature"),
        "lam": ("component", "feature"),
        "z": ("observation",),
        "b": ("observation", "feature"),
        "x": ("observation", "feature"),
    }
    assert found.families == {
        "pi": "Dirichlet",
        "omega": "Beta",
        "lam": "Gamma",
        "z": "Categorical",
        "b": "Bernoulli",
        "x": "MaskedMixture",
    }
    assert found.observed == {"x"}
    assert found.hyperparameters == ("alpha_0", "a_0", "b_0", "e_0", "f_0")


@pytest.mark.parametrize("missing", [False, True])
def test_density_has_the_gradient_of_its_finite_differences(missing):
    X, *_, theta = simulate(12, 3, 2, seed=2)
    if missing:
        X[::3, 1] = torch.nan
    prior = check_prior(Prior(), 2)
    free = Parameters(*(field.clone().requires_grad_() for field in theta))
    gradient = torch.autograd.grad(log_density(X, free, prior), free)
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = [torch.from_numpy(rng.normal(size=field.shape)) for field in theta]
        direction[0] -= direction[0].mean()
        h = 1e-6
        ahead, behind = (
            log_density(X, Parameters(*(t + s * h * v for t, v in zip(theta, direction, strict=True))), prior).item()
            for s in (1, -1)
        )
        slope = sum((g * v).sum() for g, v in zip(gradient, direction, strict=True)).item()
        # Central differences are exact to h^2, and to rounding of the density over h.
        assert slope == pytest.approx((ahead - behind) / (2 * h), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize(("rate", "log_p"), [(20.0, -20.0), (200.0, math.log(2.0**-52))])
def test_density_and_gradient_are_finite_at_a_zero_under_a_high_rate(rate, log_p):
    """omega = 1 - 2^-52, x = 0: log p is -rate, or that of a structural zero."""
    free = Parameters(
        torch.ones(1, dtype=torch.float64, requires_grad=True),
        torch.full((1, 1), 1 - 2.0**-52, dtype=torch.float64, requires_grad=True),
        torch.full((1, 1), rate, dtype=torch.float64, requires_grad=True),
    )
    prior = check_prior(Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=0.1), 1)
    value = log_density(torch.zeros(1, 1, dtype=torch.float64), free, prior)
    gradient = torch.autograd.grad(value, free)
    # 2^-52 e^20 is 1.1e-7.
    assert value.item() == pytest.approx(log_p + math.log(0.1) - 0.1 * rate, rel=1e-7)
    assert all(part.isfinite().all() for part in gradient)
    assert gradient[2].item() == pytest.approx(-0.1 - (rate == 20), rel=1e-6)


def test_density_leaves_no_trace_in_pyro():
    X, *_, theta = simulate(5, 2, 2)
    pyro.get_param_store().clear()
    state = torch.get_rng_state()
    log_density(X, theta, check_prior(Prior(), 2))
    assert list(pyro.get_param_store().keys()) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(field.requires_grad for field in theta)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(n=0), r"n must be a whole number >= 1, got 0"),
        (dict(n_features=2.5), r"n_features must be a whole number >= 1, got 2\.5"),
        (dict(n_components=0), r"n_components must be a whole number >= 1, got 0"),
        (dict(prior=FLAT), r"prior\.f is 0"),
        (dict(prior=Prior(a=-1.0)), r"prior\.a must be finite and greater than 0, got -1"),
        (dict(seed=-1), r"seed must be a whole number >= 0, got -1"),
        (dict(seed="one"), r"seed must be a whole number >= 0, got 'one'"),
        (dict(parameters=THETA), r"parameters\.pi must have shape \(2,\), got \(3,\)"),
        (dict(parameters=(1, 2, 3)), r"parameters must be a zipmix\.Parameters\(pi, omega, lam\), got tuple"),
    ],
)
def test_simulate_refuses_what_it_cannot_draw_from(arguments, words):
    with pytest.raises(InputError, match=words):
        simulate(**(dict(n=5, n_features=2, n_components=2) | arguments))
