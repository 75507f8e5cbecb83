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
from jaxtyping import Array, Float, Int

from maskgit_jax.transformer import (
    Embed,
    Heads,
    MlmLayer,
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


def _layers(transformer, params, attend, inputs=None):
    """A scan's body over layers: `(x, index) -> (x, extra)`."""
    layer = TransformerLayer(transformer.config)

    def body(x, index):
        # Not scanned over: a scan of some of the layers would copy their part of the arrays.
        weights, given = jax.tree.map(operator.itemgetter(index), (params[STACK], inputs))
        return layer.apply({"params": weights}, x, True, functools.partial(attend, given))

    return body


def _embed(transformer, params, ids, guide_ids=None):
    embed = Embed(transformer.config)
    return embed.apply({"params": params["Embed_0"]}, ids, True, guide_ids)[0]


def layer_extras(
    transformer: Transformer,
    params: dict[str, Any],
    ids: Int[Array, "*b S"],
    attend: Callable[..., tuple[Heads, Any]],
    inputs: Any,
    num_layers: int,
) -> Any:
    """What `attend` gives in the first layers; nothing that no layer's attention needs is run.

    Args:
      transformer: the model.
      params: its weights, stacked.
      ids: class token and image ids, -1 where hidden.
      attend: `attend(inputs of the layer, query, key, value) -> (mixed, extra)`.
      inputs: a tree with a leading axis of layers.
      num_layers: how many are run.

    Returns:
      The extras along a leading axis of layers.
    """
    body = _layers(transformer, params, attend, inputs)
    x, extras = jax.lax.scan(body, _embed(transformer, params, ids), jnp.arange(num_layers - 1))
    # By itself, for the compiler to see that its output is not read.
    _, extra = body(x, num_layers - 1)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), extras, extra)


def code_logits(
    transformer: Transformer,
    params: dict[str, Any],
    ids: Int[Array, "*b S"],
    guide_ids: Int[Array, "*b S"] | None = None,
) -> Float[Array, "*b S K"]:
    """The transformer's logits over the image codes, in float32; the others are not computed."""
    config = transformer.config

    def attend(_, query, key, value):
        return softmax_attention(query, key, value), None

    body = _layers(transformer, params, attend)
    x = _embed(transformer, params, ids, guide_ids)
    x, _ = jax.lax.scan(body, x, jnp.arange(config.num_layers))
    codes = slice(config.codebook_size)
    words = params["Embed_0"]["word_embeddings"]["embedding"][codes]
    head = params["MlmLayer_0"]
    head = head | {"mlm_bias": {"bias": head["mlm_bias"]["bias"][codes]}}
    return MlmLayer(config).apply({"params": head}, x, words).astype(jnp.float32)


def attention_inputs(
    transformer: Transformer, params: dict[str, Any], ids: Int[Array, "*b S"], num_layers: int
) -> AttentionInputs:
    """Queries and keys of the first `num_layers` layers; nothing above them is run."""

    def attend(_, query, key, value):
        return softmax_attention(query, key, value), AttentionInputs(query, key)

    # In one scan, though what follows the last layer's keys is not read: `layer_extras` would hold
    # all of them twice.
    body = _layers(transformer, params, attend)
    return jax.lax.scan(body, _embed(transformer, params, ids), jnp.arange(num_layers))[1]
