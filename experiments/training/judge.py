"""What the judge is trained with: roughened photos, pictures of nothing, the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Key

from experiments.demo_world.judge import Judge
from maskgit_jax.training import losses

_EMPTY_SHARE = 1 / 8  # of the pictures trained on
_PART_WEIGHT = 2.0  # of the parts beside the class, in the loss


def roughen(
    key: Key[Array, ""], images: Float[Array | np.ndarray, "b h w 3"]
) -> Float[Array, "b h w 3"]:
    """Pictures as a weak generator might have made them, in [0, 1].

    Each is blurred up to what a quarter of its resolution holds, its contrast, brightness and tint
    change, and fine and patchy noise is added, all by random amounts down to none.
    """
    blur_key, contrast_key, tint_key, fine_key, patch_key = jax.random.split(key, 5)
    batch, height, width, _ = images.shape

    def amount(key, low, high):
        return jax.random.uniform(key, (batch, 1, 1, 1), minval=low, maxval=high)

    def at_most(key, high):
        """Amounts of which a third are zero."""
        return jnp.maximum(amount(key, -high / 2, high), 0)

    def enlarge(x):
        return jax.image.resize(x, images.shape, "linear")

    half, quarter = (
        enlarge(images.reshape(batch, height // k, k, width // k, k, 3).mean(axis=(2, 4)))
        for k in (2, 4)
    )
    level = at_most(blur_key, 2.0)
    x = images + jnp.minimum(level, 1) * (half - images)
    x = x + jnp.maximum(level - 1, 0) * (quarter - half)

    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    x = mean + (x - mean) * amount(contrast_key, 0.7, 1.2)
    brightness, tint = jax.random.split(tint_key)
    x = x + amount(brightness, -0.1, 0.1) + 0.03 * jax.random.normal(tint, (batch, 1, 1, 3))

    strength, noise = jax.random.split(fine_key)
    x = x + at_most(strength, 0.08) * jax.random.normal(noise, x.shape)
    strength, noise = jax.random.split(patch_key)
    patches = enlarge(jax.random.normal(noise, (batch, height // 4, width // 4, 3)))
    return jnp.clip(x + at_most(strength, 0.12) * patches, 0, 1)


def empty_pictures(
    key: Key[Array, ""], batch: int, height: int, width: int
) -> Float[Array, "b h w 3"]:
    """Pictures of nothing: one colour each, white among them, with patches of noise on it."""
    grey_key, tint_key, strength_key, *noise_keys = jax.random.split(key, 6)
    colour = jax.random.uniform(grey_key, (batch, 1, 1, 1), maxval=1.4)
    colour = jnp.clip(colour + 0.15 * jax.random.normal(tint_key, (batch, 1, 1, 3)), 0, 1)
    patches = jnp.zeros((batch, height, width, 3))
    strengths = jax.random.uniform(strength_key, (3, batch, 1, 1, 1), minval=-0.2, maxval=0.3)
    for noise_key, cells, strength in zip(noise_keys, (3, 6, 12), strengths, strict=True):
        noise = jax.random.normal(noise_key, (batch, cells, cells, 3))
        patches += jnp.maximum(strength, 0) * jax.image.resize(noise, patches.shape, "linear")
    return jnp.clip(colour + patches, 0, 1)


def judge_loss(
    judge: Judge,
    params: losses.Params,
    batch: tuple[Float[Array, "b h w 3"], Integer[Array, "b h w"], Int[Array, "b"]],
    key: Key[Array, ""],
) -> tuple[Float[Array, ""], losses.Metrics]:
    """Cross-entropy of the parts, mean over pixels, plus cross-entropy of the class.

    An eighth of the pictures makes way for empty ones: the judge must not see an object in every
    picture, and they have no class.
    """
    images, parts, labels = batch
    rough_key, empty_key, choice_key = jax.random.split(key, 3)
    shown = jax.random.bernoulli(choice_key, 1 - _EMPTY_SHARE, labels.shape)
    empty = empty_pictures(empty_key, *images.shape[:3])
    images = jnp.where(shown[:, None, None, None], roughen(rough_key, images), empty)
    parts = jnp.where(shown[:, None, None], parts, 0)

    logits = judge.apply({"params": params}, images)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    part_loss = jnp.mean(cross_entropy(logits.parts, parts))
    right = jnp.argmax(logits.label, axis=-1) == labels
    label_loss, accuracy = (
        jnp.sum(x * shown) / jnp.maximum(jnp.sum(shown), 1)
        for x in (cross_entropy(logits.label, labels), right)
    )
    metrics = {"part_loss": part_loss, "label_loss": label_loss, "accuracy": accuracy}
    return _PART_WEIGHT * part_loss + label_loss, metrics
