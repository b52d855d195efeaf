"""What a check of one function is made of: its arguments, how its answer is read, and what must hold of it."""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipmix.checker.problems import Problem

Answers = dict[str, Tensor]


class Malformed(ValueError):
    """A function returned a value that does not have the required form."""


class Property(NamedTuple):
    """What must hold of one output."""

    words: str
    formula: str
    axes: int  # how many of the leading axes are the output's own, for the index of the worst entry
    floor: float = 1e-3  # values smaller than this are compared on its scale
    tolerance: float = 1e-4  # largest relative difference that rounding in float32 may make


class Item(NamedTuple):
    """One function that is looked for."""

    name: str
    question: str  # of the coursework
    arguments: tuple[str, ...]
    optional: tuple[str, ...]
    properties: dict[str, Property]  # by output
    fits: Callable[[Problem], bool]  # whether a problem of the spread suits it
    ask: Callable[[Problem], dict[str, Any]]  # arguments by name
    points: Callable[[Problem], list[Tensor] | None]  # where a returned distribution is evaluated
    read: Callable[[Problem, Any], Answers]  # raises Malformed
    right: Callable[[Problem, Answers], Answers]  # what the outputs must be, given them all


STEP = ("data", "belief_state", "params_state", "hyperparams")
ELBO = ("data", "params_state", "belief_state", "hyperparams")
CONDITIONAL = ("data", "latent_state", "params_state", "hyperparams")


def states(problem: Problem) -> dict[str, Any]:
    """The coursework's dictionaries of a problem."""
    prior, theta = problem.prior, problem.theta
    return {
        "data": {"X_ND": problem.X_ND},
        "hyperparams": {f"{name}0": getattr(prior, name) for name in "abef"} | {"alpha_K": prior.alpha},
        "params_state": {"pi_K": theta.pi, "omega_KD": theta.omega, "lambd_KD": theta.lam},
        "belief_state": {"Ezeta_NK": problem.Ezeta_NK, "Eb_NKD": problem.Eb_NKD},
        "latent_state": {"z_N": problem.z_N, "b_ND": problem.b_ND},
    }


def some(names: Iterable[str]) -> Callable[[Problem], dict[str, Any]]:
    """What asks with some of the coursework's dictionaries."""
    return lambda problem: {name: value for name, value in states(problem).items() if name in names}


def always(right: Callable[[Problem], Answers]) -> Callable[[Problem, Answers], Answers]:
    """What must hold of any answer; computed once for each problem."""
    once = lru_cache(maxsize=128)(right)
    return lambda problem, _: once(problem)


def no_points(problem: Problem) -> None:
    """A function that returns values, not a distribution."""
    return None


def tensor(value: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """A returned value as a float64 tensor of a shape; one number stands for a tensor without axes.

    Raises:
        Malformed: no numbers, or another shape.
    """
    try:
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise Malformed(f"returns {name} as {type(value).__name__}, not as a tensor") from None
    if shape == () and found.numel() == 1:
        found = found.reshape(())
    if found.shape != shape:
        raise Malformed(f"returns {name} of shape {tuple(found.shape)} where {shape} is required")
    return found


def read_dictionary(shapes: Callable[[Problem], dict[str, tuple[int, ...]]]) -> Callable[[Problem, Any], Answers]:
    """What reads a dictionary of tensors."""

    def read(problem: Problem, value: Any) -> Answers:
        required = shapes(problem)
        if not isinstance(value, dict):
            raise Malformed(f"returns {kind_of(value)} where a dictionary with {', '.join(required)} is required")
        for name in required:
            if name not in value:
                raise Malformed(f"returns a dictionary without {name}; it has {', '.join(value) or 'no keys'}")
        return {name: tensor(value[name], shape, name) for name, shape in required.items()}

    return read


def read_value(shape: Callable[[Problem], tuple[int, ...]]) -> Callable[[Problem, Any], Answers]:
    """What reads one tensor, as the output "value"."""

    def read(problem: Problem, value: Any) -> Answers:
        if isinstance(value, (dict, str)) or value is None:
            raise Malformed(f"returns {kind_of(value)} where a tensor is required")
        return {"value": tensor(value, shape(problem), "a tensor")}

    return read


def kind_of(value: Any) -> str:
    """A returned value, described."""
    return {"NoneType": "None", "dict": "a dictionary", "list": "several values", "str": "text"}.get(
        type(value).__name__, "a tensor" if isinstance(value, Tensor) else f"a value of type {type(value).__name__}"
    )
