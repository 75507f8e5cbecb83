"""Inpainting and class-conditional editing: MaskGIT in a picture's masked ids (section 4.3)."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8

from maskgit_jax.model import Model, with_class_token
from maskgit_jax.sampling import batched
from maskgit_jax.sampling.loop import MASK_ID, num_steps_knob, token_temperature_knob
from maskgit_jax.sampling.maskgit import MaskGit, temperature_knob

Squares = UInt8[np.ndarray, "b S S 3"]


@dataclasses.dataclass(frozen=True)
class EditSettings:
    """How masked ids are sampled.

    Attributes:
      num_steps: T.
      temperature: of the confidence ranking.
      token_temperature: τ of `loop.tempered`.
    """

    num_steps: int = num_steps_knob()
    temperature: float = temperature_knob()
    token_temperature: float = token_temperature_knob()


def remake(
    model: Model,
    squares: Squares,
    masked: Bool[np.ndarray, "b N"],
    labels: Int[np.ndarray, "b"],
    settings: EditSettings,
    *,
    seed: int,
    indices: Int[np.ndarray, "b"],
    progress: Callable[[int], None] | None = None,
) -> Squares:
    """The pictures with their masked ids sampled again by MaskGIT (section 4.3).

    The others are the pictures' own: of those, what comes back is the tokenizer's round trip.
    """
    ids = np.where(masked, MASK_ID, model.ids_of(squares))
    made = batched.sample(
        model,
        with_class_token(model.config, jnp.asarray(labels), jnp.asarray(ids)),
        num_steps=settings.num_steps,
        # As published: the third of 12 steps.
        first_step=settings.num_steps // 6,
        sampler=MaskGit(settings.temperature),
        token_temperature=settings.token_temperature,
        seed=seed,
        indices=jnp.asarray(indices),
        progress=progress,
    )
    return model.images_of(made)
