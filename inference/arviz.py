"""Fits for ArviZ: the one file that knows it.

ArviZ 0.x holds groups in an InferenceData, ArviZ 1.x in an xarray DataTree; only what both have is used.
"""

import warnings
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.sparse import csr_array
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.store import Source, as_counts, as_dense
from zipmix.inference.datasets import as_dataset, as_diagnostics, numbered, observations, unique
from zipmix.inference.rng import generator
from zipmix.models.conjugate import as_conditionals, log_density
from zipmix.models.parameters import Parameters, Prior
from zipmix.models.posterior import rows_log_likelihood

# Cells of the replicated tables in posterior_predictive, about.
PREDICTIVE_CELLS = 4_000_000


class Pointwise(NamedTuple):
    """PSIS-LOO of rows as ArviZ returns it, under the names of either version."""

    elpd: float
    se: float
    p: float
    pareto_k: np.ndarray


def arviz() -> ModuleType:
    """The arviz module, without its notice about version 1."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        import arviz as az

    return az


def to_arviz(
    draws: Parameters,
    *,
    X: Tensor | csr_array,
    prior: Prior,
    names: tuple[str, ...],
    row_names: tuple[str, ...] | None,
    diagnostics: dict[str, Tensor],
    seed: int,
) -> Any:
    """An InferenceData (ArviZ 0.x) or DataTree (1.x) of draws and the data they are conditioned on.

    Args:
        draws: (chain, draw, ...); a point is one chain of one draw.
        X: (N, D) the data of the fit.
        prior: hyperparameters.
        names: D names of columns.
        row_names: N names of rows, or None.
        diagnostics: (chain, draw, ...) reports of a sampler.
        seed: of the replicated tables.
    Returns:
        Groups posterior (pi, omega, lam), sample_stats (lp, the log posterior of each draw, and the diagnostics),
        log_likelihood (x, of whole rows, z and b summed out, so that az.loo and az.compare leave out rows),
        posterior_predictive (x, a new table of the same shape, for evenly spaced draws) and observed_data (x).
    Raises:
        InputError: X is a stream.
    """
    if isinstance(X, Source):
        raise InputError("fit.X is a stream, and ArviZ holds all data in memory; use fit.score_samples on parts of it.")
    rows_CSN = rows_log_likelihood(as_counts(X), draws)
    lp_CS = rows_CSN.sum(-1) + log_density(as_conditionals(prior), draws)
    rows, columns = observations(X.shape[0], row_names), unique(names)
    observed = {"x": (("observation", "feature"), as_dense(X).numpy())}
    return as_data(
        {
            "posterior": numbered(as_dataset(draws, ("chain", "draw"), names)),
            "sample_stats": numbered(as_diagnostics({"lp": lp_CS} | diagnostics)),
            "log_likelihood": log_likelihood_group(rows_CSN, rows),
            "posterior_predictive": _replicated(draws, rows, columns, seed),
            "observed_data": xr.Dataset(observed, coords={"observation": rows, "feature": columns}),
        }
    )


def as_data(groups: dict[str, xr.Dataset]) -> Any:
    """Groups as the installed ArviZ holds them."""
    az = arviz()
    return az.InferenceData(**groups) if hasattr(az, "InferenceData") else xr.DataTree.from_dict(groups)


def log_likelihood_group(rows_CSN: Tensor, rows: Any) -> xr.Dataset:
    """log p(x_i | Theta) of every draw, (chain, draw, observation), with the coordinate of the rows."""
    values = {"x": (("chain", "draw", "observation"), rows_CSN.numpy())}
    return numbered(xr.Dataset(values, coords={"observation": rows}))


def pointwise_loo(draws: Parameters, rows_CSN: Tensor, names: tuple[str, ...]) -> Pointwise:
    """PSIS-LOO by ArviZ of the log likelihood of rows (chain, draw, N)."""
    groups = {
        "posterior": numbered(as_dataset(draws, ("chain", "draw"), names)),
        "log_likelihood": log_likelihood_group(rows_CSN, np.arange(rows_CSN.shape[-1])),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto", category=UserWarning)
        # In the fit of the Pareto shape, exp may overflow to infinity, whose inverse is the 0 that is meant.
        warnings.filterwarnings("ignore", message="overflow encountered in exp", category=RuntimeWarning)
        result = arviz().loo(as_data(groups), pointwise=True)
    elpd = result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd
    p = result.p_loo if hasattr(result, "p_loo") else result.p
    return Pointwise(float(elpd), float(result.se), float(p), np.asarray(result.pareto_k))


def _replicated(draws: Parameters, rows: Any, columns: list[str], seed: int) -> xr.Dataset:
    """New tables of N rows, z and b drawn anew, for evenly spaced draws of every chain."""
    N, D = len(rows), len(columns)
    n_chains, n_draws = draws.pi.shape[:2]
    every = -(-n_draws * n_chains * N * D // PREDICTIVE_CELLS)
    kept = np.arange(n_draws)[::every]
    pi, omega, lam = (value[:, kept].flatten(0, 1).numpy() for value in draws)
    rng = generator(seed, "method")
    x_SND = np.empty((len(pi), N, D), dtype=np.int64)
    for s in range(len(pi)):
        z_N = (rng.random((N, 1)) > pi[s].cumsum()[:-1]).sum(1)
        x_SND[s] = rng.poisson(lam[s, z_N]) * (rng.random((N, D)) < omega[s, z_N])
    return xr.Dataset(
        {"x": (("chain", "draw", "observation", "feature"), x_SND.reshape(n_chains, len(kept), N, D))},
        coords={"chain": np.arange(n_chains), "draw": kept, "observation": rows, "feature": columns},
    )
