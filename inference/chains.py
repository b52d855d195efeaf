"""What every sampler shares: where its chains begin, the fit it returns, and whether the chains agree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_whole
from zipmix.inference.loop import Loop, State, iterate
from zipmix.inference.problem import Problem
from zipmix.inference.result import Fit
from zipmix.inference.start import Init, starts
from zipmix.models.parameters import Parameters

# Split R-hat of the log posterior below which the chains are taken to agree (Vehtari et al., 2021).
R_HAT = 1.01


class Lengths(NamedTuple):
    """How many chains, sweeps thrown away first, and sweeps kept per chain."""

    n_chains: int
    n_warmup: int
    n_draws: int


def check_lengths(n_chains: int, n_warmup: int, n_draws: int) -> Lengths:
    """The lengths of a run.

    Raises:
        InputError: n_chains or n_draws is below 1, or n_warmup below 0.
    """
    return Lengths(
        check_whole(n_chains, "n_chains", at_least=1),
        check_whole(n_warmup, "n_warmup", at_least=0),
        check_whole(n_draws, "n_draws", at_least=1),
    )


def chain_starts(problem: Problem, *, n_chains: int, init: Init, start: Parameters | None, seed: int) -> Parameters:
    """One starting point per chain, (C, ...).

    Args:
        problem: data and prior.
        n_chains: C.
        init: "small-em", "kmeans++" or "prior", where starts come from.
        start: points to use instead, (K, D), (1, K, D) or (C, K, D); one point serves all chains.
        seed: of the starts.
    Raises:
        InputError: init or start that cannot be used.
    """
    theta = starts(
        problem.counts,
        problem.prior,
        n_components=problem.n_components,
        n_starts=n_chains,
        init=init,
        start=start,
        seed=seed,
    )
    if len(theta.pi) not in (1, n_chains):
        raise InputError(f"start must hold one point or n_chains = {n_chains} points, got {len(theta.pi)}.")
    return theta.map(lambda value: value.expand(n_chains, *value.shape[1:]))


class Visit(NamedTuple):
    """What is kept of C chains after a sweep."""

    theta: Parameters  # (C, ...) where they are
    objective: Tensor  # (C,) log p(X, theta | prior)
    diagnostics: dict[str, Tensor]  # (C, ...) what else the sampler reports


def run(
    method: str,
    problem: Problem,
    step: Callable[[State], State],
    state: State,
    visit: Callable[[State], Visit],
    lengths: Lengths,
    *,
    progress: bool,
    settings: dict[str, Any],
    seed: int,
) -> Fit:
    """Runs all chains of a sampler in one batch and collects its draws.

    Args:
        method: name in METHODS.
        problem: data and prior.
        step: one sweep of all chains.
        state: where the chains begin, as the loop needs it: a NamedTuple of tensors with the chains in front.
        visit: state -> what to keep of it.
        lengths: of the run.
        progress: whether to show a progress bar.
        settings: the method's own, to be reported.
        seed: to be reported.
    Returns:
        Draws (chain, draw, ...); parameters are the draw of highest log posterior. Ctrl-C ends the run early: the
        draws so far are returned (the last state, where warm-up was not over), and the reason says so.
    """
    visits = [visit(state)]

    def recorded(state: State) -> State:
        state = step(state)
        visits.append(visit(state))
        return state

    _, loop = iterate(
        recorded,
        state,
        lambda _: visits[-1].objective,
        max_iter=lengths.n_warmup + lengths.n_draws,
        tolerance=None,
        progress=progress,
        label=method,
    )
    trace_CT = loop.trace_TR.T
    n_iter = trace_CT.shape[1] - 1
    n_kept = max(n_iter - lengths.n_warmup, 1)
    kept = visits[n_iter + 1 - n_kept : n_iter + 1]
    draws = Parameters.stack([one.theta for one in kept], axis=1)
    lp_CS = trace_CT[:, -n_kept:]
    chain, best = divmod(int(lp_CS.argmax()), n_kept)
    converged, reason = agreement(lp_CS, loop)
    return problem.fit(
        method,
        parameters=draws.map(lambda value: value[chain, best]),
        draws=draws,
        objective=lp_CS[chain, best].item(),
        trace=trace_CT,
        trace_seconds=loop.seconds_T,
        converged=converged,
        ending=loop.ending,
        reason=reason,
        n_iter=n_iter,
        settings=lengths._asdict() | settings,
        seed=seed,
        diagnostics={name: torch.stack([one.diagnostics[name] for one in kept], dim=1) for name in kept[0].diagnostics},
    )


def agreement(lp_CS: Tensor, loop: Loop) -> tuple[bool, str]:
    """Whether the chains agree, and why the run ended, as a sentence.

    Args:
        lp_CS: log posterior of the draws that are kept.
        loop: how the run went.
    """
    reason = loop.reason
    if loop.ending.early:
        return False, reason
    if len(lp_CS) < 2 or lp_CS.shape[1] < 4:
        return False, f"{reason}; it takes at least 2 chains of 4 draws to judge whether chains agree"
    from zipmix.inference.diagnostics import rhat

    value = rhat(lp_CS)
    return value < R_HAT, f"{reason}; R-hat of the log posterior over {len(lp_CS)} chains is {value:.3f}"
