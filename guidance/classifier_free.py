"""Classifier-free guidance against a random other class (MaskSketch, section 3.4)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from maskgit_jax.decoding import Predict
from maskgit_jax.inference import code_logits
from maskgit_jax.transformer import Transformer


def other_class_token(
    key: Key[Array, ""], class_token: Int[Array, ""], transformer: Transformer
) -> Int[Array, ""]:
    """The token of a class drawn evenly from all but the wanted one; the same if it is alone."""
    config = transformer.config
    label = class_token - config.codebook_size
    shift = jax.random.randint(key, (), 1, max(config.num_classes, 2))
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
