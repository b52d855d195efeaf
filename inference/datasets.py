"""Draws, points and data as xarray datasets: the names of groups' dimensions stand here once."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from zipmix.counts.table import default_names
from zipmix.models.parameters import Parameters
from zipmix.models.zip_mixture import Simulation

AXES = {
    "pi": ("component",),
    "omega": ("component", "feature"),
    "lam": ("component", "feature"),
}


def as_dataset(parameters: Parameters, batch: tuple[str, ...], names: tuple[str, ...]) -> xr.Dataset:
    """pi, omega and lam with their axes named; batch: the names of the axes in front."""
    coordinates: Mapping[str, Any] = {
        "component": np.arange(parameters.pi.shape[-1]),
        "feature": unique(names),
    }
    values = parameters._asdict().items()
    return xr.Dataset({name: ((*batch, *AXES[name]), value.numpy()) for name, value in values}, coords=coordinates)


def as_diagnostics(values: Mapping[str, Tensor]) -> xr.Dataset:
    """Tensors (chain, draw, ...); further axes are named after the value."""
    return xr.Dataset(
        {
            name: (("chain", "draw", *(f"{name}_dim_{axis}" for axis in range(value.ndim - 2))), value.numpy())
            for name, value in values.items()
        }
    )


def numbered(dataset: xr.Dataset) -> xr.Dataset:
    """With chains and draws as coordinates."""
    return dataset.assign_coords({axis: np.arange(dataset.sizes[axis]) for axis in ("chain", "draw")})


def unique(names: tuple[str, ...]) -> list[str]:
    """Names of columns or rows as coordinates, which have to differ."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} [{number}]" for number, name in enumerate(names)]


def as_tensor(dataset: xr.Dataset, name: str) -> Tensor:
    """A variable of a dataset."""
    return torch.from_numpy(np.array(dataset[name].to_numpy()))


def as_parameters(dataset: xr.Dataset) -> Parameters:
    """The parameters that as_dataset has written."""
    return Parameters(*(as_tensor(dataset, name) for name in Parameters._fields))


def observations(n_rows: int, row_names: tuple[str, ...] | None) -> Any:
    """The coordinate of the rows: their names, or 0 to N - 1."""
    return np.arange(n_rows) if row_names is None else unique(row_names)


def save_simulation(simulation: Simulation, path: Path) -> None:
    """Writes a simulation as NetCDF: x, z, b, pi, omega and lam."""
    drawn = as_dataset(simulation.parameters, (), default_names(simulation.X.shape[1])).assign(
        x=(("observation", "feature"), simulation.X.numpy()),
        z=(("observation",), simulation.z.numpy()),
        b=(("observation", "feature"), simulation.b.to(torch.int8).numpy()),
    )
    drawn.to_netcdf(path, mode="w", engine="h5netcdf")
