"""E-step, M-step, ELBO, EM, affinity and matrix completion (questions 2a-5), held against the Pyro program."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zipmix.checker import oracle
from zipmix.checker.item import (
    ELBO,
    STEP,
    Answers,
    Item,
    Malformed,
    Property,
    always,
    kind_of,
    no_points,
    read_dictionary,
    read_value,
    some,
    states,
    tensor,
)
from zipmix.checker.problems import Problem, clusters, draw
from zipmix.models.parameters import Parameters

# E-step, M-step, ELBO.


def _belief_shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    N, D, K = problem.sizes
    return {"Ezeta_NK": (N, K), "Eb_NKD": (N, K, D)}


def _params_shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    _, D, K = problem.sizes
    return {"pi_K": (K,), "omega_KD": (K, D), "lambd_KD": (K, D)}


def beliefs_at(problem: Problem, theta: Parameters) -> Answers:
    """The exact beliefs at a point, by enumeration."""
    t = oracle.tables_at(problem, theta)
    return {"Ezeta_NK": oracle.responsibilities(t), "Eb_NKD": oracle.b_given_z(t)}


def _m_right(problem: Problem) -> Answers:
    return params_dictionary(oracle.maximiser(problem, problem.Ezeta_NK, problem.Eb_NKD))


def params_dictionary(theta: Parameters) -> Answers:
    """A point as the coursework's params_state."""
    return {"pi_K": theta.pi, "omega_KD": theta.omega, "lambd_KD": theta.lam}


E_STEP = Item(
    "e_step",
    "2a",
    STEP,
    (),
    {
        "Ezeta_NK": Property(
            "responsibilities are the derivatives of logsumexp, every b_id summed out by the Pyro program",
            "E[zeta_ik] = p(z_i = k | x_i, Theta) = d logsumexp_k / d log p(x_i, z_i = k | Theta)   (4) (5) (6)",
            2,
        ),
        "Eb_NKD": Property(
            "they are the marginals of b_id when the Pyro program is enumerated with z_i = k",
            "E[b_id | z_i = k] = p(b_id = 1 | z_i = k, x_id, Theta) proportional to (5) (6)",
            3,
        ),
    },
    lambda problem: True,
    some(STEP),
    no_points,
    read_dictionary(_belief_shapes),
    always(lambda problem: beliefs_at(problem, problem.theta)),
)

M_STEP = Item(
    "m_step",
    "2b",
    STEP,
    (),
    {
        "pi_K": Property(
            "the gradient of E_q[log p(X, Z, B, Theta)] in pi on the simplex is zero there, by autodiff",
            "d/d pi { E_q[log p(Z | pi)] + log p(pi) } = 0   (1) (4)",
            1,
        ),
        "omega_KD": Property(
            "the gradient of E_q[log p(X, Z, B, Theta)] in omega is zero there, by autodiff",
            "d/d omega { E_q[log p(B | Z, omega)] + log p(omega) } = 0   (2) (5)",
            2,
        ),
        "lambd_KD": Property(
            "the gradient of E_q[log p(X, Z, B, Theta)] in lambda is zero there, by autodiff",
            "d/d lambda { E_q[log p(X | B, Z, lambda)] + log p(lambda) } = 0   (3) (6)",
            2,
        ),
    },
    lambda problem: problem.kind != "first beliefs",
    some(STEP),
    no_points,
    read_dictionary(_params_shapes),
    always(_m_right),
)


PIECES = {
    "likelihood": ("E_q[log p(X | B, Z)]", "(6)"),
    "latents": ("E_q[log p(B, Z)]", "(4) (5)"),
    "entropy": ("-E_q[log q(B, Z)]", "q"),
    "prior": ("log p(Theta)", "(1) (2) (3)"),
}


def _bound(name: str, pieces: tuple[str, ...], words: str, formula: str) -> Item:
    def right(problem: Problem) -> Answers:
        every = oracle.elbo_pieces(oracle.tables(problem), problem.Ezeta_NK, problem.Eb_NKD)
        return {"value": torch.stack([every[piece] for piece in pieces]).sum()}

    return Item(
        name,
        "2c",
        ELBO,
        (),
        {"value": Property(words, formula, 0, floor=1.0)},
        lambda problem: True,
        some(ELBO),
        no_points,
        read_value(lambda problem: ()),
        always(right),
    )


BOUNDS = (
    _bound(
        "elbo",
        tuple(PIECES),
        "it is the expectation of log p(X, Z, B, Theta) - log q(Z, B) over all z and b of the Pyro program; "
        "minus infinity where q gives b = 0 a chance although x > 0",
        "E_q[log p(X | B, Z)] + E_q[log p(B, Z)] - E_q[log q(B, Z)] + log p(Theta)   (1) to (6)",
    ),
    *(
        _bound(
            f"elbo_{piece}",
            (piece,),
            f"it is {formula} summed over all z and b of the Pyro program",
            f"{formula}   {equations}",
        )
        for piece, (formula, equations) in PIECES.items()
    ),
)


# EM, affinity, matrix completion.

SHORT, LONG, SINGLE = "few iterations", "to the end", "float32"


@lru_cache(maxsize=4)
def em_problems(seed: int) -> tuple[Problem, ...]:
    """Data for whole runs of EM; the same objects for the same seed."""
    rng = np.random.default_rng([seed, 100])
    return draw(SHORT, 30, 4, 3, rng=rng), clusters(LONG, rng=rng), clusters(SINGLE, rng=rng)


