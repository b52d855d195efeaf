"""Chib's estimate of the evidence log p(X | K, prior), for choosing K.

Chib (1995): log p(X) = log p(X | Theta*) + log p(Theta*) - log p(Theta* | X) at any Theta*. The last term is an average
over draws of the complete conditionals,

    p(Theta* | X) = E[ p(Theta* | X, z, m) | X ]                    Dirichlet x Beta x Gamma, conjugate.py

and Gibbs draws of (z, m) are needed from all K! labellings alike, which no sampler visits evenly. Every draw is
therefore averaged over all relabellings (Berkhof, van Mechelen and Gelman, 2003; Fruehwirth-Schnatter, 2004), which is
exact under a prior with one alpha:

    1/K! sum_perm prod_k w[k, perm(k)],          w[k, j] = density of component j of Theta* given the statistics of k

This permanent is a sum over subsets of components, 2^K K terms and not K!. Where the chains never switch labels, it is
one term, and the average amounts to Chib's plain estimate with log K! added.

Notation: models/zip_mixture.py.
"""

import math

import torch
from torch import Tensor

from zipmix.counts.checks import InputError
from zipmix.counts.store import Counts, as_counts
from zipmix.inference.evidence.estimate import Evidence, doubt
from zipmix.inference.gibbs import draw_statistics
from zipmix.inference.result import Fit
from zipmix.inference.rng import generator
from zipmix.models.conjugate import Conditionals, complete_conditionals, log_normalisers, mean
from zipmix.models.kernel import expectation, logs
from zipmix.models.parameters import Parameters, Prior, exchangeable
from zipmix.models.posterior import blocks, log_posterior_at

# Most components for which the sum over relabellings is computed.
RELABELLED = 14

# Rounds on the way to the point at which Chib's identity is evaluated; any point would be right, few are precise.
ROUNDS = 20

# Most numbers in a table over subsets of components that is held at once.
SUBSETS = 4_000_000


def log_evidence_chib(fit: Fit, *, seed: int = 0) -> Evidence:
    """Chib's estimate of log p(X | K, prior) from posterior draws, averaged over all relabellings.

    Args:
        fit: draws from the posterior, such as those of method "gibbs"; K <= 14; a prior with one alpha.
        seed: of the (z, b) drawn given each draw of the parameters.
    Returns:
        The estimate at a point near fit.parameters. Its error is that of batch means, which holds where the chains have
        mixed, up to their labels; over 0.5, few draws dominate the average, and neither is to be trusted.
    Raises:
        InputError: a fit without posterior draws, an alpha that differs between components, or too many components.
    """
    if fit.draws is None or fit.variational:
        raise InputError(
            f"fit must hold draws from the posterior, got a fit of method {fit.method!r}; use zipmix.fit(..., 'gibbs')."
        )
    K = fit.n_components
    if not exchangeable(fit.prior):
        raise InputError(
            "fit.prior.alpha must be the same for all components, since relabelling changes the posterior otherwise; "
            "use zipmix.log_evidence_annealed."
        )
    if K > RELABELLED:
        raise InputError(
            f"fit must have at most {RELABELLED} components, got {K}: the sum over relabellings has 2^K terms a draw. "
            "Use zipmix.log_evidence_annealed."
        )
    counts = as_counts(fit.X)
    rng = generator(seed, "method")
    flat = fit.draws.flat(2)
    point = central_point(counts, fit.parameters, fit.prior)
    log_density_S = torch.cat(
        [
            relabelled_log_density(
                complete_conditionals(draw_statistics(counts, logs(points), rng)[0], fit.prior), point
            )
            for points in blocks(flat, counts.n_rows)
        ]
    )
    log_ordinate, error = _log_mean(log_density_S.reshape(fit.draws.pi.shape[:2]))
    joint = log_posterior_at(counts, point, fit.prior).item()
    reason = f"averaged over {len(log_density_S)} draws and all relabellings of {K} components"
    return Evidence(joint - log_ordinate, error, reason + doubt(error, "draws"))


def central_point(counts: Counts, parameters: Parameters, prior: Prior) -> Parameters:
    """A point near the parameters at which complete conditionals differ least in density.

    ROUNDS rounds of EM with the mean in place of the mode; the mean exists under every proper prior.
    """
    for _ in range(ROUNDS):
        parameters = mean(complete_conditionals(expectation(counts, logs(parameters))[0], prior))
    return parameters


def relabelled_log_density(conditionals: Conditionals, point: Parameters) -> Tensor:
    """log of the mean over all relabellings of the point of its density under the conditionals, (S,).

    Args:
        conditionals: (S, ...).
        point: pi (K,), omega (K, D), lam (K, D).
    """
    pi, omega, lam = point
    K = len(pi)
    normaliser = log_normalisers(conditionals)
    xlogy, xlog1py = torch.special.xlogy, torch.special.xlog1py
    a, b, e, f = (value[:, :, None, :] for value in conditionals[1:])
    # Rows are components of the statistics, columns are components of the point.
    beta = xlogy(a - 1, omega) + xlog1py(b - 1, -omega) - normaliser.omega[:, :, None]
    gamma = xlogy(e - 1, lam) - f * lam - normaliser.lam[:, :, None]
    weight_SKK = xlogy(conditionals.alpha[:, :, None] - 1, pi) + (beta + gamma).sum(-1)
    return log_permanent(weight_SKK) - normaliser.pi - math.lgamma(K + 1)


def log_permanent(weight_SKK: Tensor) -> Tensor:
    """log sum over permutations of exp(sum_k weight[k, perm(k)]), (S,), row by row over subsets of the columns."""
    K = weight_SKK.shape[-1]
    size = max(1, SUBSETS // 2**K)
    return torch.cat([_log_permanent(part) for part in weight_SKK.split(size)])


def _log_permanent(weight_SKK: Tensor) -> Tensor:
    n, K = weight_SKK.shape[:2]
    subsets = torch.arange(2**K)
    members_UK = (subsets[:, None] >> torch.arange(K)) & 1
    sizes_U = members_UK.sum(1)
    log_sum_SU = torch.full((n, 2**K), -torch.inf, dtype=weight_SKK.dtype)
    log_sum_SU[:, 0] = 0.0
    for k in range(K):
        # The first k + 1 rows fill a subset of k + 1 columns: row k takes one of them, rows before it the others.
        of_size = subsets[sizes_U == k + 1]
        chosen = members_UK[of_size].nonzero()[:, 1].reshape(len(of_size), k + 1)
        others = of_size[:, None] - (1 << chosen)
        log_sum_SU[:, of_size] = torch.logsumexp(log_sum_SU[:, others] + weight_SKK[:, k][:, chosen], -1)
    return log_sum_SU[:, -1]


def _log_mean(log_weight_CS: Tensor) -> tuple[float, float]:
    """log of the mean of correlated weights, and its standard error by batch means."""
    top = log_weight_CS.max()
    weight_CS = (log_weight_CS - top).exp()
    mean = weight_CS.mean()
    length = max(1, math.isqrt(weight_CS.shape[1]))
    n_batches = weight_CS.shape[1] // length
    batches = weight_CS[:, : n_batches * length].unflatten(1, (n_batches, length)).mean(-1).flatten()
    error = batches.std() / math.sqrt(len(batches)) if len(batches) > 1 else torch.tensor(math.inf)
    return (top + mean.log()).item(), (error / mean).item()
