"""Structure-guided decoding as the published code does it: what `benchmark` compares with.

The same method, settings and random numbers as `guidance.masksketch`, so the tokens are the same,
by the published means:

- every setting is a Python constant: another one compiles anew;
- layers are unrolled, so compilation grows with depth; attention is Flax's own module;
- a step makes three passes: wanted class, other class, structure; each asks for all layers and for
  logits over the whole vocabulary, of which the codes are cut out;
- queries and keys are caught with Flax's `capture_intermediates`, and the attention maps of all
  chosen layers stand in memory in float32, the sketch's and the sample's.

Where the published code goes wrong, this does not: every sample gets its own random class, and the
divergence is taken of log-softmaxes, since the logarithm of a softmax that underflows is infinite.
The loop over steps is compiled, as the published one is. It and the remask rule are ours: they take
no time beside the passes.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from guidance.classifier_free import other_class_token
from guidance.masksketch import no_distances
from guidance.structure import StructureSettings, mask_start, structure_remask, traced
from maskgit_jax.config import TransformerConfig
from maskgit_jax.errors import InputError
from maskgit_jax.networks.transformer import LAYER_NORM_EPSILON, Embed, MlmLayer, Mlp, Transformer
from maskgit_jax.sampling.loop import MASK_ID, DecodeState, RandomKey, Tokens

ABSENT = {"paper_weight": 1, "token_temperature": 1, "guidance_power": 0}
"""Settings that the published code does not have, and the values at which they change nothing."""

LogMaps = Float[Array, "L H S S"]
"""Logarithms of the attention maps of the chosen layers."""


class PlainAttention(nn.Module):
    """Self-attention, residual, LayerNorm; parameters as in the released files."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b S D"]) -> Float[Array, "*b S D"]:
        attention = nn.MultiHeadDotProductAttention(self.config.num_heads, name="self_attention")
        norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name="attention_output_ln")
        return norm(attention(x) + x)


class PlainLayer(nn.Module):
    """Attention and MLP."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b S D"]) -> Float[Array, "*b S D"]:
        x = PlainAttention(self.config, name="Attention_0")(x)
        return Mlp(self.config, name="Mlp_0")(x, deterministic=True)


class PlainTransformer(nn.Module):
    """`maskgit_jax.networks.transformer.Transformer` without what makes it faster."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "*b S"]) -> Float[Array, "*b S V"]:
        x, words = Embed(self.config, name="Embed_0")(ids, deterministic=True)
        for layer in range(self.config.num_layers):
            x = PlainLayer(self.config, name=f"TransformerLayer_{layer}")(x)
        return MlmLayer(self.config, name="MlmLayer_0")(x, words)


class PlainGuide(NamedTuple):
    """What leads one sample: the sketch's maps, the other class, the number masked at the start."""

    target: LogMaps
    other_token: Int[Array, ""]
    num_masked: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class PlainMaskSketch:
    """MaskSketch by the published means, for one setting; a `batched.Method`.

    All layers with a weight count alike. Parameters are unstacked (`unstack_layers`).

    Raises:
      InputError: a setting that the published code does not have.
    """

    config: TransformerConfig
    settings: StructureSettings
    divergence: str
    shared = None

    def __post_init__(self):
        for name, value in ABSENT.items():
            if getattr(self.settings, name) != value:
                raise InputError(f"--{name}: the plain variant has none; give --variants=ours")
        weights = tuple(map(float, self.settings.layer_weights))  # an array has no hash
        settings = dataclasses.replace(self.settings, layer_weights=weights)
        object.__setattr__(self, "settings", settings)

    @property
    def method(self) -> "PlainMaskSketch":
        return self

    def start(self, params: Any, tokens: Tokens, key: RandomKey) -> tuple[PlainGuide, DecodeState]:
        """A sample before its first step; the sketch's maps are kept for all steps."""
        loop_key, start_key = jax.random.split(key)
        draws = jax.random.uniform(start_key, tokens.shape)
        other_token = other_class_token(draws[0], tokens[0], Transformer(self.config))
        everywhere = jnp.ones(tokens.shape, bool)
        ids = mask_start(tokens, everywhere, self.settings.max_mask_rate, draws)
        guide = PlainGuide(self._maps(params, tokens), other_token, jnp.sum(ids == MASK_ID))
        return guide, DecodeState(ids, ids, loop_key, no_distances(ids))

    def __call__(self, transformer, params, shared, guide: PlainGuide, num_steps):
        """See `batched.Method`; layers unrolled and unstacked, so not by its `transformer`."""
        scale, settings = self.settings.guidance_scale, traced(self.settings)

        def logits(ids: Tokens) -> Float[Array, "S K"]:
            found = PlainTransformer(self.config).apply({"params": params}, ids)
            return found[:, : self.config.codebook_size]

        def predict(ids, step):
            wanted, other = logits(ids), logits(ids.at[0].set(guide.other_token))
            return wanted + scale * (wanted - other)

        everywhere = jnp.ones(self.config.sequence_length)
        remask = structure_remask(
            functools.partial(self.distance, params, shared, guide),
            guide.num_masked,
            everywhere > 0,
            everywhere,
            settings,
            num_steps=num_steps,
        )
        return predict, remask

    def distance(self, params: Any, shared: None, guide: PlainGuide, ids: Tokens):
        """Structure distance of each token to the sketch."""
        log_p, log_q = guide.target, self._maps(params, ids)
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        if self.divergence == "jeffreys":
            divergence = jnp.sum((p - q) * (log_p - log_q), axis=-1)
        else:
            divergence = -jnp.sum(p * log_q + q * log_p, axis=-1)
        return jnp.mean(divergence, axis=(0, 1))

    def _maps(self, params: Any, ids: Tokens) -> LogMaps:
        _, kept = PlainTransformer(self.config).apply(
            {"params": params},
            ids,
            capture_intermediates=lambda module, _: module.name in ("query", "key"),
            mutable=["intermediates"],
        )

        def of_layer(layer: int) -> Float[Array, "H S S"]:
            attention = kept["intermediates"][f"TransformerLayer_{layer}"]["Attention_0"]
            query, key = (attention["self_attention"][n]["__call__"][0] for n in ("query", "key"))
            query = query / math.sqrt(query.shape[-1])
            return jax.nn.log_softmax(jnp.einsum("qhd,khd->hqk", query, key))

        return jnp.stack(
            [of_layer(i) for i in np.flatnonzero(self.settings.layer_weights).tolist()]
        )
