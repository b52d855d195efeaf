"""Progress on stderr: a bar for each piece of work, one below the other where one is part of another."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from rich.progress import Progress

# The display on the screen, which has room for only one.
_display: ContextVar[Optional["Progress"]] = ContextVar("display", default=None)


@contextmanager
def bar(total: int | None, label: str, unit: str = "", *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A bar with what is done, how much per second, and time left where the total is known.

    Args:
        total: how much there is to do.
        label: what the bar says.
        unit: of what is counted, in the plural; without it no rate is shown.
        enabled: whether to show it.
    Returns:
        A callable that advances the bar by n.
    """
    if not enabled:
        yield lambda n: None
        return
    display, own = _display.get(), None
    if display is None:
        display = own = _new_display()
        own.start()
        _display.set(own)
    began, seen = time.perf_counter(), 0

    def fields() -> dict[str, Any]:
        done = f"{seen:,}" if total is None else f"{seen:,} of {total:,}"
        rate = f"{seen / max(time.perf_counter() - began, 1e-9):,.0f} {unit}/s" if unit and seen else ""
        return {"done": f"{done} {unit}".strip(), "rate": rate}

    task = display.add_task(label, total=total, **fields())

    def advance(n: int) -> None:
        nonlocal seen
        seen += n
        display.update(task, advance=n, **fields())

    try:
        yield advance
    finally:
        if own is None:
            display.remove_task(task)
        else:
            _display.set(None)
            own.stop()


def _new_display() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