def _ask_em(problem: Problem) -> dict[str, Any]:
    iterations = {SHORT: 2, LONG: 100, SINGLE: 40}[problem.kind]
    # In float32 two values may be equal by chance; the run must go on to where rounding lowers one.
    tol = 0.0 if problem.kind == SINGLE else 1e-10
    settings = {"max_iter": iterations, "tol": tol, "seed": 617, "verbose": False}
    return some(("data", "hyperparams"))(problem) | settings


def _read_em(problem: Problem, value: Any) -> Answers:
    if not isinstance(value, list) or len(value) != 3:
        raise Malformed(f"returns {kind_of(value)} where (params_state, belief_state, elbo_vals) is required")
    params = read_dictionary(_params_shapes)(problem, value[0])
    beliefs = read_dictionary(_belief_shapes)(problem, value[1])
    values = value[2]
    if isinstance(values, list):
        values = [tensor(entry, (), "an entry of elbo_vals") for entry in values]
        values = torch.stack(values) if values else torch.zeros(0, dtype=torch.float64)
    if not isinstance(values, Tensor) or values.ndim != 1 or not len(values):
        raise Malformed("returns elbo_vals that is no list of numbers, or an empty one")
    return params | beliefs | {"elbo_vals": values.double()}


def em_point(answers: Answers) -> Parameters:
    """The point that EM returned."""
    return Parameters(answers["pi_K"], answers["omega_KD"], answers["lambd_KD"])


def _em_right(problem: Problem, got: Answers) -> Answers:
    if problem.kind == SINGLE:
        return {}
    theta = em_point(got)
    exact = beliefs_at(problem, theta)
    if problem.kind == SHORT:
        return exact
    t = oracle.tables_at(problem, theta)
    end = torch.stack(list(oracle.elbo_pieces(t, exact["Ezeta_NK"], exact["Eb_NKD"]).values())).sum()
    rising = got["elbo_vals"].cummax(0).values
    rising[-1] = end if abs(end - rising[-1]) > 1e-5 * abs(end) else rising[-1]
    return params_dictionary(oracle.maximiser(problem, *exact.values())) | {"elbo_vals": rising}


_BELIEF = Property(
    "the beliefs that are returned belong to the parameters that are returned", "q(Z, B) = p(Z, B | X, Theta)", 2
)
_END = Property(
    "the gradient of log p(X, Theta) of the Pyro program is zero where EM ends (Fisher's identity)",
    "d/d Theta log p(X, Theta) = 0",
    2,
    tolerance=2e-3,
)

EM = Item(
    "em",
    "3c",
    ("data", "hyperparams"),
    ("max_iter", "tol", "seed", "verbose"),
    {
        "Ezeta_NK": _BELIEF,
        "Eb_NKD": _BELIEF._replace(axes=3),
        "pi_K": _END._replace(axes=1),
        "omega_KD": _END,
        "lambd_KD": _END,
        "elbo_vals": Property(
            "the ELBO never falls beyond rounding, and ends at log p(X, Theta)",
            "ELBO_t+1 >= ELBO_t; ELBO = log p(X, Theta) at the exact q",
            1,
            floor=1.0,
            tolerance=1e-6,
        ),
    },
    lambda problem: True,
    _ask_em,
    no_points,
    _read_em,
    _em_right,
)


def _affinity_right(problem: Problem, got: Answers) -> Answers:
    q_NK = problem.Ezeta_NK
    same_NN = torch.stack([q_NK[:, None, k] * q_NK[None, :, k] for k in range(q_NK.shape[1])]).sum(0)
    # A row is in the cluster that it is in: ones on the diagonal are as right as the formula carried through.
    if bool(torch.isclose(got["value"].diagonal(), torch.ones(len(q_NK), dtype=torch.float64), atol=1e-5).all()):
        same_NN = same_NN.fill_diagonal_(1.0)
    return {"value": same_NN}


AFFINITY = Item(
    "compute_affinity_matrix",
    "4a",
    ("params_state", "belief_state"),
    (),
    {
        "value": Property(
            "it is the chance that two rows share a component, summed over the components",
            "A_ij = P(z_i = z_j | X) = sum_k E[zeta_ik] E[zeta_jk], i not j",
            2,
        )
    },
    lambda problem: problem.sizes[0] > 1,
    some(("params_state", "belief_state")),
    no_points,
    read_value(lambda problem: (len(problem.X_ND), len(problem.X_ND))),
    _affinity_right,
)


def n_missing(problem: Problem) -> int:
    """How many of the first columns are missing in a problem of matrix completion."""
    return min(3, problem.sizes[1] - 1)


def _ask_completion(problem: Problem) -> dict[str, Any]:
    missing = n_missing(problem)
    unknown = torch.full_like(problem.X_ND[:, :missing], torch.nan)
    data = {"Y_MD_obs": problem.X_ND[:, missing:].clone(), "Y_MD_miss": unknown}
    return {"data": data, "params_state": states(problem)["params_state"]}


COMPLETION = Item(
    "complete_matrix",
    "5",
    ("data", "params_state"),
    (),
    {
        "value": Property(
            "it is the mean of the missing counts given the observed columns, by enumeration of the Pyro program with "
            "the missing cells masked",
            "E[Y_miss | Y_obs, Theta] = sum_k p(z_i = k | Y_obs, Theta) E[x_id | z_i = k]   (4) (5) (6)",
            2,
        )
    },
    lambda problem: problem.sizes[1] > 1,
    _ask_completion,
    no_points,
    read_value(lambda problem: (len(problem.X_ND), n_missing(problem))),
    always(lambda problem: {"value": oracle.expected_missing(problem, n_missing(problem))}),
)
