"""Fits as ArviZ data and as NetCDF files: all use of ArviZ, xarray and h5netcdf is here.

ArviZ 0.x holds groups in an InferenceData, ArviZ 1.x in an xarray DataTree; only what both have is used.
"""

import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from scipy.sparse import csr_array
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.store import Counts, Source, as_counts, as_dense
from zipmix.counts.table import default_names
from zipmix.inference.result import Fit, Restarts
from zipmix.inference.rng import generator
from zipmix.models.conjugate import as_conditionals, log_density
from zipmix.models.parameters import Parameters, Prior
from zipmix.models.posterior import rows_log_likelihood
from zipmix.models.zip_mixture import Simulation

FORMAT = 1
AXES = {
    "pi": ("component",),
    "omega": ("component", "feature"),
    "lam": ("component", "feature"),
}


def arviz() -> ModuleType:
    """The arviz module, without its notice about version 1."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
        import arviz as az

    return az


def rhat(values: Tensor) -> float:
    """Largest rank-normalised split R-hat over all entries of draws (chain, draw, ...).

    1 where all draws are equal, and infinite where no chain moves but they differ.
    """
    flat_CSJ = values.flatten(2) if values.ndim > 2 else values[..., None]
    moving = (flat_CSJ != flat_CSJ[:1, :1]).any(0).any(0)
    if not bool(moving.any()):
        return 1.0
    dataset = xr.Dataset({"value": (("chain", "draw", "entry"), flat_CSJ[..., moving].numpy())})
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(arviz().rhat(dataset)["value"].max())


# Cells of the replicated tables in posterior_predictive, about.
PREDICTIVE_CELLS = 4_000_000


def to_arviz(fit: Fit, *, seed: int = 0) -> Any:
    """An InferenceData (ArviZ 0.x) or DataTree (1.x) of the fit.

    Args:
        fit: of any method; a point is one chain of one draw.
        seed: of the replicated tables.
    Returns:
        Groups posterior (pi, omega, lam), sample_stats (lp, the log posterior of each draw, and the diagnostics),
        log_likelihood (x, of whole rows, z and b summed out, so that az.loo and az.compare leave out rows),
        posterior_predictive (x, a new table of the same shape, for evenly spaced draws) and observed_data (x).
    """
    if isinstance(fit.X, Source):
        raise InputError("fit.X is a stream, and ArviZ holds all data in memory; use fit.score_samples on parts of it.")
    rows_CSN = rows_log_likelihood(as_counts(fit.X), _draws(fit))
    lp_CS = rows_CSN.sum(-1) + log_density(as_conditionals(fit.prior), _draws(fit))
    return _as_data(
        {
            "posterior": _numbered(_posterior(fit)),
            "sample_stats": _numbered(_diagnostics({"lp": lp_CS} | fit.diagnostics)),
            "log_likelihood": _rows(fit, rows_CSN),
            "posterior_predictive": _replicated(fit, seed),
            "observed_data": _observed(fit),
        }
    )


def _as_data(groups: dict[str, xr.Dataset]) -> Any:
    az = arviz()
    return az.InferenceData(**groups) if hasattr(az, "InferenceData") else xr.DataTree.from_dict(groups)


def _numbered(dataset: xr.Dataset) -> xr.Dataset:
    """With chains and draws as coordinates."""
    return dataset.assign_coords({axis: np.arange(dataset.sizes[axis]) for axis in ("chain", "draw")})


def _rows(fit: Fit, rows_CSN: Tensor) -> xr.Dataset:
    values = {"x": (("chain", "draw", "observation"), rows_CSN.numpy())}
    return _numbered(xr.Dataset(values, coords={"observation": _observations(fit)}))


def _replicated(fit: Fit, seed: int) -> xr.Dataset:
    """New tables of N rows, z and b drawn anew, for evenly spaced draws of every chain."""
    N, D = fit.X.shape
    n_chains, n_draws = _draws(fit).pi.shape[:2]
    every = -(-n_draws * n_chains * N * D // PREDICTIVE_CELLS)
    kept = np.arange(n_draws)[::every]
    pi, omega, lam = (value[:, kept].flatten(0, 1).numpy() for value in _draws(fit))
    rng = generator(seed, "method")
    x_SND = np.empty((len(pi), N, D), dtype=np.int64)
    for s in range(len(pi)):
        z_N = (rng.random((N, 1)) > pi[s].cumsum()[:-1]).sum(1)
        x_SND[s] = rng.poisson(lam[s, z_N]) * (rng.random((N, D)) < omega[s, z_N])
    return xr.Dataset(
        {"x": (("chain", "draw", "observation", "feature"), x_SND.reshape(n_chains, len(kept), N, D))},
        coords={
            "chain": np.arange(n_chains),
            "draw": kept,
            "observation": _observations(fit),
            "feature": _unique(fit.names),
        },
    )


def save(fit: Fit, path: Path, *, overwrite: bool) -> Path:
    """Writes a fit as NetCDF: all of it or nothing.

    Raises:
        InputError: the file exists, or its folder does not.
    """
    if path.exists() and not overwrite:
        raise InputError(f"path: {path} exists already; choose another name or pass overwrite=True.")
    if not path.parent.is_dir():
        raise InputError(f"path: the folder {path.parent} does not exist; make it first.")
    groups = {
        "posterior": _posterior(fit),
        "observed_data": _stored(fit),
        "diagnostics": _diagnostics(fit.diagnostics),
        "point": _dataset(fit.parameters, (), fit.names),
        "trace": xr.Dataset(
            {
                "objective": (("chain", "iteration")[2 - fit.trace.ndim :], fit.trace.numpy()),
                "seconds": (("iteration",), fit.trace_seconds.numpy()),
            }
        ),
    }
    if fit.restarts is not None:
        objective, n_iter, converged, trace, left, rounds = fit.restarts
        groups["restarts"] = xr.Dataset(
            {
                "objective": (("restart",), objective.numpy()),
                "n_iter": (("restart",), n_iter.numpy()),
                "converged": (("restart",), converged.to(torch.int8).numpy()),
                "trace": (("iteration", "restart"), trace.numpy()),
                "left": (("restart",), left.to(torch.int8).numpy()),
                "round": (("restart",), rounds.numpy()),
            }
        )
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".nc.part")
    os.close(handle)
    try:
        xr.Dataset(attrs={"zipmix": json.dumps(_metadata(fit))}).to_netcdf(name, mode="w", engine="h5netcdf")
        for group, dataset in groups.items():
            dataset.to_netcdf(name, mode="a", group=group, engine="h5netcdf")
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def load(path: str | Path) -> Fit:
    """Reads a fit that Fit.save has written.

    Args:
        path: NetCDF file.
    Raises:
        InputError: no such file, or not a fit of zipmix.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"path: there is no file {path}.")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as root:
            metadata = json.loads(root.attrs["zipmix"])
        names = ["posterior", "observed_data", "diagnostics", "point", "trace"]
        names += ["restarts"] * metadata["has_restarts"]
        groups = {name: _read(path, name) for name in names}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"path: {path} is not a fit that zipmix has saved ({error}).") from None
    if metadata["format"] > FORMAT:
        raise InputError(f"path: {path} was saved by a newer zipmix ({metadata['version']}); install that version.")
    restarts = None
    if "restarts" in groups:
        table = groups["restarts"]
        objective, n_iter, converged, trace = (_tensor(table, name) for name in RESTARTS)
        # A file may be older than races and moves.
        left, rounds = (
            _tensor(table, name) if name in table else torch.zeros_like(n_iter) for name in ("left", "round")
        )
        restarts = Restarts(objective, n_iter, converged.bool(), trace, left.bool(), rounds)
    return Fit(
        parameters=_parameters(groups["point"]),
        draws=_parameters(groups["posterior"]) if metadata["has_draws"] else None,
        trace=_tensor(groups["trace"], "objective"),
        trace_seconds=_tensor(groups["trace"], "seconds"),
        settings={name: _decode(value) for name, value in metadata["settings"].items()},
        prior=Prior(*(torch.tensor(value, dtype=torch.float64) for value in metadata["prior"])),
        X=_unstored(groups["observed_data"]),
        names=tuple(metadata["names"]),
        row_names=None if metadata["row_names"] is None else tuple(metadata["row_names"]),
        restarts=restarts,
        diagnostics={str(name): _tensor(groups["diagnostics"], str(name)) for name in groups["diagnostics"]},
        **{name: metadata[name] for name in PLAIN},
    )


