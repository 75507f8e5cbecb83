"""Outpainting: a picture grown to a side, window by window; many windows make a panorama."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from maskgit_jax.config import TokenizerConfig
from maskgit_jax.editing.blend import blend, blend_radius, blend_weights
from maskgit_jax.editing.canvas import resize
from maskgit_jax.editing.inpaint import EditSettings, Squares, remake
from maskgit_jax.editing.masks import latent_mask
from maskgit_jax.model import Model

SIDES = ("left", "right", "up", "down")
"""Where a picture can grow."""

MakeWindow = Callable[[Squares, Bool[np.ndarray, "N"]], Squares]
"""`(squares, masked) -> squares`: samples the masked ids of a window, the same for each picture."""

_INDICES_PER_WINDOW = 100_000


class Growth(NamedTuple):
    """One of `SIDES` to grow to, and how far in pixels."""

    side: str
    pixels: int


def grow(
    model: Model,
    pictures: UInt8[np.ndarray, "b H W 3"],
    growths: Sequence[Growth],
    labels: Int[np.ndarray, "b"],
    settings: EditSettings,
    *,
    seed: int,
    indices: Int[np.ndarray, "b"],
    progress: Callable[[int], None] | None = None,
) -> UInt8[np.ndarray, "b _ _ 3"]:
    """The pictures, grown to one side after the other; every window has randomness of its own.

    `progress` is called with the number of steps done, of `count_windows` times those of a window.
    """
    numbers = itertools.count()

    def make(squares: Squares, masked: Bool[np.ndarray, "N"]) -> Squares:
        rows, number = np.repeat(masked[None], len(squares), axis=0), next(numbers)
        return remake(
            model,
            squares,
            rows,
            labels,
            settings,
            seed=seed,
            indices=indices + number * _INDICES_PER_WINDOW,
            progress=progress and (lambda step: progress(number * settings.num_steps + step)),
        )

    for side, pixels in growths:
        pictures = extend(pictures, side, pixels, model.config.tokenizer, make)
    return pictures


def extend(
    pictures: UInt8[np.ndarray, "b H W 3"],
    side: str,
    pixels: int,
    tokenizer: TokenizerConfig,
    make: MakeWindow,
) -> UInt8[np.ndarray, "b _ _ 3"]:
    """The pictures, grown by `pixels` to one of `SIDES` (outpainting; many windows: a panorama).

    The model's windows are as high as the picture (as wide, upwards and downwards). What is farther
    than a token's side from the old edge comes back bit by bit.
    """
    if side in ("up", "down"):
        turned_side = "left" if side == "up" else "right"
        turned = extend(
            pictures.swapaxes(1, 2), turned_side, pixels, tokenizer, _turned(make, tokenizer)
        )
        return turned.swapaxes(1, 2)
    size = tokenizer.image_size
    batch, height, width, _ = pictures.shape
    known, total = _canvas_columns(height, width, pixels, size)
    # Columns low .. high - 1 of the canvas are known.
    low, high = (0, known) if side == "right" else (total - known, total)
    canvas = np.zeros((batch, size, total, 3), np.uint8)
    canvas[:, :, low:high] = [resize(picture, size, known) for picture in pictures]
    for start in plan_windows(known, total - known, size):
        start = start if side == "right" else total - start - size
        columns = np.arange(start, start + size)
        unknown = np.tile((columns < low) | (columns >= high), (size, 1))
        # The edge goes on where nothing is known: the tokenizer looks beyond a token's pixels.
        squares = canvas[:, :, np.clip(columns, low, high - 1)]
        made = make(squares, latent_mask(unknown, tokenizer.latent_size))
        made = blend(squares, made, blend_weights(unknown, blend_radius(tokenizer)))
        inside = (columns >= 0) & (columns < total)
        canvas[:, :, columns[inside]] = made[:, :, inside]
        low, high = max(0, min(low, start)), min(total, max(high, start + size))

    margins = (0, pixels) if side == "right" else (pixels, 0)
    unknown = np.pad(np.zeros((height, width), bool), ((0, 0), margins), constant_values=True)
    weights = blend_weights(unknown, blend_radius(tokenizer, size / height))
    # One at a time: large pictures take gigabytes as floats.
    return np.stack(
        [
            blend(
                np.pad(picture, ((0, 0), margins, (0, 0))),
                resize(strip, height, width + pixels),
                weights,
            )
            for picture, strip in zip(pictures, canvas, strict=True)
        ]
    )


def count_windows(growths: Sequence[Growth], height: int, width: int, size: int) -> int:
    """How many windows of `size` pixels a side `grow` samples for a picture of this size."""
    count = 0
    for side, pixels in growths:
        across = side in ("left", "right")
        shape = (height, width) if across else (width, height)
        known, total = _canvas_columns(*shape, pixels, size)
        count += len(plan_windows(known, total - known, size))
        height, width = height + pixels * (not across), width + pixels * across
    return count


def _canvas_columns(height: int, width: int, pixels: int, size: int) -> tuple[int, int]:
    """Known and all columns of a picture that grows by `pixels`, scaled to a height of `size`."""
    known = max(1, round(width * size / height))
    return known, max(known + 1, round((width + pixels) * size / height))


def _turned(make: MakeWindow, tokenizer: TokenizerConfig) -> MakeWindow:
    """`make` for pictures whose rows and columns are exchanged."""

    def turned(squares, masked):
        side = tokenizer.latent_size
        upright = masked.reshape(side, side).T.reshape(-1)
        return make(squares.swapaxes(1, 2), upright).swapaxes(1, 2)

    return turned


def plan_windows(known: int, new: int, size: int) -> list[int]:
    """Where square windows start that widen a picture to the right, in the order of their making.

    Each keeps half of what it shows, or all that there is; the last one ends with the picture
    and so may keep more.

    Args:
      known: columns of the picture, from 0 on.
      new: columns to be sampled.
      size: side of the windows, even.

    Returns:
      The windows' first columns, ≥ 0. Only where known + new < size does a window reach beyond.
    """
    starts, end = [], known + new
    while known < end:
        start = max(0, min(known - size // 2, end - size))
        starts.append(start)
        known = start + size
    return starts
