"""Mistakes in the conditionals of b and z, which the E-step returns as expectations."""

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical

from zipmix.checker.mistake import Given, mistake

B = "conditional_b e_step"
Z = "conditional_z_marginal e_step"


class Latents(dict[str, Tensor]):
    """Changed outputs of the E-step; as a conditional, the same numbers as probabilities."""


def _log_poisson(g: Given) -> Tensor:
    """log Poisson(x_id | lambda_kd), (N, K, D)."""
    X = g.X[:, None]
    return torch.xlogy(X, g.lam) - g.lam - torch.lgamma(X + 1)


def _b(table: Tensor, g: Given) -> Latents:
    return Latents(Eb_NKD=table.expand(len(g.X), *g.lam.shape))


# Right: E[b] = 1 where x > 0, omega e^-lambda / (omega e^-lambda + 1 - omega) where x = 0


@mistake(B, "b's posterior is replaced by omega: where x = 0, a Poisson zero needs the factor exp(-lambda)")
def b_replaced_by_omega(g: Given) -> Latents:
    return _b(torch.where(g.X[:, None] > 0, 1.0, g.omega), g)


@mistake(B, "b's posterior is replaced by its prior omega, also where x > 0")
def b_prior_everywhere(g: Given) -> Latents:
    return _b(g.omega, g)


@mistake(B, "x = 0 is not told from x > 0: a count above zero makes b = 1 certain")
def zero_not_told_from_positive(g: Given) -> Latents:
    p = g.omega * torch.exp(-g.lam)
    return _b(p / (p + 1 - g.omega), g)


@mistake(B, "delta_0 is dropped: 1 - omega stands in the denominator also where x > 0")
def delta_0_dropped_in_b(g: Given) -> Latents:
    p = g.omega * _log_poisson(g).exp()
    return _b(p / (p + 1 - g.omega), g)


@mistake(B, "omega and the gate 1 - omega are swapped")
def omega_and_gate_swapped_in_b(g: Given) -> Latents:
    p = (1 - g.omega) * torch.exp(-g.lam)
    return _b(torch.where(g.X[:, None] > 0, 1.0, p / (p + g.omega)), g)


@mistake(B, "the factor omega^b stands twice")
def omega_counted_twice(g: Given) -> Latents:
    p = g.omega**2 * torch.exp(-g.lam)
    return _b(torch.where(g.X[:, None] > 0, 1.0, p / (p + 1 - g.omega)), g)


@mistake(B, "where x = 0 it is the chance of b = 0, not of b = 1")
def structural_zero_for_b(g: Given) -> Latents:
    p = g.omega * torch.exp(-g.lam)
    return _b(torch.where(g.X[:, None] > 0, 1.0, 1 - p / (p + 1 - g.omega)), g)


@mistake(B, "the numerator omega exp(-lambda) is not normalised")
def b_not_normalised(g: Given) -> Latents:
    return _b(torch.where(g.X[:, None] > 0, 1.0, g.omega * torch.exp(-g.lam)), g)


@mistake(B, "every zero is taken for a structural one: E[b] = 1[x > 0]")
def every_zero_structural(g: Given) -> Latents:
    return _b((g.X[:, None] > 0).double(), g)


@mistake("e_step", "E[b_id | z_i = k] is multiplied by E[zeta_ik]: it is given z_i = k")
def b_times_zeta(g: Given) -> Latents:
    p = g.omega * torch.exp(-g.lam)
    Eb = torch.where(g.X[:, None] > 0, 1.0, p / (p + 1 - g.omega))
    return Latents(Eb_NKD=Eb * torch.softmax(_log_joint(g), 1)[..., None])


# Right: log joint = log pi + sum_d { log(omega Poisson(x) ) if x > 0, log(1 - omega + omega e^-lambda) if x = 0 }


def _log_joint(g: Given) -> Tensor:
    zero = torch.log(1 - g.omega + g.omega * torch.exp(-g.lam))
    return g.pi.log() + torch.where(g.X[:, None] > 0, g.omega.log() + _log_poisson(g), zero).sum(-1)


def _z(log_joint: Tensor) -> Latents:
    return Latents(Ezeta_NK=torch.softmax(log_joint, 1))


@mistake(Z, "pi is left out")
def pi_left_out(g: Given) -> Latents:
    return _z(_log_joint(g) - g.pi.log())


@mistake(Z, "the softmax runs over rows where it must run over components")
def softmax_over_rows(g: Given) -> Latents:
    return Latents(Ezeta_NK=torch.softmax(_log_joint(g), 0))


@mistake(Z, "zero inflation is left out: every cell is taken for a Poisson one")
def zero_inflation_ignored(g: Given) -> Latents:
    return _z(g.pi.log() + _log_poisson(g).sum(-1))


