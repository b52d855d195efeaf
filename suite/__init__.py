"""zipmix: fit, check and compare the zero-inflated Poisson mixture.

Public names are loaded when they are first used, so that the command line answers before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zipmix.checker import Report as Report
    from zipmix.checker import check as check
    from zipmix.choose import choose_k as choose_k
    from zipmix.comparison.comparison import Comparison as Comparison
    from zipmix.comparison.comparison import compare as compare
    from zipmix.comparison.figures import plot_affinity as plot_affinity
    from zipmix.comparison.figures import plot_counts as plot_counts
    from zipmix.comparison.figures import plot_forest as plot_forest
    from zipmix.comparison.figures import plot_objective as plot_objective
    from zipmix.comparison.figures import plot_restarts as plot_restarts
    from zipmix.comparison.figures import plot_rootogram as plot_rootogram
    from zipmix.comparison.figures import plot_structural_zeros as plot_structural_zeros
    from zipmix.comparison.figures import plot_zeros as plot_zeros
    from zipmix.comparison.plates import plot_plates as plot_plates
    from zipmix.counts.checks import InputError as InputError
    from zipmix.estimator import ZIPMixture as ZIPMixture
    from zipmix.files.data import Data as Data
    from zipmix.files.data import load_data as load_data
    from zipmix.files.streams import stream as stream
    from zipmix.inference import METHODS as METHODS
    from zipmix.inference import fit as fit
    from zipmix.inference.calibration import geweke as geweke
    from zipmix.inference.calibration import sbc as sbc
    from zipmix.inference.evidence.annealed import log_evidence_annealed as log_evidence_annealed
    from zipmix.inference.evidence.chib import log_evidence_chib as log_evidence_chib
    from zipmix.inference.evidence.estimate import Evidence as Evidence
    from zipmix.inference.evidence.exact import exact_posterior as exact_posterior
    from zipmix.inference.evidence.exact import log_evidence_exact as log_evidence_exact
    from zipmix.inference.result import Fit as Fit
    from zipmix.inference.result import load as load
    from zipmix.models.parameters import FLAT as FLAT
    from zipmix.models.parameters import Parameters as Parameters
    from zipmix.models.parameters import Prior as Prior
    from zipmix.models.posterior import log_posterior as log_posterior
    from zipmix.models.zip_mixture import Simulation as Simulation
    from zipmix.models.zip_mixture import simulate as simulate

_HOME = {
    "Report": "zipmix.checker",
    "check": "zipmix.checker",
    "choose_k": "zipmix.choose",
    "Comparison": "zipmix.comparison.comparison",
    "compare": "zipmix.comparison.comparison",
    "Data": "zipmix.files.data",
    "load_data": "zipmix.files.data",
    "ZIPMixture": "zipmix.estimator",
    "METHODS": "zipmix.inference",
    "fit": "zipmix.inference",
    "load": "zipmix.inference.result",
    "geweke": "zipmix.inference.calibration",
    "sbc": "zipmix.inference.calibration",
    "Evidence": "zipmix.inference.evidence.estimate",
    "log_evidence_annealed": "zipmix.inference.evidence.annealed",
    "log_evidence_chib": "zipmix.inference.evidence.chib",
    "exact_posterior": "zipmix.inference.evidence.exact",
    "log_evidence_exact": "zipmix.inference.evidence.exact",
    "Fit": "zipmix.inference.result",
    "FLAT": "zipmix.models.parameters",
    "InputError": "zipmix.counts.checks",
    "Parameters": "zipmix.models.parameters",
    "Prior": "zipmix.models.parameters",
    "log_posterior": "zipmix.models.posterior",
    "Simulation": "zipmix.models.zip_mixture",
    "simulate": "zipmix.models.zip_mixture",
    "stream": "zipmix.files.streams",
    "plot_affinity": "zipmix.comparison.figures",
    "plot_counts": "zipmix.comparison.figures",
    "plot_forest": "zipmix.comparison.figures",
    "plot_objective": "zipmix.comparison.figures",
    "plot_plates": "zipmix.comparison.plates",
    "plot_restarts": "zipmix.comparison.figures",
    "plot_rootogram": "zipmix.comparison.figures",
    "plot_structural_zeros": "zipmix.comparison.figures",
    "plot_zeros": "zipmix.comparison.figures",
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
