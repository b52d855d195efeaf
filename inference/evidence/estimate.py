"""An estimate of the evidence log p(X | K, prior), and when its error is too large to be trusted."""

from typing import NamedTuple

# Standard error of a log mean above which few terms dominate the mean, and neither it nor its error is reliable.
DOUBTFUL = 0.5


class Evidence(NamedTuple):
    """An estimate of log p(X | K, prior)."""

    log_evidence: float
    error: float  # Monte-Carlo standard error
    reason: str  # how it was found, and whether it can be trusted


def doubt(error: float, terms: str) -> str:
    """The warning that a reason ends with where the error is too large; empty where it is not.

    Args:
        error: Monte-Carlo standard error of a log mean.
        terms: plural name of what was averaged over.
    """
    return f"; few {terms} carry the average, so that neither it nor its error is to be trusted" * (error > DOUBTFUL)
