"""All ways to be led by a stroke, and sampling by any of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from guidance.strokes.base import Iterative, StrokeInputs, StrokeMethod, ZeroShot
from guidance.strokes.context import ContextGuidance
from guidance.strokes.energies import LearnedGuidance, SelfGuidance, Tilt, identity_energy
from maskgit_jax.devices import spread_over_devices
from maskgit_jax.editing.inpaint import EditSettings
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import check, knob
from maskgit_jax.model import Model, with_class_token
from maskgit_jax.sampling.batched import decode_batch, sample_keys
from maskgit_jax.sampling.loop import MASK_ID

METHODS: dict[str, StrokeMethod] = {
    "baseline": StrokeMethod(),
    "context": ContextGuidance(),
    "identity": SelfGuidance(of_codebook=identity_energy),
    "code_distance": SelfGuidance(),
    "learned": LearnedGuidance(),
    "iterative": Iterative(),
    "zero_shot": ZeroShot(),
    "tilt": Tilt(),
}
"""By name; `baseline` masks the region and does not look at the stroke."""

CONFIDENT = tuple(name for name, method in METHODS.items() if method.has_confidence)
"""The methods that a confidence changes."""

Squares = UInt8[np.ndarray, "b S S 3"]


@dataclasses.dataclass(frozen=True)
class StrokeSettings(EditSettings):
    """The knobs of sampling led by a stroke.

    Attributes:
      confidence: how far the stroke is trusted; of the methods `CONFIDENT`.
    """

    confidence: Any = knob(0.7, "How far the stroke is followed.", low=0.0, high=1.0)


def sample(
    model: Model,
    tokens: Int[Array, "B S"],
    guide_ids: Int[Array, "B N"],
    settings: StrokeSettings,
    *,
    method: str,
    seed: int,
    indices: Int[Array | np.ndarray, "B"],
    energy: Float[Array | np.ndarray, "_ _"] | None = None,
    first_step: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Int[Array, "B N"]:
    """Samples the masked ids, led by a stroke; one sample per row, spread over devices.

    Args:
      model: the generator; for "iterative" one that was tuned for it.
      tokens: class token (K + label) and image ids; -1 in the region that is sampled.
      guide_ids: the painted picture's ids; read in the region alone, -1 where it has no stroke.
      settings: the knobs; the confidence may be each sample's own.
      method: one of `METHODS`.
      seed: with the index, all that a sample's randomness depends on.
      indices: the samples' numbers.
      energy: of "learned", and of it alone; see `base.Energy`.
      first_step: where in the schedule to start, 0 .. T - 1.
      progress: called with the number of the next step each time some are done.

    Raises:
      InputError: unknown method, a setting out of its range, no step to run, or an energy that is
        missing, not finite or of another codebook's size.
    """
    check(settings)
    num_steps = settings.num_steps
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    if not 0 <= first_step < num_steps:
        raise InputError(f"first_step is {first_step} of {num_steps}: expected 0 to num_steps - 1")
    rule = METHODS[method]
    shared = rule.energy(model.tokenizer_params["quantizer"]["codebook"], energy)
    batch = len(tokens)
    class_token = jnp.full((batch, 1), MASK_ID, guide_ids.dtype)
    inputs = StrokeInputs(
        guide_ids=jnp.concatenate([class_token, guide_ids], axis=1),
        num_masked=jnp.sum(tokens == MASK_ID, axis=1),
        temperature=jnp.full(batch, settings.temperature, jnp.float32),
        confidence=jnp.broadcast_to(jnp.float32(settings.confidence), batch),
        token_temperature=jnp.full(batch, settings.token_temperature, jnp.float32),
    )
    state = _start(rule, tokens, inputs, first_step, num_steps, sample_keys(seed, indices))
    inputs, state = spread_over_devices((inputs, state))
    state = decode_batch(
        model,
        rule,
        shared,
        inputs,
        state,
        num_steps=num_steps,
        first_step=first_step,
        progress=progress,
    )
    return state.sampled[:batch, 1 : tokens.shape[1]]


@functools.partial(jax.jit, static_argnums=0)
def _start(rule, tokens, inputs, first_step, num_steps, keys):
    def one(tokens, inputs, key):
        return rule.start(tokens, inputs, first_step, num_steps, key)

    return jax.vmap(one)(tokens, inputs, keys)


class StrokeSamples(NamedTuple):
    """What `follow_strokes` gives.

    Attributes:
      images: the pictures at the model's size, unblended.
      ids: their ids.
      guide_ids: the painted pictures' ids.
    """

    images: Squares
    ids: Int[np.ndarray, "b N"]
    guide_ids: Int[np.ndarray, "b N"]


def follow_strokes(
    model: Model,
    squares: Squares,
    painted: Squares,
    masked: Bool[np.ndarray, "b N"],
    labels: Int[np.ndarray, "b"],
    settings: StrokeSettings,
    **options: Any,
) -> StrokeSamples:
    """The pictures with their masked ids sampled, led by the painted ones.

    The schedule starts where that of plain edits does; `options` are others of `sample`.
    """
    guide_ids = model.ids_of(painted)
    tokens = jnp.asarray(np.where(masked, MASK_ID, model.ids_of(squares)))
    ids = sample(
        model,
        with_class_token(model.config, jnp.asarray(labels), tokens),
        jnp.asarray(guide_ids),
        settings,
        first_step=settings.num_steps // 6,
        **options,
    )
    return StrokeSamples(model.images_of(ids), np.asarray(ids), guide_ids)
