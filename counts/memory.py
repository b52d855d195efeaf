"""The memory that the machine has free."""

import psutil

from zipmix.counts.checks import InputError

# Bytes below which nothing is checked.
SMALL = 2**26


def check_room(n_bytes: int, what: str, instead: str) -> None:
    """Refuses work that would take more memory than is free.

    Args:
        n_bytes: memory that the work takes.
        what: name of the object for the message.
        instead: what the message recommends.
    Raises:
        InputError: fewer bytes are free.
    """
    if n_bytes <= SMALL:
        return
    free = psutil.virtual_memory().available
    if n_bytes > free:
        raise InputError(
            f"{what} takes {n_bytes / 2**20:,.1f} MiB of memory, and {free / 2**20:,.1f} MiB are free; {instead}."
        )
