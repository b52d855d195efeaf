"""Solutions as students write them: right.py with one line changed, the submitted notebook's mistakes, right variants.

The changed lines are written without the catalogue: that it knows them by name is what is tested.
"""

import types
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import pytest

import zipmix
from zipmix import coursework
from zipmix.models import conjugate, kernel

SOLUTIONS = Path(__file__).parent / "solutions"
RIGHT = (SOLUTIONS / "right.py").read_text()

# Missing columns filled with zeros, and the responsibilities from all columns.
ZERO_FILLED = (
    """    observed = {name: params_state[name][:, missing:] for name in ("omega_KD", "lambd_KD")}
    logits = log_joint({"X_ND": Y}, {"pi_K": params_state["pi_K"], **observed})
""",
    """    Y = torch.cat([torch.zeros(len(Y), missing).to(Y), Y], dim=1)
    logits = log_joint({"X_ND": Y}, params_state)
""",
)

OMEGA = "    omega = (m + a0 - 1) / (n[:, None] + a0 + b0 - 2)\n"
LAMBDA = "    lambd = (s + e0 - 1) / (m + f0)\n"

# An update in place: E[b] and with it m, computed again in the middle of the M-step.
B_AGAIN = """    w, rate = params_state["omega_KD"], params_state["lambd_KD"]
    q = {w} * torch.exp(-{rate})
    m = (Ezeta[:, :, None] * torch.where(X[:, None, :] > 0, 1.0, q / (q + 1 - {w}))).sum(0)
"""

