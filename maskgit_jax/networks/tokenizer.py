"""The VQGAN tokenizer: pictures to image ids and back (MaskGIT, section 3; arXiv:2012.09841).

Module and parameter names are those of the released checkpoints.

What chooses ids, the encoder's convolutions and the distances to the codes, multiplies float32 at
the highest precision on every backend. The backends' default would round factors to bfloat16 (TPUs)
or TF32 (GPUs): of the 1,440 ids of the ten sample sketches, bfloat16 in the distances changed 49,
in the convolutions alone 13, TF32 9 and 3, with a demo model of 48 pixels (docs/performance.md).
The decoder, which only paints, runs at the backend's default. Training runs likewise, gradients
included; in bfloat16 (`--dtype`, for speed) the precision changes nothing, because products of
bfloat16 numbers are exact in float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskgit_jax.config import TokenizerConfig

_OF_IDS = jax.lax.Precision.HIGHEST
"""Of all products that ids depend on."""


def _padded_convolution(
    inputs: Float[Array, "b h w c"], kernel: Float[Array, "i j c f"], *args: Any, **options: Any
) -> Float[Array, "b h w f"]:
    """A convolution whose channels are filled up with zeros to a multiple of four.

    On CPUs convolutions from or to 3 channels take ten times as long as those of 4.
    """
    more_in, more_out = -kernel.shape[2] % 4, -kernel.shape[3] % 4
    inputs = jnp.pad(inputs, [(0, 0)] * 3 + [(0, more_in)])
    kernel = jnp.pad(kernel, [(0, 0)] * 2 + [(0, more_in), (0, more_out)])
    outputs = jax.lax.conv_general_dilated(inputs, kernel, *args, **options)
    return outputs[..., : outputs.shape[-1] - more_out]


class ResBlock(nn.Module):
    """Norm, swish, 3×3 convolution, twice, beside a shortcut."""

    filters: int
    norm_groups: int
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        residual = x
        for _ in range(2):
            x = nn.swish(nn.GroupNorm(num_groups=self.norm_groups)(x))
            x = nn.Conv(self.filters, (3, 3), use_bias=False, precision=self.precision)(x)
        if residual.shape[-1] != self.filters:
            # The released blocks project the branch, not the input (`x`, not `residual`); the
            # weights were trained that way.
            shortcut = nn.Conv(self.filters, (1, 1), use_bias=False, precision=self.precision)
            residual = shortcut(x)
        return x + residual


class Encoder(nn.Module):
    """Picture to continuous latents; the side shrinks by two between levels."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, image: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
        cfg = self.config
        x = nn.Conv(
            cfg.filters,
            (3, 3),
            use_bias=False,
            precision=_OF_IDS,
            conv_general_dilated=_padded_convolution,
        )(image)
        for level, multiplier in enumerate(cfg.channel_multipliers):
            for _ in range(cfg.num_res_blocks):
                x = ResBlock(cfg.filters * multiplier, cfg.norm_groups, _OF_IDS)(x)
            if level < len(cfg.channel_multipliers) - 1:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        for _ in range(cfg.num_res_blocks):
            x = ResBlock(cfg.filters * cfg.channel_multipliers[-1], cfg.norm_groups, _OF_IDS)(x)
        x = nn.swish(nn.GroupNorm(num_groups=cfg.norm_groups)(x))
        return nn.Conv(cfg.embedding_dim, (1, 1), precision=_OF_IDS)(x)


class Decoder(nn.Module):
    """Quantized latents to a picture."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "b h w d"]) -> Float[Array, "b H W 3"]:
        cfg = self.config
        filters = cfg.filters * cfg.channel_multipliers[-1]
        x = nn.Conv(filters, (3, 3))(latents)
        for _ in range(cfg.num_res_blocks):
            x = ResBlock(filters, cfg.norm_groups)(x)
        for level in reversed(range(len(cfg.channel_multipliers))):
            filters = cfg.filters * cfg.channel_multipliers[level]
            for _ in range(cfg.num_res_blocks):
                x = ResBlock(filters, cfg.norm_groups)(x)
            if level > 0:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = nn.Conv(filters, (3, 3))(x)
        x = nn.swish(nn.GroupNorm(num_groups=cfg.norm_groups)(x))
        return nn.Conv(3, (3, 3), conv_general_dilated=_padded_convolution)(x)


class VectorQuantizer(nn.Module):
    """The codebook, K codes of width d."""

    codebook_size: int
    embedding_dim: int

    def setup(self):
        self.codebook = self.param(
            "codebook",
            nn.initializers.variance_scaling(1.0, "fan_in", "uniform"),
            (self.codebook_size, self.embedding_dim),
        )

    def distances(self, latents: Float[Array, "*b d"]) -> Float[Array, "*b K"]:
        """Squared Euclidean distance of each latent to each code."""
        codes = self.codebook
        return (
            jnp.sum(latents**2, axis=-1, keepdims=True)
            - jnp.matmul(2 * latents, codes.T, precision=_OF_IDS)
            + jnp.sum(codes**2, axis=-1)
        )

    def __call__(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """The codes of image ids."""
        return self.codebook[ids]


class Tokenizer(nn.Module):
    """Encoder, codebook and decoder. Pictures are float32 in [0, 1], ids lie in [0, K)."""

    config: TokenizerConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quantizer = VectorQuantizer(self.config.codebook_size, self.config.embedding_dim)

    def latents(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w d"]:
        """Encoder output, before quantization."""
        return self.encoder(images)

    def encode(self, images: Float[Array, "b H W 3"]) -> Int[Array, "b h w"]:
        """Pictures to ids of the nearest codes."""
        distances = self.quantizer.distances(self.encoder(images))
        return jnp.argmin(distances, axis=-1).astype(jnp.int32)

    def codes(self, ids: Int[Array, "b h w"]) -> Float[Array, "b h w d"]:
        """The quantized latents that ids stand for."""
        return self.quantizer(ids)

    def decode(self, ids: Int[Array, "b h w"]) -> Float[Array, "b H W 3"]:
        """Ids to pictures; values may pass [0, 1] a little."""
        return self.decoder(self.quantizer(ids))

    def __call__(
        self, images: Float[Array, "b H W 3"], quantize: bool = True
    ) -> tuple[Float[Array, "b H W 3"], Float[Array, "b h w d"], Float[Array, "b h w K"]]:
        """What training needs: reconstruction, latents and distances to the codes.

        Gradients pass the quantizer straight through, from the codes to the latents. Without
        `quantize` the decoder sees the latents themselves.
        """
        latents = self.encoder(images)
        distances = self.quantizer.distances(latents)
        if not quantize:
            return self.decoder(latents), latents, distances
        quantized = self.quantizer(jnp.argmin(distances, axis=-1))
        straight_through = latents + jax.lax.stop_gradient(quantized - latents)
        # The codebook may be finer than what the decoder computes in.
        return self.decoder(straight_through.astype(latents.dtype)), latents, distances
