"""zipmix: fit, check and compare the zero-inflated Poisson mixture.

Public names are loaded when they are first used, so that the command line answers before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zipmix.checker import Report as Report
    from zipmix.checker import check as check
    from zipmix.choose import choose_k as choose_k
    from zipmix.comparison import Comparison as Comparison
    from zipmix.comparison import compare as compare
    from zipmix.data import Data as Data
    from zipmix.data import load_data as load_data
    from zipmix.estimator import ZIPMixture as ZIPMixture
    from zipmix.inference import METHODS as METHODS
    from zipmix.inference import fit as fit
    from zipmix.inference.arviz_io import load as load
    from zipmix.inference.calibration import geweke as geweke
    from zipmix.inference.calibration import sbc as sbc
    from zipmix.inference.evidence import Evidence as Evidence
    from zipmix.inference.evidence import log_evidence_annealed as log_evidence_annealed
    from zipmix.inference.evidence import log_evidence_chib as log_evidence_chib
    from zipmix.inference.exact import exact_posterior as exact_posterior
    from zipmix.inference.exact import log_evidence_exact as log_evidence_exact
    from zipmix.inference.result import Fit as Fit
    from zipmix.models.parameters import FLAT as FLAT
    from zipmix.models.parameters import InputError as InputError
    from zipmix.models.parameters import Parameters as Parameters
    from zipmix.models.parameters import Prior as Prior
    from zipmix.models.posterior import log_posterior as log_posterior
    from zipmix.models.zip_mixture import Simulation as Simulation
    from zipmix.models.zip_mixture import simulate as simulate
    from zipmix.plates import plot_plates as plot_plates
    from zipmix.plots import plot_affinity as plot_affinity
    from zipmix.plots import plot_counts as plot_counts
    from zipmix.plots import plot_forest as plot_forest
    from zipmix.plots import plot_objective as plot_objective
    from zipmix.plots import plot_restarts as plot_restarts
    from zipmix.plots import plot_rootogram as plot_rootogram
    from zipmix.plots import plot_structural_zeros as plot_structural_zeros
    from zipmix.plots import plot_zeros as plot_zeros
    from zipmix.streams import stream as stream

_HOME = {
    "Report": "zipmix.checker",
    "check": "zipmix.checker",
    "choose_k": "zipmix.choose",
    "Comparison": "zipmix.comparison",
    "compare": "zipmix.comparison",
    "Data": "zipmix.data",
    "load_data": "zipmix.data",
    "ZIPMixture": "zipmix.estimator",
    "METHODS": "zipmix.inference",
    "fit": "zipmix.inference",
    "load": "zipmix.inference.arviz_io",
    "geweke": "zipmix.inference.calibration",
    "sbc": "zipmix.inference.calibration",
    "Evidence": "zipmix.inference.evidence",
    "log_evidence_annealed": "zipmix.inference.evidence",
    "log_evidence_chib": "zipmix.inference.evidence",
    "exact_posterior": "zipmix.inference.exact",
    "log_evidence_exact": "zipmix.inference.exact",
    "Fit": "zipmix.inference.result",
    "FLAT": "zipmix.models.parameters",
    "InputError": "zipmix.models.parameters",
    "Parameters": "zipmix.models.parameters",
    "Prior": "zipmix.models.parameters",
    "log_posterior": "zipmix.models.posterior",
    "Simulation": "zipmix.models.zip_mixture",
    "simulate": "zipmix.models.zip_mixture",
    "stream": "zipmix.streams",
    "plot_affinity": "zipmix.plots",
    "plot_counts": "zipmix.plots",
    "plot_forest": "zipmix.plots",
    "plot_objective": "zipmix.plots",
    "plot_plates": "zipmix.plates",
    "plot_restarts": "zipmix.plots",
    "plot_rootogram": "zipmix.plots",
    "plot_structural_zeros": "zipmix.plots",
    "plot_zeros": "zipmix.plots",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zipmix' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
