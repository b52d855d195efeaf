"""ZIPMixture: the mixture behind scikit-learn's conventions, for pipelines, grid searches and cross-validation."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClusterMixin, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from zipmix.inference import fit
from zipmix.inference.result import Fit
from zipmix.models.parameters import Prior


class ZIPMixture(ClusterMixin, DensityMixin, BaseEstimator):  # type: ignore[misc]
    """Zero-inflated Poisson mixture as a scikit-learn estimator.

    X is a table of counts >= 0 with NaN for missing cells, as for `zipmix.fit`.

    Args:
        n_components: K >= 1.
        method: name in zipmix.METHODS.
        prior: hyperparameters, zipmix.Prior() where None; zipmix.FLAT for maximum likelihood by "em".
        settings: the method's own keywords, {"n_starts": 50}.
        random_state: seed, numpy RandomState, or None for one drawn from numpy's global state.

    Attributes:
        fit_: the zipmix.Fit.
        weights_: (K,) pi.
        omega_: (K, D) share of the Poisson part.
        rates_: (K, D) Poisson rates lambda.
        labels_: (N,) component of each row of the data.
        n_iter_, converged_: of the fit.
        n_features_in_: D.
        feature_names_in_: names of columns, where X has names.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        method: str = "em",
        prior: Prior | None = None,
        settings: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_components = n_components
        self.method = method
        self.prior = prior
        self.settings = settings
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> Self:
        """Fits the mixture; y is not used.

        Raises:
            InputError: X or a parameter that cannot be used.
        """
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        prior = Prior() if self.prior is None else self.prior
        fitted = fit(X, self.n_components, self.method, prior=prior, seed=seed, **(self.settings or {}))
        self.fit_ = fitted
        self.weights_, self.omega_, self.rates_ = (value.numpy() for value in fitted.parameters)
        self.labels_ = fitted.predict().numpy()
        self.n_iter_, self.converged_ = fitted.n_iter, fitted.converged
        self.n_features_in_ = fitted.X.shape[1]
        if hasattr(X, "columns"):
            self.feature_names_in_ = np.asarray(fitted.names, dtype=object)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable component of each row, (N,)."""
        return self._fitted().predict(X).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Responsibilities, (N, K)."""
        return self._fitted().responsibilities(X).numpy()

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x_i | parameters) of each row, (N,)."""
        return self._fitted().score_samples(X).numpy()

    def score(self, X: Any, y: object = None) -> float:
        """The mean of score_samples; y is not used."""
        return float(self.score_samples(X).mean())

    def impute(self, X: Any) -> np.ndarray:
        """X with missing cells filled by E[x | observed cells of the row], (N, D)."""
        return self._fitted().impute(X).numpy()

    def _fitted(self) -> Fit:
        check_is_fitted(self, "fit_")
        fitted: Fit = self.fit_
        return fitted

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        return tags
