"""The picture of what structure costs: likeness to the sketch against realism, λ_s by λ_s."""

import numpy as np
from jaxtyping import UInt8

from experiments.app.tables import Figures
from maskgit_jax.errors import InputError

# Okabe and Ito's colours, which colour-blind people tell apart.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_FLOORS = {"unguided": (_ORANGE, "--"), "sketches as answers": (_GREEN, ":")}
_LIKENESS, _DISTANCE, _WHITE = "silhouette_iou", "frechet_distance", "white_background"
_TITLES = {
    _LIKENESS: "IoU with the sketch's object",
    _DISTANCE: "Fréchet distance to photos",
    _WHITE: "share of white backgrounds",
}


def check_matplotlib() -> None:
    """Raises InputError, with the command that mends it, where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("a plot needs matplotlib: pip install -e '.[evaluate]'") from None


def plot(points: dict[float, Figures], rows: dict[str, Figures]) -> UInt8[np.ndarray, "h w 3"]:
    """Three panels: IoU and Fréchet distance against λ_s, IoU against the share of white.

    Args:
      points: figures by λ_s, with `silhouette_iou`, `frechet_distance` and `white_background`.
      rows: figures by name, of which "unguided" and "sketches as answers" are drawn as floors.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    lambdas = sorted(points)

    def column(name: str) -> np.ndarray:
        """Values and standard errors."""
        return np.array([points[value][name] for value in lambdas]).T

    for axes, name in zip(panels, (_LIKENESS, _DISTANCE), strict=False):
        values, errors = column(name)
        axes.errorbar(
            lambdas, values, errors, color=_BLUE, marker="o", capsize=5, lw=2.5, label="guided"
        )
        for floor, (colour, style) in _FLOORS.items():
            axes.axhline(rows[floor][name][0], color=colour, ls=style, lw=2.5, label=floor)
        axes.set_xlabel("$λ_s$: share of structure", fontsize=17)
        axes.set_ylabel(_TITLES[name], fontsize=17)

    (white, white_errors), (likeness, errors) = column(_WHITE), column(_LIKENESS)
    panels[2].errorbar(
        white, likeness, errors, white_errors, color=_BLUE, marker="o", capsize=5, lw=2.5
    )
    for place, (value, x, y) in enumerate(zip(lambdas, white, likeness, strict=True)):
        side = -1 if place % 2 else 1  # neighbours lie close together
        panels[2].annotate(
            f"{value:g}",
            (x, y),
            xytext=(12 * side, 12 * side - 5),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            fontsize=14,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    for floor, (colour, _) in _FLOORS.items():
        (x, x_error), (y, y_error) = rows[floor][_WHITE], rows[floor][_LIKENESS]
        panels[2].errorbar(x, y, y_error, x_error, color=colour, marker="s", capsize=5, lw=2.5)
    panels[2].set_xlim(-0.08, 1.12)
    panels[2].set_title("$λ_s$ beside the points", fontsize=14)
    panels[2].set_xlabel(_TITLES[_WHITE], fontsize=17)
    panels[2].set_ylabel(_TITLES[_LIKENESS], fontsize=17)

    for axes in panels:
        axes.tick_params(labelsize=14)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=16
    )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
