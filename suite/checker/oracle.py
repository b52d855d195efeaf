"""Right answers from the Pyro program by enumeration and autodiff; no formula of the kernel or the conjugate updates.

The program is run once for every value of z and b with both held fixed, and the log probability of each of its sites is
read off the trace. Expectations under any beliefs are sums over those tables, and gradients go through them.
"""

from functools import lru_cache
from typing import NamedTuple

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from torch import Tensor

from zipmix.checker.problems import Problem
from zipmix.models.parameters import Parameters
from zipmix.models.zip_mixture import zip_mixture


class Tables(NamedTuple):
    """Log probabilities of the program's sites for every value k of z and beta of b."""

    z_NK: Tensor  # log p(z_i = k | pi)                              (4)
    b_NKD2: Tensor  # log p(b_id = beta | z_i = k)                   (5)
    x_NKD2: Tensor  # log p(x_id | z_i = k, b_id = beta)             (6)
    pi: Tensor  # log p(pi)                                          (1)
    omega_KD: Tensor  # log p(omega_kd)                              (2)
    lam_KD: Tensor  # log p(lambda_kd)                               (3)


def tables_at(problem: Problem, theta: Parameters, X_ND: Tensor | None = None) -> Tables:
    """Runs the program for every value of z and b; differentiable in theta.

    Args:
        problem: counts and prior.
        theta: one point.
        X_ND: counts to use instead, NaN where missing.
    """
    X_ND = problem.X_ND if X_ND is None else X_ND
    N, D = X_ND.shape
    K = len(theta.pi)
    z, b, x = [], [], []
    for k in range(K):
        traces = [
            _trace(X_ND, problem, theta, torch.full((N, 1), k), torch.full((N, D), beta, dtype=torch.float64))
            for beta in (0.0, 1.0)
        ]
        z.append(traces[1]["z"].reshape(N))
        b.append(torch.stack([sites["b"] for sites in traces], dim=-1))
        x.append(torch.stack([sites["x"] for sites in traces], dim=-1))
    # Sites of the parameters are the same in every trace.
    return Tables(
        torch.stack(z, 1), torch.stack(b, 1), torch.stack(x, 1), traces[0]["pi"], traces[0]["omega"], traces[0]["lam"]
    )


def _trace(X_ND: Tensor, problem: Problem, theta: Parameters, z_N1: Tensor, b_ND: Tensor) -> dict[str, Tensor]:
    fixed = theta._asdict() | {"z": z_N1, "b": b_ND}
    with pyro.validation_enabled(False):
        trace = poutine.trace(poutine.condition(zip_mixture, data=fixed)).get_trace(X_ND, *X_ND.shape, problem.prior)
        trace.compute_log_prob()
    return {name: trace.nodes[name]["log_prob"] for name in ("pi", "omega", "lam", "z", "b", "x")}


@lru_cache(maxsize=256)
def tables(problem: Problem) -> Tables:
    """The tables at the problem's own parameters."""
    return tables_at(problem, problem.theta)


def responsibilities(t: Tables) -> Tensor:
    """P(z_i = k | x_i, Theta), (N, K), b summed out: d logsumexp / d log joint."""
    return torch.softmax(t.z_NK + (t.b_NKD2 + t.x_NKD2).logsumexp(-1).sum(-1), dim=1)


def b_given_z(t: Tables) -> Tensor:
    """P(b_id = 1 | z_i = k, x_id, Theta), (N, K, D)."""
    return torch.softmax(t.b_NKD2 + t.x_NKD2, dim=-1)[..., 1]


def elbo_pieces(t: Tables, Ezeta_NK: Tensor, Eb_NKD: Tensor) -> dict[str, Tensor]:
    """The ELBO's four pieces for any beliefs, by summing over all z and b."""
    q_z = Ezeta_NK[:, :, None, None]
    q_NKD2 = torch.stack([1 - Eb_NKD, Eb_NKD], dim=-1) * q_z
    entropy_z = dist.Categorical(Ezeta_NK, validate_args=False).entropy().sum()
    # Pyro's Bernoulli keeps probabilities off 0 and 1; two classes of a Categorical reach them.
    pairs = dist.Categorical(torch.stack([1 - Eb_NKD, Eb_NKD], dim=-1), validate_args=False)
    return {
        "likelihood": _expected(q_NKD2, t.x_NKD2),
        "latents": _expected(Ezeta_NK, t.z_NK) + _expected(q_NKD2, t.b_NKD2),
        "entropy": entropy_z + (Ezeta_NK[..., None] * pairs.entropy()).sum(),
        "prior": t.pi.sum() + t.omega_KD.sum() + t.lam_KD.sum(),
    }


