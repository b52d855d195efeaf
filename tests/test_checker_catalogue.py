"""Every entry of the catalogue of mistakes: it is caught, and it is called by its name."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import zipmix
from zipmix import coursework
from zipmix.checker import Report
from zipmix.checker.catalogue import MISTAKES
from zipmix.checker.mistake import Given, Mistake, given
from zipmix.checker.mistakes_latents import Latents, as_conditional

FUNCTIONS = [(mistake, item) for mistake in MISTAKES for item in mistake.items if item != "em"]
IDS = [f"{item}-{mistake.name}" for mistake, item in FUNCTIONS]


def solution(mistake: Mistake, item: str) -> Callable[..., Any]:
    """A function of a solution that is right but for the mistake."""
    right = getattr(coursework, item)
    arguments: tuple[str, ...] = right.__code__.co_varnames[: right.__code__.co_argcount]

    def unpacked(values: dict[str, Any]) -> Given:
        N, K = len(values.get("data", {}).get("X_ND", torch.zeros(1))), len(values["params_state"]["pi_K"])
        D = values["params_state"]["omega_KD"].shape[1]
        absent = {
            "data": {"X_ND": torch.zeros(N, D)},
            "belief_state": {"Ezeta_NK": torch.zeros(N, K), "Eb_NKD": torch.zeros(N, K, D)},
            "latent_state": {"z_N": torch.zeros(N, dtype=torch.int64), "b_ND": torch.zeros(N, D)},
            "hyperparams": {"alpha_K": torch.ones(K), **dict.fromkeys(("a0", "b0", "e0", "f0"), torch.ones(()))},
        }
        return given(absent | values)

    def wrong(**values: Any) -> Any:
        if item.endswith(("logpmf", "logpdf")):
            return mistake.answer(**values)
        if item == "complete_matrix":
            observed = values["data"]["Y_MD_obs"]
            missing = values["params_state"]["lambd_KD"].shape[1] - observed.shape[1]
            X_ND = torch.cat([torch.zeros(len(observed), missing), observed], 1)
            return mistake.answer(unpacked(values | {"data": {"X_ND": X_ND}}), missing)
        if item == "compute_affinity_matrix":
            g = unpacked(values)._replace(X=values["belief_state"]["Ezeta_NK"])
            return mistake.answer(g)
        g = unpacked(values)
        changed = mistake.answer(g)
        if item == "elbo":
            piece = mistake.answer.__dict__["piece"]
            return torch.stack(
                [
                    changed if name == piece else value
                    for name, value in coursework.elbo_pieces(**values)._asdict().items()
                ]
            ).sum()
        if isinstance(changed, Latents) and item != "e_step":
            return as_conditional(changed, g)
        return right(**values) | changed if isinstance(changed, dict) else changed

    # The checker calls by name and looks at the names of the arguments.
    text = f"def function({', '.join(arguments)}): return wrong({', '.join(f'{a}={a}' for a in arguments)})"
    home: dict[str, Any] = {"wrong": wrong}
    exec(text, home)
    return home["function"]  # type: ignore[no-any-return]


def names(report: Report, item: str) -> set[str]:
    return {finding.mistake for finding in report[item].findings if finding.mistake}


def test_the_catalogue_has_thirty_mistakes_with_names_of_their_own() -> None:
    assert len(MISTAKES) >= 30
    assert max(Counter(mistake.name for mistake in MISTAKES).values()) == 1


@pytest.mark.parametrize(("mistake", "item"), FUNCTIONS, ids=IDS)
def test_a_mistake_is_caught_and_named(mistake: Mistake, item: str) -> None:
    report = zipmix.check(quick=True, **{item: solution(mistake, item)})
    assert not report.passed
    assert names(report, item) == {mistake.name}
