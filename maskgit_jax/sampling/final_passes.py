"""Final passes: a finished sample's ids are masked at random and drawn again, cooler.

Ids that were drawn in one step, each without a look at the others, may disagree: one object has two
colours. A pass masks a random half of them and draws it from what it sees of the other half, at a
temperature below 1. Cool draws *while* a sample is filled would make objects small instead.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskgit_jax.knobs import knob
from maskgit_jax.sampling.loop import Predict, Remask, mask_lowest

_NOISE = 3  # folded into the key of a step; 0 to 2 are others'


def final_passes_knob() -> Any:
    """The field `final_passes` of a method's settings."""
    return knob(0, "The last steps, each of which draws half of the ids again.", low=0, high=10**6)


def final_temperature_knob() -> Any:
    """The field `final_temperature` of a method's settings."""
    return knob(0.6, "Token temperature of those, times the others'.", low=1e-6, high=100.0)


def filling_steps(
    num_steps: Int[Array, ""] | int, final_passes: Float[Array, ""] | Int[Array, ""] | int
) -> Int[Array, ""]:
    """The steps in which a sample is filled, one at least."""
    return jnp.maximum(num_steps - jnp.asarray(final_passes).astype(jnp.int32), 1)


def with_final_passes(
    predict: Predict,
    remask: Remask,
    region: Bool[Array, "S"],
    *,
    filling: Int[Array, ""],
    num_steps: Int[Array, ""] | int,
    temperature: Float[Array, ""] | float,
) -> tuple[Predict, Remask]:
    """Rules whose steps after those of `filling` are final passes.

    Args:
      predict: logits of any step.
      remask: of the steps in which a sample is filled; afterwards it is asked, as in the last of
        them, for its memory alone.
      region: the ids of which a random half is masked.
      filling: `filling_steps`; where all steps are such, nothing changes.
      num_steps: T.
      temperature: of the logits in the final passes.
    """

    def predict_cooler(ids, step):
        return predict(ids, step) / jnp.where(step >= filling, temperature, 1.0)

    def remask_half(step, ids, sampled, logits, key, *memory):
        last = jnp.minimum(step, filling - 1)
        mask, next_key, *memory = remask(last, ids, sampled, logits, key, *memory)
        noise = jax.random.fold_in(key, _NOISE)
        half = mask_lowest(jnp.where(region, 0.0, jnp.inf), jnp.sum(region) // 2, noise)
        is_filled = (step >= filling - 1) & (filling < num_steps)
        return jnp.where(is_filled, half, mask), next_key, *memory

    return predict_cooler, remask_half
