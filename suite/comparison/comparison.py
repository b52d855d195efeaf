"""Every method of inference on the same data from the same starts, and what can be said of how they agree.

Quantities that label switching cannot spoil are compared as they are; parameters only after components have been
matched to those of the best EM start (labels.py).
"""

import inspect
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipmix.comparison.held_out import HeldOut, score, split
from zipmix.comparison.runs import Runs, run_methods
from zipmix.comparison.verdict import DISAGREEING_RHAT, Verdict, interval, reach_verdict
from zipmix.counts.checks import InputError, check_real, check_whole
from zipmix.counts.store import as_counts
from zipmix.files.data import Data
from zipmix.inference import METHODS, check_settings
from zipmix.inference.diagnostics import ess, rhat
from zipmix.inference.evidence.chib import log_evidence_chib
from zipmix.inference.evidence.estimate import Evidence
from zipmix.inference.evidence.exact import log_evidence_exact
from zipmix.inference.labels import match
from zipmix.inference.loo import Loo, loo
from zipmix.inference.problem import Problem, pose
from zipmix.inference.restarts import Restarts
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.models.cells import p_zero
from zipmix.models.parameters import Parameters, Prior
from zipmix.models.posterior import log_posterior_at

DEFAULT_METHODS = ("em", "pyro_map", "cavi", "pyro_svi", "gibbs")

# Rows of a co-clustering matrix that are kept; more cannot be distinguished in a figure.
COCLUSTERED_ROWS = 300


class Summary(NamedTuple):
    """One row of the table of methods."""

    method: str
    log_posterior: float  # log p(X, Theta | prior) at the method's point, the same scale for all
    gap: float  # to the best log posterior of all methods
    elbo: float | None  # variational methods: the objective
    elbo_error: float | None  # its Monte-Carlo standard error
    agreement: float | None  # adjusted Rand index of the partition with that of the reference
    label_agreement: float | None  # adjusted Rand index of the partition with the known labels of the rows
    seconds: float
    n_iter: int
    converged: bool
    reason: str
    ess_per_second: float | None  # of the log posterior, samplers only
    rhat_raw: float | None  # largest R-hat over parameters, labels as the chains left them
    rhat_matched: float | None  # the same after matching components
    loo: Loo | None  # leave-one-row-out log score


class Zeros(NamedTuple):
    """Share of zeros per column, as observed and as a method predicts it for new rows."""

    observed_D: Tensor
    predicted: dict[str, Tensor]  # method -> (D,)
    intervals: dict[str, Tensor]  # method with draws -> (2, D) of a replicated table


class CoClustering(NamedTuple):
    """P(z_i = z_j | X) among the same rows for every method, ordered by the reference's partition."""

    rows: Tensor  # (J,) numbers of the rows
    component_J: Tensor  # (J,) their components by the reference
    affinity: dict[str, Tensor]  # method -> (J, J)


class Comparison(NamedTuple):
    """All fits on one table, and how they compare."""

    data: Data
    n_components: int
    prior: Prior
    seed: int
    fits: dict[str, Fit]
    failures: dict[str, str]  # method -> the error
    matched: dict[str, Parameters]  # method -> its point, components in the order of the reference
    matched_draws: dict[str, Parameters]
    summaries: tuple[Summary, ...]
    verdict: Verdict
    zeros: Zeros
    coclustering: CoClustering
    scores: dict[str, HeldOut]  # method -> held-out log scores
    memory: dict[str, int]  # method -> bytes
    evidence: dict[str, Evidence]  # what estimates log p(X | K, prior) -> how much
    reference: str  # method whose components give the order
    command: str
    versions: dict[str, str]
    machine: str
    seconds: float

    @property
    def restarts_to_plot(self) -> tuple[str, Restarts] | None:
        """The method whose restarts are shown, the reference or else the first that had several, and these."""
        found = {name: f.restarts for name, f in self.fits.items() if f.restarts and len(f.restarts.objective_R) > 1}
        name = self.reference if self.reference in found else next(iter(found), None)
        return None if name is None else (name, found[name])


