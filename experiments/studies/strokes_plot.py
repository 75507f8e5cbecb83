"""The picture of the confidence knobs: what each does to the colours and to the class."""

import numpy as np
from jaxtyping import UInt8

from experiments.app.tables import Figures
from maskgit_jax.errors import InputError

# Okabe and Ito's colours, which colour-blind people tell apart.
_STYLES = {
    "tilt": ("#0072B2", "o"),
    "code_distance": ("#D55E00", "s"),
    "identity": ("#009E73", "^"),
    "learned": ("#CC79A7", "D"),
}
_PANELS = {
    "colour_distance": "colour distance to the stroke",
    "class_accuracy": "share of the right class",
}


def check_matplotlib() -> None:
    """Raises InputError, with the command that mends it, where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("a plot needs matplotlib: pip install -e '.[evaluate]'") from None


def plot_confidence(
    curves: dict[str, dict[float, Figures]], baseline: Figures
) -> UInt8[np.ndarray, "h w 3"]:
    """Colour distance and class accuracy against the confidence.

    Args:
      curves: by method, the figures at each confidence; methods without any are left out.
      baseline: the figures without guidance, drawn as a line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, (name, title) in zip(panels, _PANELS.items(), strict=True):
        axes.axhline(baseline[name][0], color="0.4", ls="--", lw=2, label="no guidance")
        for method, points in curves.items():
            if not points:
                continue
            confidences = sorted(points)
            values, errors = np.array([points[c][name] for c in confidences]).T
            colour, marker = _STYLES[method]
            axes.errorbar(
                confidences,
                values,
                errors,
                color=colour,
                marker=marker,
                capsize=4,
                lw=2.5,
                label=method,
            )
        axes.set_xlabel("confidence", fontsize=16)
        axes.set_ylabel(title, fontsize=16)
        axes.tick_params(labelsize=13)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=14
    )
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
