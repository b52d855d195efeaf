"""Restarts: the outcome of every run of a method that has many starts."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

# Two starts whose objectives differ by no more than this, relatively, count as the same optimum.
SAME_OPTIMUM = 1e-6


class Restarts(NamedTuple):
    """Outcome of every run of a method: its starts, and the moves after them."""

    objective_R: Tensor  # (R,)
    n_iter_R: Tensor  # (R,)
    converged_R: Tensor  # (R,) bool
    trace_TR: Tensor  # (T, R) objective after each iteration, NaN once a run has ended
    left_R: Tensor  # (R,) bool: left behind by a race, so that its objective is not that of an optimum
    round_R: Tensor  # (R,) 0 for a start, t for a move of round t

    @property
    def best_R(self) -> Tensor:
        """Which runs reached the best objective, within 1e-6 relative, (R,) bool."""
        best = self.objective_R.max()
        return best - self.objective_R <= SAME_OPTIMUM * (1 + best.abs())

    @property
    def n_best(self) -> int:
        """How many runs reached the best objective."""
        return int(self.best_R.sum())

    def summary(self) -> str:
        """One sentence: how many starts and moves there were, how many ran to their ends and reached the best."""
        n_starts, n_moves = int((self.round_R == 0).sum()), int((self.round_R > 0).sum())
        n_ended = int((~self.left_R).sum())
        if n_ended == n_starts + n_moves == n_starts:
            return f"{self.n_best} of {n_starts} starts reached the best optimum"
        moves = f" and {n_moves} split-and-merge moves" * (n_moves > 0)
        return f"of {n_starts} starts{moves} {n_ended} ran to their ends; {self.n_best} reached the best optimum"

    def table(self) -> "pd.DataFrame":
        """One row per run, the best first: objective, gap to the best, iterations, and its outcome."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "objective": self.objective_R.numpy(),
                "gap": (self.objective_R.max() - self.objective_R).numpy(),
                "n_iter": self.n_iter_R.numpy(),
                "converged": self.converged_R.numpy(),
                "left_behind": self.left_R.numpy(),
                "round": self.round_R.numpy(),
            }
        )
        return frame.rename_axis("run").sort_values("objective", ascending=False)


def restarts_alone(objective_R: Tensor, n_iter_R: Tensor, converged_R: Tensor, trace_TR: Tensor) -> Restarts:
    """Outcome of starts that ran without a race and without moves after them."""
    nothing_R = torch.zeros(len(objective_R), dtype=torch.int64)
    return Restarts(objective_R, n_iter_R, converged_R, trace_TR, nothing_R.bool(), nothing_R)
