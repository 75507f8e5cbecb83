"""The decode loop, for one sample.

A method is a pair of small functions: `predict` gives logits for the ids that are shown, and
`remask` says which positions are hidden next. The loop knows nothing else, and its callers
`vmap` it over samples.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from maskgit_jax.transformer import MASK_ID

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
