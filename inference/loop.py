"""The one loop: repeats a step on a batch of runs until each has converged, and keeps the trace.

A step improves all runs of a batch (restarts, chains) at once. A run that has converged leaves the batch, so the last
ones do not pay for the first. Ctrl-C or the end of a budget of time ends the loop, which returns what there is.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from zipmix.counts.progress import bar
from zipmix.inference.ending import Ending

State = TypeVar("State", bound=tuple)  # type: ignore[type-arg]

# When the method that runs is to end, on the clock of time.perf_counter.
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class Loop(NamedTuple):
    """Outcome of a batch of R runs."""

    objective_R: Tensor  # (R,)    at the end
    trace_TR: Tensor  # (T, R)  from the start on; NaN after a run has left the batch
    seconds_T: Tensor  # (T,)    wall time since the loop began
    converged_R: Tensor  # (R,)    bool
    n_iter_R: Tensor  # (R,)    steps taken
    left_R: Tensor  # (R,)    bool: left behind by a race
    ending: Ending
    reason: str  # the ending as a sentence, with its numbers


# Which runs of the batch give up after step t, (A,) bool: leaving(t, objective_A, rise_A, last_rise_A), with the
# objectives and their rises in this step and the one before.
Leaving = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def never(t: int, objective_A: Tensor, rise_A: Tensor, last_rise_A: Tensor) -> Tensor:
    """No run gives up."""
    return torch.zeros(len(objective_A), dtype=torch.bool)


class Batch(NamedTuple, Generic[State]):
    """The A runs of R that still take steps."""

    state: State
    index_A: Tensor  # (A,) which of the R runs they are
    objective_A: Tensor
    rise_A: Tensor  # in the last step
    calm_A: Tensor  # consecutive steps in which the objective rose by no more than the tolerance


def iterate(
    step: Callable[[State], State],
    state: State,
    objective: Callable[[State], Tensor],
    *,
    max_iter: int,
    tolerance: float | None,
    progress: bool,
    label: str,
    leaving: Leaving = never,
) -> tuple[State, Loop]:
    """Steps until the relative gain in the objective falls to the tolerance, for every run of the batch.

    Args:
        step: state -> state, for any subset of the batch.
        state: NamedTuple of tensors (nested ones too) with the batch axis R in front.
        objective: state -> (R,).
        max_iter: most steps to take.
        tolerance: a run has converged when its objective rises by no more than tolerance * (1 + |objective|) in two
            consecutive steps; None takes max_iter steps.
        progress: whether to show a progress bar.
        label: what the bar says.
        leaving: which runs give up before they have converged.
    Returns:
        The state of all runs at their ends, and their outcome.
    """
    began, first = time.perf_counter(), objective(state)
    n_runs = len(first)
    record = _Record([first.clone()], [0.0], *_none(n_runs))
    infinite_R, zero_R = torch.full((n_runs,), torch.inf, dtype=torch.float64), torch.zeros(n_runs, dtype=torch.int64)
    batch, ended, stopped = Batch(state, torch.arange(n_runs), first, infinite_R, zero_R), state, None
    with progress_bar(max_iter, label, enabled=progress) as advance:
        try:
            for t in range(1, max_iter + 1):
                if out_of_time():
                    stopped = Ending.BUDGET
                    break
                stepped = step(batch.state)
                after, row = _after(batch, stepped, objective(stepped), tolerance, n_runs)
                # Nothing that takes time stands between these, so that Ctrl-C finds them all done or none.
                before, batch = batch, after
                record.add(row, time.perf_counter() - began, batch.index_A)
                advance()
                if tolerance is None:
                    continue
                done_A = batch.calm_A >= 2
                gone_A = done_A | leaving(t, batch.objective_A, batch.rise_A, before.rise_A)
                record.converged_R[batch.index_A[done_A]] = True
                record.left_R[batch.index_A[gone_A & ~done_A]] = True
                if bool(gone_A.any()):
                    ended = _put(ended, batch.index_A, batch.state)
                    if bool(gone_A.all()):
                        break
                    batch = _take(batch, ~gone_A)
        except KeyboardInterrupt:
            stopped = Ending.INTERRUPTED
    ended = _put(ended, batch.index_A, batch.state)
    ending, reason = _ending(record, stopped, max_iter, tolerance)
    return ended, record.loop(objective(ended), ending, reason)


def _after(
    batch: Batch[State], stepped: State, gained_A: Tensor, tolerance: float | None, n_runs: int
) -> tuple[Batch[State], Tensor]:
    """The batch after a step, and its row of the trace, NaN for runs that have left the batch."""
    row_R = torch.full((n_runs,), torch.nan, dtype=torch.float64)
    row_R[batch.index_A] = gained_A
    rise_A = gained_A - batch.objective_A
    calm_A = rise_A <= (tolerance or 0.0) * (1 + gained_A.abs())
    return Batch(stepped, batch.index_A, gained_A, rise_A, (batch.calm_A + 1) * calm_A), row_R


class _Record(NamedTuple):
    """What a loop writes down of R runs as it goes."""

    trace: list[Tensor]
    seconds: list[float]
    converged_R: Tensor
    left_R: Tensor
    n_iter_R: Tensor

    def add(self, row_R: Tensor, seconds: float, index_A: Tensor) -> None:
        """One step of the runs at index."""
        self.trace.append(row_R)
        self.seconds.append(seconds)
        self.n_iter_R[index_A] += 1

    def loop(self, objective_R: Tensor, ending: Ending, reason: str) -> Loop:
        """The outcome of all runs."""
        seconds_T = torch.tensor(self.seconds, dtype=torch.float64)
        trace_TR = torch.stack(self.trace)
        return Loop(
            objective_R, trace_TR, seconds_T, self.converged_R, self.n_iter_R, self.left_R, ending=ending, reason=reason
        )


def _none(n_runs: int) -> tuple[Tensor, Tensor, Tensor]:
    """No run converged, none left, no step taken."""
    no_R = torch.zeros(n_runs, dtype=torch.bool)
    return no_R, no_R.clone(), torch.zeros(n_runs, dtype=torch.int64)


def _ending(record: _Record, stopped: Ending | None, max_iter: int, tolerance: float | None) -> tuple[Ending, str]:
    """Why a loop ended, and the same as a sentence."""
    n_runs, n_left = len(record.left_R), int(record.left_R.sum())
    stuck = n_runs - int(record.converged_R.sum()) - n_left
    if stopped is not None:
        ending = stopped
        reason = f"{stopped.stopped_by} after {len(record.trace) - 1} of at most {max_iter} iterations"
    elif tolerance is None:
        ending, reason = Ending.COMPLETED, f"took all {max_iter} iterations"
    elif stuck == 0:
        ending = Ending.CONVERGED
        reason = f"the objective rose by no more than {tolerance:g} (relative) in two consecutive iterations"
    else:
        ending = Ending.MAX_ITER
        reason = f"{stuck} of {n_runs} runs reached max_iter = {max_iter} before the objective settled to {tolerance:g}"
    if n_left:
        after_L = record.n_iter_R[record.left_R]
        later = " or more" * bool(after_L.max() > after_L.min())
        reason += f"; {n_left} of {n_runs} runs were left behind after {after_L.min()} iterations{later}"
    return ending, reason


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


def settled(trace: Tensor, ending: Ending, reason: str) -> tuple[bool, str]:
    """Whether a noisy objective has settled: its last fifth does not differ from the fifth before, beyond noise.

    Args:
        trace: (T,) objective of every step.
        ending: why the steps ended.
        reason: the same as a sentence.
    Returns:
        The verdict, and the reason with the verdict as a sentence.
    """
    window = len(trace) // 5
    if ending.early or window < 10:
        return False, f"{reason}; too few steps to judge whether the objective has settled"
    before, after = trace[-2 * window : -window], trace[-window:]
    gain = (after.mean() - before.mean()).item()
    noise = 2 * ((before.var() + after.var()) / window).sqrt().item()
    moved = f"over the last fifth the mean objective moved by {gain:.2g} against a noise of {noise:.2g}"
    return abs(gain) <= noise, f"{reason}; {moved}"


@contextmanager
def progress_bar(total: int | None, label: str, *, enabled: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr with time left, where the total is known; the callable that it yields advances it by one."""
    with bar(total, label, enabled=enabled) as advance:
        yield lambda: advance(1)


def together(one: Loop, other: Loop) -> Loop:
    """Outcome of two batches, the other after the one; both traces begin at 0, and so do the seconds of the longer.

    Where either was stopped early, that is the ending.
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
    last = next((loop for loop in (one, other) if loop.ending.early), better)
    return Loop(
        objective_R,
        torch.cat(traces, dim=1),
        longer.seconds_T,
        converged_R,
        n_iter_R,
        left_R,
        last.ending,
        last.reason,
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
