"""Mistakes in the M-step, in EM as a whole, in the affinity matrix and in matrix completion."""

import torch
from torch import Tensor

from zipmix.checker.mistake import Given, mistake
from zipmix.checker.mistakes_latents import _log_joint

Outputs = dict[str, Tensor]


def n(g: Given) -> Tensor:
    """Expected rows of component k, (K, 1)."""
    return g.zeta.sum(0)[:, None]


def m(g: Given) -> Tensor:
    """Expected cells with b = 1, (K, D)."""
    return torch.einsum("nk,nkd->kd", g.zeta, g.Eb)


def s(g: Given) -> Tensor:
    """Expected sum of the counts, (K, D)."""
    return g.zeta.T @ g.X


# Right: lambda = (e - 1 + s) / (f + m)


@mistake("m_step", "lambda is the mean of its Gamma, not the mode: e_0 where e_0 - 1 belongs")
def gamma_mean_for_mode(g: Given) -> Outputs:
    return {"lambd_KD": (g.e + s(g)) / (g.f + m(g))}


@mistake("m_step", "e_0 - 1 is dropped from lambda")
def shape_minus_one_dropped(g: Given) -> Outputs:
    return {"lambd_KD": s(g) / (g.f + m(g))}


@mistake("m_step", "lambda is divided by n_k where the expected number of cells with b = 1 belongs")
def lambda_divided_by_n_k(g: Given) -> Outputs:
    return {"lambd_KD": (g.e - 1 + s(g)) / (g.f + n(g))}


@mistake("m_step", "lambda is divided by the number of all rows, N")
def lambda_divided_by_N(g: Given) -> Outputs:
    return {"lambd_KD": (g.e - 1 + s(g)) / (g.f + len(g.X))}


@mistake("m_step", "lambda is divided by the sum over all components, not by its own component's")
def lambda_divided_by_all_components(g: Given) -> Outputs:
    return {"lambd_KD": (g.e - 1 + s(g)) / (g.f + m(g).sum(0))}


@mistake("m_step", "the rate f_0 is read as a scale")
def rate_read_as_scale(g: Given) -> Outputs:
    return {"lambd_KD": (g.e - 1 + s(g)) / (1 / g.f + m(g))}


@mistake("m_step", "f_0 is dropped from lambda")
def prior_rate_dropped(g: Given) -> Outputs:
    return {"lambd_KD": (g.e - 1 + s(g)) / m(g)}


@mistake("m_step", "the prior of lambda is left out")
def prior_of_lambda_left_out(g: Given) -> Outputs:
    return {"lambd_KD": s(g) / m(g)}


@mistake("m_step", "cells with x > 0 are counted where the expected cells with b = 1 belong, in lambda")
def positive_cells_in_lambda(g: Given) -> Outputs:
    return {"lambd_KD": (g.e - 1 + s(g)) / (g.f + g.zeta.T @ (g.X > 0).double())}


@mistake("m_step", "the counts in lambda are not weighted by E[zeta]")
def counts_not_weighted(g: Given) -> Outputs:
    return {"lambd_KD": (g.e - 1 + g.X.sum(0)) / (g.f + m(g))}


# Right: omega = (a - 1 + m) / (a + b - 2 + n)


@mistake("m_step", "omega is the mean of its Beta, not the mode")
def beta_mean_for_mode(g: Given) -> Outputs:
    return {"omega_KD": (g.a + m(g)) / (g.a + g.b0 + n(g))}


@mistake("m_step", "a_0 - 1 is dropped from the numerator of omega")
def a_minus_one_dropped(g: Given) -> Outputs:
    return {"omega_KD": m(g) / (g.a + g.b0 - 2 + n(g))}


@mistake("m_step", "the - 2 is dropped from the denominator of omega")
def minus_two_dropped(g: Given) -> Outputs:
    return {"omega_KD": (g.a - 1 + m(g)) / (g.a + g.b0 + n(g))}


@mistake("m_step", "omega and the gate 1 - omega are swapped")
def omega_and_gate_swapped(g: Given) -> Outputs:
    return {"omega_KD": 1 - (g.a - 1 + m(g)) / (g.a + g.b0 - 2 + n(g))}


