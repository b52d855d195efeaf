"""Fit: the one frozen result of every method, and its predictions, files and ArviZ data.

Beliefs are never stored: they are computed from the parameters that the fit holds, so the two always belong together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.sparse import csr_array
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.store import Counts, Source, as_counts, as_dense
from zipmix.counts.table import Table, as_table, default_names
from zipmix.inference.arviz import to_arviz
from zipmix.inference.datasets import as_dataset, as_diagnostics, as_parameters, as_tensor, observations, unique
from zipmix.inference.ending import Ending
from zipmix.inference.netcdf import read_groups, read_record, write_groups
from zipmix.inference.registry import ABOUT
from zipmix.inference.restarts import Restarts
from zipmix.models.cells import cell_mean
from zipmix.models.kernel import log_joint, log_likelihood, logs, responsibilities, rho
from zipmix.models.parameters import Parameters, Prior
from zipmix.models.posterior import blocks

# Draws over which impute, structural_zeros and affinity average.
PREDICTIVE_DRAWS = 200


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """What a method of inference found, with everything needed to repeat it.

    Components come heaviest first, where all have the same prior: component 0 has the largest pi. Draws of a sampler
    keep the labels that their chain gave them; `zipmix.labels` matches those of two fits and relabels draws.

    What takes X, (N, D) counts with NaN where missing, takes the data of the fit where X is None, and raises InputError
    where X cannot be used or has other columns than the fit.
    """

    method: str  # name in METHODS
    parameters: Parameters  # the point: MAP, mean of q, or the draw of highest log posterior
    draws: Parameters | None  # (chain, draw, ...) draws from the posterior or from q
    objective: float  # log p(X, Theta | prior) at the point; the ELBO where variational
    trace: Tensor  # (T,) objective per iteration; (chain, T) log posterior per sweep for samplers
    trace_seconds: Tensor  # (T,) wall time of each entry of the trace
    converged: bool  # False too where the search was cut short, by the user or by its budget of time
    ending: Ending  # why the method stopped: "converged", "completed", "max_iter", "interrupted" or "budget"
    reason: str  # the same as a sentence, with its numbers
    n_iter: int
    seconds: float  # wall time of the inference
    settings: dict[str, Any]
    seed: int
    prior: Prior
    X: Tensor | csr_array  # (N, D) the data as they came, dense or sparse, NaN where missing
    names: tuple[str, ...]  # D names of columns
    row_names: tuple[str, ...] | None = None  # N names of rows, where the data have them
    objective_error: float = 0.0  # Monte-Carlo standard error of the objective
    restarts: Restarts | None = None
    diagnostics: dict[str, Tensor] = field(default_factory=dict)  # (chain, draw, ...) reports of a sampler

    def __repr__(self) -> str:
        n_rows, n_features = self.X.shape
        state = "converged" if self.converged else "not converged"
        return (
            f"<Fit by {self.method!r} of {n_rows} x {n_features} counts, {self.n_components} components: "
            f"objective {self.objective:.6g}, {state} after {self.n_iter} iterations, {self.seconds:.2f} s>"
        )

    @property
    def n_components(self) -> int:
        """K."""
        return self.parameters.pi.shape[-1]

    @property
    def variational(self) -> bool:
        """Whether the draws are from a variational q and the objective is an ELBO."""
        return self.draws is not None and ABOUT[self.method].kind == "variational"

    def responsibilities(self, X: Any = None) -> Tensor:
        """P(z_i = k | x_i, parameters), (N, K)."""
        return responsibilities(log_joint(self._counts(X), logs(self.parameters)))[0]

    def predict(self, X: Any = None) -> Tensor:
        """The most probable component of each row, (N,)."""
        return self.responsibilities(X).argmax(-1)

    def score_samples(self, X: Any = None) -> Tensor:
        """log p(x_i | parameters) of each row, missing cells left out, (N,)."""
        return log_likelihood(self._counts(X), self.parameters)

    def affinity(self, X: Any = None) -> Tensor:
        """P(z_i = z_j | X), (N, N): at the parameters, or averaged over (at most 200 evenly spaced) draws.

        The diagonal is 1.
        """
        counts = self._counts(X)
        n_rows = counts.n_rows
        total_NN = torch.zeros(n_rows, n_rows, dtype=torch.float64)
        n_points = 0
        for points in self.points(n_rows):
            R_SNK = responsibilities(log_joint(counts, logs(points)))[0]
            R_NJ = R_SNK.movedim(0, -1).flatten(1)
            total_NN.addmm_(R_NJ, R_NJ.T)
            n_points += len(R_SNK)
        return total_NN.div_(n_points).fill_diagonal_(1.0)

    def impute(self, X: Any = None) -> Tensor:
        """X with every missing cell filled by E[x | observed cells of its row], (N, D) (question 5).

        The expectation is sum_k r_ik omega_kd lambda_kd with r from the observed cells alone: at the parameters, or
        averaged over (at most 200 evenly spaced) draws.
        """
        counts, X_ND = self._counts(X), as_dense(self.X if X is None else self._table(X).X)
        expected_ND = self._average(counts, cell_mean)
        return torch.where(X_ND.isnan(), expected_ND, X_ND)

    def structural_zeros(self, X: Any = None) -> Tensor:
        """P(b_id = 0 | x_i), (N, D): 0 where x > 0, the share of structural zeros where x = 0 or missing.

        At the parameters, or averaged over (at most 200 evenly spaced) draws.
        """
        counts, X_ND = self._counts(X), as_dense(self.X if X is None else self._table(X).X)
        zero_ND = self._average(counts, lambda p: 1 - rho(logs(p)))
        P_ND, missing_ND = torch.where(X_ND == 0, zero_ND, 0.0), X_ND.isnan()
        if bool(missing_ND.any()):
            P_ND = torch.where(missing_ND, self._average(counts, lambda p: 1 - p.omega), P_ND)
        return P_ND

    def points(self, n_rows: int) -> Iterator[Parameters]:
        """Points to average a prediction over, in blocks (S, ...): the parameters, or evenly spaced draws.

        Args:
            n_rows: of the table that is predicted; blocks are cut so that their tables fit in memory.
        """
        if self.draws is None:
            yield self.parameters.map(lambda value: value.unsqueeze(0))
            return
        yield from blocks(self.draws.flat(2).thin(PREDICTIVE_DRAWS), n_rows)

    def to_arviz(self, *, seed: int = 0) -> Any:
        """The fit for ArviZ: groups posterior, sample_stats, log_likelihood, posterior_predictive and observed_data.

        A point method gives one chain of one draw. Dimensions: chain, draw, component, feature, observation. The log
        likelihood is that of whole rows, so that az.loo and az.compare leave out rows; replicated tables are drawn
        for evenly spaced draws, few enough to hold about four million cells.

        Args:
            seed: of the replicated tables.
        Raises:
            InputError: the data of the fit are a stream.
        """
        return to_arviz(
            self._draws(),
            X=self.X,
            prior=self.prior,
            names=self.names,
            row_names=self.row_names,
            diagnostics=self.diagnostics,
            seed=seed,
        )

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the fit as NetCDF, which `zipmix.load` and ArviZ read.

        Args:
            path: file to write, .nc.
            overwrite: whether an existing file may be replaced.
        Raises:
            InputError: the file exists, or its folder does not.
        """
        record = {
            "format": FORMAT,
            "version": version("zipmix"),
            "has_draws": self.draws is not None,
            "has_restarts": self.restarts is not None,
            "settings": {name: _encoded(value) for name, value in self.settings.items()},
            "prior": [torch.as_tensor(value).tolist() for value in self.prior],
            "names": list(self.names),
            "row_names": None if self.row_names is None else list(self.row_names),
            **{name: _encoded(getattr(self, name)) for name in PLAIN},
        }
        trace = (("chain", "iteration")[2 - self.trace.ndim :], self.trace.numpy())
        groups = {
            "posterior": as_dataset(self._draws(), ("chain", "draw"), self.names),
            "observed_data": self._stored(),
            "diagnostics": as_diagnostics(self.diagnostics),
            "point": as_dataset(self.parameters, (), self.names),
            "trace": xr.Dataset({"objective": trace, "seconds": (("iteration",), self.trace_seconds.numpy())}),
        }
        if self.restarts is not None:
            groups["restarts"] = self.restarts.as_dataset()
        return write_groups(Path(path), record, groups, overwrite=overwrite)

    def _draws(self) -> Parameters:
        """The draws, or the point as one chain of one draw."""
        return self.draws or self.parameters.map(lambda value: value[None, None])

    def _stored(self) -> xr.Dataset:
        """The data as they came: a dense table, or the three arrays of a sparse one; of a stream no row."""
        axes = ("observation", "feature")
        if isinstance(self.X, Source):
            return xr.Dataset({"x": (axes, np.zeros((0, len(self.names))))})
        if isinstance(self.X, Tensor):
            coordinates = {"observation": observations(len(self.X), self.row_names), "feature": unique(self.names)}
            return xr.Dataset({"x": (axes, as_dense(self.X).numpy())}, coords=coordinates)
        parts = {"data": self.X.data, "indices": self.X.indices, "indptr": self.X.indptr}
        return xr.Dataset({name: ((name,), part) for name, part in parts.items()}, attrs={"shape": self.X.shape})

    def _table(self, X: Any) -> Table:
        """New rows, checked: they must have the columns of the fit, in the same order where both have names.

        Raises:
            InputError: X cannot be used, or has other columns.
        """
        table = as_table(X, n_features=self.parameters.omega.shape[-1])
        if default_names(len(self.names)) not in (table.names, self.names):
            for d, (name, expected) in enumerate(zip(table.names, self.names, strict=True)):
                if name != expected:
                    raise InputError(
                        f"X must have the columns of the fit in the same order; got {name!r} in the place of "
                        f"{expected!r} (column {d}). Reorder the columns, or pass the bare numbers."
                    )
        return table

    def _counts(self, X: Any) -> Counts:
        return as_counts(self.X if X is None else self._table(X).X)

    def _average(self, counts: Counts, table: Any) -> Tensor:
        """sum_k r_ik table_kd, averaged over the points, (N, D)."""
        total_ND, n_points = torch.zeros(counts.n_rows, counts.n_features, dtype=torch.float64), 0
        for points in self.points(counts.n_rows):
            R_SNK = responsibilities(log_joint(counts, logs(points)))[0]
            R_NJ = R_SNK.movedim(0, 1).flatten(1)
            total_ND.addmm_(R_NJ, table(points).flatten(0, 1))
            n_points += len(R_SNK)
        return total_ND / n_points