RESTARTS = ("objective", "n_iter", "converged", "trace")
PLAIN = ("method", "objective", "objective_error", "converged", "reason", "n_iter", "seconds", "seed")


def _metadata(fit: Fit) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "format": FORMAT,
        "version": version("zipmix"),
        "has_draws": fit.draws is not None,
        "has_restarts": fit.restarts is not None,
        "settings": {name: _encode(value) for name, value in fit.settings.items()},
        "prior": [torch.as_tensor(value).tolist() for value in fit.prior],
        "names": list(fit.names),
        "row_names": None if fit.row_names is None else list(fit.row_names),
        **{name: _encode(getattr(fit, name)) for name in PLAIN},
    }


def _encode(value: Any) -> Any:
    if isinstance(value, Parameters):
        return {"Parameters": [torch.as_tensor(field).tolist() for field in value]}
    return value.item() if isinstance(value, np.generic) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return Parameters(*(torch.tensor(field, dtype=torch.float64) for field in value["Parameters"]))
    return value


def _draws(fit: Fit) -> Parameters:
    return fit.draws or fit.parameters.map(lambda value: value[None, None])


def _posterior(fit: Fit) -> xr.Dataset:
    return _dataset(_draws(fit), ("chain", "draw"), fit.names)


def _observed(fit: Fit) -> xr.Dataset:
    coordinates = {"observation": _observations(fit), "feature": _unique(fit.names)}
    return xr.Dataset({"x": (("observation", "feature"), as_dense(fit.X).numpy())}, coords=coordinates)


