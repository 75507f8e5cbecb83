"""Batches of samples: the decode loop vmapped, spread over devices; MaskGIT's sampler."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from maskgit_jax import schedules
from maskgit_jax.decoding import MASK_ID, DecodeState, Predict, Remask, decode, sample_key
from maskgit_jax.devices import copy_to_devices, spread_over_devices
from maskgit_jax.errors import InputError
from maskgit_jax.maskgit import maskgit_predict, maskgit_remask
from maskgit_jax.model import Model
from maskgit_jax.transformer import Transformer


@runtime_checkable
class Method(Protocol):
    """Makes one sample's `predict` and `remask`, inside the compiled loop.

    Hashable, for what it is compiled for: a module's function, or a frozen dataclass whose fields
    are the choices that are no arrays.
    """

    def __call__(
        self,
        transformer: Transformer,
        params: Any,
        shared: Any,
        inputs: Any,
        num_steps: Int[Array, ""],
    ) -> tuple[Predict, Remask]:
        """`shared` is the same for all samples, `inputs` is the sample's own."""


def decode_batch(
    model: Model,
    method: Method,
    shared: Any,
    inputs: Any,
    state: DecodeState,
    *,
    num_steps: int,
    first_step: int = 0,
    progress: Callable[[int], None] | None = None,
    steps_per_call: int = 8,
) -> DecodeState:
    """Runs the steps first_step .. num_steps - 1 for a batch of samples.

    Args:
      model: the generator.
      method: what is run.
      shared: arrays that all samples share.
      inputs: the samples' own arrays along a leading axis, spread over devices.
      state: the samples, likewise; its memory is used for the result.
      num_steps: T.
      first_step: the first to be run.
      progress: called with the number of the next step each time some are done.
      steps_per_call: steps between two calls of `progress`; without one, all are run at once.
    """
    params, shared = model.params_on_devices, copy_to_devices(shared)
    stride = num_steps if progress is None else steps_per_call
    for first in range(first_step, num_steps, stride):
        last = min(first + stride, num_steps)
        state = _advance(
            method, model.transformer, params, shared, inputs, state, first, last, num_steps
        )
        if progress is not None:
            jax.block_until_ready(state)
            progress(last)
    return state


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=5)
def _advance(method, transformer, params, shared, inputs, state, first_step, last_step, num_steps):
    def one(inputs, state):
        predict, remask = method(transformer, params, shared, inputs, num_steps)
        return decode(predict, remask, state, first_step, last_step)

    return jax.vmap(one)(inputs, state)


def sample_keys(seed: int | UInt32[Array, "B"], indices: Int[Array, "B"]) -> Key[Array, "B"]:
    """The samples' keys; one seed for all, or each's own."""
    return jax.vmap(sample_key)(jnp.broadcast_to(jnp.uint32(seed), len(indices)), indices)


class MaskGitInputs(NamedTuple):
    """A sample's own arrays.

    Attributes:
      num_hidden: number of ids hidden at the very start.
      temperature: of the choice which ids to keep.
    """

    num_hidden: Int[Array, "*b"]
    temperature: Float[Array, "*b"]


@dataclasses.dataclass(frozen=True)
class MaskGit:
    """MaskGIT's method (section 3.2).

    Attributes:
      schedule: one of `schedules.SCHEDULE_NAMES`.
    """

    schedule: str = "cosine"

    def __call__(self, transformer, params, shared, inputs: MaskGitInputs, num_steps):
        """See `Method`."""
        remask = maskgit_remask(
            inputs.num_hidden,
            num_steps=num_steps,
            temperature=inputs.temperature,
            schedule=self.schedule,
        )
        return maskgit_predict(transformer, params), remask


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
    inputs = MaskGitInputs(
        num_hidden=jnp.sum(tokens == MASK_ID, axis=1),
        temperature=jnp.full(batch, temperature, jnp.float32),
    )
    # Copies: the loop takes the state's memory.
    state = DecodeState(jnp.array(tokens), jnp.array(tokens), sample_keys(seed, indices))
    inputs, state = spread_over_devices((inputs, state))
    state = decode_batch(
        model, MaskGit(schedule), (), inputs, state, num_steps=num_steps, first_step=first_step
    )
    return state.sampled[:batch, 1:]
