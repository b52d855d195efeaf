"""Tasks in processes of their own: one that kills its process fails alone, and its place is taken by a new process."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """Outcome of a task."""

    task: Any
    value: Any  # what the function returned, None where it did not
    error: str | None  # the error, as a sentence


def in_processes(
    function: Callable[[Any], Any], tasks: Iterable[Any], *, n_processes: int
) -> Generator[Outcome, None, None]:
    """Runs a function on tasks, as many at a time as there are processes, and yields the outcome of each.

    The processes are spawned, so function and tasks must pickle. Ctrl-C is left to the calling process: where it leaves
    the iteration, for whatever reason, all processes are ended.

    Args:
        function: of a module that can be imported.
        tasks: started in this order.
        n_processes: >= 1.
    """
    waiting = deque(tasks)
    busy: dict[Connection, tuple[BaseProcess, Any]] = {}
    try:
        for _ in range(min(n_processes, len(waiting))):
            _give(*_spawn(function), waiting, busy)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                process, task = busy.pop(ready)
                try:
                    outcome = Outcome(task, *ready.recv())
                except EOFError:
                    process.join()
                    outcome = Outcome(task, None, f"its process ended with exit status {process.exitcode}")
                    ready, process = _spawn(function) if waiting else (ready, process)
                if waiting:
                    _give(ready, process, waiting, busy)
                else:
                    _end(ready, process)
                yield outcome
    finally:
        for connection, (process, _) in busy.items():
            _end(connection, process)


def _spawn(function: Callable[[Any], Any]) -> tuple[Connection, BaseProcess]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _give(
    connection: Connection, process: BaseProcess, waiting: deque[Any], busy: dict[Connection, tuple[BaseProcess, Any]]
) -> None:
    task = waiting.popleft()
    # A process that has died already is seen when its answer is waited for.
    with suppress(BrokenPipeError):
        connection.send(task)
    busy[connection] = (process, task)


def _end(connection: Connection, process: BaseProcess) -> None:
    process.terminate()
    process.join()
    connection.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, str | None] = function(task), None
        except Exception as error:  # reported to the process that sent the task, which goes on with the others
            answer = None, f"{type(error).__name__}: {error}"
        connection.send(answer)
