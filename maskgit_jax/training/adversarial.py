"""The adversarial part of tokenizer training: a discriminator, its losses, its gradient penalty.

VQGAN (arXiv:2012.09841) trains its tokenizer against a discriminator; MaskGIT's tokenizer takes
that of StyleGAN2 (arXiv:1912.04958).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maskgit_jax.errors import InputError

_BLUR = (1, 3, 3, 1)
_SMALLEST_SIDE = 4
_LARGEST_LAST_SIDE = 7
_MOST_WIDENING = 8
_GROUP_SIZE = 4
_he_normal = nn.initializers.he_normal()


def _leaky_relu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return nn.leaky_relu(x, 0.2)


def _conv(filters: int, side: int, **options: Any) -> nn.Conv:
    return nn.Conv(filters, (side, side), kernel_init=_he_normal, **options)


class DiscriminatorBlock(nn.Module):
    """Two 3×3 convolutions beside a 1×1 shortcut; halves the side (StyleGAN2, section 4.1).

    Both ways blur before they drop every second pixel: otherwise the discriminator would see, and
    the generator learn, patterns that come from the dropping alone.
    """

    filters: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h//2 w//2 f"]:
        shortcut = _conv(self.filters, 1, use_bias=False)(blur(x, padding=1, stride=2))
        x = _leaky_relu(_conv(x.shape[-1], 3)(x))
        x = _conv(self.filters, 3, strides=2, padding="VALID")(blur(x, padding=2))
        return (shortcut + _leaky_relu(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Tells pictures from reconstructions: the residual discriminator of StyleGAN2.

    The side is halved while it is even and above 4; the channels double with each halving, up to
    8 · filters. Weights start He-normal and are trained as they are: StyleGAN2's equalised
    learning rate is left out, Adam rescales the steps.

    Attributes:
      image_size: side of the pictures, 4 or more; halvings must bring it to 7 or less.
      filters: channels at the full side.
    """

    image_size: int
    filters: int

    @nn.compact
    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b"]:
        """Logits, above 0 for "real", of pictures in [0, 1].

        A logit also depends on the other pictures of the batch (`append_batch_deviation`).

        Raises:
          InputError: the fields or the pictures' size do not suit.
        """
        self._check(images.shape)
        filters = self.filters
        x = _leaky_relu(_conv(filters, 1)(2 * images - 1))
        while _is_halved(x.shape[1]):
            filters = min(2 * filters, _MOST_WIDENING * self.filters)
            x = DiscriminatorBlock(filters)(x)
        x = _leaky_relu(_conv(filters, 3)(append_batch_deviation(x)))
        x = nn.Dense(filters, kernel_init=_he_normal)(x.reshape(len(x), -1))
        return nn.Dense(1, kernel_init=_he_normal)(_leaky_relu(x))[:, 0]

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.filters < 1:
            raise InputError(f"discriminator filters is {self.filters}: expected 1 or more")
        last = self.image_size
        while _is_halved(last):
            last //= 2
        if self.image_size < _SMALLEST_SIDE or last > _LARGEST_LAST_SIDE:
            raise InputError(
                f"discriminator image_size is {self.image_size}: expected {_SMALLEST_SIDE} or "
                f"more, and by halving {_LARGEST_LAST_SIDE} or less, such as 48 or 64"
            )
        if shape[1:3] != (self.image_size, self.image_size):
            raise InputError(
                f"the discriminator got pictures of {shape[2]}x{shape[1]} pixels: expected "
                f"{self.image_size}x{self.image_size}, its image_size"
            )


def _is_halved(side: int) -> bool:
    return side % 2 == 0 and side > _SMALLEST_SIDE


def blur(x: Float[Array, "b h w c"], *, padding: int, stride: int = 1) -> Float[Array, "b h2 w2 c"]:
    """Each channel filtered with [1, 3, 3, 1] / 8 in both directions, zeros around it."""
    # Shifted sums: as a convolution per channel, this would be most of the time on a CPU.
    for axis in (1, 2):
        x = jnp.pad(x, [(padding, padding) if i == axis else (0, 0) for i in range(4)])
        length = x.shape[axis] - len(_BLUR) + 1
        x = sum(
            weight / sum(_BLUR) * jax.lax.slice_in_dim(x, i, i + length, stride, axis)
            for i, weight in enumerate(_BLUR)
        )
    return x


def append_batch_deviation(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c+1"]:
    """Appends a channel that tells how much the pictures of a group differ.

    The standard deviation over the group, averaged over places and channels: it betrays a
    generator whose pictures are too much alike (minibatch standard deviation, arXiv:1710.10196,
    section 3). Groups are of 4, or of the greatest divisor of 4 that divides the batch; picture i
    of n groups is in group i mod n.
    """
    group = math.gcd(len(x), _GROUP_SIZE)
    groups = x.reshape(group, -1, *x.shape[1:])
    # The root of a zero variance has no gradient.
    deviation = jnp.sqrt(jnp.var(groups, axis=0) + 1e-8)
    deviation = jnp.tile(jnp.mean(deviation, axis=(1, 2, 3)), group)
    channel = jnp.broadcast_to(deviation[:, None, None, None], (*x.shape[:3], 1))
    return jnp.concatenate([x, channel], axis=-1)


def generator_loss(fake_logits: Float[Array, "b"]) -> Float[Array, ""]:
    """Non-saturating logistic loss, E[−log σ(D(fake))]."""
    return jnp.mean(nn.softplus(-fake_logits))


def discriminator_loss(
    real_logits: Float[Array, "b"], fake_logits: Float[Array, "b"]
) -> Float[Array, ""]:
    """Logistic loss, E[−log σ(D(real))] + E[−log(1 − σ(D(fake)))]."""
    return jnp.mean(nn.softplus(-real_logits)) + jnp.mean(nn.softplus(fake_logits))


def r1_penalty(
    discriminator: nn.Module, params: Any, images: Float[Array, "b H W 3"]
) -> Float[Array, ""]:
    """½ E‖∇ₓD(x)‖² on real pictures (R1, arXiv:1801.04406, section 4.1, without γ).

    The discriminator's loss takes it times γ, so γ = 10 is the paper's. The gradient is with
    respect to pictures in [0, 1]: it is twice that on [-1, 1], the range of most published code,
    and its square four times; their γ = 10 is 2.5 here.

    Args:
      discriminator: maps pictures to logits, `Discriminator` or another.
      params: its weights.
      images: real pictures in [0, 1].
    """

    def sum_of_logits(images):
        return jnp.sum(discriminator.apply({"params": params}, images))

    gradient = jax.grad(sum_of_logits)(images)
    return 0.5 * jnp.mean(jnp.sum(gradient**2, axis=(1, 2, 3)))
