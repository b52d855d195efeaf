"""Every method of inference on the same data from the same starts, and what can be said of how they agree.

Quantities that label switching cannot spoil are compared as they are; parameters only after components have been
matched to those of the best EM start (labels.py).
"""

import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.data import Data
from zipmix.inference import METHODS, check_settings, fit
from zipmix.inference.arviz_io import Loo, ess, loo, rhat
from zipmix.inference.loop import progress_bar
from zipmix.inference.result import Fit, pose
from zipmix.inference.start import starts
from zipmix.labels import match
from zipmix.models.counts import Counts
from zipmix.models.kernel import log_zero, logs
from zipmix.models.parameters import InputError, Parameters, Prior
from zipmix.models.posterior import log_posterior_at
from zipmix.models.zip_mixture import log_density

# Central interval of draws that is compared and drawn.
LEVEL = 0.95


class Summary(NamedTuple):
    """One row of the table of methods."""

    method: str
    log_posterior: float  # log p(X, Theta | prior) at the method's point, the same scale for all
    gap: float  # to the best log posterior of all methods
    elbo: float | None  # variational methods: the objective
    elbo_error: float | None  # its Monte-Carlo standard error
    agreement: float | None  # adjusted Rand index of the partition with that of the reference
    seconds: float
    n_iter: int
    converged: bool
    reason: str
    ess_per_second: float | None  # of the log posterior, samplers only
    rhat_raw: float | None  # largest R-hat over parameters, labels as the chains left them
    rhat_matched: float | None  # the same after matching components
    loo: Loo | None  # leave-one-row-out log score


class Verdict(NamedTuple):
    """What the comparison found, in words and digits."""

    density_digits: float | None  # hand-derived against autodiff log posterior at the MAP
    gradient: float | None  # largest gradient of the Pyro program's log posterior at EM's end, per row of data
    map_digits: float | None  # EM's against Pyro's MAP objective from the same start
    covered: dict[str, tuple[int, int]]  # method with draws -> parameters whose interval holds the MAP, of how many
    overlapping: tuple[int, int] | None  # parameters where all intervals overlap, of how many
    sentences: tuple[str, ...]


class Zeros(NamedTuple):
    """Share of zeros per column, as observed and as a method predicts it for new rows."""

    observed_D: Tensor
    predicted: dict[str, Tensor]  # method -> (D,)
    intervals: dict[str, Tensor]  # method with draws -> (2, D) of a replicated table


class Comparison(NamedTuple):
    """All fits on one table, and how they compare."""

    data: Data
    n_components: int
    prior: Prior
    seed: int
    fits: dict[str, Fit]
    failures: dict[str, str]  # method -> what went wrong
    matched: dict[str, Parameters]  # method -> its point, components in the order of the reference
    matched_draws: dict[str, Parameters]
    summaries: tuple[Summary, ...]
    verdict: Verdict
    zeros: Zeros
    reference: str  # method whose components give the order
    command: str
    versions: dict[str, str]
    seconds: float


