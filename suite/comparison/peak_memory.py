"""The memory that a piece of work takes, as the operating system sees it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

# Seconds between two looks.
INTERVAL = 0.02


class Peak:
    """The largest growth of the process's resident memory so far, in bytes."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watches the resident memory of this process while the block runs; peaks shorter than 20 ms may be missed."""
    process, peak, done = psutil.Process(), Peak(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(INTERVAL):
            peak.bytes = max(peak.bytes, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(peak.bytes, process.memory_info().rss - before)
