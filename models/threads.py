"""Work shared out among torch's threads, in parts that each run on one core from their beginning to their end.

So threads wait for one another once in a pass, and not once in every operation. Tables over components are small:
threads that share one wait for one another longer than they work.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")

# Numbers in a part that is worth a thread of its own.
PART = 2**15

# How many parts can run side by side, 1 within a part; None: as many as torch has threads.
_n_threads: ContextVar[int | None] = ContextVar("n_threads", default=None)


def in_parts(n: int, size: int, function: Callable[[int, int], Result]) -> list[Result]:
    """function(start, stop) of contiguous parts of n rows, side by side, one of them in this thread.

    Args:
        n: rows to share out.
        size: numbers in one of them.
        function: called with the bounds of each part.
    Returns:
        The results in order.
    """
    n_parts = min(n, _n_threads.get() or torch.get_num_threads(), max(1, n * size // PART))
    if n_parts <= 1:
        return [function(0, n)]
    first, *others = itertools.pairwise(n * i // n_parts for i in range(n_parts + 1))
    with _threads(torch_has=1, parts_have=1):
        pool = _pool(n_parts - 1, os.getpid())
        at_work = [pool.submit(function, *part) for part in others]
        return [function(*first), *(part.result() for part in at_work)]


@contextmanager
def threads_for_parts() -> Iterator[None]:
    """Within it torch's threads work on parts alone, and whatever else torch does runs in one."""
    with _threads(torch_has=1, parts_have=_n_threads.get() or torch.get_num_threads()):
        yield


@contextmanager
def _threads(torch_has: int, parts_have: int) -> Iterator[None]:
    before = torch.get_num_threads()
    token = _n_threads.set(parts_have)
    torch.set_num_threads(torch_has)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _n_threads.reset(token)


@cache
def _pool(n: int, process: int) -> ThreadPoolExecutor:
    """n threads in which there are no others; threads do not survive a fork, hence the process id."""
    return ThreadPoolExecutor(n, thread_name_prefix="zipmix", initializer=torch.set_num_threads, initargs=(1,))