def compare(
    X: Any,
    n_components: int,
    *,
    methods: Sequence[str] = ("em", "pyro_map", "pyro_svi", "gibbs"),
    prior: Prior = Prior(),
    seed: int = 0,
    n_starts: int = 50,
    n_chains: int = 4,
    settings: dict[str, dict[str, Any]] | None = None,
    progress: bool = False,
) -> Comparison:
    """Runs methods of inference on the same data and compares them.

    The first n_chains starts ("small-em") are common: chain c of a sampler begins at start c, every method that runs
    once begins at start 0, and EM takes them all together with "kmeans++" starts up to n_starts.

    Args:
        X: (N, D) counts, NaN where missing, or a Data of load_data.
        n_components: K >= 1.
        methods: names in METHODS.
        prior: hyperparameters, the same for all.
        seed: of everything.
        n_starts: starts of EM, at least n_chains.
        n_chains: chains of the samplers.
        settings: further settings per method, {"gibbs": {"n_draws": 2000}}.
        progress: whether to show progress bars.
    Returns:
        The comparison. A method that fails is named in `failures` and stops nothing.
    Raises:
        InputError: data, prior, methods or settings that cannot be used.
        TypeError: a setting that a method does not have.
    """
    began = time.perf_counter()
    settings = settings or {}
    for name in [*methods, *settings]:
        if name not in METHODS:
            raise InputError(f"methods must be among {', '.join(METHODS)}; got {name!r}.")
    if not methods:
        raise InputError(f"methods must name at least one of {', '.join(METHODS)}.")
    for name, values in settings.items():
        check_settings(name, values)
    data = X if isinstance(X, Data) else None
    problem = pose(X.X if data else X, n_components, prior)
    data = data or Data(problem.table.X_ND, problem.table.names, None, "given as an array")
    if n_starts < n_chains:
        raise InputError(f"n_starts must be at least n_chains = {n_chains}, got {n_starts}.")

    def begin(init: Any, n: int) -> Parameters:
        return starts(
            problem.counts, problem.prior, n_components=n_components, n_starts=n, init=init, start=None, seed=seed
        )

    common = begin("small-em", n_chains)
    many = common
    if n_starts > n_chains:
        more = begin("kmeans++", n_starts - n_chains)
        many = Parameters(*(torch.cat(pair) for pair in zip(common, more, strict=True)))
    first = Parameters(*(value[:1] for value in common))
    start = {"em": {"start": many}, "gibbs": {"start": common, "n_chains": n_chains}}

    fits, failures = {}, {}
    with progress_bar(len(methods), "compare", enabled=progress) as advance:
        for name in methods:
            own = start.get(name, {"start": first}) | settings.get(name, {})
            table = problem.table.X_ND
            try:
                fitted = fit(table, n_components, name, prior=prior, seed=seed, **own)
                fits[name] = _named(fitted, data.names)
            except InputError as error:
                failures[name] = str(error)
            advance()
    if not fits:
        raise InputError(f"no method could be run: {'; '.join(f'{name}: {why}' for name, why in failures.items())}")
    points = {name: log_posterior_at(problem.counts, f.parameters, problem.prior).item() for name, f in fits.items()}
    reference = "em" if "em" in fits else max(points, key=points.__getitem__)
    anchor = fits[reference].parameters
    matched = {name: match(f.parameters, anchor) for name, f in fits.items()}
    matched_draws = {name: match(f.draws, anchor) for name, f in fits.items() if f.draws is not None}
    summaries = tuple(
        _summary(f, points[name], max(points.values()), fits[reference], matched_draws.get(name))
        for name, f in fits.items()
    )
    return Comparison(
        data=data,
        n_components=n_components,
        prior=problem.prior,
        seed=seed,
        fits=fits,
        failures=failures,
        matched=matched,
        matched_draws=matched_draws,
        summaries=summaries,
        verdict=_verdict(fits, failures, matched, matched_draws, summaries, problem.prior),
        zeros=_zeros(fits, problem.counts, seed),
        reference=reference,
        command=shlex.join(["zipmix", *sys.argv[1:]]) if sys.argv[0].endswith("zipmix") else "zipmix.compare(...)",
        versions=_versions(),
        seconds=time.perf_counter() - began,
    )


def interval(draws: Tensor) -> Tensor:
    """Central 95 % interval over chains and draws, (2, ...)."""
    edges = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=draws.dtype)
    return torch.from_numpy(np.quantile(draws.flatten(0, 1).numpy(), edges.numpy(), axis=0))


def _named(fitted: Fit, names: tuple[str, ...]) -> Fit:
    from dataclasses import replace

    return replace(fitted, names=names)


def _summary(f: Fit, log_posterior: float, best: float, reference: Fit, matched: Parameters | None) -> Summary:
    from sklearn.metrics import adjusted_rand_score

    variational = f.method in VARIATIONAL
    sampler = f.draws is not None and not variational
    raw_rhat = matched_rhat = rate = None
    if sampler and f.draws is not None and matched is not None and min(f.draws.pi.shape[:2]) > 1:
        lp_CS = f.trace[:, -f.draws.pi.shape[1] :]
        rate = ess(lp_CS) / f.seconds
        raw_rhat, matched_rhat = (max(rhat(value) for value in draws) for draws in (f.draws, matched))
    return Summary(
        method=f.method,
        log_posterior=log_posterior,
        gap=best - log_posterior,
        elbo=f.objective if variational else None,
        elbo_error=f.objective_error if variational else None,
        agreement=float(adjusted_rand_score(reference.predict().numpy(), f.predict().numpy())),
        seconds=f.seconds,
        n_iter=f.n_iter,
        converged=f.converged,
        reason=f.reason,
        ess_per_second=rate,
        rhat_raw=raw_rhat,
        rhat_matched=matched_rhat,
        loo=loo(f) if f.draws is not None else None,
    )


VARIATIONAL = ("pyro_svi", "cavi")


