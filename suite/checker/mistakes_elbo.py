"""Mistakes in the ELBO: a piece of it, changed."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Beta, Dirichlet, Gamma

from zipmix.checker.mistake import Given, mistake

xlogy, entr, lgamma = torch.xlogy, torch.special.entr, torch.lgamma


def change(piece: str, sentence: str) -> Callable[[Callable[[Given], Tensor]], Callable[[Given], Tensor]]:
    """Enters a changed piece; the same mistake in the sum is the right ELBO with that piece exchanged."""

    def enter(function: Callable[[Given], Tensor]) -> Callable[[Given], Tensor]:
        function.__dict__["piece"] = piece
        return mistake(f"elbo_{piece} elbo", sentence)(function)

    return enter


def _log_poisson(g: Given) -> Tensor:
    X = g.X[:, None]
    return xlogy(X, g.lam) - g.lam - lgamma(X + 1)


def _w(g: Given) -> Tensor:
    return g.zeta[..., None]


# Right: sum E[zeta] { E[b] log Poisson(x) + (1 - E[b]) log delta_0(x) }


def _impossible(g: Given) -> Tensor:
    """0, or minus infinity where q gives b = 0 a chance although x > 0."""
    return torch.where(((g.X[:, None] > 0) & (_w(g) * (1 - g.Eb) > 0)).any(), -torch.inf, 0.0)


@change("likelihood", "log x! is dropped")
def log_factorial_dropped(g: Given) -> Tensor:
    X = g.X[:, None]
    return (_w(g) * g.Eb * (xlogy(X, g.lam) - g.lam)).sum() + _impossible(g)


@change("likelihood", "the term of delta_0 is dropped: beliefs with q(b = 0) > 0 where x > 0 give minus infinity")
def delta_0_dropped(g: Given) -> Tensor:
    return (_w(g) * g.Eb * _log_poisson(g)).sum()


@change("likelihood", "log Poisson(x) is not weighted by E[b]")
def poisson_not_weighted_by_b(g: Given) -> Tensor:
    return (_w(g) * _log_poisson(g)).sum() + _impossible(g)


@change("likelihood", "log Poisson(x) is not weighted by E[zeta]")
def poisson_not_weighted_by_zeta(g: Given) -> Tensor:
    return (g.Eb * _log_poisson(g)).sum() + _impossible(g)


# Right: sum E[zeta] log pi + sum E[zeta] { E[b] log omega + (1 - E[b]) log(1 - omega) }


def _log_b(g: Given) -> Tensor:
    return g.Eb * g.omega.log() + (1 - g.Eb) * torch.log1p(-g.omega)


def _log_z(g: Given) -> Tensor:
    return xlogy(g.zeta, g.pi).sum()


@change("latents", "log p(Z | pi) is missing")
def log_pi_missing(g: Given) -> Tensor:
    return (_w(g) * _log_b(g)).sum()


@change("latents", "log p(B | Z) is missing")
def log_omega_missing(g: Given) -> Tensor:
    return _log_z(g)


@change("latents", "log p(B | Z) is not weighted by E[zeta]")
def log_omega_not_weighted(g: Given) -> Tensor:
    return _log_z(g) + _log_b(g).sum()


@change("latents", "the term (1 - E[b]) log(1 - omega) is dropped")
def failures_dropped(g: Given) -> Tensor:
    return _log_z(g) + (_w(g) * g.Eb * g.omega.log()).sum()


@change("latents", "omega and the gate 1 - omega are swapped")
def omega_and_gate_swapped_in_elbo(g: Given) -> Tensor:
    return _log_z(g) + (_w(g) * _log_b(g._replace(omega=1 - g.omega))).sum()


# Right: -sum E[zeta] log E[zeta] - sum E[zeta] { E[b] log E[b] + (1 - E[b]) log(1 - E[b]) }


def _entropy_z(g: Given) -> Tensor:
    return entr(g.zeta).sum()


def _entropy_b(g: Given) -> Tensor:
    return entr(g.Eb) + entr(1 - g.Eb)


@change("entropy", "the entropy has the wrong sign")
def entropy_sign(g: Given) -> Tensor:
    return -_entropy_z(g) - (_w(g) * _entropy_b(g)).sum()


@change("entropy", "the entropy of z has the wrong sign")
def entropy_of_z_sign(g: Given) -> Tensor:
    return -_entropy_z(g) + (_w(g) * _entropy_b(g)).sum()


@change("entropy", "the entropy of b has the wrong sign")
def entropy_of_b_sign(g: Given) -> Tensor:
    return _entropy_z(g) - (_w(g) * _entropy_b(g)).sum()


@change("entropy", "the entropy of z is missing")
def entropy_of_z_missing(g: Given) -> Tensor:
    return (_w(g) * _entropy_b(g)).sum()


@change("entropy", "the entropy of b is missing")
def entropy_of_b_missing(g: Given) -> Tensor:
    return _entropy_z(g)


@change("entropy", "the entropy of b is not weighted by E[zeta]")
def entropy_of_b_not_weighted(g: Given) -> Tensor:
    return _entropy_z(g) + _entropy_b(g).sum()


@change("entropy", "the entropy of b lacks (1 - E[b]) log(1 - E[b])")
def half_entropy_of_b(g: Given) -> Tensor:
    return _entropy_z(g) + (_w(g) * entr(g.Eb)).sum()


@change("entropy", "0 log 0 comes out as NaN in the entropy of z: its limit is 0")
def zero_log_zero(g: Given) -> Tensor:
    return -(g.zeta * g.zeta.log()).sum() + (_w(g) * _entropy_b(g)).sum()


@change("entropy", "0 log 0 comes out as NaN in the entropy of b: its limit is 0")
def zero_log_zero_of_b(g: Given) -> Tensor:
    return _entropy_z(g) - (_w(g) * (g.Eb * g.Eb.log() + (1 - g.Eb) * (1 - g.Eb).log())).sum()


# Right: log Dirichlet(pi | alpha) + sum log Beta(omega | a, b) + sum log Gamma(lambda | e, rate f)


def _log_prior_pi(g: Given) -> Tensor:
    return Dirichlet(g.alpha, validate_args=False).log_prob(g.pi)


def _log_prior_omega(g: Given) -> Tensor:
    return Beta(g.a, g.b0).log_prob(g.omega).sum()


def _log_prior_lam(g: Given) -> Tensor:
    return Gamma(g.e, g.f).log_prob(g.lam).sum()


@change("prior", "log p(Theta) is missing")
def prior_missing(g: Given) -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@change("prior", "log p(Theta) is counted once for every row")
def prior_counted_N_times(g: Given) -> Tensor:
    return len(g.X) * (_log_prior_pi(g) + _log_prior_omega(g) + _log_prior_lam(g))


@change("prior", "log p(pi) is missing")
def prior_of_pi_missing(g: Given) -> Tensor:
    return _log_prior_omega(g) + _log_prior_lam(g)


@change("prior", "log p(omega) is missing")
def prior_of_omega_missing(g: Given) -> Tensor:
    return _log_prior_pi(g) + _log_prior_lam(g)


@change("prior", "log p(lambda) is missing")
def prior_of_lambda_missing(g: Given) -> Tensor:
    return _log_prior_pi(g) + _log_prior_omega(g)


@change("prior", "the rate f_0 is read as a scale")
def rate_read_as_scale_in_prior(g: Given) -> Tensor:
    return _log_prior_pi(g) + _log_prior_omega(g) + Gamma(g.e, 1 / g.f).log_prob(g.lam).sum()


@change("prior", "the normalising constants of the priors are dropped")
def prior_normalisers_dropped(g: Given) -> Tensor:
    omega = xlogy(g.a - 1, g.omega) + (g.b0 - 1) * torch.log1p(-g.omega)
    return xlogy(g.alpha - 1, g.pi).sum() + omega.sum() + (xlogy(g.e - 1, g.lam) - g.f * g.lam).sum()
