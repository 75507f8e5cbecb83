"""Editing: which ids a pixel mask covers, how the result is blended in, how a picture is widened.

MaskGIT (arXiv:2202.04200), section 4.3. In NumPy, on the pictures' side of the model.
"""

import numpy as np
from jaxtyping import Bool

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