def _stored(fit: Fit) -> xr.Dataset:
    """The data as they came: a dense table, or the three arrays of a sparse one; of a stream no row."""
    if isinstance(fit.X, Source):
        return xr.Dataset({"x": (("observation", "feature"), np.zeros((0, len(fit.names))))})
    if isinstance(fit.X, Tensor):
        return _observed(fit)
    parts = {"data": fit.X.data, "indices": fit.X.indices, "indptr": fit.X.indptr}
    return xr.Dataset({name: ((name,), part) for name, part in parts.items()}, attrs={"shape": fit.X.shape})


def _unstored(dataset: xr.Dataset) -> Tensor | csr_array:
    if "x" in dataset:
        return _tensor(dataset, "x")
    parts = tuple(dataset[name].to_numpy() for name in ("data", "indices", "indptr"))
    return csr_array(parts, shape=tuple(int(size) for size in dataset.attrs["shape"]))


def _dataset(parameters: Parameters, batch: tuple[str, ...], names: tuple[str, ...]) -> xr.Dataset:
    coordinates: Mapping[str, Any] = {
        "component": np.arange(parameters.pi.shape[-1]),
        "feature": _unique(names),
    }
    values = parameters._asdict().items()
    return xr.Dataset({name: ((*batch, *AXES[name]), value.numpy()) for name, value in values}, coords=coordinates)


def _diagnostics(values: Mapping[str, Tensor]) -> xr.Dataset:
    """Tensors (chain, draw, ...); further axes are named after the value."""
    return xr.Dataset(
        {
            name: (("chain", "draw", *(f"{name}_dim_{axis}" for axis in range(value.ndim - 2))), value.numpy())
            for name, value in values.items()
        }
    )


