"""Structure-guided decoding as the published code does it: what `benchmark` compares with.

The same method, settings and random draws as `guidance.masksketch`, so the tokens are the same, by
the published means:

- every setting is a Python constant: another one compiles anew;
- layers are unrolled, so compilation grows with depth; attention is Flax's own module;
- a step makes three passes: wanted class, other class, structure; each asks for all layers and for
  logits over the whole vocabulary, of which the codes are cut out;
- queries and keys are caught with Flax's `capture_intermediates`, and the attention maps of all
  chosen layers stand in memory in float32, the sketch's and the sample's.

Where the published code goes wrong, this does not: every sample gets its own random class, and the
divergence is taken of log-softmaxes, since the logarithm of a softmax that underflows is infinite.
The loop over steps is compiled, as the published one is.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from guidance.classifier_free import other_class_token
from guidance.structure import StructureSettings, hide_start
from maskgit_jax.config import TransformerConfig
from maskgit_jax.errors import InputError
from maskgit_jax.networks.transformer import LAYER_NORM_EPSILON, Embed, MlmLayer, Mlp, Transformer
from maskgit_jax.sampling import schedules
from maskgit_jax.sampling.loop import MASK_ID, DecodeState, Tokens, sample_key

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
    """What leads one sample through all its steps.

    Attributes:
      target: the sketch's maps.
      other_token: class token that classifier-free guidance leads away from.
      num_hidden: number of ids hidden at the start.
    """

    target: LogMaps
    other_token: Int[Array, ""]
    num_hidden: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainSampler:
    """The sampler for one setting; its functions compile for it alone.

    Attributes:
      transformer: the module, which unrolls its layers.
      layers: those whose maps are compared.
      num_steps: T.
      divergence: jeffreys or cross_entropy.
      lambda_s: the others are those of `StructureSettings`.
    """

    transformer: PlainTransformer
    layers: tuple[int, ...]
    num_steps: int
    divergence: str
    lambda_s: float
    guidance_scale: float
    max_mask_rate: float
    min_mask_rate: float
    structure_temperature: float
    confidence_temperature: float

    def sample(
        self,
        params: Any,
        sketch_tokens: Int[Array, "B S"],
        *,
        seed: int,
        progress: Callable[[int], None] = lambda done: None,
        steps_per_call: int = 8,
    ) -> Int[Array, "B N"]:
        """Draws samples 0 .. B - 1 of `seed`; `params` are unstacked (`unstack_layers`)."""
        keys = jax.vmap(functools.partial(sample_key, seed))(jnp.arange(len(sketch_tokens)))
        guide, state = self.start(params, sketch_tokens, keys)
        for first in range(0, self.num_steps, steps_per_call):
            last = min(first + steps_per_call, self.num_steps)
            state = jax.block_until_ready(self.advance(params, guide, state, first, last))
            progress(last)
        return state.sampled[:, 1:]

    @functools.partial(jax.jit, static_argnums=0)
    def start(
        self, params: Any, sketch_tokens: Int[Array, "B S"], keys: Key[Array, "B"]
    ) -> tuple[PlainGuide, DecodeState]:
        """Samples before their first step; the sketches' maps are kept for all steps."""

        config = self.transformer.config

        def one(tokens, key):
            loop_key, start_key = jax.random.split(key)
            draws = jax.random.uniform(start_key, tokens.shape)
            other_token = other_class_token(draws[0], tokens[0], Transformer(config))
            everywhere = jnp.ones(tokens.shape, bool)
            start_tokens = hide_start(tokens, everywhere, self.max_mask_rate, draws)
            num_hidden = jnp.sum(start_tokens == MASK_ID)
            guide = PlainGuide(self._maps(params, tokens), other_token, num_hidden)
            return guide, DecodeState(start_tokens, start_tokens, loop_key)

        return jax.vmap(one)(sketch_tokens, keys)

    @functools.partial(jax.jit, static_argnums=0)
    def advance(
        self,
        params: Any,
        guide: PlainGuide,
        state: DecodeState,
        first_step: Int[Array, ""] | int,
        last_step: Int[Array, ""] | int,
    ) -> DecodeState:
        """Runs the steps first_step .. last_step - 1."""

        def one(guide, state):
            body = functools.partial(self._step, params, guide)
            return jax.lax.fori_loop(first_step, last_step, body, state)

        return jax.vmap(one)(guide, state)

    @functools.partial(jax.jit, static_argnums=0)
    def targets(self, params: Any, sketch_tokens: Int[Array, "B S"]) -> Float[Array, "B L H S S"]:
        """The sketches' maps."""
        return jax.vmap(functools.partial(self._maps, params))(sketch_tokens)

    @functools.partial(jax.jit, static_argnums=0)
    def distance(
        self, params: Any, target: Float[Array, "B L H S S"], tokens: Int[Array, "B S"]
    ) -> Float[Array, "B S"]:
        """Structure distance of each token to the sketch."""
        return jax.vmap(functools.partial(self._distance, params))(target, tokens)

    def _step(self, params, guide: PlainGuide, step, state: DecodeState) -> DecodeState:
        codes = self.transformer.config.codebook_size
        wanted = self.transformer.apply({"params": params}, state.ids)[:, :codes]
        other_ids = state.ids.at[0].set(guide.other_token)
        other = self.transformer.apply({"params": params}, other_ids)[:, :codes]
        logits = wanted + self.guidance_scale * (wanted - other)
        key, draw_key = jax.random.split(state.key)
        drawn = jax.random.categorical(draw_key, logits).astype(jnp.int32)
        sampled = jnp.where(state.ids == MASK_ID, drawn, state.ids)
        distance = self._distance(params, guide.target, sampled)
        hide = self._hide(step, guide.num_hidden, sampled, logits, distance, key)
        return DecodeState(jnp.where(hide, MASK_ID, sampled), sampled, key)

    def _hide(self, step, num_hidden, sampled, logits, distance, key) -> Bool[Array, "S"]:
        """Which positions the next step does not see."""
        probabilities = jax.nn.softmax(logits[1:])
        chosen = jnp.take_along_axis(probabilities, sampled[1:, None], axis=-1)[:, 0]
        confidence = jnp.concatenate([jnp.full(1, jnp.inf), _rescale(chosen)])
        falling = schedules.mask_ratio("linear", (step + 1.0) / self.num_steps, num_hidden)
        rate = self.min_mask_rate + falling * (self.max_mask_rate - self.min_mask_rate)
        count = jnp.floor(num_hidden * rate)
        noise = jax.random.gumbel(jax.random.fold_in(key, 2), 2 * len(sampled)).reshape(2, -1)
        hide = jnp.zeros(sampled.shape, bool)
        for scores, share, temperature, one in (
            (_rescale(-distance), self.lambda_s, self.structure_temperature, noise[0]),
            (confidence, 1 - self.lambda_s, self.confidence_temperature, noise[1]),
        ):
            noisy = scores + temperature * one
            # Of equal scores at the border, none: ours takes some at random.
            border = jnp.sort(noisy)[jnp.floor(count * share).astype(jnp.int32)]
            hide |= noisy < border
        return hide.at[0].set(False)

    def _distance(self, params, target: LogMaps, tokens: Tokens) -> Float[Array, "S"]:
        log_p, log_q = target, self._maps(params, tokens)
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        if self.divergence == "jeffreys":
            divergence = jnp.sum((p - q) * (log_p - log_q), axis=-1)
        else:
            divergence = -jnp.sum(p * log_q + q * log_p, axis=-1)
        return jnp.mean(divergence, axis=(0, 1))

    def _maps(self, params, ids: Tokens) -> LogMaps:
        _, kept = self.transformer.apply(
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

        return jnp.stack([of_layer(layer) for layer in self.layers])


def plain_sampler(
    config: TransformerConfig,
    settings: StructureSettings,
    *,
    num_steps: int,
    divergence: str,
) -> PlainSampler:
    """The plain sampler of a setting; all layers with a weight count alike.

    Raises:
      InputError: a setting that the published code does not have.
    """
    layers = tuple(int(layer) for layer in np.flatnonzero(settings.layer_weights))
    for name, value in ABSENT.items():
        if getattr(settings, name) != value:
            raise InputError(f"the plain variant has no --{name}: expected {value:g}")
    constants = {
        name: float(value)
        for name, value in settings._asdict().items()
        if name not in ("layer_weights", *ABSENT)
    }
    return PlainSampler(
        transformer=PlainTransformer(config),
        layers=layers,
        num_steps=num_steps,
        divergence=divergence,
        **constants,
    )


def _rescale(scores: Float[Array, "n"]) -> Float[Array, "n"]:
    low, high = jnp.min(scores), jnp.max(scores)
    return (scores - low) / jnp.maximum(high - low, jnp.finfo(scores.dtype).tiny)