@mistake("m_step", "a_0 and b_0 of the prior are swapped")
def a_and_b_swapped(g: Given) -> Outputs:
    return {"omega_KD": (g.b0 - 1 + m(g)) / (g.a + g.b0 - 2 + n(g))}


@mistake("m_step", "omega is divided by the number of all rows, N, not by those of its component")
def omega_divided_by_N(g: Given) -> Outputs:
    return {"omega_KD": (g.a - 1 + m(g)) / (g.a + g.b0 - 2 + len(g.X))}


@mistake("m_step", "the prior of omega is left out")
def prior_of_omega_left_out(g: Given) -> Outputs:
    return {"omega_KD": m(g) / n(g)}


@mistake("m_step", "cells with x > 0 are counted where the expected cells with b = 1 belong, in omega")
def positive_cells_in_omega(g: Given) -> Outputs:
    return {"omega_KD": (g.a - 1 + g.zeta.T @ (g.X > 0).double()) / (g.a + g.b0 - 2 + n(g))}


@mistake("m_step", "E[b] in omega is not weighted by E[zeta]")
def b_not_weighted_by_zeta(g: Given) -> Outputs:
    return {"omega_KD": (g.a - 1 + g.Eb.sum(0)) / (g.a + g.b0 - 2 + n(g))}


# Right: pi = (alpha - 1 + n) / sum_k (alpha - 1 + n)


@mistake("m_step", "pi is the mean of its Dirichlet, not the mode")
def dirichlet_mean_for_mode(g: Given) -> Outputs:
    pi = g.alpha + g.zeta.sum(0)
    return {"pi_K": pi / pi.sum()}


@mistake("m_step", "alpha - 1 is dropped from pi")
def alpha_minus_one_dropped(g: Given) -> Outputs:
    return {"pi_K": g.zeta.sum(0) / len(g.X)}


@mistake("m_step", "pi is not normalised")
def pi_not_normalised(g: Given) -> Outputs:
    return {"pi_K": g.alpha - 1 + g.zeta.sum(0)}


@mistake("m_step", "pi is divided by N, which leaves the prior's counts out of the sum")
def pi_divided_by_N(g: Given) -> Outputs:
    return {"pi_K": (g.alpha - 1 + g.zeta.sum(0)) / len(g.X)}


@mistake("m_step", "the denominator of pi subtracts 1 where it must subtract K")
def pi_minus_one_for_minus_K(g: Given) -> Outputs:
    return {"pi_K": (g.alpha - 1 + g.zeta.sum(0)) / (g.alpha.sum() - 1 + len(g.X))}


# Right: every parameter is updated from the beliefs that came in


def _b_again(g: Given, omega: Tensor, lam: Tensor) -> Given:
    p = omega * torch.exp(-lam)
    return g._replace(Eb=torch.where(g.X[:, None] > 0, 1.0, p / (p + 1 - omega)))


@mistake("m_step", "in-place update: lambda is made from E[b] at the new omega")
def new_omega_in_lambda(g: Given) -> Outputs:
    omega = (g.a - 1 + m(g)) / (g.a + g.b0 - 2 + n(g))
    return {"lambd_KD": (g.e - 1 + s(g)) / (g.f + m(_b_again(g, omega, g.lam)))}


@mistake("m_step", "in-place update: omega is made from E[b] at the new lambda")
def new_lambda_in_omega(g: Given) -> Outputs:
    lam = (g.e - 1 + s(g)) / (g.f + m(g))
    return {"omega_KD": (g.a - 1 + m(_b_again(g, g.omega, lam))) / (g.a + g.b0 - 2 + n(g))}


@mistake("m_step", "the new omega times n_k stands where the expected number of cells with b = 1 belongs")
def new_omega_for_expected_b(g: Given) -> Outputs:
    omega = (g.a - 1 + m(g)) / (g.a + g.b0 - 2 + n(g))
    return {"lambd_KD": (g.e - 1 + s(g)) / (g.f + n(g) * omega)}


