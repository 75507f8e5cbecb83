"""How visible an edit is, as pure functions of arrays."""

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, UInt8

from experiments.metrics.measures import jackknife_error


def seam_steps(
    images: Float[np.ndarray, "n H W 3"], mask: Bool[np.ndarray, "H W"], radius: int
) -> Float[np.ndarray, "n {radius+1}"]:
    """How much the colour changes across the mask's outline and those around it.

    For each distance 0 .. radius the mask is widened by so many pixels (king's moves); of all
    neighbours in a row or column of which one is inside and one outside, the mean absolute
    difference of their channels.
    """
    columns = []
    for distance in range(radius + 1):
        wide = scipy.ndimage.maximum_filter(mask, size=2 * distance + 1)
        down = np.abs(np.diff(images, axis=1)).mean(axis=-1)[:, wide[1:] != wide[:-1]]
        across = np.abs(np.diff(images, axis=2)).mean(axis=-1)[:, wide[:, 1:] != wide[:, :-1]]
        columns.append(np.concatenate([down, across], axis=1).mean(axis=1))
    return np.stack(columns, axis=1)


def ratio_and_error(
    values: Float[np.ndarray, "n"], reference: Float[np.ndarray, "n"]
) -> tuple[float, float]:
    """Ratio of two means over the same pictures, and its standard error (jackknife)."""
    without = (values.sum() - values) / (reference.sum() - reference)
    return float(values.mean() / reference.mean()), jackknife_error(without)


def seam(
    steps: Float[np.ndarray, "n k"], reference: Float[np.ndarray, "n k"]
) -> tuple[float, float]:
    """The seam of edited pictures: 1 as in a picture without any, higher where it shows.

    Where it shows most: the largest over the outlines of the ratio of mean steps, and its error.
    """
    ratios = [ratio_and_error(*column) for column in zip(steps.T, reference.T, strict=True)]
    return max(ratios)


def mean_colour_fill(
    images: UInt8[np.ndarray, "n H W 3"], mask: Bool[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "n H W 3"]:
    """The pictures with the mask in the mean colour of what lies around it."""
    filled = images.copy()
    mean = np.rint(images[:, ~mask].mean(axis=1)).astype(np.uint8)
    filled[:, mask] = mean[:, None]
    return filled