@mistake(Z, "structural zeros are left out: every cell has the probability omega Poisson(x)")
def structural_zeros_ignored(g: Given) -> Latents:
    return _z(g.pi.log() + (g.omega.log() + _log_poisson(g)).sum(-1))


@mistake(Z, "omega is left out where x > 0")
def omega_left_out_of_positive(g: Given) -> Latents:
    zero = torch.log(1 - g.omega + g.omega * torch.exp(-g.lam))
    return _z(g.pi.log() + torch.where(g.X[:, None] > 0, _log_poisson(g), zero).sum(-1))


@mistake(Z, "delta_0 is dropped: 1 - omega is added also where x > 0")
def delta_0_dropped_in_z(g: Given) -> Latents:
    return _z(g.pi.log() + torch.log(1 - g.omega + g.omega * _log_poisson(g).exp()).sum(-1))


@mistake(Z, "omega and the gate 1 - omega are swapped")
def omega_and_gate_swapped_in_z(g: Given) -> Latents:
    return _z(_log_joint(g._replace(omega=1 - g.omega)))


@mistake(Z, "E[b] is put in the place of b where b must be summed out")
def b_plugged_in(g: Given) -> Latents:
    p = g.omega * torch.exp(-g.lam)
    Eb = torch.where(g.X[:, None] > 0, 1.0, p / (p + 1 - g.omega))
    terms = Eb * (g.omega.log() + _log_poisson(g)) + (1 - Eb) * torch.log(1 - g.omega)
    return _z(g.pi.log() + terms.sum(-1))


@mistake(Z, "probabilities are multiplied outside log space: the product underflows to 0 / 0")
def product_underflows(g: Given) -> Latents:
    joint = g.pi * torch.where(
        g.X[:, None] > 0, g.omega * _log_poisson(g).exp(), 1 - g.omega + g.omega * torch.exp(-g.lam)
    ).prod(-1)
    return Latents(Ezeta_NK=joint / joint.sum(1, keepdim=True))


@mistake("e_step", "the joint is not normalised over components")
def joint_not_normalised(g: Given) -> Latents:
    return Latents(Ezeta_NK=_log_joint(g).exp())


@mistake("e_step", "rows are given to their most probable component: responsibilities are no hard labels")
def hard_responsibilities(g: Given) -> Latents:
    return Latents(Ezeta_NK=torch.nn.functional.one_hot(_log_joint(g).argmax(1), len(g.pi)).double())


@mistake("e_step", "the log joint is returned where its softmax belongs")
def log_joint_returned(g: Given) -> Latents:
    return Latents(Ezeta_NK=_log_joint(g))


@mistake("e_step", "stale beliefs are returned: the old ones, not those just computed")
def stale_beliefs_from_e_step(g: Given) -> Latents:
    return Latents(Ezeta_NK=g.zeta, Eb_NKD=g.Eb)


# Right: log p(z = k | b) = log pi + sum_d { b log(omega Poisson(x)) + (1 - b) log(1 - omega) }


def _z_given_b(g: Given, one: Tensor, zero: Tensor) -> Latents:
    b = g.b[:, None]
    return _z(g.pi.log() + (b * one + (1 - b) * zero).sum(-1))


@mistake("conditional_z", "pi is left out")
def pi_left_out_given_b(g: Given) -> Latents:
    return _z_given_b(g._replace(pi=torch.ones_like(g.pi)), g.omega.log() + _log_poisson(g), (1 - g.omega).log())


@mistake("conditional_z", "the factors omega and 1 - omega of b are left out")
def b_left_out_given_b(g: Given) -> Latents:
    return _z_given_b(g, _log_poisson(g), torch.zeros_like(g.omega))


@mistake("conditional_z", "a structural zero (b = 0) is given a Poisson probability")
def poisson_for_structural_zero(g: Given) -> Latents:
    return _z_given_b(g, g.omega.log() + _log_poisson(g), (1 - g.omega).log() + _log_poisson(g))


@mistake("conditional_z", "omega and the gate 1 - omega are swapped")
def omega_and_gate_swapped_given_b(g: Given) -> Latents:
    return _z_given_b(g, (1 - g.omega).log() + _log_poisson(g), g.omega.log())


@mistake("conditional_z", "b is summed out although it is given")
def b_summed_out_though_given(g: Given) -> Latents:
    return _z(_log_joint(g))


def as_conditional(changed: Latents, g: Given) -> Bernoulli | Categorical | None:
    """The distribution of b_id given z, or of z_i, that changed outputs of the E-step stand for."""
    if "Eb_NKD" in changed:
        return Bernoulli(torch.einsum("nk,nkd->nd", g.z, changed["Eb_NKD"]), validate_args=False)
    return Categorical(logits=changed["Ezeta_NK"].log(), validate_args=False) if "Ezeta_NK" in changed else None