@mistake("m_step", "the parameters that came in are returned, not the new ones")
def old_parameters_returned(g: Given) -> Outputs:
    return {"pi_K": g.pi, "omega_KD": g.omega, "lambd_KD": g.lam}


# Right: A_ij = sum_k E[zeta_ik] E[zeta_jk]


@mistake("compute_affinity_matrix", "hard labels stand where responsibilities belong")
def affinity_from_hard_labels(g: Given) -> Tensor:
    labels = g.zeta.argmax(1)
    return (labels[:, None] == labels[None]).double()


@mistake("compute_affinity_matrix", "the components are weighted by pi, which E[zeta] holds already")
def affinity_weighted_by_pi(g: Given) -> Tensor:
    return (g.zeta * g.pi) @ g.zeta.T


@mistake("compute_affinity_matrix", "rows are scaled to length one: that is a cosine, not a probability")
def affinity_as_cosine(g: Given) -> Tensor:
    unit = g.zeta / g.zeta.norm(dim=1, keepdim=True)
    return unit @ unit.T


@mistake("compute_affinity_matrix", "it is made from the weights pi: rows all look alike")
def affinity_from_weights(g: Given) -> Tensor:
    return (g.pi @ g.pi).expand(len(g.X), len(g.X))


# Right: sum_k r_ik omega_kd lambda_kd with r from the observed columns alone


def _observed(g: Given, missing: int) -> Tensor:
    return torch.softmax(
        _log_joint(g._replace(X=g.X[:, missing:], omega=g.omega[:, missing:], lam=g.lam[:, missing:])), 1
    )


def _with_zeros(g: Given, missing: int) -> Tensor:
    return torch.softmax(_log_joint(g._replace(X=g.X.index_fill(1, torch.arange(missing), 0.0))), 1)


@mistake("complete_matrix", "missing cells are read as zeros: they count as observations")
def missing_read_as_zeros(g: Given, missing: int) -> Tensor:
    return _with_zeros(g, missing) @ (g.omega * g.lam)[:, :missing]


@mistake("complete_matrix", "missing cells are read as zeros, and E[b | x = 0] replaces omega")
def missing_read_as_zeros_with_b(g: Given, missing: int) -> Tensor:
    p = g.omega * torch.exp(-g.lam)
    return _with_zeros(g, missing) @ (p / (p + 1 - g.omega) * g.lam)[:, :missing]


@mistake("complete_matrix", "E[b | x = 0] replaces omega: a missing cell is no zero")
def b_at_zero_for_omega(g: Given, missing: int) -> Tensor:
    p = g.omega * torch.exp(-g.lam)
    return _observed(g, missing) @ (p / (p + 1 - g.omega) * g.lam)[:, :missing]


@mistake("complete_matrix", "omega is left out: the mean of a cell is omega lambda")
def omega_left_out_of_mean(g: Given, missing: int) -> Tensor:
    return _observed(g, missing) @ g.lam[:, :missing]


@mistake("complete_matrix", "the gate 1 - omega stands where omega belongs")
def gate_for_omega_in_mean(g: Given, missing: int) -> Tensor:
    return _observed(g, missing) @ ((1 - g.omega) * g.lam)[:, :missing]


@mistake("complete_matrix", "the weights pi stand where the row's responsibilities belong")
def weights_for_responsibilities(g: Given, missing: int) -> Tensor:
    return (g.pi @ (g.omega * g.lam)[:, :missing]).expand(len(g.X), missing)


@mistake("complete_matrix", "the most probable component alone is used: responsibilities are no hard labels")
def completion_from_hard_labels(g: Given, missing: int) -> Tensor:
    return (g.omega * g.lam)[_observed(g, missing).argmax(1), :missing]


@mistake("complete_matrix", "observed columns are matched with the parameters of the first columns")
def columns_misaligned(g: Given, missing: int) -> Tensor:
    D = g.X.shape[1] - missing
    R_NK = torch.softmax(_log_joint(g._replace(X=g.X[:, missing:], omega=g.omega[:, :D], lam=g.lam[:, :D])), 1)
    return R_NK @ (g.omega * g.lam)[:, :missing]
