"""The fields of a fit as groups of a NetCDF file, and back."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.sparse import csr_array
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.store import Source, as_dense
from zipmix.inference.datasets import as_dataset, as_diagnostics, as_parameters, as_tensor, observations, unique
from zipmix.inference.ending import Ending
from zipmix.inference.netcdf import read_groups, read_record, write_groups
from zipmix.inference.restarts import Restarts
from zipmix.models.parameters import Parameters, Prior

FORMAT = 2
PLAIN = ("method", "objective", "objective_error", "converged", "ending", "reason", "n_iter", "seconds", "seed")


def write(fields: dict[str, Any], posterior: Parameters, path: Path, *, overwrite: bool) -> Path:
    """Writes the fields of a fit: all of them or nothing.

    Args:
        fields: of a Fit, by name.
        posterior: its draws, or the point as one chain of one draw, so that ArviZ can read every file.
        path: file to write.
        overwrite: whether an existing file may be replaced.
    Raises:
        InputError: the file exists, or its folder does not.
    """
    names, restarts, trace = fields["names"], fields["restarts"], fields["trace"]
    record = {
        "format": FORMAT,
        "version": version("zipmix"),
        "has_draws": fields["draws"] is not None,
        "has_restarts": restarts is not None,
        "settings": {name: _encoded(value) for name, value in fields["settings"].items()},
        "prior": [torch.as_tensor(value).tolist() for value in fields["prior"]],
        "names": list(names),
        "row_names": None if fields["row_names"] is None else list(fields["row_names"]),
        **{name: _encoded(fields[name]) for name in PLAIN},
    }
    objective = (("chain", "iteration")[2 - trace.ndim :], trace.numpy())
    groups = {
        "posterior": as_dataset(posterior, ("chain", "draw"), names),
        "observed_data": _stored(fields["X"], names, fields["row_names"]),
        "diagnostics": as_diagnostics(fields["diagnostics"]),
        "point": as_dataset(fields["parameters"], (), names),
        "trace": xr.Dataset({"objective": objective, "seconds": (("iteration",), fields["trace_seconds"].numpy())}),
    }
    if restarts is not None:
        groups["restarts"] = _stored_restarts(restarts)
    return write_groups(path, record, groups, overwrite=overwrite)


def read(path: Path) -> dict[str, Any]:
    """The fields of the fit in a file.

    Raises:
        InputError: no such file, or not a fit of zipmix.
    """
    record = read_record(path)
    if record["format"] > FORMAT:
        raise InputError(f"path: {path} was saved by a newer zipmix ({record['version']}); install that version.")
    names = ["posterior", "observed_data", "diagnostics", "point", "trace"]
    groups = read_groups(path, names + ["restarts"] * record["has_restarts"])
    # Files of format 1 have no ending.
    ending = Ending(record["ending"]) if "ending" in record else _inferred(record["reason"], record["converged"])
    return {name: record[name] for name in PLAIN if name != "ending"} | dict(
        converged=record["converged"] and not ending.early,
        ending=ending,
        parameters=as_parameters(groups["point"]),
        draws=as_parameters(groups["posterior"]) if record["has_draws"] else None,
        trace=as_tensor(groups["trace"], "objective"),
        trace_seconds=as_tensor(groups["trace"], "seconds"),
        settings={name: _decoded(value) for name, value in record["settings"].items()},
        prior=Prior(*(torch.tensor(value, dtype=torch.float64) for value in record["prior"])),
        X=_unstored(groups["observed_data"]),
        names=tuple(record["names"]),
        row_names=None if record["row_names"] is None else tuple(record["row_names"]),
        restarts=_unstored_restarts(groups["restarts"]) if "restarts" in groups else None,
        diagnostics={str(name): as_tensor(groups["diagnostics"], str(name)) for name in groups["diagnostics"]},
    )


def _inferred(reason: str, converged: bool) -> Ending:
    """Why a method stopped, from its sentence in a file of format 1."""
    if "budget of time" in reason:
        return Ending.BUDGET
    if reason.startswith("interrupted by the user"):
        return Ending.INTERRUPTED
    if reason.startswith(("took all ", "read ", "summed over all ")):
        return Ending.COMPLETED
    return Ending.CONVERGED if converged else Ending.MAX_ITER


def _encoded(value: Any) -> Any:
    if isinstance(value, Parameters):
        return {"Parameters": [torch.as_tensor(field).tolist() for field in value]}
    return value.item() if isinstance(value, np.generic) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return Parameters(*(torch.tensor(field, dtype=torch.float64) for field in value["Parameters"]))
    return value


def _stored(X: Any, names: tuple[str, ...], row_names: tuple[str, ...] | None) -> xr.Dataset:
    """The data as they came: a dense table, or the three arrays of a sparse one; of a stream no row."""
    axes = ("observation", "feature")
    if isinstance(X, Source):
        return xr.Dataset({"x": (axes, np.zeros((0, len(names))))})
    if isinstance(X, Tensor):
        coordinates = {"observation": observations(len(X), row_names), "feature": unique(names)}
        return xr.Dataset({"x": (axes, as_dense(X).numpy())}, coords=coordinates)
    parts = {"data": X.data, "indices": X.indices, "indptr": X.indptr}
    return xr.Dataset({name: ((name,), part) for name, part in parts.items()}, attrs={"shape": X.shape})


def _unstored(dataset: xr.Dataset) -> Tensor | csr_array:
    if "x" in dataset:
        return as_tensor(dataset, "x")
    parts = tuple(dataset[name].to_numpy() for name in ("data", "indices", "indptr"))
    return csr_array(parts, shape=tuple(int(size) for size in dataset.attrs["shape"]))


def _stored_restarts(restarts: Restarts) -> xr.Dataset:
    return xr.Dataset(
        {
            "objective": (("restart",), restarts.objective_R.numpy()),
            "n_iter": (("restart",), restarts.n_iter_R.numpy()),
            "converged": (("restart",), restarts.converged_R.to(torch.int8).numpy()),
            "trace": (("iteration", "restart"), restarts.trace_TR.numpy()),
            "left": (("restart",), restarts.left_R.to(torch.int8).numpy()),
            "round": (("restart",), restarts.round_R.numpy()),
        }
    )


def _unstored_restarts(dataset: xr.Dataset) -> Restarts:
    """The restarts of a file; one that is older than races and moves has no such columns."""
    objective, n_iter, converged, trace = (
        as_tensor(dataset, name) for name in ("objective", "n_iter", "converged", "trace")
    )
    left, rounds = (
        as_tensor(dataset, name) if name in dataset else torch.zeros_like(n_iter) for name in ("left", "round")
    )
    return Restarts(objective, n_iter, converged.bool(), trace, left.bool(), rounds)
