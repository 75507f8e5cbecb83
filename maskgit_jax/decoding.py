"""The decode loop, for one sample, and MaskGIT's own sampling on it.

A method is a pair of small functions: `predict` gives logits for the ids that are shown, and
`remask` says which positions are hidden next. The loop knows nothing else, and its callers
`vmap` it over samples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from maskgit_jax import schedules
from maskgit_jax.transformer import Transformer

MASK_ID = -1

Tokens = Int[Array, "S"]
"""A class token and N image ids; `MASK_ID` where hidden."""
Logits = Float[Array, "S K"]
"""Over the image codes alone, at every position; position 0 is ignored."""
RandomKey = Key[Array, ""] | UInt32[Array, "2"]
Step = Int[Array, ""]

Predict = Callable[[Tokens, Step], Logits]
"""`(ids, step) -> logits`."""
Remask = Callable[[Step, Tokens, Tokens, Logits, RandomKey], tuple[Bool[Array, "S"], RandomKey]]
"""`(step, ids, sampled, logits, key) -> (hide, key)`; the key returned serves the next step."""


class DecodeState(NamedTuple):
    """One sample on its way.

    Attributes:
      ids: what the next step is shown.
      sampled: the newest sample, with nothing hidden; the result after the last step.
      key: the sample's randomness.
    """

    ids: Tokens
    sampled: Tokens
    key: RandomKey


def decode(
    predict: Predict,
    remask: Remask,
    state: DecodeState,
    first_step: Int[Array, ""] | int,
    last_step: Int[Array, ""] | int,
) -> DecodeState:
    """Runs the steps first_step .. last_step - 1 for one sample (MaskGIT, section 3.2).

    The bounds are traced: one compilation serves any number of steps, whole runs or pieces of
    one. Only positions that are hidden are sampled; a visible id changes only after `remask` has
    hidden it.
    """

    def body(step: Step, state: DecodeState) -> DecodeState:
        logits = predict(state.ids, step)
        key, sample_key = jax.random.split(state.key)
        drawn = jax.random.categorical(sample_key, logits).astype(state.ids.dtype)
        sampled = jnp.where(state.ids == MASK_ID, drawn, state.ids)
        hide, key = remask(step, state.ids, sampled, logits, key)
        return DecodeState(jnp.where(hide, MASK_ID, sampled), sampled, key)

    return jax.lax.fori_loop(first_step, last_step, body, state)


def sample_key(seed: int | UInt32[Array, ""], index: Int[Array, ""] | int) -> Key[Array, ""]:
    """The key of one sample: a function of the seed and the sample's index, nothing else."""
    return jax.random.fold_in(jax.random.key(seed), index)


def hide_lowest(
    scores: Float[Array, "S"], count: Int[Array, ""], key: RandomKey
) -> Bool[Array, "S"]:
    """Marks the `count` lowest scores; equal scores are taken in random order."""
    order = jnp.lexsort((jax.random.uniform(key, scores.shape), scores))
    ranks = jnp.zeros(scores.shape, jnp.int32).at[order].set(jnp.arange(len(scores)))
    return ranks < count


def code_logits(transformer: Transformer, params, ids: Int[Array, "*b S"]) -> Float[Array, "..."]:
    """The transformer's logits over the image codes."""
    logits = transformer.apply({"params": params}, ids)
    return logits[..., : transformer.config.codebook_size]


def maskgit_predict(transformer: Transformer, params) -> Predict:
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
