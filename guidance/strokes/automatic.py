"""Strokes made automatically, after those that SDEdit is judged by (arXiv:2108.01073, appendix).

A picture is smoothed by a median filter and cut into superpixels; one of them is painted with a
flat colour: its own mean ("inversion": the stroke says what was there) or a random one
("counterfactual": it asks for something else).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from maskgit_jax.errors import InputError, need

KINDS = ("inversion", "counterfactual")

_SMOOTHING = 0.1  # the median filter's side, in sides of the picture
_NUM_SEGMENTS = 12
_LEAST_CHANGE = 48  # of a counterfactual colour from the mean, mean over channels


class Stroke(NamedTuple):
    """A stroke on a picture.

    Attributes:
      painted: the picture with the stroke.
      mask: where the stroke is.
    """

    painted: UInt8[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]


def automatic_stroke(
    image: UInt8[np.ndarray, "h w 3"],
    kind: str,
    seed: int,
    *,
    least_area: float = 0.02,
    most_area: float = 0.25,
) -> Stroke:
    """Paints one superpixel of the picture, chosen at random.

    Args:
      image: any size.
      kind: "inversion" or "counterfactual".
      seed: ≥ 0; chooses the superpixel and the random colour. Both kinds choose the same one.
      least_area: of the superpixel, as a share of the picture; where none fits, the nearest is
        taken.
      most_area: likewise.

    Raises:
      InputError: unknown kind, or scikit-image is not installed.
    """
    if kind not in KINDS:
        raise InputError(f"unknown stroke {kind!r}: expected {' or '.join(KINDS)}")
    smooth, segments = superpixels(image)
    rng = np.random.default_rng(seed)
    numbers, counts = np.unique(segments, return_counts=True)
    share = counts / segments.size
    excess = np.maximum(least_area - share, 0) + np.maximum(share - most_area, 0)
    mask = segments == rng.choice(numbers[excess == excess.min()])
    return paint(image, mask, kind, rng, colours=smooth)


def paint(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    kind: str,
    rng: np.random.Generator,
    *,
    colours: UInt8[np.ndarray, "h w 3"] | None = None,
) -> Stroke:
    """Paints a mask with one flat colour.

    Args:
      image: the picture.
      mask: where to paint; not empty.
      kind: "inversion" (the mean colour under the mask) or "counterfactual" (a random one that is
        clearly another).
      rng: of the random colour.
      colours: where the mean is taken, such as the picture smoothed; the picture when None.
    """
    mean = (image if colours is None else colours)[mask].mean(axis=0)
    colour = mean if kind == "inversion" else _another_colour(mean, rng)
    painted = image.copy()
    painted[mask] = np.rint(colour).astype(np.uint8)
    return Stroke(painted, mask)


def superpixels(
    image: UInt8[np.ndarray, "h w 3"],
) -> tuple[UInt8[np.ndarray, "h w 3"], np.ndarray]:
    """The picture smoothed by a median filter, and the number of each pixel's superpixel (SLIC).

    Raises:
      InputError: scikit-image is not installed.
    """
    need("an automatic stroke", "edit", "skimage")
    from skimage.filters import median
    from skimage.segmentation import slic

    side = max(3, round(_SMOOTHING * min(image.shape[:2])))
    window = np.ones((side, side), bool)
    smooth = np.stack([median(channel, window) for channel in np.moveaxis(image, -1, 0)], axis=-1)
    return smooth, slic(smooth, n_segments=_NUM_SEGMENTS, sigma=1, start_label=1)


def _another_colour(
    colour: Float[np.ndarray, "3"], rng: np.random.Generator
) -> Float[np.ndarray, "3"]:
    while True:
        other = rng.uniform(0, 255, 3)
        if np.abs(other - colour).mean() >= _LEAST_CHANGE:
            return other
