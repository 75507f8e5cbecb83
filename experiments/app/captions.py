"""Grids of pictures with the names of their classes."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from maskgit_jax.images import make_grid

_GAP = 8  # pixels around a picture
_LINE, _LETTER = 16, 6  # height of a line, width of a letter in Pillow's bitmap font


def named_grid(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    names: Sequence[str],
    *,
    columns: int | None = None,
    scale: int = 1,
) -> UInt8[np.ndarray, "_ _ 3"]:
    """A `make_grid` with the classes of several above the pictures.

    A row has the line only where the names are others than in the row above it. Of a class's names
    ("tench, Tinca tinca") the first is written, as far as there is room.
    """
    columns = math.isqrt(len(pictures) - 1) + 1 if columns is None else columns
    options = {"columns": columns, "scale": scale, "gap": _GAP}
    if len(set(names)) == 1:
        return make_grid(pictures, **options)
    step = pictures[0].shape[1] * scale + 2 + _GAP
    parts: list[np.ndarray] = []
    above: Sequence[str] = ()
    for first in range(0, len(pictures), columns):
        row = names[first : first + columns]
        if row != above[: len(row)]:
            parts.append(_line(row, step, columns * step + _GAP))
        above = row
        grid = make_grid(pictures[first : first + columns], **options)
        parts.append(grid[:-_GAP])  # the next line or row begins with one
    return np.concatenate([*parts, grid[-_GAP:]])


def _line(names: Sequence[str], step: int, width: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """The names in black on white, each above its picture."""
    line = Image.new("RGB", (width, _LINE), "white")
    draw, font = ImageDraw.Draw(line), ImageFont.load_default_imagefont()
    for column, name in enumerate(names):
        name = name.split(",")[0].strip().encode("latin-1", "replace").decode("latin-1")
        most = (step - _GAP) // _LETTER
        name = name if len(name) <= most else name[: most - 2] + ".."
        draw.text((_GAP + column * step, 4), name, "black", font)
    return np.asarray(line)
