"""Sketches as people have them, made into what guides: dark lines on light paper, large enough.

Ink on transparency is put on the paper that shows it. Light ink on dark is inverted, grey paper
made white, and a small drawing fitted to its ink: each is told by `maskgit_jax.errors.Notice`, and
an ordinary drawing passes unchanged.
"""

import math
import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from maskgit_jax.errors import InputError, notice
from maskgit_jax.images import as_pixels, background, fit_image, name_of, on_paper

FITS = ("auto", "pad", "crop", "ink")
INVERTS = ("auto", "yes", "no")
Picture = str | os.PathLike[str] | Image.Image | np.ndarray

_LOOK_AT = 256  # pixels a side; averages take out noise and specks
# Differences from the paper's colour, of 255.
_LEAST_INK = 10, 40  # of what is a drawing at all: on clean and on grainy paper
_OVER_GRAIN = 8  # times the paper's median difference, between them
_CLEAR_INK = 64  # of ink that can be seen on white
_GRAIN = 24  # of what is still paper
_COLOURED = 48  # between the channels of what is no grey: sky, meadow
_LEAST_PAPER, _LEAST_MARGIN = 0.5, 0.8  # shares of a drawing and of its border that are paper
_DARK, _WHITE = 160, 225  # paper below is dark; above, white
_LEAST_TONE = 64  # of paper that is levelled: grain would grow too much
_SMALL = 0.12  # share of the square that the drawing's own square fills
_FILLED = (
    0.7  # of the side, by a drawing fitted to its ink: the demo model's sketches fill 0.5 to 0.9
)


class Sketch(NamedTuple):
    """What guides.

    Attributes:
      image: fitted to the model's pictures.
      fit: how: pad, crop or ink.
      changes: what was done to its tones, by name.
    """

    image: UInt8[np.ndarray, "S S 3"]
    fit: str
    changes: tuple[str, ...] = ()


class _Seen(NamedTuple):
    """A drawing looked at, made smaller: where ink is, how strong, and on what paper.

    Attributes:
      factors: how much smaller, in height and in width.
      paper: the paper's colour.
      strongest: the greatest difference from it, of 255.
      ink: the pixels of the small drawing that are ink.
      on_paper: whether most others, and nearly all at the border, have the paper's colour and
        that is about grey; seldom so in photos.
      lighter: whether ink is lighter than paper, and about grey.
    """

    factors: tuple[int, int]
    paper: UInt8[np.ndarray, "3"]
    strongest: int
    ink: Bool[np.ndarray, "h w"]
    on_paper: bool
    lighter: bool


def read_sketch(picture: Picture, size: int, *, fit: str = "auto", invert: str = "auto") -> Sketch:
    """A sketch at the model's size.

    Args:
      picture: as for `images.as_image`.
      size: of the model's pictures.
      fit: one of `FITS`.
      invert: one of `INVERTS`.

    Raises:
      InputError: no picture, a blank one, or another `fit` or `invert`.
    """
    if fit not in FITS:
        raise InputError(f"fit={fit}: expected one of {', '.join(FITS)}")
    name = name_of(picture, "the sketch")
    image, changes, seen = _clean(picture, name, invert)
    rows, columns = _ink_box(seen, image.shape)
    longest = max(each.stop - each.start for each in (rows, columns))
    share = (longest / max(image.shape)) ** 2
    if fit == "auto":
        fit = "ink" if share < _SMALL else "pad"
        if fit == "ink":
            notice(
                f"{name}: the drawing fills {max(1, round(100 * share))} % of the paper: fitted "
                "to its ink (--fit=pad keeps its place)"
            )
    if fit != "ink":
        return Sketch(fit_image(image, size, mode=fit), fit, changes)
    inner = max(1, round(_FILLED * size))
    fitted = np.empty((size, size, 3), np.uint8)
    fitted[:] = paper = background(image)
    top = (size - inner) // 2
    fitted[top : top + inner, top : top + inner] = fit_image(
        image[rows, columns], inner, paper=paper
    )
    return Sketch(fitted, fit, changes)


def clean_sketch(
    picture: Picture, *, invert: str = "auto"
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[str, ...]]:
    """A sketch at its own size, dark on light, and what was done to its tones.

    Raises:
      InputError: as `read_sketch`.
    """
    return _clean(picture, name_of(picture, "the sketch"), invert)[:2]


def _clean(
    picture: Picture, name: str, invert: str
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[str, ...], _Seen]:
    if invert not in INVERTS:
        raise InputError(f"invert={invert}: expected one of {', '.join(INVERTS)}")
    pixels, changes = as_pixels(picture), ()
    image = on_paper(pixels)
    seen = _look(image)
    if pixels.shape[2] == 4 and seen.strongest < _CLEAR_INK:
        black = on_paper(pixels, grey=0)
        if _look(black).strongest > seen.strongest:
            image, seen = black, _look(black)
    if not seen.ink.any():
        raise InputError(
            f"{name} is blank: nothing is drawn on it; expected dark lines on light paper"
        )
    light = seen.on_paper and seen.lighter and seen.paper.mean() < _DARK
    if invert == "yes" or (invert == "auto" and light):
        image = 255 - image
        seen, changes = _look(image), ("inverted",)
        if invert == "auto":
            notice(f"{name}: light on dark: inverted (--invert=no keeps it)")
    grey = seen.on_paper and not seen.lighter and seen.paper.mean() < _WHITE
    if invert != "no" and grey:
        levels = np.arange(256)[:, None] * (255 / np.maximum(seen.paper, _LEAST_TONE))
        levels = np.minimum(np.rint(levels), 255).astype(np.uint8)
        image = np.stack([levels[image[..., c], c] for c in range(3)], axis=-1)
        changes += ("levelled",)
        notice(f"{name}: grey paper: levelled to white (--invert=no keeps it)")
    return image, changes, seen


def _ink_box(seen: _Seen, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of a drawing that hold its ink, and where that fades out."""
    box = []
    for axis, factor in enumerate(seen.factors):
        places = np.flatnonzero(seen.ink.any(axis=1 - axis))
        first, beyond = max(0, places[0] - 1), places[-1] + 2
        box.append(slice(first * factor, min(beyond * factor, shape[axis])))
    return tuple(box)


def _look(image: UInt8[np.ndarray, "h w 3"]) -> _Seen:
    height, width = (math.ceil(side / _LOOK_AT) for side in image.shape[:2])
    small = np.asarray(Image.fromarray(image).reduce((width, height)))
    paper = background(small)
    distance = np.abs(small.astype(np.int16) - paper).max(axis=-1)
    strongest = int(distance.max())
    least = np.clip(_OVER_GRAIN * np.median(distance), *_LEAST_INK)
    ink = distance > max(least, strongest / 4)
    inks = np.median(small[ink], axis=0) if ink.any() else paper
    is_paper = distance <= _GRAIN
    margin = np.concatenate([is_paper[0], is_paper[-1], is_paper[:, 0], is_paper[:, -1]])
    return _Seen(
        (height, width),
        paper,
        strongest,
        ink,
        on_paper=bool(
            is_paper.mean() >= _LEAST_PAPER
            and margin.mean() >= _LEAST_MARGIN
            and np.ptp(paper) <= _COLOURED
        ),
        lighter=bool(inks.mean() > paper.mean() and np.ptp(inks) <= _COLOURED),
    )
