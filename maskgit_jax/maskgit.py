"""MaskGIT's own sampling on the decode loop (arXiv:2202.04200, section 3.2)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskgit_jax import schedules
from maskgit_jax.decoding import MASK_ID, Predict, Remask, hide_lowest
from maskgit_jax.inference import code_logits
from maskgit_jax.transformer import Transformer


def maskgit_predict(transformer: Transformer, params: Any) -> Predict:
    """The transformer alone."""
    return lambda ids, step: code_logits(transformer, params, ids)


def maskgit_remask(
    num_hidden: Int[Array, ""],
    *,
    num_steps: Int[Array, ""] | int,
    temperature: Float[Array, ""] | float = 4.5,
    schedule: str = "cosine",
) -> Remask:
    """Hides the ids that the model is least sure of (MaskGIT, section 3.2, step 4).

    Args:
      num_hidden: number of ids hidden at the very start, N₀; next are hidden γ((t+1)/T)·N₀,
        at least one and fewer than now.
      num_steps: T.
      temperature: of the Gumbel noise on the log-confidence; falls linearly to 0.
      schedule: one of `schedules.SCHEDULE_NAMES`.
    """

    def remask(step, ids, sampled, logits, key):
        ratio = (step + 1.0) / num_steps
        hidden = ids == MASK_ID
        count = jnp.floor(num_hidden * schedules.mask_ratio(schedule, ratio, num_hidden))
        count = jnp.clip(count.astype(jnp.int32), 1, jnp.maximum(jnp.sum(hidden) - 1, 1))
        log_probabilities = jax.nn.log_softmax(logits)
        confidence = jnp.take_along_axis(log_probabilities, sampled[:, None], axis=-1)[:, 0]
        key, choice_key = jax.random.split(key)
        noise = jax.random.gumbel(choice_key, confidence.shape)
        confidence = confidence + temperature * (1 - ratio) * noise
        # Ids that were visible are never hidden again.
        confidence = jnp.where(hidden, confidence, jnp.inf)
        hide = hide_lowest(confidence, count, jax.random.fold_in(choice_key, 1))
        return hide & hidden, key

    return remask
