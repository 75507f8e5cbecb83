"""A perceptual distance that needs no trained network."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_WIDTHS = (16, 32, 64, 64)
_CONVOLUTIONS_PER_SCALE = 2
_BIAS_DEVIATION = 0.1  # without any, features would not see how bright an even area is
_SEED = 0


def perceptual_distance(
    images: Float[Array, "b H W 3"], others: Float[Array, "b H W 3"]
) -> Float[Array, "b"]:
    """How much pictures differ to a convolutional network with fixed random weights, in [0, 2].

    Features of four scales, each place's divided by its norm over the channels; the squared
    difference, summed over channels, averaged over places and scales. That is LPIPS
    (arXiv:1801.03924, equation 1) without learned weights; random networks as perceptual losses:
    arXiv:2103.10571.

    It punishes lost texture more than shifted texture, where a squared error of pixels prefers
    the blur. It knows nothing of objects or faces, and its values do not compare to LPIPS. Beside
    a pixel loss, not alone: normalised features see colour and brightness poorly.

    Args:
      images: in [0, 1]; sides from 16 pixels up, on smaller ones the coarse scales see nothing.
      others: what they are compared to; the distance is symmetric.
    """
    pairs = zip(_features(images), _features(others), strict=True)
    by_scale = [jnp.mean(jnp.sum((a - b) ** 2, axis=-1), axis=(1, 2)) for a, b in pairs]
    return jnp.mean(jnp.stack(by_scale), axis=0)


def _features(images: Float[Array, "b H W 3"]) -> list[Float[Array, "b _ _ _"]]:
    """The network's features before each halving of the side, of norm 1 (or all 0)."""
    x, features = 2 * images - 1, []
    for scale, convolutions in enumerate(_weights()):
        if scale:
            # Odd sides lose nothing at their edge.
            x = nn.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        for kernel, bias in convolutions:
            dimensions = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dimensions
            )
            x = nn.relu(x + bias)
        # The small number keeps the gradient finite where no feature is active.
        features.append(x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6))
    return features


@functools.cache
def _weights() -> list[list[tuple[Float[np.ndarray, "3 3 _ _"], Float[np.ndarray, "_"]]]]:
    """Kernels (He-normal) and biases by scale; NumPy's, so that they stay as JAX changes."""
    rng = np.random.default_rng(_SEED)
    channels, scales = 3, []
    for width in _WIDTHS:
        convolutions = []
        for _ in range(_CONVOLUTIONS_PER_SCALE):
            kernel = rng.normal(0, np.sqrt(2 / (9 * channels)), (3, 3, channels, width))
            bias = rng.normal(0, _BIAS_DEVIATION, width)
            convolutions.append((kernel.astype(np.float32), bias.astype(np.float32)))
            channels = width
        scales.append(convolutions)
    return scales
