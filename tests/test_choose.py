"""choose_k: every column is what it says it is, and all of them find the number of components that is there."""

import math

import numpy as np
import pytest
import torch

from zipmix import InputError, Parameters, Prior, choose_k, fit, log_evidence_exact, log_posterior, simulate

THETA = Parameters(
    torch.tensor([0.5, 0.5]).double(),
    torch.tensor([[0.9, 0.8, 0.6], [0.7, 0.9, 0.8]]).double(),
    torch.tensor([[2.0, 12, 5], [11.0, 3, 1]]).double(),
)
SHORT = dict(n_chains=2, n_warmup=100, n_draws=400, n_groups=5, n_particles=20)


def test_two_components_are_found_where_there_are_two():
    X = simulate(80, 3, 2, parameters=THETA, seed=1).X
    table = choose_k(X, range(1, 4), **SHORT)
    assert list(table.index) == [1, 2, 3]
    for column in ("elbo", "chib", "annealed", "loo"):
        assert table[column].idxmax() == 2, column
    assert table["bic"].idxmin() == 2
    assert table.notna().all(axis=None)
    error = np.hypot(table["chib_error"], table["annealed_error"])
    assert ((table["chib"] - table["annealed"]).abs() < 4 * error).all()
    # The bound is below the evidence, as far as the latter is known.
    assert (table["elbo"] < table["annealed"] + 4 * table["annealed_error"]).all()


def test_columns_by_hand():
    X = simulate(7, 2, 2, seed=3).X
    table = choose_k(X, [2], **SHORT)
    exact = log_evidence_exact(X, 2)
    assert abs(table.loc[2, "chib"] - exact) < 4 * table.loc[2, "chib_error"]
    assert abs(table.loc[2, "annealed"] - exact) < 4 * table.loc[2, "annealed_error"]
    em = fit(X, 2, "em")
    log_likelihood = log_posterior(X, em.parameters) - log_posterior(torch.full((1, 2), torch.nan), em.parameters)
    assert table.loc[2, "bic"] == pytest.approx(-2 * log_likelihood.item() + 9 * math.log(7), rel=1e-9)


def test_what_there_is_not_is_nan_and_what_cannot_be_is_refused():
    X = simulate(6, 2, 2, seed=3).X
    few = dict(n_chains=1, n_warmup=2, n_draws=20, n_groups=2, n_particles=3)
    table = choose_k(X, [1, 15], prior=Prior(alpha=0.5), **few)
    assert table["bic"].isna().all()
    assert table["chib"].isna().tolist() == [False, True]
    with pytest.raises(InputError, match="n_components must name at least one"):
        choose_k(X, [])
    with pytest.raises(InputError, match=r"prior\.alpha must be one number"):
        choose_k(X, [2, 3], prior=Prior(alpha=torch.tensor([1.0, 2.0])), **few)
