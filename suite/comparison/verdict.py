"""The verdict of a comparison: do the hand derivation, autodiff and the samplers agree, and to how many digits."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipmix.inference.result import Fit
from zipmix.models.parameters import Parameters, Prior
from zipmix.models.zip_mixture import log_density

# Central interval of draws that is compared and drawn.
LEVEL = 0.95

# A gradient per row of data below this is zero for a log posterior of float64 sums.
STATIONARY = 1e-6

# Digits from which two objectives count as the same optimum.
SAME_DIGITS = 9

# Ratio of widths below which the intervals of a variational posterior are called too narrow.
NARROW = 0.95

# R-hat after matching components above which chains have not mixed.
DISAGREEING_RHAT = 1.05


class Verdict(NamedTuple):
    """What the comparison found, in sentences."""

    density_digits: float | None  # hand-derived against autodiff log posterior at the MAP
    gradient: float | None  # largest gradient of the Pyro program's log posterior at EM's end, per row of data
    map_digits: float | None  # EM's against Pyro's MAP objective from the same start
    covered: dict[str, tuple[int, int]]  # method with draws -> parameters whose interval holds the MAP, of how many
    overlapping: dict[str, tuple[int, int]]  # "a and b" -> parameters where both intervals overlap, of how many
    widths: dict[str, float]  # "q against sampler" -> median ratio of the widths of their intervals
    sentences: tuple[str, ...]


class Autodiff(NamedTuple):
    """The Pyro program's view of EM's end."""

    value: float  # log p(X, Theta | prior)
    gradient: float  # largest entry in unconstrained coordinates, per row of data


def reach_verdict(
    fits: dict[str, Fit],
    failures: dict[str, str],
    matched: dict[str, Parameters],
    matched_draws: dict[str, Parameters],
    rhat_matched: dict[str, float],
    prior: Prior,
) -> Verdict:
    """Holds the fits against one another.

    Args:
        fits: by method, on the same data.
        failures: methods that did not run, and why.
        matched: points with components in the order of the reference.
        matched_draws: draws likewise.
        rhat_matched: largest R-hat of the matched draws, for methods with several chains.
        prior: as check_prior returns it.
    """
    sentences: list[str] = []
    density_digits = gradient = map_digits = None
    if "em" in fits:
        em = fits["em"]
        autodiff = _autodiff(em, prior)
        density_digits, gradient = agreeing_digits(em.objective, autodiff.value), autodiff.gradient
        ending = "EM stopped at a stationary point" if gradient < STATIONARY else "EM did not stop at an optimum"
        sentences.append(
            f"Hand derivation and autodiff agree on log p(X, Theta) at EM's optimum to {density_digits:.1f} digits, "
            f"and the gradient of the Pyro program there is at most {gradient:.1e} per row: {ending}."
        )
    if "em" in fits and "pyro_map" in fits and fits["em"].restarts is not None:
        same_start, theirs = fits["em"].restarts.objective_R[0].item(), fits["pyro_map"].objective
        map_digits = agreeing_digits(same_start, theirs)
        finished = bool(fits["em"].restarts.converged_R[0]) and fits["pyro_map"].converged
        sentences.append(_same_optimum(same_start, theirs, map_digits, finished=finished))
    covered = {name: _covered(matched["em"], draws) for name, draws in matched_draws.items()} if "em" in fits else {}
    for name, (inside, of) in covered.items():
        narrow = fits[name].variational and inside < LEVEL * of
        note = " (mean-field intervals are too narrow where parameters are correlated)" if narrow else ""
        sentences.append(
            f"The {LEVEL:.0%} intervals of {name} cover the MAP in {inside} of {of} parameters of the components{note}."
        )
    overlapping = _overlaps(matched_draws)
    for names, (agreeing, of) in overlapping.items():
        sentences.append(f"The intervals of {names} overlap in {agreeing} of {of} parameters.")
    mixed = [name for name, value in rhat_matched.items() if value <= DISAGREEING_RHAT]
    widths = _widths([name for name in matched_draws if fits[name].variational], mixed, matched_draws)
    for names, ratio in widths.items():
        q, sampler = names.split(" against ")
        sentences.append(
            f"The intervals of {q} are {ratio:.2f} times as wide as those of {sampler} (median over parameters)"
            + (": a mean-field q understates uncertainty." if ratio < NARROW else ".")
        )
    for name, value in rhat_matched.items():
        if value > DISAGREEING_RHAT:
            sentences.append(
                f"The chains of {name} have not mixed (R-hat {value:.2f} after matching components): they sit in "
                "different modes of the posterior or need more sweeps, so its intervals mix those modes."
            )
    sentences += [
        f"{name} did not converge: {fitted.reason}."
        for name, fitted in fits.items()
        if not fitted.converged and rhat_matched.get(name, 0.0) <= DISAGREEING_RHAT
    ]
    sentences += [f"{name} did not run: {why}" for name, why in failures.items()]
    return Verdict(density_digits, gradient, map_digits, covered, overlapping, widths, tuple(sentences))


def agreeing_digits(ours: float, theirs: float) -> float:
    """Significant digits to which two numbers agree; 16 where they are equal."""
    error = abs(ours - theirs) / max(abs(ours), abs(theirs), 1e-300)
    return float(min(16.0, -np.log10(max(error, 1e-16))))


def interval(draws: Tensor) -> Tensor:
    """Central 95 % interval over chains and draws, (2, ...).

    Args:
        draws: (chain, draw, ...)
    """
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return torch.from_numpy(np.quantile(draws.flatten(0, 1).numpy(), edges, axis=0))


def _same_optimum(same_start: float, theirs: float, digits: float, *, finished: bool) -> str:
    gap = same_start - theirs
    ending = "they found the same optimum."
    if digits < SAME_DIGITS:
        ahead = "EM" if gap > 0 else "autodiff MAP"
        ending = f"they ended at different optima, {ahead} at the higher one: the posterior has several modes."
        if not finished:
            ending = f"{ahead} is ahead, but not both had converged, so nothing follows for the optima."
    return f"From the same start, EM and autodiff MAP end {abs(gap):.1e} nats apart ({digits:.1f} digits): {ending}"


def _autodiff(em: Fit, prior: Prior) -> Autodiff:
    theta = em.parameters.map(lambda value: value.clone().requires_grad_())
    value = log_density(em.X, theta, prior)
    pi, omega, lam = em.parameters
    g_pi, g_omega, g_lam = torch.autograd.grad(value, list(theta))
    slopes = (pi * (g_pi - (g_pi * pi).sum()), omega * (1 - omega) * g_omega, lam * g_lam)
    return Autodiff(value.item(), max(slope.abs().max().item() for slope in slopes) / len(em.X))


def _covered(point: Parameters, draws: Parameters) -> tuple[int, int]:
    inside = of = 0
    for value, sampled in zip(point, draws, strict=True):
        low, high = interval(sampled)
        inside += int(((low <= value) & (value <= high)).sum())
        of += value.numel()
    return inside, of


def _widths(variational: list[str], samplers: list[str], draws: dict[str, Parameters]) -> dict[str, float]:
    """How wide the intervals of every variational posterior are against those of every sampler."""

    def width(method: str) -> Tensor:
        edges = [interval(value) for value in draws[method]]
        return torch.cat([(high - low).flatten() for low, high in edges])

    return {
        f"{q} against {sampler}": float(np.median((width(q) / width(sampler).clamp_min(1e-300)).numpy()))
        for q in variational
        for sampler in samplers
    }


def _overlaps(matched_draws: dict[str, Parameters]) -> dict[str, tuple[int, int]]:
    edges = {name: [interval(value) for value in draws] for name, draws in matched_draws.items()}
    names = list(edges)
    found = {}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            agreeing = of = 0
            for (low, high), (low_, high_) in zip(edges[first], edges[second], strict=True):
                agreeing += int(((low <= high_) & (low_ <= high)).sum())
                of += low.numel()
            found[f"{first} and {second}"] = (agreeing, of)
    return found
