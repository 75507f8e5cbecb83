"""MaskSketch: sketches to pictures by structure-guided decoding (arXiv:2302.05496, section 3)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from guidance.classifier_free import classifier_free_predict, other_class_token
from guidance.structure import (
    StructureSettings,
    TracedSettings,
    check_divergence,
    hide_start,
    structure_distance,
    structure_remask,
    traced,
)
from maskgit_jax.decoding import MASK_ID, DecodeState, RandomKey, Tokens, decode, sample_key
from maskgit_jax.errors import InputError
from maskgit_jax.model import Model
from maskgit_jax.sampling import spread_over_devices
from maskgit_jax.transformer import AttentionInputs, Transformer


class Guide(NamedTuple):
    """What leads one sample through all its steps.

    Attributes:
      target: attention inputs of the sketch.
      other_token: class token that classifier-free guidance leads away from.
      num_hidden: number of ids hidden at the start.
      token_weights: of the tokens' distances.
      settings: the knobs.
    """

    target: AttentionInputs
    other_token: Int[Array, ""]
    num_hidden: Int[Array, ""]
    token_weights: Float[Array, "S"]
    settings: TracedSettings


def make_guide(
    transformer: Transformer,
    params,
    sketch_tokens: Tokens,
    start_tokens: Tokens,
    other_token: Int[Array, ""],
    paper_ids: Int[Array, "N"],
    settings: TracedSettings,
) -> Guide:
    """The guide of one sample; one pass over the sketch's ids.

    `paper_ids` are a blank picture's: where the sketch has the same, it is paper.
    """
    num_layers = settings.layer_weights.shape[-1]
    target = transformer.apply({"params": params}, sketch_tokens, num_layers, method="attention")
    token_weights = jnp.ones(sketch_tokens.shape)
    paper = sketch_tokens[1:] == paper_ids
    token_weights = token_weights.at[1:].set(jnp.where(paper, settings.paper_weight, 1.0))
    return Guide(target, other_token, jnp.sum(start_tokens == MASK_ID), token_weights, settings)


def start(
    transformer: Transformer,
    params,
    sketch_tokens: Tokens,
    paper_ids: Int[Array, "N"],
    settings: TracedSettings,
    key: RandomKey,
) -> tuple[Guide, DecodeState]:
    """One sample before its first step: the sketch's ids, most of them hidden.

    Args:
      transformer: the model.
      params: its weights.
      sketch_tokens: class token and the sketch's ids.
      paper_ids: a blank picture's ids.
      settings: the knobs.
      key: the sample's key; nothing else is random.
    """
    other_key, hide_key, loop_key = jax.random.split(key, 3)
    other_token = other_class_token(other_key, sketch_tokens[0], transformer)
    start_tokens = hide_start(sketch_tokens, settings.max_mask_rate, hide_key)
    guide = make_guide(
        transformer, params, sketch_tokens, start_tokens, other_token, paper_ids, settings
    )
    return guide, DecodeState(start_tokens, start_tokens, loop_key)


def advance(
    transformer: Transformer,
    params,
    guide: Guide,
    state: DecodeState,
    first_step: Int[Array, ""] | int,
    last_step: Int[Array, ""] | int,
    num_steps: Int[Array, ""] | int,
    divergence: str = "jeffreys",
    schedule: str = "linear",
) -> DecodeState:
    """Runs the steps first_step .. last_step - 1 of num_steps for one sample."""
    settings = guide.settings
    predict = classifier_free_predict(
        transformer, params, guide.other_token, settings.guidance_scale
    )
    remask = structure_remask(
        transformer,
        params,
        guide.target,
        guide.num_hidden,
        guide.token_weights,
        settings,
        num_steps=num_steps,
        divergence=divergence,
        schedule=schedule,
    )
    return decode(predict, remask, state, first_step, last_step)


def distance(
    transformer: Transformer,
    params,
    guide: Guide,
    tokens: Tokens,
    divergence: str = "jeffreys",
) -> Float[Array, "S"]:
    """Structure distance between the guide's sketch and ids, token by token."""
    weights = guide.settings.layer_weights
    attention = transformer.apply({"params": params}, tokens, weights.shape[-1], method="attention")
    return structure_distance(guide.target, attention, weights, divergence)