# function, the right text, the wrong text, the name of the mistake
EDITS = [
    ("poisson_logpmf", " - torch.lgamma(x + 1)", "", "log_factorial_dropped_in_poisson"),
    ("poisson_logpmf", "- rate -", "-", "rate_not_subtracted"),
    ("dirichlet_logpdf", "log_norm + ", "", "dirichlet_normaliser_dropped"),
    ("dirichlet_logpdf", "(alpha - 1)", "alpha", "dirichlet_exponent_alpha"),
    ("gamma_logpdf", "- rate * x", "- x / rate", None),
    ("gamma_logpdf", "concentration * torch.log(rate) - ", "-", "gamma_log_rate_dropped"),
    ("beta_logpdf", "log_norm + ", "", "beta_normaliser_dropped"),
    ("conditional_pi", '["alpha_K"] + counts', '["alpha_K"] + counts - 1', "dirichlet_minus_one"),
    (
        "conditional_omega",
        'Beta(hyperparams["a0"] + ones, hyperparams["b0"] + zeros)',
        'Beta(hyperparams["b0"] + zeros, hyperparams["a0"] + ones)',
        "omega_and_gate_swapped_in_conditional",
    ),
    ("conditional_lambda", '"f0"] + cells', '"f0"] + zeta.sum(0)[:, None]', "exposure_n_k"),
    ("conditional_lambda", '["f0"] + cells)', '["f0"] ** -1 + cells)', "prior_rate_read_as_scale"),
    (
        "conditional_b",
        'torch.where(data["X_ND"] == 0, zero, torch.ones_like(zero))',
        "zero",
        "zero_not_told_from_positive",
    ),
    ("conditional_b", "w * torch.exp(-rate) / (w *", "w * w * torch.exp(-rate) / (w * w *", "omega_counted_twice"),
    ("conditional_z", "torch.log(w) + ", "", None),
    (
        "conditional_z_marginal",
        "log_joint(data, params_state)",
        'log_joint(data, params_state) - torch.log(params_state["pi_K"])',
        "pi_left_out",
    ),
    ("e_step", "dim=1", "dim=0", "softmax_over_rows"),
    (
        "e_step",
        "zero = w * torch.exp(-rate) / (w * torch.exp(-rate) + 1 - w)",
        "zero = w.expand(Ezeta.shape + w.shape[1:])",
        "b_replaced_by_omega",
    ),
    (
        "e_step",
        'torch.where(data["X_ND"][:, None, :] > 0, torch.ones_like(zero), zero)',
        "zero.expand(Ezeta.shape + w.shape[1:])",
        "zero_not_told_from_positive",
    ),
    (
        "e_step",
        "torch.exp(logits - torch.logsumexp(logits, dim=1, keepdim=True))",
        "torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)",
        "product_underflows",
    ),
    (
        "e_step",
        'w, rate = params_state["omega_KD"], params_state["lambd_KD"]',
        'w, rate = 1 - params_state["omega_KD"], params_state["lambd_KD"]',
        "omega_and_gate_swapped_in_b",
    ),
    ("e_step", '{"Ezeta_NK": Ezeta, "Eb_NKD": Eb}', "belief_state", "stale_beliefs_from_e_step"),
    ("m_step", "(s + e0 - 1)", "(s + e0)", "gamma_mean_for_mode"),
    ("m_step", "(m + a0 - 1) / (n[:, None] + a0 + b0 - 2)", "(m + a0) / (n[:, None] + a0 + b0)", "beta_mean_for_mode"),
    ("m_step", "/ (m + f0)", "/ (n[:, None] + f0)", "lambda_divided_by_n_k"),
    ("m_step", "/ (m + f0)", "/ (len(X) + f0)", "lambda_divided_by_N"),
    ("m_step", "/ (m + f0)", "/ (m.sum(0) + f0)", "lambda_divided_by_all_components"),
    ("m_step", "/ (m + f0)", "/ (m + 1 / f0)", "rate_read_as_scale"),
    ("m_step", "(s + e0 - 1)", "s", "shape_minus_one_dropped"),
    ("m_step", "(m + a0 - 1)", "m", "a_minus_one_dropped"),
    ("m_step", "(m + a0 - 1)", "(n[:, None] - m + b0 - 1)", "omega_and_gate_swapped"),
    ("m_step", ' + hyperparams["alpha_K"] - 1', "", "alpha_minus_one_dropped"),
    ("m_step", "pi = pi / pi.sum()", "pass", "pi_not_normalised"),
    ("m_step", "(m + f0)", "(n[:, None] * omega + f0)", "new_omega_for_expected_b"),
    ("elbo_likelihood", "+ structural.sum()", "", "delta_0_dropped"),
    (
        "elbo_likelihood",
        'poisson_logpmf(X, params_state["lambd_KD"])',
        '(poisson_logpmf(X, params_state["lambd_KD"]) + torch.lgamma(X + 1))',
        "log_factorial_dropped",
    ),
    ("elbo_latents", "Ezeta[:, :, None] * (Eb", "(Eb", "log_omega_not_weighted"),
    ("elbo_latents", "log_z + log_b", "log_b", "log_pi_missing"),
    ("elbo_entropy", "-torch.xlogy(Ezeta, Ezeta)", "torch.xlogy(Ezeta, Ezeta)", "entropy_of_z_sign"),
    ("elbo_entropy", "-(Ezeta[:, :, None] *", "-(", "entropy_of_b_not_weighted"),
    ("elbo_entropy", "-(Ezeta[:, :, None] *", "(Ezeta[:, :, None] *", "entropy_of_b_sign"),
    ("elbo_entropy", "torch.xlogy(Ezeta, Ezeta)", "(Ezeta * torch.log(Ezeta))", "zero_log_zero"),
    ("elbo_entropy", "entropy_z + entropy_b", "entropy_z", "entropy_of_b_missing"),
    (
        "elbo_prior",
        "log_pi + log_omega + log_lambd",
        'data["X_ND"].shape[0] * (log_pi + log_omega + log_lambd)',
        "prior_counted_N_times",
    ),
    ("elbo_prior", "log_pi + log_omega + log_lambd", "log_pi + log_lambd", "prior_of_omega_missing"),
    ("elbo", "elbo_entropy, elbo_prior", "elbo_entropy", "prior_missing"),
    ("elbo", "elbo_entropy, ", "", None),
    (
        "em",
        "        break\n    belief_state = e_step(data, belief_state, params_state, hyperparams)",
        "        break\n",
        "beliefs_one_step_old",
    ),
    (
        "em",
        "        if verbose:",
        "        assert i == 0 or elbo_vals[-1] >= elbo_vals[-2]\n        if verbose:",
        "falls_by_rounding_refused",
    ),
    (
        "compute_affinity_matrix",
        'belief_state["Ezeta_NK"]',
        'torch.eye(belief_state["Ezeta_NK"].shape[1]).double()[belief_state["Ezeta_NK"].argmax(1)]',
        "affinity_from_hard_labels",
    ),
    ("complete_matrix", ' * params_state["lambd_KD"]\n', "\n", None),
    ("complete_matrix", 'params_state["omega_KD"] * params_state', "params_state", "omega_left_out_of_mean"),
    (
        "complete_matrix",
        "torch.softmax(logits, dim=1)",
        'params_state["pi_K"].expand(len(Y), -1)',
        "weights_for_responsibilities",
    ),
    ("complete_matrix", "missing:] for", ": Y.shape[1]] for", "columns_misaligned"),
    ("complete_matrix", *ZERO_FILLED, "missing_read_as_zeros"),
    ("m_step", LAMBDA, B_AGAIN.format(w="omega", rate="rate") + LAMBDA, "new_omega_in_lambda"),
    (
        "m_step",
        OMEGA + LAMBDA,
        LAMBDA + B_AGAIN.format(w="w", rate="lambd") + OMEGA,
        "new_lambda_in_omega",
    ),
    ("elbo_entropy", "entropy_z + entropy_b", "entropy_b", "entropy_of_z_missing"),
    (
        "em",
        "return params_state, belief_state, elbo_vals",
        "return initialize_em(data, hyperparams, seed)[0], belief_state, elbo_vals",
        "first_parameters_returned",
    ),
    ("em", "belief_state, elbo_vals\n", "belief_state, [-value for value in elbo_vals]\n", "elbo_negated"),
]

