"""Names the mistake behind wrong answers: the entry of the catalogue that gives the same ones on every problem."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zipmix.checker import mistakes_latents
from zipmix.checker.catalogue import MISTAKES
from zipmix.checker.item import Answers, Item, Malformed, states
from zipmix.checker.items_steps import n_missing
from zipmix.checker.mistake import Mistake, given
from zipmix.checker.oracle import elbo_pieces, tables
from zipmix.checker.problems import Problem
from zipmix.checker.student import log_densities

# Relative difference to which a mistake's answers must equal the ones found; in float32, rounding allows no better.
EXACT = 1e-9
SINGLE = 2e-5


def name_mistake(item: Item, output: str, found: Sequence[tuple[Problem, Answers]], *, single: bool) -> Mistake | None:
    """The mistake that gives these answers, or None.

    Args:
        item: the function that was called.
        output: which of its outputs is wrong.
        found: problems and the outputs on each.
        single: whether the answers are float32.
    """
    floor = item.properties[output].floor

    def explains(mistake: Mistake) -> bool:
        for problem, answers in found:
            changed = mistaken(item, mistake, problem, answers)
            tolerance = max(SINGLE, 1e-6 * problem.scale) if single else EXACT
            if output not in changed or not _same(answers[output], changed[output], floor, tolerance):
                return False
        return bool(found)

    return next((entry for entry in MISTAKES if item.name in entry.items and explains(entry)), None)


def mistaken(item: Item, mistake: Mistake, problem: Problem, answers: Answers) -> Answers:
    """The outputs that a solution with the mistake would have changed, and what they would be."""
    if item.name == "em":
        return mistake.answer(problem, answers)
    with torch.no_grad():
        return _mistaken(item, mistake, problem)


def _mistaken(item: Item, mistake: Mistake, problem: Problem) -> Answers:
    g = given(states(problem))
    if item.name.endswith("_logpmf") or item.name.endswith("_logpdf"):
        return {"value": mistake.answer(**item.ask(problem))}
    if item.name == "complete_matrix":
        return {"value": mistake.answer(g, n_missing(problem))}
    value = mistake.answer(g)
    if item.name == "elbo":
        pieces = elbo_pieces(tables(problem), problem.Ezeta_NK, problem.Eb_NKD)
        pieces[mistake.answer.__dict__["piece"]] = value
        return {"value": torch.stack(list(pieces.values())).sum()}
    points = item.points(problem)
    if points is not None:
        if isinstance(value, mistakes_latents.Latents):
            value = mistakes_latents.as_conditional(value, g)
        try:
            return item.read(problem, log_densities(value, points))
        except Malformed:
            return {}
    return value if isinstance(value, dict) else {"value": value}


def _same(got: Tensor, expected: Tensor, floor: float, tolerance: float) -> bool:
    equal = (got == expected) | (got.isnan() & expected.isnan())
    close = (got - expected).abs() <= tolerance * expected.abs().clamp_min(floor)
    return bool((equal | close).all())
