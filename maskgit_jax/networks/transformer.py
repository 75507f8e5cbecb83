"""The bidirectional transformer of MaskGIT (arXiv:2202.04200, section 3).

Module and parameter names are those of the released checkpoints.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from maskgit_jax.config import TransformerConfig

LAYER_NORM_EPSILON = 1e-12
MASK_ID = -1
_init = nn.initializers.truncated_normal(stddev=0.02)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name=name)


Heads = Float[Array, "*b S H d"]
"""What each head sees of each token."""
Attend = Callable[[Heads, Heads, Heads], tuple[Heads, Any]]
"""`(query, key, value) -> (mixed, extra)`; queries are already divided by √(head width)."""


def softmax_attention(
    query: Heads, key: Heads, value: Heads, drop: Callable[[Array], Array] = lambda weights: weights
) -> Heads:
    """Softmax attention, in float32 whatever the type of the heads; `drop` is dropout."""
    # Heads first: products of contiguous matrices are several times faster on CPU.
    query, key, value = (jnp.swapaxes(x, -3, -2) for x in (query, key, value))
    logits = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    # Divided after the product: it has fewer numbers than the map.
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.matmul(drop(weights).astype(value.dtype), value, preferred_element_type=jnp.float32)
    return jnp.swapaxes(mixed / total, -3, -2).astype(value.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention; `attend` stands in for the product of maps and values."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b S D"], deterministic: bool, attend: Attend | None):
        cfg = self.config
        head = (cfg.num_heads, cfg.hidden_size // cfg.num_heads)
        query, key, value = (
            nn.DenseGeneral(head, kernel_init=_init, name=name)(x)
            for name in ("query", "key", "value")
        )
        query = query / jnp.sqrt(head[1]).astype(query.dtype)
        if attend is None:
            dropout = nn.Dropout(cfg.dropout_rate, deterministic=deterministic)
            mixed, extra = softmax_attention(query, key, value, dropout), None
        else:
            mixed, extra = attend(query, key, value)
        out = nn.DenseGeneral(cfg.hidden_size, axis=(-2, -1), kernel_init=_init, name="out")(mixed)
        return out, extra


class Attention(nn.Module):
    """Self-attention, residual, LayerNorm."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b S D"], deterministic: bool, attend: Attend | None):
        out, extra = SelfAttention(self.config, name="self_attention")(x, deterministic, attend)
        out = nn.Dropout(self.config.dropout_rate)(out, deterministic=deterministic)
        return _layer_norm("attention_output_ln")(out + x), extra


class Mlp(nn.Module):
    """Two dense layers with GELU (tanh form), residual, LayerNorm."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b S D"], deterministic: bool) -> Float[Array, "*b S D"]:
        cfg = self.config
        out = nn.Dense(cfg.intermediate_size, kernel_init=_init, name="intermediate_output")(x)
        out = nn.Dense(cfg.hidden_size, kernel_init=_init, name="layer_output")(nn.gelu(out))
        out = nn.Dropout(cfg.dropout_rate)(out, deterministic=deterministic)
        return _layer_norm("layer_output_ln")(out + x)


class TransformerLayer(nn.Module):
    """Attention and MLP, LayerNorm after each (post-norm, as in BERT)."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "*b S D"], deterministic: bool, attend: Attend | None = None
    ):
        x, extra = Attention(self.config, name="Attention_0")(x, deterministic, attend)
        return Mlp(self.config, name="Mlp_0")(x, deterministic), extra


class Embed(nn.Module):
    """Word and position embeddings; also returns the word table, which the output head shares."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "*b S"],
        deterministic: bool,
        guide_ids: Int[Array, "*b S"] | None = None,
    ):
        cfg = self.config
        words, positions = (
            nn.Embed(rows, cfg.hidden_size, embedding_init=_init, name=name)
            for rows, name in (
                (cfg.vocabulary_size, "word_embeddings"),
                (cfg.sequence_length, "position_embeddings"),
            )
        )
        norm = _layer_norm("embeddings_ln")

        def embed(ids):
            # The mask id -1 is the last row of the table.
            return norm(words.embedding[ids] + positions.embedding[: ids.shape[-1]])

        x = embed(ids)
        if guide_ids is not None:
            guided = (ids == MASK_ID) & (guide_ids != MASK_ID)
            x = x + jnp.where(guided[..., None], embed(guide_ids), 0)
        return nn.Dropout(cfg.dropout_rate)(x, deterministic=deterministic), words.embedding


class Bias(nn.Module):
    """A learned bias over the vocabulary, added in the type of `x`."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
        return x + self.param("bias", nn.initializers.zeros, x.shape[-1:]).astype(x.dtype)


class MlmLayer(nn.Module):
    """Output head: dense, GELU, LayerNorm, product with the word table, bias.

    Logits are float32 whatever the weights are: bfloat16 would keep two to three digits of them
    and make ids tie. The product's factors stay in the weights' type, which is what matrix units
    multiply fast; the normalised states in float32 would make logits of bfloat16 layers 0.7 % more
    accurate.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "*b S D"], words: Float[Array, "V D"]
    ) -> Float32[Array, "*b S V"]:
        x = nn.Dense(self.config.hidden_size, kernel_init=_init, name="mlm_dense")(x)
        x = _layer_norm("mlm_ln")(nn.gelu(x))
        logits = jnp.matmul(x, words.T, preferred_element_type=jnp.float32)
        return Bias(name="mlm_bias")(logits)


class Transformer(nn.Module):
    """Predicts the ids of all positions from the unmasked ones.

    Ids are int32: a class token (K + label) at position 0, then N image ids in [0, K), the mask
    id -1 where masked.
    """

    config: TransformerConfig

    def setup(self):
        # Attribute names are parameter names: TransformerLayer_0, TransformerLayer_1, …
        self.Embed_0 = Embed(self.config)
        self.TransformerLayer = [
            TransformerLayer(self.config) for _ in range(self.config.num_layers)
        ]
        self.MlmLayer_0 = MlmLayer(self.config)

    def __call__(
        self,
        ids: Int[Array, "*b S"],
        deterministic: bool = True,
        guide_ids: Int[Array, "*b S"] | None = None,
    ) -> Float32[Array, "*b S V"]:
        """Logits over the whole vocabulary, in float32; only the first K are image codes.

        With `deterministic=False` dropout is on and a 'dropout' key is needed. Where an id is
        masked, the embedding of a guide id that is not -1 is added to the mask's (MaskGIT-Edit,
        iterative form).
        """
        x, words = self.Embed_0(ids, deterministic, guide_ids)
        for layer in self.TransformerLayer:
            x, _ = layer(x, deterministic)
        return self.MlmLayer_0(x, words)
