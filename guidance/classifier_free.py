"""Classifier-free guidance against a random other class (MaskSketch, section 3.4)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from maskgit_jax.knobs import knob
from maskgit_jax.model import Model
from maskgit_jax.networks.stacked import code_logits
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling import batched
from maskgit_jax.sampling.loop import Predict, Step

SCHEDULES = {"constant": 0.0, "rising": 1.0}
"""How guidance goes over the steps, and the power of `guidance_share` if none is chosen."""


def guidance_power_knob() -> Any:
    """The field `guidance_power` of a method's settings, p of `guidance_share`."""
    return knob(
        0.0,
        "Of rising guidance: the greater, the later it sets in; 0 is constant.",
        low=0.0,
        high=100.0,
    )


_OTHER_CLASS = 3  # folded into a sample's key; samplers have 0 to 2


def other_class_token(
    draw: Float[Array, "*b"], class_token: Int[Array, ""], transformer: Transformer
) -> Int[Array, "*b"]:
    """The token of any class but the wanted one, even over draws in [0, 1); the same if alone."""
    config = transformer.config
    label = class_token - config.codebook_size
    shift = 1 + jnp.floor(draw * (config.num_classes - 1)).astype(jnp.int32)
    return config.codebook_size + (label + shift) % config.num_classes


def guidance_share(
    step: Step, num_steps: Int[Array, ""] | int, power: Float[Array, ""] | float
) -> Float[Array, ""]:
    """The share w of the guidance scale that counts in a step.

    Rising guidance is w = ½ (1 − cos(π (t/T)^p)): the greater p, the later it sets in (Masked
    Diffusion Transformer, arXiv:2303.14389, appendix D, with p = 4).

    Args:
      step: from 0 on. t is the number of steps that are done with it, step + 1: so w is 1 in the
        last step, and above 0 in the first.
      num_steps: T.
      power: p; 0 is constant guidance, w = 1 in every step.
    """
    done = (step + 1.0) / num_steps
    rising = (1 - jnp.cos(math.pi * done**power)) / 2
    return jnp.where(power > 0, rising, 1.0)


def classifier_free_predict(
    transformer: Transformer,
    params,
    other_token: Int[Array, ""],
    guidance_scale: Float[Array, ""] | float,
    power: Float[Array, ""] | float = 0.0,
    num_steps: Int[Array, ""] | int = 1,
) -> Predict:
    """Logits pushed from another class's towards the wanted class's.

    logits = logits_c + w · s · (logits_c − logits_r), with c the class at position 0, r the other
    and w of `guidance_share`.

    Args:
      transformer: the model.
      params: its weights.
      other_token: class token of r.
      guidance_scale: s; 0 is no guidance.
      power: see `guidance_share`.
      num_steps: T; where guidance is constant, it does not matter.
    """

    def predict(ids, step):
        both = jnp.stack([ids, ids.at[0].set(other_token)])
        wanted, other = code_logits(transformer, params, both)
        scale = guidance_scale * guidance_share(step, num_steps, power)
        return wanted + scale * (wanted - other)

    return predict


def sample(
    model: Model,
    tokens: Int[Array, "B S"],
    *,
    guidance_scale: Float[Array, "B"] | float,
    power: Float[Array, "B"] | float = 0.0,
    num_steps: int,
    seed: int,
    indices: Int[Array | np.ndarray, "B"],
    **settings: Any,
) -> Int[Array, "B N"]:
    """`batched.sample` by any sampler, with guided logits.

    Args:
      model: the generator.
      tokens: as for `batched.sample`.
      guidance_scale: s ≥ 0, one for all or each sample's own. Where all are 0, the other class's
        logits are not computed; a sample of scale 0 is the same in either case.
      power: of `guidance_share`, ≥ 0, likewise.
      num_steps: T.
      seed: with the index, all that a sample's randomness depends on, the other class included.
      indices: the samples' numbers.
      settings: the other arguments of `batched.sample`.
    """
    settings |= {"num_steps": num_steps, "seed": seed, "indices": indices}
    if not np.any(guidance_scale):
        return batched.sample(model, tokens, **settings)

    def other(key, class_token):
        draw = jax.random.uniform(jax.random.fold_in(key, _OTHER_CLASS))
        return other_class_token(draw, class_token, model.transformer)

    other_tokens = jax.vmap(other)(batched.sample_keys(seed, indices), tokens[:, 0])
    scales, powers = (
        jnp.broadcast_to(jnp.float32(number), len(tokens)) for number in (guidance_scale, power)
    )
    return batched.sample(
        model,
        tokens,
        predict=classifier_free_predict,
        guide=(other_tokens, scales, powers, jnp.full(len(tokens), num_steps)),
        **settings,
    )