# The mistakes that the catalogue must know by name, in the words of those who make them.
MUST_BE_NAMED = {
    "Gamma mean for mode": "gamma_mean_for_mode",
    "Beta mean for mode": "beta_mean_for_mode",
    "lambda divided by n_k": "lambda_divided_by_n_k",
    "lambda divided by N": "lambda_divided_by_N",
    "lambda divided by the sum over all components": "lambda_divided_by_all_components",
    "omega and gate swapped, in the M-step": "omega_and_gate_swapped",
    "omega and gate swapped, in the E-step": "omega_and_gate_swapped_in_b",
    "e_0 - 1 dropped": "shape_minus_one_dropped",
    "a_0 - 1 dropped": "a_minus_one_dropped",
    "rate read as scale": "rate_read_as_scale",
    "alpha - 1 dropped": "alpha_minus_one_dropped",
    "pi not normalised": "pi_not_normalised",
    "x = 0 not told from x > 0 in E[b]": "zero_not_told_from_positive",
    "b's posterior replaced by omega": "b_replaced_by_omega",
    "log x! dropped": "log_factorial_dropped",
    "delta_0 dropped; the ELBO at the first beliefs is finite": "delta_0_dropped",
    "entropy of z with the wrong sign": "entropy_of_z_sign",
    "entropy of b with the wrong sign": "entropy_of_b_sign",
    "entropy of z missing": "entropy_of_z_missing",
    "entropy of b missing": "entropy_of_b_missing",
    "entropy of b not weighted by E[zeta]": "entropy_of_b_not_weighted",
    "prior term missing": "prior_missing",
    "prior term counted N times": "prior_counted_N_times",
    "softmax over the wrong axis": "softmax_over_rows",
    "probabilities multiplied outside log space": "product_underflows",
    "the new omega used in the update of lambda": "new_omega_in_lambda",
    "the new lambda used in the update of omega": "new_lambda_in_omega",
    "stale beliefs returned by the E-step": "stale_beliefs_from_e_step",
    "stale beliefs returned by EM": "beliefs_one_step_old",
    "affinity from hard labels": "affinity_from_hard_labels",
    "missing cells read as zeros": "missing_read_as_zeros",
    "omega^b twice": "omega_counted_twice",
    "the ELBO is asserted never to fall, in float32": "falls_by_rounding_refused",
}

# A solution as it was handed in: completion from zeros, omega^b twice, the assertion, stale beliefs, no delta_0.
SUBMITTED = (
    ("complete_matrix", *ZERO_FILLED, None),
    (
        "complete_matrix",
        'params_state["omega_KD"] * params_state["lambd_KD"]',
        'e_step({"X_ND": torch.zeros_like(Y)}, None, params_state, None)["Eb_NKD"][0] * params_state["lambd_KD"]',
        "missing_read_as_zeros_with_b",
    ),
    ("conditional_b", "w * torch.exp(-rate) / (w *", "w * w * torch.exp(-rate) / (w * w *", "omega_counted_twice"),
    (
        "em",
        "        if verbose:",
        "        assert i == 0 or elbo_vals[-1] >= elbo_vals[-2]\n        if verbose:",
        "falls_by_rounding_refused",
    ),
    (
        "em",
        "        break\n    belief_state = e_step(data, belief_state, params_state, hyperparams)",
        "        break\n",
        "beliefs_one_step_old",
    ),
    ("elbo_likelihood", "+ structural.sum()", "", "delta_0_dropped"),
)


