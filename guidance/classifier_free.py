"""Classifier-free guidance against a random other class (MaskSketch, section 3.4)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from maskgit_jax import sampling
from maskgit_jax.decoding import Predict
from maskgit_jax.inference import code_logits
from maskgit_jax.model import Model
from maskgit_jax.transformer import Transformer

_OTHER_CLASS = 3  # folded into a sample's key; samplers have 0 to 2


def other_class_token(
    draw: Float[Array, "*b"], class_token: Int[Array, ""], transformer: Transformer
) -> Int[Array, "*b"]:
    """The token of any class but the wanted one, even over draws in [0, 1); the same if alone."""
    config = transformer.config
    label = class_token - config.codebook_size
    shift = 1 + jnp.floor(draw * (config.num_classes - 1)).astype(jnp.int32)
    return config.codebook_size + (label + shift) % config.num_classes


def classifier_free_predict(
    transformer: Transformer,
    params,
    other_token: Int[Array, ""],
    guidance_scale: Float[Array, ""] | float,
) -> Predict:
    """Logits pushed from another class's towards the wanted class's.

    logits = logits_c + s · (logits_c − logits_r), with c the class at position 0 and r the other.

    Args:
      transformer: the model.
      params: its weights.
      other_token: class token of r.
      guidance_scale: s; 0 is no guidance.
    """

    def predict(ids, step):
        both = jnp.stack([ids, ids.at[0].set(other_token)])
        wanted, other = code_logits(transformer, params, both)
        return wanted + guidance_scale * (wanted - other)

    return predict


def sample(
    model: Model,
    tokens: Int[Array, "B S"],
    *,
    guidance_scale: Float[Array, "B"] | float,
    seed: int,
    indices: Int[Array, "B"],
    **settings: Any,
) -> Int[Array, "B N"]:
    """`sampling.sample` by any sampler, with guided logits.

    Args:
      model: the generator.
      tokens: as for `sampling.sample`.
      guidance_scale: s ≥ 0, one for all or each sample's own. Where all are 0, the other class's
        logits are not computed; a sample of scale 0 is the same in either case.
      seed: with the index, all that a sample's randomness depends on, the other class included.
      indices: the samples' numbers.
      settings: the other arguments of `sampling.sample`.
    """
    if not np.any(guidance_scale):
        return sampling.sample(model, tokens, seed=seed, indices=indices, **settings)

    def other(key, class_token):
        draw = jax.random.uniform(jax.random.fold_in(key, _OTHER_CLASS))
        return other_class_token(draw, class_token, model.transformer)

    other_tokens = jax.vmap(other)(sampling.sample_keys(seed, indices), tokens[:, 0])
    scales = jnp.broadcast_to(jnp.float32(guidance_scale), len(tokens))
    return sampling.sample(
        model,
        tokens,
        seed=seed,
        indices=indices,
        predict=classifier_free_predict,
        guide=(other_tokens, scales),
        **settings,
    )
