"""Why a method stopped."""

from enum import StrEnum


class Ending(StrEnum):
    """Why a method stopped; a Fit and the outcome of a loop carry one."""

    CONVERGED = "converged"  # the objective settled to the tolerance
    COMPLETED = "completed"  # all steps were taken of a method that has a fixed number of them
    MAX_ITER = "max_iter"  # some run reached max_iter first
    INTERRUPTED = "interrupted"  # by the user
    BUDGET = "budget"  # its budget of time ended

    @property
    def early(self) -> bool:
        """Whether the method was stopped from outside."""
        return self in (Ending.INTERRUPTED, Ending.BUDGET)

    @property
    def stopped_by(self) -> str:
        """What stopped a method early."""
        return {"interrupted": "interrupted by the user", "budget": "interrupted by its budget of time"}[self]