def _expected(q: Tensor, log_p: Tensor) -> Tensor:
    """E_q[log p] with 0 times minus infinity = 0."""
    return torch.where(q > 0, q * torch.where(q > 0, log_p, 0.0), 0.0).sum()


def gradient(problem: Problem, theta: Parameters, Ezeta_NK: Tensor, Eb_NKD: Tensor) -> Parameters:
    """The gradient of E_q[log p(X, Z, B, Theta)] by autodiff, pi in the coordinates of a softmax."""
    logits = theta.pi.log().requires_grad_()
    omega, lam = (value.clone().requires_grad_() for value in theta[1:])
    t = tables_at(problem, Parameters(torch.softmax(logits, 0), omega, lam))
    pieces = elbo_pieces(t, Ezeta_NK, Eb_NKD)
    objective = pieces["likelihood"] + pieces["latents"] + pieces["prior"]
    return Parameters(*torch.autograd.grad(objective, [logits, omega, lam]))


def maximiser(problem: Problem, Ezeta_NK: Tensor, Eb_NKD: Tensor) -> Parameters:
    """Where the gradient of E_q[log p(X, Z, B, Theta)] is zero, from autodiff at two points.

    The sites are a Categorical, Bernoullis and Poissons, so the gradient is A_k - S pi_k in the logits of pi,
    A / omega - B / (1 - omega) in omega and A / lambda - B in lambda. Two points give A, B and S.
    """
    K, D = problem.theta.omega.shape
    uniform = torch.full((K,), 1 / K, dtype=torch.float64)
    other = torch.arange(1.0, K + 1, dtype=torch.float64)
    other = other / other.sum()
    ones = torch.ones(K, D, dtype=torch.float64)
    first = gradient(problem, Parameters(uniform, ones / 2, ones), Ezeta_NK, Eb_NKD)
    second = gradient(problem, Parameters(other, ones / 4, ones * 2), Ezeta_NK, Eb_NKD)
    if K > 1:
        step = other - uniform
        S = ((first.pi - second.pi) @ step) / (step @ step)
        pi = first.pi / S + uniform
    else:
        pi = uniform
    # first = 2 A - 2 B and second = 4 A - 4/3 B in omega; first = A - B and second = A/2 - B in lambda.
    A = (second.omega - first.omega * 2 / 3) * 3 / 8
    B = A - first.omega / 2
    rate = 2 * (first.lam - second.lam)
    return Parameters(pi, A / (A + B), rate / (rate - first.lam))


def log_joint_at(problem: Problem, theta: Parameters) -> Tensor:
    """log p(X, z, b, Theta) at the problem's own z and b."""
    sites = _trace(problem.X_ND, problem, theta, problem.z_N[:, None], problem.b_ND)
    total = torch.zeros((), dtype=torch.float64)
    for log_prob in sites.values():
        total = total + log_prob.sum()
    return total


def expected_missing(problem: Problem, n_missing: int) -> Tensor:
    """E[x | the other columns, Theta] for the first columns, (N, n_missing), by summing over counts.

    Beyond the largest rate plus forty standard deviations a Poisson has no mass left.
    """
    X_ND = problem.X_ND.clone()
    X_ND[:, :n_missing] = torch.nan
    R_NK = responsibilities(tables_at(problem, problem.theta, X_ND))
    pi, omega, lam = problem.theta
    missing = Parameters(pi, omega[:, :n_missing], lam[:, :n_missing])
    rate = float(missing.lam.max())
    counts = torch.arange(int(rate + 40 * rate**0.5) + 40, dtype=torch.float64)
    # Every row holds one count in all the missing columns.
    table = tables_at(problem, missing, counts[:, None].expand(-1, n_missing))
    p_CKD = (table.b_NKD2 + table.x_NKD2).logsumexp(-1).exp()
    mean_KD = (counts[:, None, None] * p_CKD).sum(0)
    return R_NK @ mean_KD
