"""Problem: the checked input that every method starts from, and the one way to return a fit of it."""

import time
from typing import Any, NamedTuple

from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.store import CountTable, Source, as_counts
from zipmix.counts.table import Table, as_table
from zipmix.inference.ending import Ending
from zipmix.inference.labels import reorder
from zipmix.inference.registry import ABOUT
from zipmix.inference.restarts import Restarts
from zipmix.inference.result import Fit
from zipmix.models.parameters import Parameters, Prior, check_components, check_prior, exchangeable


class Problem(NamedTuple):
    """Checked data, prior and K."""

    table: Table
    counts: CountTable
    prior: Prior
    n_components: int
    began: float  # seconds, of time.perf_counter

    def fit(
        self,
        method: str,
        *,
        parameters: Parameters,
        objective: float,
        trace: Tensor,
        trace_seconds: Tensor,
        converged: bool,
        ending: Ending,
        reason: str,
        n_iter: int,
        settings: dict[str, Any],
        seed: int,
        draws: Parameters | None = None,
        objective_error: float = 0.0,
        restarts: Restarts | None = None,
        diagnostics: dict[str, Tensor] | None = None,
    ) -> Fit:
        """The fit that a method has found, components heaviest first where the prior tells none apart.

        Draws from a variational q are put into the same order; those of a sampler keep the labels of their chain.

        Args:
            method: name in METHODS; the other arguments are the fields of Fit.
        """
        if exchangeable(self.prior):
            order = parameters.pi.argsort(descending=True, stable=True)
            parameters = reorder(parameters, order)
            if draws is not None and ABOUT[method].kind == "variational":
                draws = reorder(draws, order.expand(*draws.pi.shape))
        return Fit(
            method=method,
            parameters=parameters,
            draws=draws,
            objective=objective,
            trace=trace,
            trace_seconds=trace_seconds,
            converged=converged and not ending.early,
            ending=ending,
            reason=reason,
            n_iter=n_iter,
            seconds=time.perf_counter() - self.began,
            settings=settings,
            seed=seed,
            prior=self.prior,
            X=self.table.X,
            names=self.table.names,
            row_names=self.table.row_names,
            objective_error=objective_error,
            restarts=restarts,
            diagnostics=diagnostics or {},
        )


def pose(X: Any, n_components: int, prior: Prior, *, streams: bool = False) -> Problem:
    """The problem that the user poses, checked.

    Args:
        X: (N, D) counts, NaN where missing.
        n_components: K.
        prior: hyperparameters.
        streams: whether the method asks no more of the rows than statistics, so that X may be a stream.
    Raises:
        InputError: X, n_components or prior cannot be used.
    """
    began = time.perf_counter()
    table = as_table(X)
    if isinstance(table.X, Source) and not streams:
        raise InputError("X is a stream, which method 'em' reads in many passes and 'online' in one; use one of them.")
    K = check_components(n_components)
    return Problem(table, as_counts(table.X), check_prior(prior, K), K, began)
