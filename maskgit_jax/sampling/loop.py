"""The decode loop, for one sample.

A method is a pair of small functions, seldom three: `predict` gives logits for the ids that are
shown, `remask` says which positions are masked next, and `draw`, where it is not `draw_each`, draws
the ids. The loop knows nothing else, and its callers `vmap` it over samples.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from maskgit_jax.keys import seed_key
from maskgit_jax.knobs import knob
from maskgit_jax.networks.transformer import MASK_ID

Tokens = Int[Array, "S"]
"""A class token and N image ids; `MASK_ID` where masked."""
Logits = Float[Array, "S K"]
"""Over the image codes alone, at every position; position 0 is ignored."""
RandomKey = Key[Array, ""] | UInt32[Array, "2"]
Step = Int[Array, ""]

Predict = Callable[[Tokens, Step], Logits]
"""`(ids, step) -> logits`."""
Remask = Callable[..., tuple[Any, ...]]
"""`(step, ids, sampled, logits, key, *memory) -> (mask, key, *memory)`, `mask` a Bool[Array, "S"].

The key and the memory returned serve the next step; most methods have no memory.
"""


Draw = Callable[[Tokens, Logits, RandomKey], Tokens]
"""`(ids, logits, key) -> drawn`; what is drawn where an id is unmasked is not used."""


class DecodeState(NamedTuple):
    """State of one sample between steps.

    Attributes:
      ids: what the next step sees.
      sampled: the newest sample, with nothing masked; the result after the last step.
      key: the sample's randomness.
      memory: what else `remask` is given at the next step.
    """

    ids: Tokens
    sampled: Tokens
    key: RandomKey
    memory: tuple[Any, ...] = ()


def draw_each(ids: Tokens, logits: Logits, key: RandomKey) -> Tokens:
    """Draws every id by itself from the model's probabilities; a `Draw`."""
    return jax.random.categorical(key, logits).astype(ids.dtype)


def num_steps_knob(default: int = 8) -> Any:
    """The field `num_steps` of a method's settings."""
    return knob(default, "Steps of parallel decoding.", low=1, high=10**6)


def token_temperature_knob() -> Any:
    """The field `token_temperature` of a method's settings, τ of `tempered`."""
    # Below the least, logits over it could overflow.
    return knob(1.0, "Ids are sampled from softmax(logits / it).", low=1e-6, high=100.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What every method has.

    Attributes:
      num_steps: T.
      token_temperature: τ of `tempered`.
    """

    num_steps: int = num_steps_knob()
    token_temperature: Any = token_temperature_knob()


def tempered(predict: Predict, token_temperature: Float[Array, ""] | float) -> Predict:
    """Logits over a temperature τ: ids are sampled from softmax(logits / τ).

    What a rule computes of the logits, such as the confidence of a sampled id, is of the tempered
    ones too, as in ReMDM's release (arXiv:2503.00307), whose figures for MaskGIT at τ = 0.8 are
    such. Guidance comes before: it is `predict`'s own.
    """
    return lambda ids, step: predict(ids, step) / token_temperature


def decode(
    predict: Predict,
    remask: Remask,
    state: DecodeState,
    first_step: Int[Array, ""] | int,
    last_step: Int[Array, ""] | int,
    draw: Draw = draw_each,
) -> DecodeState:
    """Runs the steps first_step .. last_step - 1 for one sample (MaskGIT, section 3.2).

    The bounds are traced: one compilation serves any number of steps, whole runs or pieces of
    one. Only positions that are masked are sampled; an unmasked id changes only after `remask` has
    masked it.
    """

    def body(step: Step, state: DecodeState) -> DecodeState:
        logits = predict(state.ids, step)
        key, sample_key = jax.random.split(state.key)
        drawn = draw(state.ids, logits, sample_key)
        sampled = jnp.where(state.ids == MASK_ID, drawn, state.ids)
        mask, key, *memory = remask(step, state.ids, sampled, logits, key, *state.memory)
        return DecodeState(jnp.where(mask, MASK_ID, sampled), sampled, key, tuple(memory))

    return jax.lax.fori_loop(first_step, last_step, body, state)


def sample_key(seed: int | UInt32[Array, ""], index: Int[Array, ""] | int) -> Key[Array, ""]:
    """The key of one sample: a function of the seed and the sample's index, nothing else."""
    return jax.random.fold_in(seed_key(seed), index)


def mask_lowest(
    scores: Float[Array, "S"], count: Int[Array, ""], key: RandomKey
) -> Bool[Array, "S"]:
    """Marks the `count` lowest scores; equal scores are taken in random order."""
    return mark_lowest(scores, count, jax.random.uniform(key, scores.shape))


def mark_lowest(
    scores: Float[Array, "S"], count: Int[Array, ""], draws: Float[Array, "S"]
) -> Bool[Array, "S"]:
    """As `mask_lowest`; of equal scores, those with the lowest `draws` come first."""
    # By ranks: where the compiler computes scores twice, a comparison with the score at the border
    # may meet one that is rounded otherwise.
    return jnp.argsort(jnp.lexsort((draws, scores))) < count