def body(function: str, text: str = RIGHT) -> tuple[int, int]:
    """Where a function of a solution begins and ends."""
    start = text.index(f"def {function}(")
    end = text.find("\ndef ", start + 1)
    return start, len(text) if end < 0 else end


def changed(function: str, *edits: tuple[str, str], text: str = RIGHT) -> str:
    """A solution with texts in one function replaced."""
    start, end = body(function, text)
    middle = text[start:end]
    for old, new in edits:
        assert middle.count(old) >= 1, f"{old!r} is not in {function}"
        middle = middle.replace(old, new)
    return text[:start] + middle + text[end:]


def check_one(text: str, function: str) -> zipmix.Report:
    """Checks one function of a solution."""
    module = types.ModuleType("solution")
    exec(compile(text, "solution.py", "exec"), module.__dict__)
    return zipmix.check(quick=True, **{function: vars(module)[function]})


@lru_cache
def report_of(number: int) -> zipmix.Report:
    """The report on right.py with one of the EDITS made."""
    function, old, new, _ = EDITS[number]
    return check_one(changed(function, (old, new)), function)


def named(report: zipmix.Report) -> set[str | None]:
    return {finding.mistake for item in report.items.values() for finding in item.findings}


@pytest.mark.parametrize("number", range(len(EDITS)), ids=[f"{e[0]}-{e[3]}" for e in EDITS])
def test_a_changed_line_is_caught_and_named(number: int) -> None:
    report = report_of(number)
    assert not report.passed
    assert named(report) == {EDITS[number][3]}


def test_at_least_thirty_mutants_are_caught_and_twenty_five_named_right() -> None:
    reports = [(report_of(number), name) for number, (*_, name) in enumerate(EDITS)]
    assert len({name for report, name in reports if not report.passed}) >= 30
    right_names = {name for report, name in reports if named(report) == {name} and name}
    assert len(right_names) >= 25
    assert set(MUST_BE_NAMED.values()) <= right_names


def test_the_submitted_solutions_mistakes_are_all_named(tmp_path: Path) -> None:
    text = RIGHT
    for function, old, new, _ in SUBMITTED:
        text = changed(function, (old, new), text=text)
    file = tmp_path / "submitted.py"
    file.write_text(text)
    report = zipmix.check(file)
    for function in {function for function, *_ in SUBMITTED}:
        expected = sorted(name for other, _, _, name in SUBMITTED if other == function and name)
        # Each is told once, whatever number of outputs shows it.
        assert sorted(str(finding.mistake) for finding in report[function].findings) == expected, function
    assert {name for name, item in report.items.items() if not item.passed} == {entry[0] for entry in SUBMITTED}


