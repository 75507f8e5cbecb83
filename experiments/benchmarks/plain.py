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
from typing import Any

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
from maskgit_jax.networks.transformer import SelfAttention, Transformer
from maskgit_jax.sampling.loop import MASK_ID, DecodeState, RandomKey, Tokens

ABSENT = {"paper_weight": 1, "token_temperature": 1, "guidance_power": 0}
"""Settings that the published code does not have, and the values at which they change nothing."""

LogMaps = Float[Array, "L H S S"]
"""Logarithms of the attention maps of the chosen layers."""
PlainGuide = tuple[LogMaps, Int[Array, ""], Int[Array, ""]]
"""What leads one sample: the sketch's maps, the other class, the number masked at the start."""


def plain_pass(
    config: TransformerConfig, params: Any, ids: Tokens
) -> tuple[Float[Array, "S V"], list[list[Float[Array, "S H d"]]]]:
    """The logits of `Transformer` with Flax's attention, and the queries and keys of each layer."""
    attention, caught = nn.MultiHeadDotProductAttention(config.num_heads), []

    def attend(ours, arguments, options, context):
        if not isinstance(context.module, SelfAttention):
            return ours(*arguments, **options)
        mixed, kept = attention.apply(
            context.module.variables,
            arguments[0],
            capture_intermediates=lambda module, _: module.name in ("query", "key"),
            mutable=["intermediates"],
        )
        caught.append([kept["intermediates"][name]["__call__"][0] for name in ("query", "key")])
        return mixed, None

    with nn.intercept_methods(attend):
        return Transformer(config).apply({"params": params}, ids), caught


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

    def __post_init__(self):
        for name, value in ABSENT.items():
            if getattr(self.settings, name) != value:
                raise InputError(f"--{name}: the plain variant has none; give --variants=ours")
        weights = tuple(map(float, self.settings.layer_weights))  # an array has no hash
        settings = dataclasses.replace(self.settings, layer_weights=weights)
        object.__setattr__(self, "settings", settings)

    def start(self, params: Any, tokens: Tokens, key: RandomKey) -> tuple[PlainGuide, DecodeState]:
        """A sample before its first step; the sketch's maps are kept for all steps."""
        loop_key, start_key = jax.random.split(key)
        draws = jax.random.uniform(start_key, tokens.shape)
        other_token = other_class_token(draws[0], tokens[0], Transformer(self.config))
        everywhere = jnp.ones(tokens.shape, bool)
        ids = mask_start(tokens, everywhere, self.settings.max_mask_rate, draws)
        guide = self._maps(params, tokens), other_token, jnp.sum(ids == MASK_ID)
        return guide, DecodeState(ids, ids, loop_key, no_distances(ids))

    def __call__(self, transformer, params, shared, guide: PlainGuide, num_steps):
        _, other_token, num_masked = guide

        def logits(ids: Tokens) -> Float[Array, "S K"]:
            return plain_pass(self.config, params, ids)[0][:, : self.config.codebook_size]

        def predict(ids, step):
            wanted, other = logits(ids), logits(ids.at[0].set(other_token))
            return wanted + self.settings.guidance_scale * (wanted - other)

        distance = functools.partial(self.distance, params, shared, guide)
        weights = jnp.ones(self.config.sequence_length)
        settings = traced(self.settings)
        given = distance, num_masked, weights > 0, weights, settings
        return predict, structure_remask(*given, num_steps=num_steps)

    def distance(self, params: Any, shared: None, guide: PlainGuide, ids: Tokens):
        """Structure distance of each token to the sketch."""
        log_p, log_q = guide[0], self._maps(params, ids)
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        if self.divergence == "jeffreys":
            divergence = jnp.sum((p - q) * (log_p - log_q), axis=-1)
        else:
            divergence = -jnp.sum(p * log_q + q * log_p, axis=-1)
        return jnp.mean(divergence, axis=(0, 1))

    def _maps(self, params: Any, ids: Tokens) -> LogMaps:
        _, caught = plain_pass(self.config, params, ids)

        def of_layer(layer: int) -> Float[Array, "H S S"]:
            query, key = caught[layer]
            query = query / math.sqrt(query.shape[-1])
            return jax.nn.log_softmax(jnp.einsum("qhd,khd->hqk", query, key))

        return jnp.stack(
            [of_layer(i) for i in np.flatnonzero(self.settings.layer_weights).tolist()]
        )
