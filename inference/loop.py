"""The one loop: repeats a step on a batch of runs until each has converged, and keeps the trace.

A step improves all runs of a batch (restarts, chains) at once. A run that has converged leaves the batch, so the last
ones do not pay for the first. Ctrl-C or the end of a budget of time ends the loop and hands back what is there.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from zipmix.counts.progress import bar

State = TypeVar("State", bound=tuple)  # type: ignore[type-arg]

# Steps by which a finalist is to reach what it must beat, each as large as the larger of its last two.
CATCH_UP = 20

# When the method at work is to end, as time.perf_counter tells it.
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class Loop(NamedTuple):
    """How a batch of R runs went."""

    objective_R: Tensor  # (R,)    at the end
    trace_TR: Tensor  # (T, R)  from the start on; NaN after a run has left the batch
    seconds_T: Tensor  # (T,)    wall time since the loop began
    converged_R: Tensor  # (R,)    bool
    n_iter_R: Tensor  # (R,)    steps taken
    left_R: Tensor  # (R,)    bool: left behind by a race
    reason: str  # why the loop ended
    interrupted: bool  # by the user or by the budget of time


class Race(NamedTuple):
    """Short runs, of which the best go on (small-EM; Biernacki, Celeux and Govaert, 2003)."""

    after: int  # steps that every run takes
    finalists: int  # runs that go on
    beat: float = -math.inf  # objective that they must still be able to reach


def iterate(
    step: Callable[[State], State],
    state: State,
    objective: Callable[[State], Tensor],
    *,
    max_iter: int,
    tolerance: float | None,
    progress: bool,
    label: str,
    race: Race | None = None,
) -> tuple[State, Loop]:
    """Steps until the relative gain in the objective falls to the tolerance, for every run of the batch.

    Args:
        step: state -> state, for any subset of the batch.
        state: NamedTuple of tensors (nested ones too) with the batch axis R in front.
        objective: state -> (R,).
        max_iter: most steps to take.
        tolerance: a run has converged when its objective rises by no more than tolerance * (1 + |objective|) in two
            steps running; None takes max_iter steps.
        progress: whether to show a progress bar.
        label: what the bar says.
        race: when to leave which runs behind; none where None.
    Returns:
        The state of all runs at their ends, and how they went.
    """
    began = time.perf_counter()
    current = objective(state)
    n_runs = len(current)
    trace, seconds = [current.clone()], [0.0]
    converged_R = torch.zeros(n_runs, dtype=torch.bool)
    n_iter_R = torch.zeros(n_runs, dtype=torch.int64)
    left_R = torch.zeros(n_runs, dtype=torch.bool)
    active_A = torch.arange(n_runs)
    calm_A = torch.zeros(n_runs, dtype=torch.int64)
    rise_A = torch.full((n_runs,), torch.inf, dtype=torch.float64)
    ended, batch, interrupted = state, state, ""
    with progress_bar(max_iter, label, enabled=progress) as advance:
        try:
            for t in range(1, max_iter + 1):
                if out_of_time():
                    interrupted = "by its budget of time"
                    break
                stepped = step(batch)
                gained = objective(stepped)
                row = torch.full((n_runs,), torch.nan, dtype=torch.float64)
                row[active_A] = gained
                # Nothing that takes time stands between these, so that Ctrl-C finds them all done or none.
                batch, previous, current = stepped, current, gained
                trace.append(row)
                seconds.append(time.perf_counter() - began)
                n_iter_R[active_A] += 1
                advance()
                if tolerance is None:
                    continue
                calm = current - previous <= tolerance * (1 + current.abs())
                calm_A = (calm_A + 1) * calm
                done = calm_A >= 2
                converged_R[active_A[done]] = True
                last_A, rise_A = rise_A, current - previous
                leaving = done
                if race is not None and t >= race.after:
                    leaving = leaving | (current + CATCH_UP * rise_A.maximum(last_A) < race.beat)
                    if t == race.after:
                        leaving = leaving | (current.argsort(descending=True).argsort() >= race.finalists)
                    left_R[active_A[leaving & ~done]] = True
                if bool(leaving.any()):
                    ended = _put(ended, active_A, batch)
                    if bool(leaving.all()):
                        break
                    batch = _take(batch, ~leaving)
                    current, calm_A, active_A = current[~leaving], calm_A[~leaving], active_A[~leaving]
                    rise_A = rise_A[~leaving]
        except KeyboardInterrupt:
            interrupted = "by the user"
    ended = _put(ended, active_A, batch)
    n_left = int(left_R.sum())
    if interrupted:
        reason = f"interrupted {interrupted} after {len(trace) - 1} of at most {max_iter} iterations"
    elif tolerance is None:
        reason = f"took all {max_iter} iterations"
    elif int(converged_R.sum()) + n_left == n_runs:
        reason = f"the objective rose by no more than {tolerance:g} (relative) in two iterations running"
    else:
        stuck = int((~converged_R).sum()) - n_left
        reason = f"{stuck} of {n_runs} runs reached max_iter = {max_iter} before the objective settled to {tolerance:g}"
    if race is not None and n_left:
        later = " or more" * (race.beat > -math.inf)
        reason += f"; {n_left} of {n_runs} runs were left behind after {race.after} iterations{later}"
    seconds_T = torch.tensor(seconds, dtype=torch.float64)
    final = Loop(
        objective(ended),
        torch.stack(trace),
        seconds_T,
        converged_R,
        n_iter_R,
        left_R,
        reason,
        bool(interrupted),
    )
    return ended, final


@contextmanager
def time_budget(seconds: float | None) -> Iterator[None]:
    """Ends the loops inside it after so much wall time, between two iterations; None sets no limit."""
    token = _deadline.set(math.inf if seconds is None else time.perf_counter() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def out_of_time() -> bool:
    """Whether the budget of time is used up."""
    return time.perf_counter() > _deadline.get()


def settled(trace: Tensor, reason: str) -> tuple[bool, str]:
    """Whether a noisy objective has settled: its last fifth does not differ from the fifth before, beyond noise.

    Args:
        trace: (T,) objective of every step.
        reason: why the steps ended.
    Returns:
        The verdict, and the reason with the verdict in words.
    """
    window = len(trace) // 5
    if reason.startswith("interrupted") or window < 10:
        return False, f"{reason}; too few steps to judge whether the objective has settled"
    before, after = trace[-2 * window : -window], trace[-window:]
    gain = (after.mean() - before.mean()).item()
    noise = 2 * ((before.var() + after.var()) / window).sqrt().item()
    settled = abs(gain) <= noise
    moved = f"over the last fifth the mean objective moved by {gain:.2g} against a noise of {noise:.2g}"
    return settled, f"{reason}; {moved}"


@contextmanager
def progress_bar(total: int | None, label: str, *, enabled: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr with time left, where the total is known; the callable it hands out advances it by one."""
    with bar(total, label, enabled=enabled) as advance:
        yield lambda: advance(1)


