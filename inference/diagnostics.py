"""R-hat and effective sample sizes of draws, by ArviZ (Vehtari, Gelman, Simpson, Carpenter and Buerkner, 2021)."""

import numpy as np
import xarray as xr
from torch import Tensor

from zipmix.inference.arviz import arviz


def rhat(values: Tensor) -> float:
    """Largest rank-normalised split R-hat over all entries of draws (chain, draw, ...).

    1 where all draws are equal, and infinite where no chain moves but they differ.
    """
    flat_CSJ = values.flatten(2) if values.ndim > 2 else values[..., None]
    moving = (flat_CSJ != flat_CSJ[:1, :1]).any(0).any(0)
    if not bool(moving.any()):
        return 1.0
    dataset = xr.Dataset({"value": (("chain", "draw", "entry"), flat_CSJ[..., moving].numpy())})
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(arviz().rhat(dataset)["value"].max())


def ess(values_CS: Tensor) -> float:
    """Bulk effective sample size of one quantity, draws (chain, draw)."""
    dataset = xr.Dataset({"value": (("chain", "draw"), values_CS.numpy())})
    return float(arviz().ess(dataset)["value"])


def least_ess(values: Tensor) -> float:
    """Smallest bulk effective sample size over all entries of draws (chain, draw, ...); NaN below 4 draws a chain."""
    flat_CSJ = values.flatten(2) if values.ndim > 2 else values[..., None]
    return float(arviz().ess(xr.Dataset({"value": (("chain", "draw", "entry"), flat_CSJ.numpy())}))["value"].min())
