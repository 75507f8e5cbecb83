"""The pictures of `attention`: attention maps and structure distances."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from experiments.studies import plots
from experiments.studies.attention import Pair, ink, look, token_attention
from guidance.structure import layer_distances
from maskgit_jax.images import to_float
from maskgit_jax.model import Model

_MOST_COLUMNS = 6
_INCHES = 2.4  # side of a panel
_DOTS_PER_INCH = 100
_LARGE, _SMALL = 20, 17
_MAPS, _DISTANCES = "viridis", "cividis"  # colour-blind people tell their colours apart


def draw_pair(
    model: Model, pair: Pair, token: tuple[int, int], head: int | None, divergence: str
) -> tuple[UInt8[np.ndarray, "_ _ 3"], UInt8[np.ndarray, "_ _ 3"]]:
    """What one token looks at, and where the attention of photo and sketch differs."""
    side = model.config.tokenizer.latent_size
    photo, sketch = (
        jax.tree.map(lambda inputs: inputs[0], look(model, image[None], np.array([pair.label])))
        for image in (pair.photo, pair.sketch)
    )
    maps = (
        token_attention(inputs, token[0] * side + token[1], head).reshape(-1, side, side)
        for inputs in (photo, sketch)
    )
    of_heads = "mean of heads" if head is None else f"head {head}"
    name = model.config.class_names[pair.label].split(",")[0]
    title = f"{name}: what token {token[0]},{token[1]} looks at ({of_heads})"
    distances = np.asarray(layer_distances(sketch, photo, divergence))[:, 1:]
    return draw_attention(pair.photo, pair.sketch, *maps, token, title), draw_distances(
        pair.photo,
        pair.sketch,
        distances.reshape(-1, side, side),
        f"where attention of photo and sketch differs ({divergence})",
    )


def draw_attention(
    photo: UInt8[np.ndarray, "H W 3"],
    sketch: UInt8[np.ndarray, "H W 3"],
    photo_maps: Float[np.ndarray, "L h w"],
    sketch_maps: Float[np.ndarray, "L h w"],
    token: tuple[int, int],
    title: str,
) -> UInt8[np.ndarray, "y x 3"]:
    """A token's attention in every layer: the photo's row above the sketch's.

    Both maps of a layer share their colours, from 0 to the highest value of either. The sketch's
    lines are drawn over all.

    Args:
      photo: the picture.
      sketch: its drawing.
      photo_maps: shares of attention on the latent grid.
      sketch_maps: the same for the sketch.
      token: row and column of the token, which is marked.
      title: over the whole.
    """
    num_layers = len(photo_maps)
    num_blocks = math.ceil(num_layers / _MOST_COLUMNS)
    columns = math.ceil(num_layers / num_blocks)
    label = "share of the token's attention, from 0 to the layer's highest"
    figure, panels = _panels(2 * num_blocks, columns + 1, title, _MAPS, label)
    sides = [("photo", photo, photo_maps), ("sketch", sketch, sketch_maps)]
    for row, (name, image, maps) in enumerate(sides * num_blocks):
        first = row // 2 * columns
        _show(panels[row, 0], to_float(image))
        panels[row, 0].set_ylabel(name, fontsize=_LARGE)
        _mark(panels[row, 0], token, photo_maps.shape[1])
        for layer in range(first, min(first + columns, num_layers)):
            axes = panels[row, layer - first + 1]
            highest = max(photo_maps[layer].max(), sketch_maps[layer].max())
            _show_heat(axes, _MAPS, maps[layer], highest, sketch)
            _mark(axes, token, photo_maps.shape[1])
            if row % 2 == 0:
                axes.set_title(f"layer {layer}", fontsize=_LARGE)
    return plots.pixels(figure)


def draw_distances(
    photo: UInt8[np.ndarray, "H W 3"],
    sketch: UInt8[np.ndarray, "H W 3"],
    distances: Float[np.ndarray, "L h w"],
    title: str,
) -> UInt8[np.ndarray, "y x 3"]:
    """Where the attention of photo and sketch differs: the mean over layers, then each layer.

    Each panel has its own colours, from 0 to its highest distance; the number is its mean.

    Args:
      photo: the picture.
      sketch: its drawing, whose lines are drawn over the heat.
      distances: of each token, on the latent grid.
      title: over the whole.
    """
    heats = {"mean of layers": distances.mean(axis=0)}
    heats |= {f"layer {layer}": heat for layer, heat in enumerate(distances)}
    columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(len(heats) + 2)))
    rows = math.ceil((len(heats) + 2) / columns)
    label = "structure distance, from 0 to the panel's highest; number: mean"
    figure, panels = _panels(rows, columns, title, _DISTANCES, label)
    cells = panels.ravel()
    for axes, name, image in zip(cells, ("photo", "sketch"), (photo, sketch), strict=False):
        _show(axes, to_float(image))
        axes.set_title(name, fontsize=_LARGE)
    for axes, (name, heat) in zip(cells[2:], heats.items(), strict=False):
        _show_heat(axes, _DISTANCES, heat, heat.max(), sketch)
        axes.set_title(f"{name}: {heat.mean():.2f}", fontsize=_SMALL)
    return plots.pixels(figure)


def _panels(
    rows: int, columns: int, title: str, colours: str, label: str
) -> tuple[Any, np.ndarray]:
    """A figure with a colour bar below, and its axes, [rows, columns], all still hidden."""
    from matplotlib.cm import ScalarMappable

    figure = plots.new_figure(max(columns, 4) * _INCHES, rows * _INCHES + 1.5, _DOTS_PER_INCH)
    figure.suptitle(title, fontsize=_LARGE)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1] * rows + [0.07])
    cells = [figure.add_subplot(grid[index]) for index in range(rows * columns)]
    panels = np.array(cells).reshape(rows, columns)
    for axes in panels.flat:
        axes.set_visible(False)
        axes.set(xticks=[], yticks=[])
    below = figure.add_subplot(grid[-1, :])
    bar = figure.colorbar(
        ScalarMappable(cmap=colours), cax=below, orientation="horizontal", ticks=[]
    )
    bar.set_label(label, fontsize=_SMALL)
    return figure, panels


def _show(axes: Any, image: Float[np.ndarray, "H W 3"]) -> None:
    axes.set_visible(True)
    axes.imshow(image, extent=(0, 1, 1, 0), interpolation="nearest")


def _show_heat(
    axes: Any,
    colours: str,
    heat: Float[np.ndarray, "h w"],
    highest: float | np.floating,
    sketch: UInt8[np.ndarray, "H W 3"],
) -> None:
    """Heat from 0 to `highest`, token by token, and the outlines of the sketch's lines."""
    from matplotlib.patheffects import withStroke

    axes.set_visible(True)
    axes.imshow(heat, colours, vmin=0, vmax=highest, extent=(0, 1, 1, 0), interpolation="nearest")
    drawn = ink(sketch)
    if drawn.any():
        centres = (np.arange(len(sketch)) + 0.5) / len(sketch)
        level = [drawn.max() / 2]
        lines = axes.contour(centres, centres, drawn, level, colors="white", linewidths=1)
        lines.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _mark(axes: Any, token: tuple[int, int], side: int) -> None:
    """A frame around the token, white in black: seen on any ground, above all else."""
    from matplotlib.patches import Rectangle

    row, column = token
    corner = (column / side, row / side)
    for width, colour in ((5, "black"), (2.5, "white")):
        frame = Rectangle(corner, 1 / side, 1 / side, fill=False, zorder=3)
        frame.set(edgecolor=colour, linewidth=width)
        axes.add_patch(frame)
