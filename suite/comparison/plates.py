"""The plate diagram of the model, read off the Pyro program (question 0)."""

from typing import Literal, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from zipmix.models.zip_mixture import relations


def plot_plates(ax: Axes | None = None) -> Axes:
    """The graphical model with plates, read off the Pyro program (question 0).

    Circles are random variables, shaded where observed; squares are hyperparameters.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(5.0, 4.4), layout="constrained")
    graph = relations()
    for plate in dict.fromkeys(name for plates in graph.plates.values() for name in plates):
        inside = [POSITIONS[name] for name, plates in graph.plates.items() if plate in plates]
        (left, low), (right, high) = np.min(inside, 0), np.max(inside, 0)
        pad = PLATES[plate].pad
        box = (left - pad, low - pad), right - left + 2 * pad, high - low + 2 * pad
        ax.add_patch(FancyBboxPatch(*box, boxstyle="round,pad=0,rounding_size=0.08", fill=False, lw=1.1, ec="#555555"))
        align = PLATES[plate].align
        at_x = {"left": left - pad + 0.06, "center": (left + right) / 2, "right": right + pad - 0.06}[align]
        ax.text(at_x, low - pad + 0.06, PLATES[plate].label, ha=align, va="bottom", fontsize=8.5, color="#555555")
    for child, parents in graph.parents.items():
        for parent in sorted(parents):
            bend = 0.35 if (parent, child) == ("z", "x") else 0.0
            ax.add_patch(
                FancyArrowPatch(
                    POSITIONS[parent],
                    POSITIONS[child],
                    connectionstyle=f"arc3,rad={bend}",
                    arrowstyle="-|>",
                    mutation_scale=11,
                    shrinkA=14,
                    shrinkB=15,
                    color="#222222",
                    lw=1.1,
                )
            )
    for name in graph.families:
        face = "#C9D6E2" if name in graph.observed else "white"
        ax.add_patch(Circle(POSITIONS[name], 0.21, fc=face, ec="#222222", lw=1.3, zorder=3))
        ax.text(*POSITIONS[name], SYMBOLS[name], ha="center", va="center", fontsize=12, zorder=4)
    for name in graph.hyperparameters:
        x, y = POSITIONS[name]
        ax.add_patch(Rectangle((x - 0.16, y - 0.16), 0.32, 0.32, fc="white", ec="#222222", lw=1.3, zorder=3))
        ax.text(x, y, SYMBOLS[name], ha="center", va="center", fontsize=11, zorder=4)
    ax.set(xlim=(0.3, 4.35), ylim=(0.15, 4.2), aspect="equal")
    ax.set_axis_off()
    return ax


class _Plate(NamedTuple):
    """The name of a plate, how far its frame is from the nodes, and where in the frame the name stands."""

    label: str
    pad: float
    align: Literal["left", "center", "right"]


PLATES = {
    "observation": _Plate("$i = 1..N$", 0.42, "left"),
    "feature": _Plate("$d = 1..D$", 0.58, "right"),
    "component": _Plate("$k = 1..K$", 0.42, "center"),
}
POSITIONS = {
    "pi": (0.95, 2.5),
    "z": (0.95, 0.95),
    "b": (2.2, 0.95),
    "x": (3.4, 0.95),
    "omega": (2.2, 2.5),
    "lam": (3.4, 2.5),
    "alpha_0": (0.95, 3.85),
    "a_0": (1.95, 3.85),
    "b_0": (2.45, 3.85),
    "e_0": (3.15, 3.85),
    "f_0": (3.65, 3.85),
}
SYMBOLS = {
    "pi": r"$\pi$",
    "z": "$z_i$",
    "b": "$b_{id}$",
    "x": "$x_{id}$",
    "omega": r"$\omega_{kd}$",
    "lam": r"$\lambda_{kd}$",
    "alpha_0": r"$\alpha_0$",
    "a_0": "$a_0$",
    "b_0": "$b_0$",
    "e_0": "$e_0$",
    "f_0": "$f_0$",
}