def _verdict(
    fits: dict[str, Fit],
    failures: dict[str, str],
    matched: dict[str, Parameters],
    matched_draws: dict[str, Parameters],
    summaries: tuple[Summary, ...],
    prior: Prior,
) -> Verdict:
    density = gradient = map_digits = None
    sentences = []
    if "em" in fits:
        em = fits["em"]
        ours = em.objective
        value, gradient = _autodiff(em, prior)
        density = agreeing_digits(ours, value)
        sentences.append(
            f"Hand derivation and autodiff agree on log p(X, Theta) at EM's optimum to {density:.1f} digits, and the "
            f"gradient of the Pyro program there is at most {gradient:.1e} per row: "
            + ("EM stopped at a stationary point." if gradient < STATIONARY else "EM did not stop at an optimum.")
        )
        if "pyro_map" in fits and em.restarts is not None:
            same_start, theirs = em.restarts.objective_R[0].item(), fits["pyro_map"].objective
            map_digits = agreeing_digits(same_start, theirs)
            gap = same_start - theirs
            if map_digits >= SAME_DIGITS:
                ending = "they found the same optimum."
            else:
                ahead = "EM" if gap > 0 else "autodiff MAP"
                ending = f"they ended at different optima, {ahead} at the higher one: the posterior has several modes."
            sentences.append(
                f"From the same start, EM and autodiff MAP end {abs(gap):.1e} nats apart ({map_digits:.1f} digits): "
                + ending
            )
    covered = {name: _covered(matched["em"], draws) for name, draws in matched_draws.items() if "em" in fits}
    for name, (inside, of) in covered.items():
        note = (
            " (mean-field intervals are too narrow by construction where parameters are correlated)"
            if name in VARIATIONAL and inside < LEVEL * of
            else ""
        )
        sentences.append(
            f"The 95 % intervals of {name} cover the MAP in {inside} of {of} parameters of the components{note}."
        )
    overlapping = None
    if len(matched_draws) > 1:
        overlapping = _overlap(list(matched_draws.values()))
        sentences.append(
            f"The intervals of {' and '.join(matched_draws)} overlap in {overlapping[0]} of {overlapping[1]} parameters."
        )
    for row in summaries:
        if row.rhat_matched is not None and row.rhat_matched > DISAGREEING_RHAT:
            sentences.append(
                f"The chains of {row.method} have not mixed (R-hat {row.rhat_matched:.2f} after matching components): "
                "they sit in different modes of the posterior or need more sweeps, so its intervals mix those modes."
            )
        if not row.converged and row.rhat_matched is None:
            sentences.append(f"{row.method} did not converge: {row.reason}.")
    sentences += [f"{name} did not run: {why}" for name, why in failures.items()]
    return Verdict(density, gradient, map_digits, covered, overlapping, tuple(sentences))


# A gradient per row of data below this is zero for a log posterior of float64 sums.
STATIONARY = 1e-6
SAME_DIGITS = 9
DISAGREEING_RHAT = 1.05


def agreeing_digits(ours: float, theirs: float) -> float:
    """Significant digits to which two numbers agree; 16 where they are equal."""
    error = abs(ours - theirs) / max(abs(ours), abs(theirs), 1e-300)
    return float(min(16.0, -np.log10(max(error, 1e-16))))


def _autodiff(em: Fit, prior: Prior) -> tuple[float, float]:
    """The Pyro program's log posterior at EM's end and its largest gradient per row in unconstrained coordinates."""
    theta = Parameters(*(value.clone().requires_grad_() for value in em.parameters))
    value = log_density(em.X, theta, prior)
    pi, omega, lam = em.parameters
    g_pi, g_omega, g_lam = torch.autograd.grad(value, list(theta))
    slopes = (pi * (g_pi - (g_pi * pi).sum()), omega * (1 - omega) * g_omega, lam * g_lam)
    return value.item(), max(slope.abs().max().item() for slope in slopes) / len(em.X)


def _covered(point: Parameters, draws: Parameters) -> tuple[int, int]:
    inside = of = 0
    for value, sampled in zip(point, draws, strict=True):
        low, high = interval(sampled)
        inside += int(((low <= value) & (value <= high)).sum())
        of += value.numel()
    return inside, of


def _overlap(methods: list[Parameters]) -> tuple[int, int]:
    overlapping = of = 0
    for values in zip(*methods, strict=True):
        low = torch.stack([interval(value)[0] for value in values]).amax(0)
        high = torch.stack([interval(value)[1] for value in values]).amin(0)
        overlapping += int((low <= high).sum())
        of += low.numel()
    return overlapping, of


def _zeros(fits: dict[str, Fit], counts: Counts, seed: int) -> Zeros:
    X_ND = next(iter(fits.values())).X
    observed_D = (~X_ND.isnan()).sum(0)
    share_D = (X_ND == 0).sum(0) / observed_D.clamp_min(1)
    predicted, intervals = {}, {}
    rng = np.random.default_rng([seed, 7])
    for name, f in fits.items():
        if f.draws is None:
            predicted[name] = _zero_share(f.parameters)
            continue
        drawn_CSD = _zero_share(f.draws)
        predicted[name] = drawn_CSD.mean((0, 1))
        replicated = rng.binomial(observed_D.numpy(), drawn_CSD.clamp(0, 1).numpy()) / observed_D.clamp_min(1).numpy()
        intervals[name] = interval(torch.from_numpy(replicated))
    return Zeros(share_D.to(torch.float64), predicted, intervals)


def _zero_share(parameters: Parameters) -> Tensor:
    """p(x_d = 0) of a new row, (..., D)."""
    return (parameters.pi[..., None] * log_zero(logs(parameters)).exp()).sum(-2)


def _versions() -> dict[str, str]:
    packages = ("zipmix", "torch", "pyro-ppl", "arviz", "numpy", "scipy")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}