def _observations(fit: Fit) -> Any:
    return np.arange(fit.X.shape[0]) if fit.row_names is None else _unique(fit.row_names)


def _unique(names: tuple[str, ...]) -> list[str]:
    """Names of columns or rows as coordinates, which have to differ."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} [{number}]" for number, name in enumerate(names)]


def _read(path: Path, group: str) -> xr.Dataset:
    with xr.open_dataset(path, group=group, engine="h5netcdf") as dataset:
        return dataset.load()


def _tensor(dataset: xr.Dataset, name: str) -> Tensor:
    return torch.from_numpy(np.array(dataset[name].to_numpy()))


def _parameters(dataset: xr.Dataset) -> Parameters:
    return Parameters(*(_tensor(dataset, name) for name in Parameters._fields))


class Loo(NamedTuple):
    """Leave-one-row-out expected log predictive density by PSIS (Vehtari, Gelman and Gabry, 2017)."""

    elpd: float
    se: float
    p: float  # effective number of parameters
    n_bad: int  # rows whose Pareto k is over 0.7, for which the estimate is not to be trusted


def ess(values_CS: Tensor) -> float:
    """Bulk effective sample size of one quantity, draws (chain, draw)."""
    dataset = xr.Dataset({"value": (("chain", "draw"), values_CS.numpy())})
    return float(arviz().ess(dataset)["value"])


def least_ess(values: Tensor) -> float:
    """Smallest bulk effective sample size over all entries of draws (chain, draw, ...); NaN below 4 draws a chain."""
    flat_CSJ = values.flatten(2) if values.ndim > 2 else values[..., None]
    return float(arviz().ess(xr.Dataset({"value": (("chain", "draw", "entry"), flat_CSJ.numpy())}))["value"].min())


def loo(fit: Fit) -> Loo:
    """PSIS-LOO of rows, z and b summed out; a row of which nothing is observed adds nothing.

    The draws are taken for draws from the posterior. Those of a variational fit are from q, and then so is the score.

    Raises:
        InputError: a fit without draws.
    """
    if fit.draws is None:
        raise InputError(f"fit must hold draws, got a point of method {fit.method!r}; use 'gibbs', for one.")
    counts = as_counts(fit.X)
    rows = _rows(fit, rows_log_likelihood(counts, fit.draws)).isel(observation=_observed_rows(counts))
    if not rows.sizes["observation"]:
        return Loo(0.0, 0.0, 0.0, 0)
    data = _as_data({"posterior": _numbered(_posterior(fit)), "log_likelihood": rows})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto", category=UserWarning)
        # In the fit of the Pareto shape, exp may overflow to infinity, whose inverse is the 0 that is meant.
        warnings.filterwarnings("ignore", message="overflow encountered in exp", category=RuntimeWarning)
        result = arviz().loo(data, pointwise=True)
    elpd = result.elpd_loo if hasattr(result, "elpd_loo") else result.elpd
    p = result.p_loo if hasattr(result, "p_loo") else result.p
    return Loo(float(elpd), float(result.se), float(p), int((result.pareto_k > 0.7).sum()))


def _observed_rows(counts: Counts) -> np.ndarray:
    """Which rows have a cell that is not missing, (N,) bool."""
    if counts.missing is None:
        return np.ones(counts.n_rows, dtype=bool)
    return np.asarray(counts.missing.sum(1)) < counts.n_features


def save_simulation(simulation: Simulation, path: Path) -> None:
    """Writes what a simulation drew as NetCDF: x, z, b, pi, omega and lam."""
    drawn = _dataset(simulation.parameters, (), default_names(simulation.X.shape[1])).assign(
        x=(("observation", "feature"), simulation.X.numpy()),
        z=(("observation",), simulation.z.numpy()),
        b=(("observation", "feature"), simulation.b.to(torch.int8).numpy()),
    )
    drawn.to_netcdf(path, mode="w", engine="h5netcdf")
