"""Where `edit` makes a picture again, and where it grows: from the texts of flags."""

import re
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from guidance.sketches import clean_sketch
from maskgit_jax.editing.canvas import box_mask, read_mask, resize
from maskgit_jax.editing.outpaint import SIDES, Growth
from maskgit_jax.errors import InputError
from maskgit_jax.images import MAX_PIXELS

_MOST_BY = 400  # percent
_MOST_HEIGHTS = 20
_PAPER = 235


def read_region(
    mask: str | None, box: str | None, height: int, width: int
) -> Bool[np.ndarray, "_ _"] | None:
    """The mask of --mask or --box, for a picture of a size; None where neither is given.

    Raises:
      InputError: no mask, or no box in the picture.
    """
    if box is not None:
        try:
            top, left, box_height, box_width = map(int, box.split(","))
        except ValueError:
            raise InputError(
                f"--box={box}: expected top,left,height,width in pixels, such as 10,10,24,24"
            ) from None
        return box_mask(top, left, box_height, box_width, height, width)
    if mask is None:
        return None
    region, stretched = read_mask(mask, height, width)
    if stretched:
        print(f"--mask={mask} stretched to the picture's {width}x{height}", file=sys.stderr)
    return region


def read_growths(
    sides: Sequence[str] | None, by: str, panorama: float | None, height: int, width: int
) -> list[Growth]:
    """What --extend and --by, or --panorama, say for a picture of a size.

    Raises:
      InputError: a side that is none, or a picture too small or too large.
    """
    growths = []
    if sides is not None:
        if not sides or not set(sides) <= set(SIDES) or len(set(sides)) < len(sides):
            text = ",".join(sides)
            raise InputError(f"--extend={text}: expected some of {','.join(SIDES)}, each once")
        number = re.fullmatch(r"(\d+(?:\.\d*)?)%", by.strip())
        if number is None or not 0 < float(number[1]) <= _MOST_BY:
            raise InputError(f"--by={by}: expected more than 0% and up to {_MOST_BY}%")
        for side in sides:
            own = width if side in ("left", "right") else height
            growths.append(Growth(side, max(1, round(own * float(number[1]) / 100))))
    if panorama is not None:
        if not width / height < panorama <= _MOST_HEIGHTS:
            raise InputError(
                f"--panorama={panorama:g}: expected a width in heights, above the picture's own "
                f"{width / height:g} and up to {_MOST_HEIGHTS}"
            )
        new = max(2, round(panorama * height) - width)
        growths = [Growth("left", new // 2), Growth("right", new - new // 2)]
    for side, pixels in growths:
        if side in ("left", "right"):
            width += pixels
        else:
            height += pixels
    if width * height > MAX_PIXELS:
        raise InputError(
            f"the result would be {width}x{height} pixels; expected at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels: grow it less, or shrink the picture first"
        )
    return growths


def stretch_sketch(
    path: str | None, invert: str, height: int, width: int
) -> tuple[UInt8[np.ndarray, "_ _ 3"] | None, tuple[str, ...]]:
    """The sketch at a picture's size, on which it is drawn, and what was done to its tones."""
    if path is None:
        return None, ()
    sketch, changes = clean_sketch(path, invert=invert)
    if sketch.shape[:2] != (height, width):
        print(f"--sketch={path} stretched to the picture's {width}x{height}", file=sys.stderr)
    return resize(sketch, height, width), changes


def on_paper(
    image: UInt8[np.ndarray, "H W 3"], growths: Sequence[Growth]
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """The picture with paper where it will grow, and that as a mask."""
    room = {side: 0 for side in SIDES} | dict(growths)
    margins = (room["up"], room["down"]), (room["left"], room["right"])
    mask = np.pad(np.zeros(image.shape[:2], bool), margins, constant_values=True)
    return np.pad(image, (*margins, (0, 0)), constant_values=_PAPER), mask
