"""The parameters Theta = (pi, omega, lambda) of the ZIP mixture and the prior they are drawn from.

Any batch axes stand in front: (restart, K, D), (chain, draw, K, D). Notation: models/zip_mixture.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipmix.counts.checks import InputError, check_whole


class Parameters(NamedTuple):
    """A point Theta of the parameter space, or a batch of points; all batch axes in front agree."""

    pi: Tensor  # (..., K)     weights of the components, on the simplex
    omega: Tensor  # (..., K, D)  P(b = 1): share of the Poisson part, in [0, 1]
    lam: Tensor  # (..., K, D)  Poisson rate, >= 0

    def map(self, function: Callable[[Tensor], Tensor]) -> "Parameters":
        """The function applied to pi, omega and lam, one after the other."""
        return Parameters(function(self.pi), function(self.omega), function(self.lam))

    def at(self, index: Any) -> "Parameters":
        """The points at an index (a number, a slice, a tensor of numbers or of booleans) of the first batch axis."""
        return self.map(lambda value: value[index])

    def flat(self, n_axes: int) -> "Parameters":
        """A batch with its first n_axes axes, the batch axes, made one: flat(2) of draws is (chain * draw, ...)."""
        return self.map(lambda value: value.reshape(-1, *value.shape[n_axes:]))

    def thin(self, n: int) -> "Parameters":
        """n evenly spaced points of a batch (S, ...), the first and the last among them; all where S <= n."""
        n_points = len(self.pi)
        return self.at(torch.linspace(0, n_points - 1, min(n, n_points)).round().to(torch.int64))

    @classmethod
    def stack(cls, points: "Sequence[Parameters]", axis: int = 0) -> "Parameters":
        """Points of one shape side by side along a new batch axis."""
        return cls(*(torch.stack(fields, axis) for fields in zip(*points, strict=True)))

    @classmethod
    def concatenate(cls, batches: "Sequence[Parameters]") -> "Parameters":
        """Batches one after the other along the first batch axis."""
        return cls(*(torch.cat(fields) for fields in zip(*batches, strict=True)))


class Prior(NamedTuple):
    """Hyperparameters of equations (1)-(3).

    f is a rate: lambda has prior mean e / f. The flat prior `FLAT` turns the MAP into maximum likelihood.
    """

    alpha: float | Tensor = 1.5  # scalar or (K,)  Dirichlet concentration of pi, > 0
    a: float | Tensor = 2.0  # scalar  Beta(a, b) prior of omega: a counts b_id = 1, > 0
    b: float | Tensor = 2.0  # scalar  Beta(a, b) prior of omega: b counts b_id = 0, > 0
    e: float | Tensor = 2.0  # scalar  shape of the Gamma prior of lambda, > 0
    f: float | Tensor = 0.5  # scalar  rate of the Gamma prior of lambda, > 0 (0 only with e = 1: flat)


FLAT = Prior(alpha=1.0, a=1.0, b=1.0, e=1.0, f=0.0)


def check_prior(prior: Prior, n_components: int) -> Prior:
    """The prior as float64 tensors: alpha (K,), the others 0-dimensional.

    Args:
        prior: hyperparameters, numbers or tensors.
        n_components: K >= 1.
    Returns:
        The same prior, every field a tensor.
    Raises:
        InputError: a field is not a number, not finite, not > 0, or of a wrong shape.
    """
    if not isinstance(prior, Prior):
        raise InputError(f"prior must be a zipmix.Prior, got {type(prior).__name__}; write zipmix.Prior(alpha=1.5).")
    fields = {name: _as_float64(value, f"prior.{name}") for name, value in prior._asdict().items()}
    for name, value in fields.items():
        if name != "alpha" and value.ndim:
            raise InputError(f"prior.{name} must be one number, got an array of shape {tuple(value.shape)}.")
        flat_rate = name == "f" and fields["e"] == 1.0 and bool(value == 0.0)
        if not (bool((value > 0).all()) or flat_rate) or not bool(value.isfinite().all()):
            also = " (0 only with e = 1, the flat prior)" if name == "f" else ""
            raise InputError(f"prior.{name} must be finite and greater than 0{also}, got {_show(value)}.")
    alpha = fields["alpha"]
    if alpha.shape not in ((), (1,), (n_components,)):
        raise InputError(
            f"prior.alpha must be one number or one per component ({n_components}), got shape {tuple(alpha.shape)}."
        )
    return Prior(**(fields | {"alpha": alpha.expand(n_components)}))


def require_mode(prior: Prior, method: str) -> None:
    """Raises if the posterior is unbounded under the prior, so that no MAP exists.

    Raises:
        InputError: alpha, a, b or e is below 1.
    """
    for name in ("alpha", "a", "b", "e"):
        value = torch.as_tensor(getattr(prior, name))
        if bool((value < 1).any()):
            raise InputError(
                f"prior.{name} is {_show(value)}, and below 1 the posterior is unbounded: there is no MAP for "
                f"method {method!r} to find. Use {name} >= 1, or a method that needs no mode: 'gibbs' or 'cavi'."
            )


def require_proper(prior: Prior, method: str) -> None:
    """Raises if the prior is flat where a method needs a proper prior.

    Raises:
        InputError: f is 0.
    """
    if bool(torch.as_tensor(prior.f) == 0):
        raise InputError(
            f"prior.f is 0, a flat prior on lambda that is no distribution: method {method!r} needs f > 0. "
            "Only 'em' (maximum likelihood) takes the flat prior."
        )


def exchangeable(prior: Prior) -> bool:
    """Whether all components have the same prior, so that the posterior is the same under every relabelling."""
    alpha = torch.as_tensor(prior.alpha)
    return bool((alpha == alpha.flatten()[0]).all())


def check_components(n_components: int) -> int:
    """K as an int.

    Raises:
        InputError: not a whole number >= 1.
    """
    return check_whole(n_components, "n_components", at_least=1)


def check_parameters(
    parameters: Parameters, n_components: int, n_features: int, *, name: str = "parameters"
) -> Parameters:
    """Parameters as float64 tensors of agreeing shapes, on their support.

    Args:
        parameters: pi (..., K), omega (..., K, D), lam (..., K, D).
        n_components: K.
        n_features: D.
        name: of the argument, for messages.
    Raises:
        InputError: a shape or a value that is not allowed.
    """
    if not isinstance(parameters, Parameters):
        raise InputError(f"{name} must be a zipmix.Parameters(pi, omega, lam), got {type(parameters).__name__}.")
    pi, omega, lam = (_as_float64(value, f"{name}.{field}") for field, value in parameters._asdict().items())
    batch = pi.shape[:-1]
    for field, value, shape in (
        ("pi", pi, (*batch, n_components)),
        ("omega", omega, (*batch, n_components, n_features)),
        ("lam", lam, (*batch, n_components, n_features)),
    ):
        if value.shape != shape:
            raise InputError(f"{name}.{field} must have shape {tuple(shape)}, got {tuple(value.shape)}.")
    if not bool((pi >= 0).all() & ((pi.sum(-1) - 1).abs() < 1e-6).all()):
        raise InputError(f"{name}.pi must be >= 0 and sum to 1, got the sum {_show(pi.sum(-1))}.")
    if not bool(((omega >= 0) & (omega <= 1)).all()):
        raise InputError(f"{name}.omega must lie in [0, 1], got {_show(omega)}.")
    if not bool(((lam >= 0) & lam.isfinite()).all()):
        raise InputError(f"{name}.lam must be finite and >= 0, got {_show(lam)}.")
    return Parameters(pi, omega, lam)


def _as_float64(value: object, name: str) -> Tensor:
    try:
        return torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be a number or an array of numbers, got {value!r}.") from None


def _show(value: Tensor) -> str:
    low, high = value.min().item(), value.max().item()
    if math.isnan(low):
        return "NaN"
    return f"{low:g}" if low == high else f"values from {low:g} to {high:g}"