def compare(
    X: Any,
    n_components: int,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    prior: Prior = Prior(),
    seed: int = 0,
    n_starts: int = 50,
    n_chains: int = 4,
    settings: dict[str, dict[str, Any]] | None = None,
    held_out: float = 0.1,
    budget: float | None = None,
    progress: bool = False,
) -> Comparison:
    """Runs methods of inference on the same data and compares them.

    Starts are common. Five "small-em" starts per chain are put in the order of the ELBO that a few passes of CAVI reach
    from them: chain c of a sampler begins at start c, every method that runs once begins at start 0, and EM and CAVI
    take them all together with "kmeans++" starts up to n_starts. EM goes from each to its end and no further, so that
    methods are compared and not searches; settings={"em": {"split_merge": 20}} has moves follow.

    Args:
        X: (N, D) counts, NaN where missing, or a Data of load_data.
        n_components: K >= 1.
        methods: names in METHODS.
        prior: hyperparameters, the same for all.
        seed: of everything.
        n_starts: starts of EM and CAVI; at least n_chains where a sampler runs.
        n_chains: chains of the samplers.
        settings: further settings per method, {"gibbs": {"n_draws": 2000}}.
        held_out: share of the rows on which a second fit of every method is scored, in [0, 0.5]; 0: none is made.
        budget: seconds of wall time for each fit, > 0: iterations end there, and the method returns what it has.
            None sets no limit.
        progress: whether to show progress bars.
    Returns:
        The comparison. A method that fails is named in `failures` and stops nothing.
    Raises:
        InputError: data, prior, methods or settings that cannot be used, or no method that runs.
    """
    began = time.perf_counter()
    settings = settings if settings is not None else {}
    check_whole(seed, "seed", at_least=0)
    check_comparison(methods, settings, n_starts, n_chains, held_out, budget)
    data = X if isinstance(X, Data) else None
    problem = pose(data.X if data else X, n_components, prior)
    data = data or Data(problem.table.X_ND, problem.table.names, None, "given as an array", problem.table.row_names)

    def run(posed: Problem, names: Sequence[str], label: str) -> Runs:
        return run_methods(
            posed,
            names,
            settings=settings,
            n_starts=n_starts,
            n_chains=n_chains,
            seed=seed,
            budget=budget,
            label=label,
            progress=progress,
        )

    fits, failures, memory = run(problem, methods, "compare")
    fits = {name: replace(fitted, names=data.names, row_names=data.row_names) for name, fitted in fits.items()}
    if not fits:
        raise InputError(f"no method could be run: {'; '.join(f'{name}: {why}' for name, why in failures.items())}")

    scores: dict[str, HeldOut] = {}
    parts = split(problem.table.X_ND, share=held_out, seed=seed)
    if len(parts.rows_MD):
        trained = run(pose(parts.train_ND, n_components, prior), list(fits), "held out")
        scores = {name: score(fitted, parts) for name, fitted in trained.fits.items()}
        failures |= {f"{name} (held out)": why for name, why in trained.failures.items()}

    arguments = dict(methods=tuple(methods), prior=prior, seed=seed, n_starts=n_starts, n_chains=n_chains)
    arguments |= dict(settings=settings, held_out=held_out, budget=budget)
    command = ", ".join(["X", str(n_components), *(f"{name}={value!r}" for name, value in arguments.items())])
    return assemble(
        data,
        fits,
        failures,
        prior=problem.prior,
        seed=seed,
        command=f"zipmix.compare({command})",
        scores=scores,
        memory=memory,
        seconds=time.perf_counter() - began,
    )


