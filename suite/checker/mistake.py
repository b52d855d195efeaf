"""What a known mistake is: the right formula with one change; the right one stands beside it in a comment.

A mistake computes what a solution that makes it would return. Where a solution's answers equal those on every problem,
the report names it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Given(NamedTuple):
    """The coursework's dictionaries unpacked, and the expected statistics."""

    X: Tensor  # (N, D)
    pi: Tensor  # (K,)
    omega: Tensor  # (K, D)
    lam: Tensor  # (K, D)
    zeta: Tensor  # (N, K)
    Eb: Tensor  # (N, K, D)
    z: Tensor  # (N, K) one-hot
    b: Tensor  # (N, D)
    alpha: Tensor  # (K,)
    a: Tensor
    b0: Tensor
    e: Tensor
    f: Tensor


class Mistake(NamedTuple):
    """One named mistake."""

    name: str
    items: tuple[str, ...]  # functions in which it is made
    sentence: str
    answer: Callable[..., Any]  # what a solution that makes it returns, as changed outputs, a value or a distribution


# Every mistake of the modules imported so far; catalogue.py imports them all.
ENTERED: list[Mistake] = []


def mistake(items: str, sentence: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function into the catalogue under its own name.

    Args:
        items: the functions of a solution in which the mistake is made, with spaces between.
        sentence: what the mistake is.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        ENTERED.append(Mistake(function.__name__, tuple(items.split()), sentence, function))
        return function

    return enter


def given(states: dict[str, Any]) -> Given:
    """Unpacks the dictionaries of problems.states."""
    params, beliefs, hyper, latent = (
        states[name] for name in ("params_state", "belief_state", "hyperparams", "latent_state")
    )
    return Given(
        X=states["data"]["X_ND"],
        pi=params["pi_K"],
        omega=params["omega_KD"],
        lam=params["lambd_KD"],
        zeta=beliefs["Ezeta_NK"],
        Eb=beliefs["Eb_NKD"],
        z=torch.nn.functional.one_hot(latent["z_N"], len(params["pi_K"])).double(),
        b=latent["b_ND"],
        alpha=hyper["alpha_K"],
        a=hyper["a0"],
        b0=hyper["b0"],
        e=hyper["e0"],
        f=hyper["f0"],
    )