def functions_with_two_edits() -> list[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Two wrong lines in one function that do not overlap."""
    pairs = []
    for (function, old, new, _), (other, old2, new2, _) in combinations(EDITS, 2):
        if function == other and old not in old2 and old2 not in old and RIGHT.count(old2) >= 1:
            text = RIGHT[slice(*body(function))].replace(old, new)
            if old2 in text:
                pairs.append((function, (old, new), (old2, new2)))
    return pairs


@pytest.mark.parametrize(
    ("function", "first", "second"),
    functions_with_two_edits(),
    ids=lambda value: value if isinstance(value, str) else value[1][:20].strip() or "nothing",
)
def test_two_mistakes_in_one_function_are_still_wrong(
    function: str, first: tuple[str, str], second: tuple[str, str]
) -> None:
    assert not check_one(changed(function, first, second), function).passed


# Right ways to write a function: what differs from right.py.
VARIANTS = {
    "m_step with loops": """
def m_step(data, belief_state, params_state, hyperparams):
    X, Ezeta, Eb = data["X_ND"], belief_state["Ezeta_NK"], belief_state["Eb_NKD"]
    (N, D), K = X.shape, Ezeta.shape[1]
    a0, b0, e0, f0, alpha = (hyperparams[name] for name in ("a0", "b0", "e0", "f0", "alpha_K"))
    pi, omega, lambd = torch.zeros(K), torch.zeros(K, D), torch.zeros(K, D)
    for k in range(K):
        n = sum(Ezeta[i, k] for i in range(N))
        pi[k] = (n + alpha[k] - 1) / (N + alpha.sum() - K)
        for d in range(D):
            m = sum(Ezeta[i, k] * Eb[i, k, d] for i in range(N))
            s = sum(Ezeta[i, k] * X[i, d] for i in range(N))
            omega[k, d] = (m + a0 - 1) / (n + a0 + b0 - 2)
            lambd[k, d] = (s + e0 - 1) / (m + f0)
    return {"pi_K": pi, "omega_KD": omega, "lambd_KD": lambd}
""",
    "m_step in place": """
def m_step(data, belief_state, params_state, hyperparams):
    X, Ezeta, Eb = data["X_ND"], belief_state["Ezeta_NK"], belief_state["Eb_NKD"]
    m = torch.einsum("nk,nkd->kd", Ezeta, Eb)
    params_state["lambd_KD"][:] = (Ezeta.T @ X + hyperparams["e0"] - 1) / (m + hyperparams["f0"])
    total = Ezeta.sum(0)[:, None] + hyperparams["a0"] + hyperparams["b0"] - 2
    params_state["omega_KD"][:] = (m + hyperparams["a0"] - 1) / total
    params_state["pi_K"][:] = Ezeta.sum(0) + hyperparams["alpha_K"] - 1
    params_state["pi_K"] /= params_state["pi_K"].sum()
    return params_state
""",
    "m_step in float32": """
def m_step(data, belief_state, params_state, hyperparams):
    X, Ezeta, Eb = data["X_ND"].float(), belief_state["Ezeta_NK"].float(), belief_state["Eb_NKD"].float()
    a0, b0, e0, f0, alpha = (hyperparams[name].float() for name in ("a0", "b0", "e0", "f0", "alpha_K"))
    m = (Ezeta[..., None] * Eb).sum(0)
    pi = (Ezeta.sum(0) + alpha - 1) / (len(X) + alpha.sum() - len(alpha))
    omega = (m + a0 - 1) / (Ezeta.sum(0)[:, None] + a0 + b0 - 2)
    return {"pi_K": pi, "omega_KD": omega, "lambd_KD": (Ezeta.T @ X + e0 - 1) / (m + f0)}
""",
    "m_step that mixes in tensors of the default type": """
def m_step(data, belief_state, params_state, hyperparams):
    X, Ezeta, Eb = data["X_ND"], belief_state["Ezeta_NK"], belief_state["Eb_NKD"]
    m = Ezeta.T @ (X > 0).float() + ((X == 0).float()[:, None, :] * Eb * Ezeta[..., None]).sum(0)
    pi = Ezeta.T @ torch.ones(len(X)) + hyperparams["alpha_K"] - 1
    omega = (m + hyperparams["a0"] - 1) / (Ezeta.sum(0)[:, None] + hyperparams["a0"] + hyperparams["b0"] - 2)
    lambd = (Ezeta.T @ X + hyperparams["e0"] - 1) / (m + hyperparams["f0"])
    return {"pi_K": pi / pi.sum(), "omega_KD": omega, "lambd_KD": lambd}
""",
    "m_step as the mode of torch distributions": """
def m_step(data, belief_state, params_state, hyperparams):
    X, Ezeta, Eb = data["X_ND"], belief_state["Ezeta_NK"], belief_state["Eb_NKD"]
    m = torch.einsum("nk,nkd->kd", Ezeta, Eb)
    n = Ezeta.sum(0)
    omega = Beta(hyperparams["a0"] + m, hyperparams["b0"] + n[:, None] - m).mode
    lambd = Gamma(hyperparams["e0"] + Ezeta.T @ X, hyperparams["f0"] + m).mode
    return {"pi_K": Dirichlet(hyperparams["alpha_K"] + n).mode, "omega_KD": omega, "lambd_KD": lambd}
""",
    "m_step in NumPy": """
def m_step(data, belief_state, params_state, hyperparams):
    import numpy as np
    X, Ezeta, Eb = (t.numpy() for t in (data["X_ND"], belief_state["Ezeta_NK"], belief_state["Eb_NKD"]))
    a0, b0, e0, f0, alpha = (hyperparams[name].numpy() for name in ("a0", "b0", "e0", "f0", "alpha_K"))
    m = np.einsum("nk,nkd->kd", Ezeta, Eb)
    pi = Ezeta.sum(0) + alpha - 1
    omega = (m + a0 - 1) / (Ezeta.sum(0)[:, None] + a0 + b0 - 2)
    return {"pi_K": pi / pi.sum(), "omega_KD": omega, "lambd_KD": (Ezeta.T @ X + e0 - 1) / (m + f0)}
""",
    "e_step with loops": """
import math
def e_step(data, belief_state, params_state, hyperparams):
    X, pi, omega, lambd = data["X_ND"], *(params_state[n] for n in ("pi_K", "omega_KD", "lambd_KD"))
    (N, D), K = X.shape, len(pi)
    Ezeta, Eb = torch.empty(N, K, dtype=torch.float64), torch.empty(N, K, D, dtype=torch.float64)
    for i in range(N):
        for k in range(K):
            total = math.log(pi[k])
            for d in range(D):
                x, w, rate = X[i, d].item(), omega[k, d].item(), lambd[k, d].item()
                if x > 0:
                    total += math.log(w) + x * math.log(rate) - rate - math.lgamma(x + 1)
                    Eb[i, k, d] = 1
                else:
                    total += math.log(1 - w + w * math.exp(-rate))
                    Eb[i, k, d] = w * math.exp(-rate) / (1 - w + w * math.exp(-rate))
            Ezeta[i, k] = total
        Ezeta[i] = torch.softmax(Ezeta[i], 0)
    return {"Ezeta_NK": Ezeta, "Eb_NKD": Eb}
""",
    "e_step in place": """
def e_step(data, belief_state, params_state, hyperparams):
    belief_state["Ezeta_NK"].copy_(torch.softmax(log_joint(data, params_state), 1))
    w, rate = params_state["omega_KD"], params_state["lambd_KD"]
    belief_state["Eb_NKD"][:] = torch.sigmoid(torch.log(w) - rate - torch.log(1 - w))
    belief_state["Eb_NKD"][(data["X_ND"] > 0)[:, None, :].expand_as(belief_state["Eb_NKD"])] = 1
    return belief_state
""",
    "e_step in float32": """
def e_step(data, belief_state, params_state, hyperparams):
    single = {name: value.float() for name, value in params_state.items()}
    w, rate = single["omega_KD"], single["lambd_KD"]
    zero = w * torch.exp(-rate) / (w * torch.exp(-rate) + 1 - w)
    Eb = torch.where(data["X_ND"].float()[:, None, :] > 0, torch.ones_like(zero), zero)
    return {"Ezeta_NK": torch.softmax(log_joint({"X_ND": data["X_ND"].float()}, single), 1), "Eb_NKD": Eb}
""",
    "e_step with logaddexp and no log x!": """
def e_step(data, belief_state, params_state, hyperparams):
    X, w, rate = data["X_ND"], params_state["omega_KD"], params_state["lambd_KD"]
    one = torch.log(w) - rate
    zero = torch.logaddexp(one, torch.log1p(-w))
    P = (X > 0).to(X.dtype)
    logits = torch.log(params_state["pi_K"]) + X @ torch.log(rate).T + P @ (one - zero).T + zero.sum(1)
    Eb = torch.where(P[:, None, :] > 0, 1.0, torch.exp(one - zero))
    return {"Eb_NKD": Eb, "Ezeta_NK": (logits - logits.logsumexp(1, keepdim=True)).exp()}
""",
    "e_step with a small number in the logs": """
def e_step(data, belief_state, params_state, hyperparams):
    X, w, rate = data["X_ND"][:, None], params_state["omega_KD"], params_state["lambd_KD"]
    one = torch.log(w + 1e-12) + torch.distributions.Poisson(rate).log_prob(X)
    zero = torch.where(X == 0, torch.log(1 - w + 1e-12), torch.tensor(-1e30, dtype=one.dtype))
    cell = torch.logaddexp(one, zero)
    logits = torch.log(params_state["pi_K"]) + cell.sum(-1)
    return {"Ezeta_NK": logits.softmax(-1), "Eb_NKD": torch.exp(one - cell)}
""",
    "elbo in one expression": """
def elbo(data, params_state, belief_state, hyperparams):
    X, R, B = data["X_ND"][:, None], belief_state["Ezeta_NK"], belief_state["Eb_NKD"]
    pi, w, rate = (params_state[n] for n in ("pi_K", "omega_KD", "lambd_KD"))
    delta = torch.where(X > 0, -torch.inf, 0.0).expand_as(B)
    one = torch.log(w) + torch.distributions.Poisson(rate).log_prob(X)
    zero = torch.log1p(-w) + delta
    terms = B * one + torch.where(B < 1, (1 - B) * torch.where(B < 1, zero, 0.0), 0.0)
    terms = terms + torch.special.entr(B) + torch.special.entr(1 - B)
    R3 = R[..., None]
    inner = torch.where(R3 > 0, R3 * torch.where(R3 > 0, terms, 0.0), 0.0)
    prior = Dirichlet(hyperparams["alpha_K"], validate_args=False).log_prob(pi)
    prior = prior + Beta(hyperparams["a0"], hyperparams["b0"]).log_prob(w).sum()
    prior = prior + Gamma(hyperparams["e0"], hyperparams["f0"]).log_prob(rate).sum()
    return inner.sum() + (R * torch.log(pi)).sum() + torch.special.entr(R).sum() + prior
""",
    "elbo as a float": """
def elbo(data, params_state, belief_state, hyperparams):
    return sum(p(data, params_state, belief_state, hyperparams).item()
               for p in (elbo_prior, elbo_entropy, elbo_latents, elbo_likelihood))
""",
    "elbo in float32": """
def elbo(data, params_state, belief_state, hyperparams):
    states = [{n: v.float() for n, v in s.items()} for s in (data, params_state, belief_state, hyperparams)]
    return elbo_prior(*states) + elbo_entropy(*states) + elbo_latents(*states) + elbo_likelihood(*states)
""",
    "elbo_entropy with a small number in the logs": """
def elbo_entropy(data, params_state, belief_state, hyperparams):
    R, B = belief_state["Ezeta_NK"], belief_state["Eb_NKD"]
    inner = B * torch.log(B + 1e-12) + (1 - B) * torch.log(1 - B + 1e-12)
    return -(R * torch.log(R + 1e-12)).sum() - (R[..., None] * inner).sum()
""",
    "em that starts with an M-step": """
def em(data, hyperparams, max_iter=100, tol=1e-7, seed=617, verbose=True):
    params, beliefs = initialize_em(data, hyperparams, seed)
    beliefs = e_step(data, beliefs, params, hyperparams)
    values = [elbo(data, params, beliefs, hyperparams)]
    for _ in range(max_iter):
        params = m_step(data, beliefs, params, hyperparams)
        beliefs = e_step(data, beliefs, params, hyperparams)
        values.append(elbo(data, params, beliefs, hyperparams))
        if values[-1] - values[-2] < tol:
            break
    return params, beliefs, torch.stack(values)
""",
    "em that allows for rounding": """
def em(data, hyperparams, max_iter=100, tol=1e-7, seed=617, verbose=True):
    params, beliefs = initialize_em(data, hyperparams, seed)
    values = [-float("inf")]
    for _ in range(max_iter):
        beliefs = e_step(data, beliefs, params, hyperparams)
        values.append(elbo(data, params, beliefs, hyperparams).item())
        assert values[-1] >= values[-2] - 1e-5 * abs(values[-1])
        params = m_step(data, beliefs, params, hyperparams)
    return params, e_step(data, beliefs, params, hyperparams), values
""",
    "em without verbose and tol": """
def em(data, hyperparams, max_iter=100, seed=617):
    params, beliefs = initialize_em(data, hyperparams, seed=seed)
    values = []
    for _ in range(max_iter):
        beliefs = e_step(data, beliefs, params, hyperparams)
        values.append(elbo(data, params, beliefs, hyperparams))
        params = m_step(data, beliefs, params, hyperparams)
    return params, e_step(data, beliefs, params, hyperparams), values
""",
    "affinity with ones on the diagonal": """
def compute_affinity_matrix(params_state, belief_state):
    A = torch.einsum("ik,jk->ij", belief_state["Ezeta_NK"], belief_state["Ezeta_NK"])
    A.fill_diagonal_(1)
    return A
""",
    "affinity with loops": """
def compute_affinity_matrix(params_state, belief_state):
    R = belief_state["Ezeta_NK"]
    return torch.stack([torch.stack([(R[i] * R[j]).sum() for j in range(len(R))]) for i in range(len(R))])
""",
    "completion row by row": """
def complete_matrix(data, params_state):
    pi, w, rate = (params_state[n] for n in ("pi_K", "omega_KD", "lambd_KD"))
    Y = data["Y_MD_obs"]
    m = w.shape[1] - Y.shape[1]
    rows = []
    for y in Y:
        density = torch.distributions.Poisson(rate[:, m:]).log_prob(y).exp()
        logs = torch.where(y > 0, torch.log(w[:, m:]) + torch.distributions.Poisson(rate[:, m:]).log_prob(y),
                           torch.log(w[:, m:] * density + 1 - w[:, m:]))
        rows.append(torch.softmax(torch.log(pi) + logs.sum(1), 0) @ (w * rate)[:, :m])
    return torch.stack(rows)
""",
    "poisson_logpmf by torch": """
def poisson_logpmf(x, rate):
    return torch.distributions.Poisson(rate).log_prob(x)
""",
    "gamma_logpdf in float32": """
def gamma_logpdf(x, concentration, rate):
    return Gamma(concentration.float(), rate.float()).log_prob(x.float())
""",
    "conditional_omega by loops": """
def conditional_omega(data, latent_state, params_state, hyperparams):
    (N, D), K = data["X_ND"].shape, len(hyperparams["alpha_K"])
    ones, zeros = torch.zeros(K, D), torch.zeros(K, D)
    for i in range(N):
        ones[latent_state["z_N"][i]] += latent_state["b_ND"][i]
        zeros[latent_state["z_N"][i]] += 1 - latent_state["b_ND"][i]
    return torch.distributions.Independent(Beta(hyperparams["a0"] + ones, hyperparams["b0"] + zeros), 2)
""",
    "conditional_b from logits": """
def conditional_b(data, latent_state, params_state, hyperparams):
    z = latent_state["z_N"]
    w, rate = params_state["omega_KD"][z], params_state["lambd_KD"][z]
    logits = torch.log(w) - rate - torch.log(1 - w)
    return Bernoulli(logits=torch.where(data["X_ND"] > 0, 100.0, logits))
""",
    "conditional_z from probabilities": """
def conditional_z(data, latent_state, params_state, hyperparams):
    X, b = data["X_ND"][:, None, :], latent_state["b_ND"][:, None, :]
    w, rate = params_state["omega_KD"], params_state["lambd_KD"]
    logs = torch.where(b > 0, torch.log(w) + poisson_logpmf(X, rate), torch.log(1 - w))
    return Categorical(probs=torch.softmax(torch.log(params_state["pi_K"]) + logs.sum(-1), 1))
""",
}


def test_there_are_at_least_twenty_right_variants() -> None:
    assert len(VARIANTS) >= 20


@pytest.mark.parametrize("title", VARIANTS)
def test_a_right_variant_gives_no_finding(title: str) -> None:
    text = VARIANTS[title]
    function = text.split("def ")[1].split("(")[0]
    module = types.ModuleType("solution")
    exec(compile(RIGHT + text, "solution.py", "exec"), module.__dict__)
    report = zipmix.check(**{function: vars(module)[function]})
    assert report.passed, str(report)
    assert report[function].findings == ()


def test_the_projects_own_derivation_is_right() -> None:
    report = zipmix.check(coursework)
    assert report.passed, str(report)
    assert len(report.items) == 20
    # As exact as float64: nothing hides below the tolerance, EM apart, which stops at its own.
    assert max(item.difference for name, item in report.items.items() if name != "em") < 1e-11


def test_a_mistake_in_the_projects_own_derivation_would_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conjugate, "mode", conjugate.mean)
    monkeypatch.setattr(kernel, "rho", lambda logs: logs.u.exp())
    report = zipmix.check(coursework, quick=True)
    means = {"dirichlet_mean_for_mode", "beta_mean_for_mode", "gamma_mean_for_mode"}
    assert {finding.mistake for finding in report["m_step"].findings} == means
    assert {finding.mistake for finding in report["e_step"].findings} == {"b_replaced_by_omega"}
    assert {finding.mistake for finding in report["conditional_b"].findings} == {"b_replaced_by_omega"}
    assert report["elbo"].passed


def test_accelerated_em_of_the_project_is_right() -> None:
    def em(data, hyperparams, max_iter=100, tol=1e-7, seed=617, verbose=True):  # type: ignore[no-untyped-def]
        prior = zipmix.Prior(hyperparams["alpha_K"], *(hyperparams[f"{name}0"] for name in "abef"))
        K = len(hyperparams["alpha_K"])
        fit = zipmix.fit(data["X_ND"], K, "em", prior=prior, n_starts=3, max_iter=max_iter, tolerance=tol, seed=seed)
        params = dict(zip(("pi_K", "omega_KD", "lambd_KD"), fit.parameters, strict=True))
        return params, coursework.e_step(data, None, params, hyperparams), fit.trace

    report = zipmix.check(em=em)
    assert report.passed, str(report)


def test_a_right_file_is_right_and_a_mistake_in_it_is_reported_once(tmp_path: Path) -> None:
    assert zipmix.check(SOLUTIONS / "right.py", quick=True).passed
    file = tmp_path / "solution.py"
    file.write_text(changed("poisson_logpmf", (" - torch.lgamma(x + 1)", "")))
    report = zipmix.check(file, quick=True)
    # The ELBO and the E-step call poisson_logpmf; they are held to what they do themselves.
    assert [name for name, item in report.items.items() if not item.passed] == ["poisson_logpmf"]
