"""ZIPMixture keeps scikit-learn's conventions and gives what zipmix.fit gives."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

import zipmix


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    return zipmix.simulate(150, 4, 3, seed=2, prior=zipmix.Prior(alpha=5.0, f=0.1)).X.numpy()


def test_it_is_the_fit(X: np.ndarray) -> None:
    model = zipmix.ZIPMixture(3, settings={"n_starts": 4}, random_state=7).fit(X)
    direct = zipmix.fit(X, 3, n_starts=4, seed=model.fit_.seed)
    assert np.array_equal(model.rates_, direct.parameters.lam.numpy())
    assert np.array_equal(model.labels_, direct.predict().numpy())
    assert np.array_equal(model.predict_proba(X), direct.responsibilities().numpy())
    assert model.score(X) == pytest.approx(direct.score_samples().mean().item(), rel=1e-14)
    assert np.array_equal(model.fit_predict(X), model.labels_)
    assert model.fit(X).fit_.seed == direct.seed


def test_a_grid_search_over_components_finds_them(X: np.ndarray) -> None:
    pipe = make_pipeline(FunctionTransformer(np.rint), zipmix.ZIPMixture(random_state=0, settings={"n_starts": 3}))
    search = GridSearchCV(pipe, {"zipmixture__n_components": [1, 2, 3]}, cv=3).fit(X)
    assert search.best_params_["zipmixture__n_components"] == 3


def test_names_missing_cells_and_clones(X: np.ndarray) -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame.iloc[3, 2] = np.nan
    model = zipmix.ZIPMixture(2, random_state=1).fit(frame)
    assert model.feature_names_in_.tolist() == list("abcd")
    assert np.isfinite(model.impute(frame)).all()
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(frame)
    with pytest.raises(ValueError, match="columns of the fit; got 3"):
        model.predict(X[:, :3])


class Rounding(zipmix.ZIPMixture):
    """The estimator behind a rounding of its input: scikit-learn's checks bring fractions and negative numbers."""

    def fit(self, X: object, y: object = None) -> "Rounding":
        return super().fit(_counts(X))

    def predict(self, X: object) -> np.ndarray:
        return super().predict(_counts(X))

    def predict_proba(self, X: object) -> np.ndarray:
        return super().predict_proba(_counts(X))

    def score_samples(self, X: object) -> np.ndarray:
        return super().score_samples(_counts(X))


def _counts(X: object) -> object:
    if sparse.issparse(X):
        return abs(X.rint())
    if isinstance(X, pd.DataFrame):
        return abs(X).round()
    array = np.asarray(X)
    if array.dtype.kind == "O" and array.ndim == 2 and not isinstance(array.flat[0], (str, dict)):
        array = array.astype(np.float64)
    return np.abs(np.rint(array)) if array.dtype.kind == "f" else X


def test_scikit_learns_own_checks() -> None:
    results = check_estimator(
        Rounding(settings={"n_starts": 1}, random_state=0), on_fail=None, on_skip=None, expected_failed_checks=EXPECTED
    )
    failed = {row["check_name"]: str(row["exception"]) for row in results if row["status"] == "failed"}
    assert not failed
    assert sum(row["status"] == "passed" for row in results) >= 30


OWN_WORDS = "the refusal is worded in zipmix's own way"
EXPECTED = {
    "check_n_features_in_after_fitting": OWN_WORDS,
    "check_complex_data": OWN_WORDS,
    "check_dtype_object": OWN_WORDS,
    "check_estimators_empty_data_messages": OWN_WORDS,
    "check_fit2d_predict1d": OWN_WORDS,
    "check_positive_only_tag_during_fit": "Rounding makes negative numbers positive",
    "check_fit_non_negative": "Rounding makes negative numbers positive",
    "check_estimator_sparse_array": "the check takes whatever has predict_proba for a classifier",
    "check_estimator_sparse_matrix": "the check takes whatever has predict_proba for a classifier",
    "check_clustering": "standardised Gaussian blobs, rounded, have no clusters left",
}
