"""How the model is inferred: one method per file, all behind one signature and one result."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from zipmix.counts.checks import InputError, UnknownSetting, check_whole
from zipmix.inference.cavi import cavi
from zipmix.inference.collapsed_gibbs import collapsed_gibbs
from zipmix.inference.em import em
from zipmix.inference.evidence.exact import exact
from zipmix.inference.gibbs import gibbs
from zipmix.inference.online import online
from zipmix.inference.pyro_map import pyro_map
from zipmix.inference.pyro_nuts import pyro_nuts
from zipmix.inference.pyro_svi import pyro_svi
from zipmix.inference.result import Fit
from zipmix.models.parameters import Prior

METHODS: dict[str, Callable[..., Fit]] = {
    "em": em,
    "pyro_map": pyro_map,
    "pyro_svi": pyro_svi,
    "pyro_nuts": pyro_nuts,
    "cavi": cavi,
    "online": online,
    "gibbs": gibbs,
    "collapsed_gibbs": collapsed_gibbs,
    "exact": exact,
}


def fit(
    X: Any, n_components: int, method: str = "em", *, prior: Prior = Prior(), seed: int = 0, **settings: Any
) -> Fit:
    """Fits the ZIP mixture by any method of METHODS.

    Args:
        X: (N, D) table of counts >= 0, NaN where missing: torch tensor, NumPy array, pandas frame, SciPy sparse matrix,
            AnnData, or what zipmix.load_data returns; methods "em" and "online" take a zipmix.stream as well.
        n_components: K >= 1.
        method: name in METHODS.
        prior: hyperparameters; zipmix.FLAT with method "em" for maximum likelihood.
        seed: of all randomness: starts, moves, order of rows, gradients and draws.
        **settings: the method's own keywords (`help(zipmix.METHODS["em"])`). Those that methods share:

            init: "kmeans++", "small-em" or "prior", where starts come from.
            start: starting points to use instead, (K, D) or (R, K, D).
            progress: whether to show a progress bar.
    Returns:
        The fit, components heaviest first where all have the same prior.
    Raises:
        InputError: data, prior, method or a value of a setting that cannot be used.
        UnknownSetting: a setting that the method does not have; it is a TypeError.
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}; got {method!r}.{_nearest(method, METHODS)}")
    check_settings(method, settings)
    seed = check_whole(seed, "seed", at_least=0)
    return METHODS[method](X, n_components, prior=prior, seed=seed, **settings)


def check_settings(method: str, settings: dict[str, Any]) -> None:
    """Refuses settings that a method does not have.

    Raises:
        UnknownSetting: naming the setting and the ones there are.
    """
    own = [name for name in inspect.signature(METHODS[method]).parameters if name not in COMMON]
    for name in settings:
        if name not in own:
            raise UnknownSetting(
                f"method {method!r} has no setting {name!r}; it has {', '.join(own)}.{_nearest(name, own)}"
            )


COMMON = ("X", "n_components", "prior", "seed")


def _nearest(word: Any, words: Any) -> str:
    close = difflib.get_close_matches(word, list(words), n=1) if isinstance(word, str) else []
    return f" Did you mean {close[0]!r}?" if close else ""
