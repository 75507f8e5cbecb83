"""The frozen transformer as sampling runs it: layers stacked and run as one scan.

A scan compiles one layer whatever the model's depth. Stacked parameters are the released ones
with the layers' leaves put together along a leading axis, under the name `TransformerLayer`.
"""

import functools
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from maskgit_jax.networks.transformer import (
    Attention,
    Embed,
    Heads,
    MlmLayer,
    Mlp,
    Transformer,
    TransformerLayer,
    softmax_attention,
)

STACK = "TransformerLayer"
_LAYER = re.compile(rf"{STACK}_(\d+)")


class AttentionInputs(NamedTuple):
    """Queries and keys of some layers: what attention maps are made of, in O(N) memory.

    The logits of a map are `query_i · key_j`: queries are already divided by √(head width).
    """

    queries: Float[Array, "L *b S H d"]
    keys: Float[Array, "L *b S H d"]


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Released parameters, one tree per layer, as one tree with a leading axis of layers."""
    layers = sorted(filter(_LAYER.fullmatch, params), key=lambda name: int(name.split("_")[1]))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in layers))
    return {STACK: stacked} | {name: tree for name, tree in params.items() if name not in layers}


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """What `stack_layers` was given: the form of the files and of training."""
    stacked = params[STACK]
    depth = len(jax.tree.leaves(stacked)[0])
    layers = {
        f"{STACK}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)
    }
    return layers | {name: tree for name, tree in params.items() if name != STACK}


def _scan_layers(transformer, params, x, attend, num_layers):
    """The first layers' output, and what else `attend` gives along a leading axis of layers."""
    layer = TransformerLayer(transformer.config)

    def body(x, index):
        # Not scanned over: a scan of some of the layers would copy their part of the arrays.
        weights = jax.tree.map(operator.itemgetter(index), params[STACK])
        return layer.apply({"params": weights}, x, True, attend)

    return jax.lax.scan(body, x, jnp.arange(num_layers))


def _embed(transformer, params, ids, guide_ids=None):
    embed = Embed(transformer.config)
    return embed.apply({"params": params["Embed_0"]}, ids, True, guide_ids)[0]


def sum_over_layers(
    transformer: Transformer,
    params: dict[str, Any],
    ids: Int[Array, "*b S"],
    attend: Callable[..., tuple[Heads, Float[Array, "*b S"]]],
    inputs: Any,
    num_layers: int,
) -> Float[Array, "*b S"]:
    """The sum of what `attend` gives each token in the first layers.

    Layers above are not run, nor the last one's MLP.

    Args:
      transformer: the model.
      params: its weights, stacked.
      ids: class token and image ids, -1 where masked.
      attend: `attend(inputs of the layer, query, key, value) -> (mixed, summand)`.
      inputs: a tree with a leading axis of layers.
      num_layers: how many are run.
    """
    config, stack = transformer.config, params[STACK]

    def add(index, state):
        x, total = state
        # Not scanned over: a scan of some of the layers would copy their part of the arrays.
        weights, given = jax.tree.map(operator.itemgetter(index), (stack["Attention_0"], inputs))
        apply = Attention(config).apply
        x, summand = apply({"params": weights}, x, True, functools.partial(attend, given))
        x = jax.lax.cond(index + 1 < num_layers, mlp, lambda x, _: x, x, index)
        return x, total + summand

    def mlp(x, index):
        weights = jax.tree.map(operator.itemgetter(index), stack["Mlp_0"])
        return Mlp(config).apply({"params": weights}, x, True)

    start = _embed(transformer, params, ids), jnp.zeros(ids.shape, jnp.float32)
    return jax.lax.fori_loop(0, num_layers, add, start)[1]


def code_logits(
    transformer: Transformer,
    params: dict[str, Any],
    ids: Int[Array, "*b S"],
    guide_ids: Int[Array, "*b S"] | None = None,
) -> Float32[Array, "*b S K"]:
    """The transformer's logits over the image codes, in float32; the others are not computed."""
    config = transformer.config

    def attend(query, key, value):
        return softmax_attention(query, key, value), None

    x = _embed(transformer, params, ids, guide_ids)
    x, _ = _scan_layers(transformer, params, x, attend, config.num_layers)
    codes = slice(config.codebook_size)
    words = params["Embed_0"]["word_embeddings"]["embedding"][codes]
    head = params["MlmLayer_0"]
    head = head | {"mlm_bias": {"bias": head["mlm_bias"]["bias"][codes]}}
    return MlmLayer(config).apply({"params": head}, x, words)


def attention_inputs(
    transformer: Transformer, params: dict[str, Any], ids: Int[Array, "*b S"], num_layers: int
) -> AttentionInputs:
    """Queries and keys of the first `num_layers` layers; nothing above them is run."""

    def attend(query, key, value):
        return softmax_attention(query, key, value), AttentionInputs(query, key)

    x = _embed(transformer, params, ids)
    return _scan_layers(transformer, params, x, attend, num_layers)[1]
