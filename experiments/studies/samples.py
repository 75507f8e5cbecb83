"""Pictures for `evaluate`: guided and unguided samples in batches, and structure distances."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from experiments.app.batches import in_batches, make_batches
from experiments.app.guidance_flags import GuidanceFlags
from guidance import masksketch
from guidance.structure import Target, structure_distance
from maskgit_jax.images import to_float, to_uint8
from maskgit_jax.model import Model, with_class_token
from maskgit_jax.networks.stacked import attention_inputs
from maskgit_jax.sampling import batched
from maskgit_jax.sampling.loop import MASK_ID
from maskgit_jax.sampling.maskgit import MaskGit


class Pictures(NamedTuple):
    """What is measured: pictures and, where they came from ids, those."""

    images: UInt8[np.ndarray, "n H W 3"]
    ids: Int[np.ndarray, "n N"] | None = None


def sample_unguided(
    model: Model, labels: Int[np.ndarray, "n"], *, num_steps: int, seed: int
) -> Pictures:
    """MaskGIT samples of classes, by the model's presets."""
    preset = model.config.presets["maskgit"]
    hidden = np.full((len(labels), model.config.transformer.sequence_length - 1), MASK_ID, np.int32)
    with tqdm(total=len(labels), desc="unguided", unit="sample") as bar:

        def draw(tokens, indices):
            ids = batched.sample(
                model,
                jnp.asarray(tokens),
                num_steps=num_steps,
                seed=seed,
                indices=jnp.asarray(indices),
                sampler=MaskGit(preset["temperature"], preset["schedule"]),
                token_temperature=preset["token_temperature"],
            )
            jax.block_until_ready(ids)
            bar.update(min(len(tokens), bar.total - bar.n))
            return ids

        rows = _tokens(model, labels, hidden), np.arange(len(labels))
        ids = in_batches(draw, *rows, size=flags.FLAGS.batch_size)
    return decode(model, ids)


def sample_guided(
    model: Model,
    labels: Int[np.ndarray, "n"],
    drawing_ids: Int[np.ndarray, "n N"],
    guided_flags: GuidanceFlags,
    *,
    lambda_s: float,
) -> Pictures:
    """Samples of classes, led by drawings."""
    tokens = _tokens(model, labels, drawing_ids)
    num_steps = guided_flags.num_steps
    num_batches = len(make_batches(len(tokens), flags.FLAGS.batch_size))
    name = f"lambda_s = {lambda_s:g}"
    with tqdm(total=num_batches * num_steps, desc=name, unit="step") as bar:

        def draw(tokens, indices):
            first = bar.n
            samples = masksketch.sample(
                model,
                jnp.asarray(tokens),
                dataclasses.replace(guided_flags.settings, lambda_s=lambda_s),
                num_steps=num_steps,
                seed=guided_flags.record["seed"],
                indices=jnp.asarray(indices),
                **guided_flags.choices._asdict(),
                progress=lambda done: bar.update(first + done - bar.n),
            )
            return samples.ids

        ids = in_batches(draw, tokens, np.arange(len(tokens)), size=flags.FLAGS.batch_size)
    return decode(model, ids)


def encode(model: Model, images: UInt8[np.ndarray, "n H W 3"]) -> Int[np.ndarray, "n N"]:
    """Ids of pictures."""

    def ids(images):
        return model.encode(jnp.asarray(to_float(images)))

    return in_batches(ids, images, size=flags.FLAGS.batch_size)


def decode(model: Model, ids: Int[np.ndarray, "n N"]) -> Pictures:
    """The pictures of ids, as they would be saved."""

    def images(ids):
        return to_uint8(np.asarray(model.decode(jnp.asarray(ids))))

    return Pictures(in_batches(images, ids, size=flags.FLAGS.batch_size), ids)


def structure_distances(
    model: Model,
    guided_flags: GuidanceFlags,
    labels: Int[np.ndarray, "n"],
    drawing_ids: Int[np.ndarray, "n N"],
    ids: Int[np.ndarray, "n N"],
) -> Float[np.ndarray, "n"]:
    """Each sample's distance to a drawing, both of its class, as `masksketch.sample` reports it."""
    distance = functools.partial(
        _structure_distance,
        model.transformer,
        model.transformer_params,
        guided_flags.settings.layer_weights,
        guided_flags.choices.divergence,
    )
    rows = (_tokens(model, labels, each) for each in (drawing_ids, ids))
    return in_batches(distance, *rows, size=flags.FLAGS.batch_size)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _structure_distance(
    transformer, params, layer_weights, divergence, drawing_tokens, tokens
) -> Float[jax.Array, "b"]:
    def one(drawing_tokens, tokens):
        sketch = attention_inputs(transformer, params, drawing_tokens, len(layer_weights))
        target = Target(sketch, layer_weights)
        used = layer_weights > 0
        distance = structure_distance(transformer, params, tokens, target, used, divergence)
        return jnp.mean(distance[1:])

    return jax.vmap(one)(drawing_tokens, tokens)


def _tokens(
    model: Model, labels: Int[np.ndarray, "n"], ids: Int[np.ndarray, "n N"]
) -> Int[np.ndarray, "n S"]:
    """Ids behind their class tokens."""
    return np.asarray(with_class_token(model.config, jnp.asarray(labels), jnp.asarray(ids)))