def assemble(
    data: Data,
    fits: dict[str, Fit],
    failures: dict[str, str],
    *,
    prior: Prior,
    seed: int,
    command: str,
    scores: dict[str, HeldOut],
    memory: dict[str, int],
    seconds: float,
) -> Comparison:
    """Compares fits that have been made.

    Args:
        data: the table that all were fitted to.
        fits: by method, one at least.
        failures: methods that did not run, and why.
        prior: as check_prior returns it.
        seed: of the comparison.
        command: that made the fits.
        scores: held-out scores, by method.
        memory: bytes that each method took.
        seconds: that all of it took.
    """
    counts = as_counts(data.X)
    points = {name: log_posterior_at(counts, f.parameters, prior).item() for name, f in fits.items()}
    reference = "em" if "em" in fits else max(points, key=points.__getitem__)
    anchor = fits[reference].parameters
    matched = {name: match(f.parameters, anchor) for name, f in fits.items()}
    matched_draws = {name: match(f.draws, anchor) for name, f in fits.items() if f.draws is not None}
    partition = fits[reference].predict()
    summaries = tuple(
        _summary(f, points[name], max(points.values()), partition, data.labels, matched_draws.get(name))
        for name, f in fits.items()
    )
    mixing = {row.method: row.rhat_matched for row in summaries if row.rhat_matched is not None}
    return Comparison(
        data=data,
        n_components=fits[reference].n_components,
        prior=prior,
        seed=seed,
        fits=fits,
        failures=failures,
        matched=matched,
        matched_draws=matched_draws,
        summaries=summaries,
        verdict=reach_verdict(fits, failures, matched, matched_draws, mixing, prior),
        zeros=_zeros(fits, data.X_ND, seed),
        coclustering=_coclustering(fits, partition),
        scores=scores,
        memory=memory,
        evidence=_evidence(fits, data, prior),
        reference=reference,
        command=command,
        versions=_versions(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        seconds=seconds,
    )


def check_comparison(
    methods: Sequence[str],
    settings: dict[str, dict[str, Any]],
    n_starts: int,
    n_chains: int,
    held_out: float,
    budget: float | None,
) -> None:
    """Refuses arguments of compare that cannot be used.

    Raises:
        InputError: naming the argument.
    """
    if isinstance(methods, str):
        raise InputError(f"methods must be a list of names, got {methods!r}; write methods=[{methods!r}].")
    if not methods:
        raise InputError(f"methods must name at least one of {', '.join(METHODS)}.")
    for name in [*methods, *settings]:
        if name not in METHODS:
            raise InputError(f"methods must be among {', '.join(METHODS)}; got {name!r}.")
    if len(set(methods)) < len(methods):
        raise InputError(f"methods must name each method once, got {', '.join(methods)}.")
    for name, values in settings.items():
        if not isinstance(values, dict):
            raise InputError(f"settings of {name!r} must be a dictionary, got {values!r}.")
        check_settings(name, values)
    check_whole(n_chains, "n_chains", at_least=1)
    check_whole(n_starts, "n_starts", at_least=1)
    sampled = any("n_chains" in inspect.signature(METHODS[name]).parameters for name in methods)
    if sampled and n_starts < n_chains:
        raise InputError(f"n_starts must be at least n_chains = {n_chains}, got {n_starts}.")
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0 <= held_out <= 0.5:
        raise InputError(f"held_out must lie in [0, 0.5], got {held_out!r}.")
    if budget is not None:
        check_real(budget, "budget")


def _summary(
    f: Fit,
    log_posterior: float,
    best: float,
    partition: Tensor,
    labels: tuple[str, ...] | None,
    matched: Parameters | None,
) -> Summary:
    from sklearn.metrics import adjusted_rand_score

    variational, predicted = f.variational, f.predict().numpy()
    raw_rhat = matched_rhat = rate = None
    if (
        f.draws is not None
        and matched is not None
        and not variational
        and len(f.draws.pi) > 1
        and f.draws.pi.shape[1] >= 4
    ):
        lp_CS = f.trace[:, -f.draws.pi.shape[1] :]
        rate = ess(lp_CS) / f.seconds
        raw_rhat, matched_rhat = (max(rhat(value) for value in draws) for draws in (f.draws, matched))
    return Summary(
        method=f.method,
        log_posterior=log_posterior,
        gap=best - log_posterior,
        elbo=f.objective if variational else None,
        elbo_error=f.objective_error if variational else None,
        agreement=float(adjusted_rand_score(partition.numpy(), predicted)),
        label_agreement=None if labels is None else float(adjusted_rand_score(labels, predicted)),
        seconds=f.seconds,
        n_iter=f.n_iter,
        # Chains may agree on the log posterior and not on the parameters.
        converged=f.converged and (matched_rhat is None or matched_rhat <= DISAGREEING_RHAT),
        reason=f.reason,
        ess_per_second=rate,
        rhat_raw=raw_rhat,
        rhat_matched=matched_rhat,
        loo=loo(f) if f.draws is not None else None,
    )


def _evidence(fits: dict[str, Fit], data: Data, prior: Prior) -> dict[str, Evidence]:
    """Estimates of the evidence that the fits give at no further cost, and the exact one where it can be had."""
    found = {
        f"{name}, ELBO": Evidence(f.objective, f.objective_error, "a lower bound")
        for name, f in fits.items()
        if f.variational
    }
    for name, f in fits.items():
        try:
            if f.draws is not None and not f.variational:
                found[f"{name}, Chib"] = log_evidence_chib(f)
        except InputError:
            continue
    try:
        K = next(iter(fits.values())).n_components
        found["exact"] = Evidence(log_evidence_exact(data.X, K, prior), 0.0, "sum over all partitions")
    except InputError:
        pass
    return found


def _coclustering(fits: dict[str, Fit], partition: Tensor) -> CoClustering:
    n_rows = len(partition)
    every = torch.linspace(0, n_rows - 1, min(n_rows, COCLUSTERED_ROWS)).round().to(torch.int64)
    rows = partition.argsort(stable=True)[every]
    return CoClustering(rows, partition[rows], {name: f.affinity(f.X[rows]) for name, f in fits.items()})


def _zeros(fits: dict[str, Fit], X_ND: Tensor, seed: int) -> Zeros:
    observed_D = (~X_ND.isnan()).sum(0)
    share_D = (X_ND == 0).double().sum(0) / observed_D.clamp_min(1)
    predicted, intervals = {}, {}
    rng = generator(seed, "replicates")
    for name, f in fits.items():
        if f.draws is None:
            predicted[name] = _zero_share(f.parameters)
            continue
        drawn_CSD = _zero_share(f.draws)
        predicted[name] = drawn_CSD.mean((0, 1))
        replicated = rng.binomial(observed_D.numpy(), drawn_CSD.clamp(0, 1).numpy()) / observed_D.clamp_min(1).numpy()
        intervals[name] = interval(torch.from_numpy(replicated))
    return Zeros(share_D, predicted, intervals)


def _zero_share(parameters: Parameters) -> Tensor:
    """p(x_d = 0) of a new row, (..., D)."""
    return (parameters.pi[..., None] * p_zero(parameters)).sum(-2)


def _versions() -> dict[str, str]:
    packages = ("zipmix", "torch", "pyro-ppl", "arviz", "numpy", "scipy")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}