FORMAT = 2
PLAIN = ("method", "objective", "objective_error", "converged", "ending", "reason", "n_iter", "seconds", "seed")


def load(path: str | Path) -> Fit:
    """Reads a fit that Fit.save has written.

    Args:
        path: NetCDF file.
    Raises:
        InputError: no such file, or not a fit of zipmix.
    """
    path = Path(path)
    record = read_record(path)
    if record["format"] > FORMAT:
        raise InputError(f"path: {path} was saved by a newer zipmix ({record['version']}); install that version.")
    names = ["posterior", "observed_data", "diagnostics", "point", "trace"]
    groups = read_groups(path, names + ["restarts"] * record["has_restarts"])
    # Files of format 1 have no ending.
    ending = record.setdefault("ending", Ending.CONVERGED if record["converged"] else Ending.COMPLETED)
    plain = {name: record[name] for name in PLAIN} | {"ending": Ending(ending)}
    return Fit(
        parameters=as_parameters(groups["point"]),
        draws=as_parameters(groups["posterior"]) if record["has_draws"] else None,
        trace=as_tensor(groups["trace"], "objective"),
        trace_seconds=as_tensor(groups["trace"], "seconds"),
        settings={name: _decoded(value) for name, value in record["settings"].items()},
        prior=Prior(*(torch.tensor(value, dtype=torch.float64) for value in record["prior"])),
        X=_unstored(groups["observed_data"]),
        names=tuple(record["names"]),
        row_names=None if record["row_names"] is None else tuple(record["row_names"]),
        restarts=Restarts.from_dataset(groups["restarts"]) if "restarts" in groups else None,
        diagnostics={str(name): as_tensor(groups["diagnostics"], str(name)) for name in groups["diagnostics"]},
        **plain,
    )


def _encoded(value: Any) -> Any:
    if isinstance(value, Parameters):
        return {"Parameters": [torch.as_tensor(field).tolist() for field in value]}
    return value.item() if isinstance(value, np.generic) else value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return Parameters(*(torch.tensor(field, dtype=torch.float64) for field in value["Parameters"]))
    return value


def _unstored(dataset: xr.Dataset) -> Tensor | csr_array:
    if "x" in dataset:
        return as_tensor(dataset, "x")
    parts = tuple(dataset[name].to_numpy() for name in ("data", "indices", "indptr"))
    return csr_array(parts, shape=tuple(int(size) for size in dataset.attrs["shape"]))
