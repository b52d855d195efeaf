"""What other programs do for one pass over a table: one iteration of EM, or one gradient of the enumerated density.

Each function makes its program ready at a given point, outside of any timing, and returns the call that is timed. A
program that is not installed raises ModuleNotFoundError.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zipmix import Parameters, Prior
from zipmix.models.parameters import check_prior
from zipmix.models.zip_mixture import log_density

# One fit of scikit-learn or StepMix of two iterations has an M-step before them and an E-step after: three of each.
FIT_OF_TWO = 3


def gaussian_mixture(X: np.ndarray, theta: Parameters) -> Callable[[], object]:
    """scikit-learn: a fit of two iterations of GaussianMixture(covariance_type="diag"), without its k-means."""
    from sklearn.mixture import GaussianMixture

    mean = (theta.omega * theta.lam).numpy()
    model = GaussianMixture(
        len(mean), covariance_type="diag", max_iter=2, tol=0.0, init_params="random_from_data", random_state=0,
        weights_init=theta.pi.numpy(), means_init=mean, precisions_init=1 / (mean + 1),
    )  # fmt: skip
    table = X.astype(np.float64)
    return _not_converging(lambda: model.fit(table))


def step_mix(X: np.ndarray, theta: Parameters) -> Callable[[], object]:
    """StepMix: a fit of two iterations of its measurement model "gaussian_diag"; it has none for counts."""
    from stepmix import StepMix

    model = StepMix(
        len(theta.pi), measurement="gaussian_diag", max_iter=2, abs_tol=0.0, rel_tol=0.0, init_params="random",
        random_state=0, progress_bar=0, verbose=0,
    )  # fmt: skip
    table = X.astype(np.float64)
    return _not_converging(lambda: model.fit(table))


def _not_converging(run: Callable[[], object]) -> Callable[[], object]:
    """A run that warns of too few iterations."""
    from sklearn.exceptions import ConvergenceWarning

    def quietly() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return run()

    return quietly


def poisson_mixture(X: np.ndarray, theta: Parameters) -> Callable[[], tuple[float, Parameters]]:
    """pomegranate: one iteration of EM of a mixture of Poissons, which has no structural zeros (omega = 1).

    Always from theta; returns the log likelihood there and the point that EM goes to.
    """
    from pomegranate.distributions import Poisson
    from pomegranate.gmm import GeneralMixtureModel

    table = torch.from_numpy(X.astype(np.float64))

    def run() -> tuple[float, Parameters]:
        model = GeneralMixtureModel([Poisson(lam.clone()) for lam in theta.lam], priors=theta.pi.clone())
        log_likelihood = float(model.summarize(table))
        model.from_summaries()
        lam_KD = torch.stack([component.lambdas.detach() for component in model.distributions])
        return log_likelihood, Parameters(model.priors.detach(), torch.ones_like(lam_KD), lam_KD)

    return run


def pyro_gradient(X: np.ndarray, theta: Parameters, prior: Prior) -> Callable[[], tuple[float, dict[str, Tensor]]]:
    """Pyro: value and gradient of the enumerated program, TraceEnum_ELBO."""
    table = torch.from_numpy(X.astype(np.float64))
    tensors = check_prior(prior, len(theta.pi))

    def run() -> tuple[float, dict[str, Tensor]]:
        point = Parameters(*(value.clone().requires_grad_() for value in theta))
        value = log_density(table, point, tensors)
        value.backward()
        return value.item(), {name: field.grad for name, field in point._asdict().items()}

    return run


def numpyro_gradient(X: np.ndarray, theta: Parameters, prior: Prior) -> Callable[[], tuple[float, dict[str, Any]]]:
    """NumPyro: value and gradient of the enumerated program, compiled before it is timed."""
    import numpyro_program

    return numpyro_program.gradient(X, theta, prior)
