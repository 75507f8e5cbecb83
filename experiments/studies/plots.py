"""What the plots of the studies share: figures without a display, points with their errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from maskgit_jax.errors import need

# Okabe and Ito's colours, which colour-blind people tell apart.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


def check_matplotlib() -> None:
    """Raises InputError, with the command that mends it, where matplotlib is not installed."""
    need("a plot", "evaluate", "matplotlib")


def new_figure(width: int | float, height: int | float, dpi: int) -> Any:
    """A figure of so many inches, without panels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def error_bars(axes: Any, x: Sequence[float], figures: Sequence[Any], **style: Any) -> None:
    """Values and standard errors against x."""
    values, errors = np.array(figures).T
    axes.errorbar(x, values, errors, **({"marker": "o", "capsize": 4, "lw": 2} | style))


def label_axes(axes: Any, x: str, y: str, size: int = 16, ticks: int = 13) -> None:
    """Titles of both axes, in letters that can be read, and a light grid."""
    axes.set_xlabel(x, fontsize=size)
    axes.set_ylabel(y, fontsize=size)
    axes.tick_params(labelsize=ticks)
    axes.grid(alpha=0.3)


def legend_outside(figure: Any, place: str, columns: int, size: int) -> None:
    """One legend for all panels, from the first one's lines."""
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc=f"outside {place} center", ncols=columns, fontsize=size)


def pixels(figure: Any) -> UInt8[np.ndarray, "h w 3"]:
    """The figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