def together(one: Loop, other: Loop) -> Loop:
    """How two batches went, the other after the one; both traces begin at 0, and so do the seconds of the longer.

    An interruption of either is the reason why they ended.
    """
    length = max(len(one.trace_TR), len(other.trace_TR))
    traces = [
        torch.nn.functional.pad(loop.trace_TR, (0, 0, 0, length - len(loop.trace_TR)), value=torch.nan)
        for loop in (one, other)
    ]
    longer = max(one, other, key=lambda loop: len(loop.seconds_T))
    names = ("objective_R", "converged_R", "n_iter_R", "left_R")
    objective_R, converged_R, n_iter_R, left_R = (
        torch.cat([getattr(loop, name) for loop in (one, other)]) for name in names
    )
    better = one if one.objective_R.max() >= other.objective_R.max() else other
    reason = next((loop.reason for loop in (one, other) if loop.interrupted), better.reason)
    return Loop(
        objective_R,
        torch.cat(traces, dim=1),
        longer.seconds_T,
        converged_R,
        n_iter_R,
        left_R,
        reason,
        one.interrupted or other.interrupted,
    )


def _take(state: State, index: Tensor) -> State:
    """The runs of a batch that index selects."""
    return _map(lambda tensor: tensor[index], state)


def _put(state: State, index: Tensor, batch: State) -> State:
    """The state with the runs at index replaced by those of the batch."""
    return _map(lambda tensor, new: tensor.index_copy(0, index, new), state, batch)


def _map(function: Callable[..., Tensor], *states: State) -> State:
    leaves = [
        function(*parts) if isinstance(parts[0], Tensor) else _map(function, *parts)
        for parts in zip(*states, strict=True)
    ]
    return type(states[0])(*leaves)