class Samples(NamedTuple):
    """The result of `sample`.

    Attributes:
      ids: image ids.
      structure_distance: mean over the image tokens of each sample's distance to its sketch.
    """

    ids: Int[Array, "B N"]
    structure_distance: Float[Array, "B"]


def sample(
    model: Model,
    sketch_tokens: Int[Array, "B S"],
    settings: StructureSettings,
    *,
    num_steps: int,
    seed: int | UInt32[Array, "B"],
    indices: Int[Array, "B"],
    divergence: str = "jeffreys",
    progress: Callable[[int], None] | None = None,
    steps_per_call: int = 8,
) -> Samples:
    """Draws one sample per row, spread over all local devices.

    Args:
      model: the generator.
      sketch_tokens: class token (K + label) and sketch ids of each sample.
      settings: one setting for all, or a leading axis of B where samples differ.
      num_steps: decoding steps, ≥ 1.
      seed: with the index, all that a sample's randomness depends on; one for all, or each's own.
      indices: the samples' numbers.
      divergence: one of `structure.DIVERGENCES`.
      progress: called with the number of steps done, first with 0, before anything is compiled.
      steps_per_call: steps between two calls of `progress`.

    Raises:
      InputError: a setting out of its range, no steps, more layer weights than layers.
    """
    check_divergence(divergence)
    layers, weights = model.config.transformer.num_layers, np.shape(settings.layer_weights)[-1]
    if weights > layers:
        raise InputError(f"{weights} layer weights: the model has {layers} layers")
    if num_steps < 1:
        raise InputError(f"num_steps is {num_steps}: expected 1 or more")
    if progress is not None:
        progress(0)
    batch = len(sketch_tokens)
    keys = jax.vmap(sample_key)(jnp.broadcast_to(jnp.uint32(seed), batch), indices)
    inputs = spread_over_devices((sketch_tokens, _per_sample(settings, batch), keys))
    transformer, params = model.transformer, model.transformer_params
    guide, state = _start(transformer, params, _paper_ids(model), *inputs)
    for first in range(0, num_steps, steps_per_call):
        last = min(first + steps_per_call, num_steps)
        state = _advance(
            transformer, params, guide, state, first, last, num_steps, divergence=divergence
        )
        jax.block_until_ready(state)
        if progress is not None:
            progress(last)
    distances = _distance(transformer, params, guide, state.sampled, divergence=divergence)
    return Samples(state.sampled[:batch, 1:], jnp.mean(distances[:batch, 1:], axis=1))


def _paper_ids(model: Model) -> Int[Array, "N"]:
    """The ids of blank paper."""
    side = model.config.tokenizer.image_size
    return model.encode(jnp.ones((1, side, side, 3)))[0]


def _per_sample(settings: StructureSettings, batch: int) -> TracedSettings:
    """Gives every setting a leading axis of samples."""

    def spread(name: str, value: Float[Array, "..."]) -> Float[Array, "B *_"]:
        own_axes = 1 if name == "layer_weights" else 0
        return value if value.ndim > own_axes else jnp.broadcast_to(value, (batch, *value.shape))

    return TracedSettings(*map(spread, TracedSettings._fields, traced(settings)))


@functools.partial(jax.jit, static_argnums=0)
def _start(transformer, params, paper_ids, sketch_tokens, settings, keys):
    each = functools.partial(start, transformer, params)
    return jax.vmap(each, in_axes=(0, None, 0, 0))(sketch_tokens, paper_ids, settings, keys)


@functools.partial(jax.jit, static_argnums=0, static_argnames="divergence", donate_argnums=3)
def _advance(transformer, params, guide, state, first_step, last_step, num_steps, *, divergence):
    each = functools.partial(advance, transformer, params, divergence=divergence)
    return jax.vmap(each, in_axes=(0, 0, None, None, None))(
        guide, state, first_step, last_step, num_steps
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames="divergence")
def _distance(transformer, params, guide, tokens, *, divergence):
    each = functools.partial(distance, transformer, params, divergence=divergence)
    return jax.vmap(each)(guide, tokens)
