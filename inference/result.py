"""Fit: the one frozen result of every method, and its predictions, files and ArviZ data.

Beliefs are never stored: they are computed from the parameters that the fit holds, so the two always belong together.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from scipy.sparse import csr_array
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.store import CountTable, as_counts, as_dense
from zipmix.counts.table import Table, as_table, default_names
from zipmix.inference.ending import Ending
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
        from zipmix.inference.arviz import to_arviz

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
        from zipmix.inference.saving import write

        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return write(values, self._draws(), Path(path), overwrite=overwrite)

    def _draws(self) -> Parameters:
        """The draws, or the point as one chain of one draw."""
        return self.draws or self.parameters.map(lambda value: value[None, None])

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

    def _counts(self, X: Any) -> CountTable:
        return as_counts(self.X if X is None else self._table(X).X)

    def _average(self, counts: CountTable, table: Any) -> Tensor:
        """sum_k r_ik table_kd, averaged over the points, (N, D)."""
        total_ND, n_points = torch.zeros(counts.n_rows, counts.n_features, dtype=torch.float64), 0
        for points in self.points(counts.n_rows):
            R_SNK = responsibilities(log_joint(counts, logs(points)))[0]
            R_NJ = R_SNK.movedim(0, 1).flatten(1)
            total_ND.addmm_(R_NJ, table(points).flatten(0, 1))
            n_points += len(R_SNK)
        return total_ND / n_points


def load(path: str | Path) -> Fit:
    """Reads a fit that Fit.save has written.

    Args:
        path: NetCDF file.
    Raises:
        InputError: no such file, or not a fit of zipmix.
    """
    from zipmix.inference.saving import read

    return Fit(**read(Path(path)))
