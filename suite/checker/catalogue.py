"""The catalogue: all known mistakes, grouped by the functions in which they are made."""

from zipmix.checker import (  # noqa: F401  each enters its mistakes
    mistakes_densities,
    mistakes_elbo,
    mistakes_em,
    mistakes_latents,
    mistakes_steps,
)
from zipmix.checker.mistake import ENTERED, Mistake

MISTAKES: tuple[Mistake, ...] = tuple(ENTERED)
BY_NAME: dict[str, Mistake] = {mistake.name: mistake for mistake in MISTAKES}
