"""How a picture that was sampled again goes over into the original at the mask's edge."""

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float32, UInt8

from maskgit_jax.config import TokenizerConfig


def blend_radius(tokenizer: TokenizerConfig, scale: float = 1.0) -> int:
    """The side of a token, in pixels of a picture that is `scale` times as large in the model."""
    return max(1, round(tokenizer.image_size / tokenizer.latent_size / scale))


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
