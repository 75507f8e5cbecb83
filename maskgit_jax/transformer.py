"""The bidirectional transformer of MaskGIT (arXiv:2202.04200, section 3).

Module and parameter names are those of the released checkpoints.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskgit_jax.config import TransformerConfig

LAYER_NORM_EPSILON = 1e-12
_init = nn.initializers.truncated_normal(stddev=0.02)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, name=name)


class AttentionInputs(NamedTuple):
    """Queries and keys of some layers: what attention maps are made of, in O(N) memory.

    The logits of a map are `query_i · key_j`: queries are already divided by √(head width).
    """

    queries: Float[Array, "L *b S H d"]
    keys: Float[Array, "L *b S H d"]


class SelfAttention(nn.Module):
    """Multi-head self-attention that also returns its queries and keys."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b S D"], deterministic: bool):
        cfg = self.config
        head = (cfg.num_heads, cfg.hidden_size // cfg.num_heads)
        query, key, value = (
            nn.DenseGeneral(head, kernel_init=_init, name=name)(x)
            for name in ("query", "key", "value")
        )
        query = query / jnp.sqrt(head[1])
        weights = jax.nn.softmax(jnp.einsum("...qhd,...khd->...hqk", query, key))
        weights = nn.Dropout(cfg.dropout_rate)(weights, deterministic=deterministic)
        mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value)
        out = nn.DenseGeneral(cfg.hidden_size, axis=(-2, -1), kernel_init=_init, name="out")(mixed)
        return out, query, key


class Attention(nn.Module):
    """Self-attention, residual, LayerNorm."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*b S D"], deterministic: bool):
        out, query, key = SelfAttention(self.config, name="self_attention")(x, deterministic)
        out = nn.Dropout(self.config.dropout_rate)(out, deterministic=deterministic)
        return _layer_norm("attention_output_ln")(out + x), query, key


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
    def __call__(self, x: Float[Array, "*b S D"], deterministic: bool):
        x, query, key = Attention(self.config, name="Attention_0")(x, deterministic)
        return Mlp(self.config, name="Mlp_0")(x, deterministic), query, key


class Embed(nn.Module):
    """Word and position embeddings; also returns the word table, which the output head shares."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "*b S"], deterministic: bool):
        cfg = self.config
        words, positions = (
            nn.Embed(rows, cfg.hidden_size, embedding_init=_init, name=name)
            for rows, name in (
                (cfg.vocabulary_size, "word_embeddings"),
                (cfg.sequence_length, "position_embeddings"),
            )
        )
        # The mask id -1 is the last row of the table.
        x = words(ids % cfg.vocabulary_size) + positions(jnp.arange(ids.shape[-1]))
        x = _layer_norm("embeddings_ln")(x)
        return nn.Dropout(cfg.dropout_rate)(x, deterministic=deterministic), words.embedding


class Bias(nn.Module):
    """A learned bias over the vocabulary."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b V"]) -> Float[Array, "*b V"]:
        return x + self.param("bias", nn.initializers.zeros, x.shape[-1:])


class MlmLayer(nn.Module):
    """Output head: dense, GELU, LayerNorm, product with the word table, bias."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "*b S D"], words: Float[Array, "V D"]
    ) -> Float[Array, "*b S V"]:
        x = nn.Dense(self.config.hidden_size, kernel_init=_init, name="mlm_dense")(x)
        x = _layer_norm("mlm_ln")(nn.gelu(x))
        return Bias(name="mlm_bias")(x @ words.T)


class Transformer(nn.Module):
    """Predicts the ids of all positions from the visible ones.

    Ids are int32: a class token (K + label) at position 0, then N image ids in [0, K), the mask
    id -1 where hidden.
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
        self, ids: Int[Array, "*b S"], deterministic: bool = True
    ) -> Float[Array, "*b S V"]:
        """Logits over the whole vocabulary; only the first K are image codes.

        With `deterministic=False` dropout is on and a 'dropout' key is needed.
        """
        x, words = self.Embed_0(ids, deterministic)
        for layer in self.TransformerLayer:
            x, _, _ = layer(x, deterministic)
        return self.MlmLayer_0(x, words)

    def attention(self, ids: Int[Array, "*b S"], num_layers: int) -> AttentionInputs:
        """Queries and keys of the first `num_layers` layers; nothing above them is run."""
        x, _ = self.Embed_0(ids, True)
        queries, keys = [], []
        for layer in self.TransformerLayer[:num_layers]:
            x, query, key = layer(x, True)
            queries.append(query)
            keys.append(key)
        return AttentionInputs(jnp.stack(queries), jnp.stack(keys))
