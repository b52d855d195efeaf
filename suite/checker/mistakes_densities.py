"""Mistakes in the four log densities and in the complete conditionals of pi, omega and lambda."""

import torch
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Gamma

from zipmix.checker.mistake import Given, mistake

lgamma, xlogy = torch.lgamma, torch.xlogy


# Right: x log rate - rate - log x!


@mistake("poisson_logpmf", "log x! is dropped")
def log_factorial_dropped_in_poisson(x: Tensor, rate: Tensor) -> Tensor:
    return xlogy(x, rate) - rate


@mistake("poisson_logpmf", "the rate is not subtracted")
def rate_not_subtracted(x: Tensor, rate: Tensor) -> Tensor:
    return xlogy(x, rate) - lgamma(x + 1)


@mistake("poisson_logpmf", "log x! is log Gamma(x + 1), not log Gamma(x)")
def factorial_off_by_one(x: Tensor, rate: Tensor) -> Tensor:
    return xlogy(x, rate) - rate - lgamma(x)


# Right: sum_k (alpha_k - 1) log x_k + log Gamma(sum alpha) - sum_k log Gamma(alpha_k)


@mistake("dirichlet_logpdf", "the normalising constant is dropped")
def dirichlet_normaliser_dropped(x: Tensor, alpha: Tensor) -> Tensor:
    return xlogy(alpha - 1, x).sum()


@mistake("dirichlet_logpdf", "the exponent is alpha where alpha - 1 belongs")
def dirichlet_exponent_alpha(x: Tensor, alpha: Tensor) -> Tensor:
    return xlogy(alpha, x).sum() + lgamma(alpha.sum()) - lgamma(alpha).sum()


@mistake("dirichlet_logpdf", "the normalising constant has the wrong sign")
def dirichlet_normaliser_sign(x: Tensor, alpha: Tensor) -> Tensor:
    return xlogy(alpha - 1, x).sum() - lgamma(alpha.sum()) + lgamma(alpha).sum()


# Right: e log f - log Gamma(e) + (e - 1) log x - f x


@mistake("gamma_logpdf", "the rate is read as a scale")
def gamma_rate_read_as_scale(x: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    return -concentration * rate.log() - lgamma(concentration) + (concentration - 1) * x.log() - x / rate


@mistake("gamma_logpdf", "the normalising constant is dropped")
def gamma_normaliser_dropped(x: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    return (concentration - 1) * x.log() - rate * x


@mistake("gamma_logpdf", "concentration times log rate is dropped")
def gamma_log_rate_dropped(x: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    return -lgamma(concentration) + (concentration - 1) * x.log() - rate * x


@mistake("gamma_logpdf", "the exponent of x is the concentration where the concentration - 1 belongs")
def gamma_exponent(x: Tensor, concentration: Tensor, rate: Tensor) -> Tensor:
    return concentration * rate.log() - lgamma(concentration) + concentration * x.log() - rate * x


# Right: (alpha - 1) log x + (beta - 1) log(1 - x) + log Gamma(alpha + beta) - log Gamma(alpha) - log Gamma(beta)


@mistake("beta_logpdf", "the normalising constant is dropped")
def beta_normaliser_dropped(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return (alpha - 1) * x.log() + (beta - 1) * torch.log1p(-x)


@mistake("beta_logpdf", "the normalising constant has the wrong sign")
def beta_normaliser_sign(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return beta_normaliser_dropped(x, alpha, beta) - lgamma(alpha + beta) + lgamma(alpha) + lgamma(beta)


@mistake("beta_logpdf", "alpha and beta are swapped")
def beta_arguments_swapped(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return beta_normaliser_dropped(x, beta, alpha) + lgamma(alpha + beta) - lgamma(alpha) - lgamma(beta)


@mistake("beta_logpdf", "the exponents are alpha and beta where alpha - 1 and beta - 1 belong")
def beta_exponents(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return beta_normaliser_dropped(x, alpha + 1, beta + 1) + lgamma(alpha + beta) - lgamma(alpha) - lgamma(beta)


# Right: Dirichlet(alpha + n)


@mistake("conditional_pi", "the prior alpha_0 is dropped")
def prior_of_pi_dropped(g: Given) -> Dirichlet:
    return Dirichlet(1 + g.z.sum(0))


@mistake("conditional_pi", "the parameters are alpha + n - 1, which is the mode's numerator")
def dirichlet_minus_one(g: Given) -> Dirichlet:
    return Dirichlet(g.alpha + g.z.sum(0) - 1)


@mistake("conditional_pi", "cells are counted where rows belong")
def cells_counted_for_pi(g: Given) -> Dirichlet:
    return Dirichlet(g.alpha + (g.z.T @ g.b).sum(1))


# Right: Beta(a + m, b + n - m), m = cells with z = k and b = 1


@mistake("conditional_omega", "omega and the gate 1 - omega are swapped")
def omega_and_gate_swapped_in_conditional(g: Given) -> Beta:
    m, n = g.z.T @ g.b, g.z.sum(0)[:, None]
    return Beta(g.b0 + n - m, g.a + m)


@mistake("conditional_omega", "failures are counted over all N rows, not over those of the component")
def failures_of_all_rows(g: Given) -> Beta:
    m = g.z.T @ g.b
    return Beta(g.a + m, g.b0 + len(g.X) - m)


@mistake("conditional_omega", "cells with x > 0 are counted where cells with b = 1 belong")
def positive_cells_counted(g: Given) -> Beta:
    p, n = g.z.T @ (g.X > 0).double(), g.z.sum(0)[:, None]
    return Beta(g.a + p, g.b0 + n - p)


@mistake("conditional_omega", "the prior a_0, b_0 is dropped")
def prior_of_omega_dropped(g: Given) -> Beta:
    m, n = g.z.T @ g.b, g.z.sum(0)[:, None]
    return Beta(1 + m, 1 + n - m)


@mistake("conditional_omega", "a_0 and b_0 of the prior are swapped")
def prior_of_omega_swapped(g: Given) -> Beta:
    m, n = g.z.T @ g.b, g.z.sum(0)[:, None]
    return Beta(g.b0 + m, g.a + n - m)


# Right: Gamma(e + s, rate f + m), s = sum of the counts of component k


@mistake("conditional_lambda", "all n_k rows of the component are counted where its cells with b = 1 belong")
def exposure_n_k(g: Given) -> Gamma:
    return Gamma(g.e + g.z.T @ g.X, g.f + g.z.sum(0)[:, None].expand_as(g.lam))


@mistake("conditional_lambda", "all N rows are counted where the component's cells with b = 1 belong")
def exposure_N(g: Given) -> Gamma:
    return Gamma(g.e + g.z.T @ g.X, (g.f + len(g.X)).expand_as(g.lam))


@mistake("conditional_lambda", "f_0 is read as a scale")
def prior_rate_read_as_scale(g: Given) -> Gamma:
    return Gamma(g.e + g.z.T @ g.X, 1 / g.f + g.z.T @ g.b)


@mistake("conditional_lambda", "the second parameter is the scale 1 / (f_0 + m) where torch wants the rate")
def scale_for_rate(g: Given) -> Gamma:
    return Gamma(g.e + g.z.T @ g.X, 1 / (g.f + g.z.T @ g.b))


@mistake("conditional_lambda", "the prior's shape e_0 is dropped")
def prior_shape_dropped(g: Given) -> Gamma:
    return Gamma(1 + g.z.T @ g.X, g.f + g.z.T @ g.b)
