"""How many components: for each number of them, everything that speaks for or against it, in one table."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from zipmix.counts.checks import InputError
from zipmix.inference import fit
from zipmix.inference.evidence.annealed import log_evidence_annealed
from zipmix.inference.evidence.chib import RELABELLED, log_evidence_chib
from zipmix.inference.loo import loo
from zipmix.inference.loop import progress_bar
from zipmix.models.parameters import Prior, check_components, check_prior

if TYPE_CHECKING:
    import pandas as pd


def choose_k(
    X: Any,
    n_components: Iterable[int] = range(1, 7),
    *,
    prior: Prior = Prior(),
    seed: int = 0,
    n_chains: int = 4,
    n_warmup: int = 500,
    n_draws: int = 1000,
    n_groups: int = 10,
    n_particles: int = 50,
    progress: bool = False,
) -> "pd.DataFrame":
    """Evidence, its bound, leave-one-out score and BIC for a range of numbers of components.

    Args:
        X: (N, D) counts >= 0, NaN where missing.
        n_components: numbers of components to compare, each >= 1.
        prior: hyperparameters, the same for all; alpha is one number.
        seed: of everything.
        n_chains: Gibbs chains behind Chib's estimate and the leave-one-out score.
        n_warmup: sweeps thrown away first.
        n_draws: sweeps kept, per chain.
        n_groups: groups of particles behind the annealed estimate.
        n_particles: particles per group.
        progress: whether to show a progress bar.
    Returns:
        One row per number of components. The larger, the better: elbo (of CAVI; it knows one of K! labellings, so up to
        log K! may be added), chib and annealed (log evidence, with chib_error and annealed_error), loo (expected log
        density of a row left out, summed, with loo_error; n_bad rows for which it is not to be trusted). The smaller,
        the better: bic, -2 log p(X | MAP) + (K - 1 + 2 K D) log N (Fraley and Raftery, 2007). NaN where there is none:
        chib over 14 components, bic under a prior below 1.
    Raises:
        InputError: data, prior or settings that cannot be used.
    """
    import pandas as pd

    numbers = [check_components(K) for K in n_components]
    check_prior(prior, 1)
    if not numbers:
        raise InputError("n_components must name at least one number of components; range(1, 7) is usual.")
    rows = []
    with progress_bar(len(numbers), "choose_k", enabled=progress) as advance:
        for K in numbers:
            gibbs = fit(X, K, "gibbs", prior=prior, seed=seed, n_chains=n_chains, n_warmup=n_warmup, n_draws=n_draws)
            annealed = log_evidence_annealed(X, K, prior, seed=seed, n_groups=n_groups, n_particles=n_particles)
            row = {
                "elbo": fit(X, K, "cavi", prior=prior, seed=seed).objective,
                "chib": math.nan,
                "chib_error": math.nan,
            }
            if K <= RELABELLED:
                row["chib"], row["chib_error"], _ = log_evidence_chib(gibbs, seed=seed)
            row["annealed"], row["annealed_error"], _ = annealed
            row["loo"], row["loo_error"], _, row["n_bad"] = loo(gibbs)
            row["bic"] = _bic(X, K, prior, seed)
            rows.append(row)
            advance()
    return pd.DataFrame(rows, index=pd.Index(numbers, name="n_components"))


def _bic(X: Any, K: int, prior: Prior, seed: int) -> float:
    if any(float(value) < 1 for value in (prior.alpha, prior.a, prior.b, prior.e)):
        return math.nan
    em = fit(X, K, "em", prior=prior, seed=seed)
    N, D = em.X.shape
    return -2 * em.score_samples().sum().item() + (K - 1 + 2 * K * D) * math.log(N)
