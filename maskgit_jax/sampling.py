"""Batches of samples: the decode loop vmapped, spread over devices; MaskGIT's sampler."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from maskgit_jax import decoding, schedules
from maskgit_jax.errors import InputError
from maskgit_jax.model import Model


def spread_over_devices(tree: Any) -> Any:
    """Places arrays with a leading axis of samples so that every local device has its share.

    The last row is repeated until the devices have equal numbers of rows; callers drop the rest
    of the result.
    """
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(devices, ("samples",))
    sharding = NamedSharding(mesh, PartitionSpec("samples"))

    def place(x: Array) -> Array:
        missing = -len(x) % len(devices)
        x = jnp.concatenate([x, *[x[-1:]] * missing]) if missing else x
        return jax.device_put(x, sharding)

    return jax.tree.map(place, tree)


def sample(
    model: Model,
    tokens: Int[Array, "B S"],
    *,
    num_steps: int,
    seed: int,
    indices: Int[Array, "B"],
    first_step: int = 0,
    temperature: Float[Array, ""] | float = 4.5,
    schedule: str = "cosine",
) -> Int[Array, "B N"]:
    """MaskGIT sampling (section 3.2): fills what is hidden, one sample per row.

    Args:
      model: the generator.
      tokens: class token (K + label) and image ids; -1 where an id is to be made. All hidden:
        class-conditional synthesis; some given: editing, inpainting, outpainting.
      num_steps: T; the paper's 8 for 256 px, 12 for 512 px.
      seed: with the index, all that a sample's randomness depends on.
      indices: the samples' numbers.
      first_step: where in the schedule to start, 0 .. T - 1; above 0 when ids are given.
      temperature: of the choice which ids to keep.
      schedule: one of `schedules.SCHEDULE_NAMES`.

    Raises:
      InputError: unknown schedule, or no step to run.
    """
    schedules.check_schedule(schedule)
    if not 0 <= first_step < num_steps:
        raise InputError(f"first_step is {first_step} of {num_steps}: expected 0 to num_steps - 1")
    batch = len(tokens)
    keys = jax.vmap(functools.partial(decoding.sample_key, seed))(indices)
    tokens, keys = spread_over_devices((tokens, keys))
    ids = _sample(
        model.transformer,
        model.transformer_params,
        tokens,
        keys,
        first_step,
        num_steps,
        temperature,
        schedule=schedule,
    )
    return ids[:batch, 1:]


@functools.partial(jax.jit, static_argnums=0, static_argnames="schedule")
def _sample(transformer, params, tokens, keys, first_step, num_steps, temperature, *, schedule):
    predict = decoding.maskgit_predict(transformer, params)

    def one(tokens, key):
        remask = decoding.maskgit_remask(
            jnp.sum(tokens == decoding.MASK_ID),
            num_steps=num_steps,
            temperature=temperature,
            schedule=schedule,
        )
        state = decoding.DecodeState(tokens, tokens, key)
        return decoding.decode(predict, remask, state, first_step, num_steps).sampled

    return jax.vmap(one)(tokens, keys)
