"""Editing: which ids a pixel mask covers, how the result is blended in, how a picture is widened.

MaskGIT (arXiv:2202.04200), section 4.3. In NumPy, on the pictures' side of the model.
"""

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float32, UInt8

from maskgit_jax.errors import InputError


def fit_mask(mask: Bool[np.ndarray, "h w"], height: int, width: int) -> Bool[np.ndarray, "_ _"]:
    """The mask at another size, stretched; a pixel that it touches is masked."""
    for axis, new in enumerate((height, width)):
        old = mask.shape[axis]
        first = np.arange(new) * old // new
        beyond = -(-np.arange(1, new + 1) * old // new)
        before = np.cumsum(mask, axis=axis, dtype=np.int32)
        before = np.insert(before, 0, 0, axis=axis)
        mask = np.take(before, beyond, axis) > np.take(before, first, axis)
    return mask


def latent_mask(mask: Bool[np.ndarray, "H W"], latent_size: int) -> Bool[np.ndarray, "N"]:
    """The ids, row by row, of which a pixel at least is masked.

    Raises:
      InputError: the sides are no multiples of `latent_size`.
    """
    height, width = mask.shape
    if height % latent_size or width % latent_size:
        raise InputError(
            f"a mask of {width}x{height} pixels does not divide into {latent_size}x{latent_size} "
            "ids: fit it to the model's picture size first"
        )
    blocks = mask.reshape(latent_size, height // latent_size, latent_size, width // latent_size)
    return blocks.any(axis=(1, 3)).reshape(-1)


def blend_weights(mask: Bool[np.ndarray, "H W"], radius: int) -> Float32[np.ndarray, "H W"]:
    """The share of what was made in each pixel: 1 on the mask, exactly 0 beyond `radius` of it.

    Between them a Gaussian blur, as the published demo has it. There the mask itself is blurred,
    so that some of the old picture shows inside it; here one that is wider by half the radius.
    Distances are those of the king's move: the larger of rows and columns.
    """
    reach = radius // 2
    if reach == 0:
        return mask.astype(np.float32)
    wide = scipy.ndimage.maximum_filter(mask, size=2 * reach + 1).astype(np.float32)
    blurred = scipy.ndimage.gaussian_filter(wide, sigma=reach / 2, radius=reach, mode="nearest")
    # The blur of ones may be off 1 by a rounding.
    return np.where(mask, np.float32(1), np.minimum(blurred, 1))


def blend(
    image: UInt8[np.ndarray, "*b H W 3"],
    made: UInt8[np.ndarray, "*b H W 3"],
    weights: Float32[np.ndarray, "H W"],
) -> UInt8[np.ndarray, "*b H W 3"]:
    """`made` over `image`; where the weight is 0, the image's very bytes."""
    share = weights[..., None]
    return np.rint(made * share + image * (1 - share)).astype(np.uint8)


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
