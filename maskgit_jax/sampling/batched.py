"""Batches of samples: the decode loop vmapped, spread over devices."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from maskgit_jax.devices import copy_to_devices, spread_over_devices
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knobs_of
from maskgit_jax.model import Model
from maskgit_jax.networks.transformer import Transformer
from maskgit_jax.sampling.loop import (
    MASK_ID,
    DecodeState,
    Draw,
    LoopSettings,
    Predict,
    RandomKey,
    Remask,
    decode,
    sample_key,
    tempered,
)
from maskgit_jax.sampling.maskgit import MaskGit, maskgit_predict


@runtime_checkable
class Method(Protocol):
    """Makes one sample's rules inside the compiled loop: `predict`, `remask` and maybe `draw`.

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
    ) -> tuple[Predict, Remask] | tuple[Predict, Remask, Draw]:
        """`shared` is the same for all samples, `inputs` is the sample's own."""


def stream(
    model: Model,
    method: Method,
    shared: Any,
    inputs: Any,
    state: DecodeState,
    *,
    num_steps: int,
    first_step: int = 0,
    last_step: int | None = None,
    every: int = 1,
) -> Iterator[tuple[int, DecodeState]]:
    """Runs the steps first_step .. last_step - 1 for a batch of samples, and shows them on the way.

    Args:
      model: the generator.
      method: what is run.
      shared: arrays that all samples share.
      inputs: the samples' own arrays along a leading axis, spread over devices.
      state: the samples, likewise.
      num_steps: T.
      first_step: the first to be run.
      last_step: where to stop; T when None.
      every: steps between two states that are shown.

    Yields:
      The number of the next step, and the state before it. Each state's device buffers, the first
      one's too, are donated to the next call: copy what is to be kept.
    """
    params, shared = model.params_on_devices, copy_to_devices(shared)
    end = num_steps if last_step is None else last_step
    for first in range(first_step, end, every):
        last = min(first + every, end)
        state = _advance(
            method, model.transformer, params, shared, inputs, state, first, last, num_steps
        )
        yield last, state


def decode_batch(
    model: Model,
    method: Method,
    shared: Any,
    inputs: Any,
    state: DecodeState,
    *,
    num_steps: int,
    progress: Callable[[int], None] | None = None,
    steps_per_call: int = 8,
    **bounds: Any,
) -> DecodeState:
    """The last state of `stream`.

    Args:
      model: as there, and so are the others.
      method: likewise.
      shared: likewise.
      inputs: likewise.
      state: likewise.
      num_steps: likewise.
      progress: called with the number of the next step each time some are done.
      steps_per_call: steps between two calls of `progress`; without one, all are run at once.
      bounds: `first_step` and `last_step`.
    """
    every = num_steps if progress is None else steps_per_call
    steps = stream(model, method, shared, inputs, state, num_steps=num_steps, every=every, **bounds)
    for step, state in steps:
        if progress is not None:
            jax.block_until_ready(state)
            progress(step)
    return state


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=5)
def _advance(method, transformer, params, shared, inputs, state, first_step, last_step, num_steps):
    def one(inputs, state):
        predict, remask, *draw = method(transformer, params, shared, inputs, num_steps)
        return decode(predict, remask, state, first_step, last_step, *draw)

    return jax.vmap(one)(inputs, state)


def sample_keys(
    seed: int | UInt32[Array, "B"], indices: Int[Array | np.ndarray, "B"]
) -> Key[Array, "B"]:
    """The samples' keys; one seed for all, or each's own."""
    return jax.vmap(sample_key)(jnp.broadcast_to(jnp.uint32(seed), len(indices)), indices)


@runtime_checkable
class Sampler(Protocol):
    """How masked ids are filled, whoever gives the logits: `MaskGit`, `Halton`, `ReMdm`.

    A frozen dataclass that is a pytree: its numbers are traced, its names compiled for.
    """

    def memory(self, tokens: Int[Array, "B S"]) -> tuple[Any, ...]:
        """What `remask` remembers at the start, along a leading axis of samples."""

    def __call__(
        self,
        predict: Predict,
        to_fill: Bool[Array, "S"],
        key: RandomKey,
        num_steps: Int[Array, ""] | int,
    ) -> tuple[Predict, Remask]:
        """One sample's functions, inside the compiled loop.

        Args:
          predict: the logits that it starts from.
          to_fill: the ids masked at the very start.
          key: for choices that hold in all steps, folded in; the loop itself goes on from it.
          num_steps: T.
        """


class SampleInputs(NamedTuple):
    """A sample's own arrays; see `Sampler` and `sample`."""

    to_fill: Bool[Array, "*b S"]
    key: RandomKey | Key[Array, "B"]
    token_temperature: Float[Array, "*b"]
    guide: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class _Sampling:
    """The `Method` of any `Sampler`, which is what is shared."""

    predict: Callable[..., Predict]

    def __call__(self, transformer, params, sampler: Sampler, inputs: SampleInputs, num_steps):
        predict = self.predict(transformer, params, *inputs.guide)
        predict = tempered(predict, inputs.token_temperature)
        return sampler(predict, inputs.to_fill, inputs.key, num_steps)


def sample(
    model: Model,
    tokens: Int[Array, "B S"],
    *,
    num_steps: int,
    seed: int,
    indices: Int[Array | np.ndarray, "B"],
    first_step: int = 0,
    sampler: Sampler = MaskGit(),  # noqa: B008 (frozen)
    token_temperature: Float[Array, "B"] | float = 1.0,
    predict: Callable[..., Predict] = maskgit_predict,
    guide: tuple[Any, ...] = (),
    progress: Callable[[int], None] | None = None,
) -> Int[Array, "B N"]:
    """Fills what is masked, one sample per row.

    Args:
      model: the generator.
      tokens: class token (K + label) and image ids; -1 where an id is to be sampled. All masked:
        class-conditional synthesis; some given: editing, inpainting, outpainting.
      num_steps: T; MaskGIT's paper has 8 for 256 px, 12 for 512 px.
      seed: with the index, all that a sample's randomness depends on.
      indices: the samples' numbers.
      first_step: where in the schedule to start, 0 .. T - 1; above 0 when ids are given.
      sampler: how they are filled.
      token_temperature: τ of `loop.tempered`, one for all or each sample's own.
      predict: a module's function that makes one sample's `Predict` of the transformer, its
        weights and the sample's row of each array in `guide`.
      guide: arrays with a leading axis of samples.
      progress: as for `decode_batch`.

    Raises:
      InputError: no step to run, or a token temperature out of its range.
    """
    knobs_of(LoopSettings)["token_temperature"].check("token_temperature", token_temperature)
    if not 0 <= first_step < num_steps:
        raise InputError(f"first_step is {first_step} of {num_steps}: expected 0 to num_steps - 1")
    temperatures = jnp.broadcast_to(jnp.float32(token_temperature), len(tokens))
    inputs = SampleInputs(tokens == MASK_ID, sample_keys(seed, indices), temperatures, guide)
    # Copies and keys of its own: the loop takes the state's memory.
    state = DecodeState(
        jnp.array(tokens), jnp.array(tokens), sample_keys(seed, indices), sampler.memory(tokens)
    )
    inputs, state = spread_over_devices((inputs, state))
    state = decode_batch(
        model,
        _Sampling(predict),
        jax.tree.map(jnp.float32, sampler),
        inputs,
        state,
        num_steps=num_steps,
        first_step=first_step,
        progress=progress,
    )
    return state.sampled[: len(tokens), 1:]
