"""MaskSketch inside a part of a picture."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from guidance import masksketch
from guidance.structure import StructureSettings
from maskgit_jax.editing.inpaint import Squares
from maskgit_jax.model import Model, with_class_token


def follow_sketch(
    model: Model,
    squares: Squares,
    sketches: Squares,
    region: Bool[np.ndarray, "b N"],
    labels: Int[np.ndarray, "b"],
    settings: StructureSettings,
    *,
    num_steps: int,
    seed: int,
    indices: Int[np.ndarray, "b"],
    **choices: Any,
) -> tuple[Squares, Float[np.ndarray, "b"]]:
    """The pictures with a region's ids sampled again by MaskSketch, and structure distances.

    What is followed is the picture with the sketch in place of the region. The `choices` are
    others of `masksketch.sample`, such as its divergence.
    """
    ids = np.where(region, model.ids_of(sketches), model.ids_of(squares))
    samples = masksketch.sample(
        model,
        with_class_token(model.config, jnp.asarray(labels), jnp.asarray(ids)),
        settings,
        num_steps=num_steps,
        seed=seed,
        indices=jnp.asarray(indices),
        region=jnp.asarray(region),
        **choices,
    )
    return model.images_of(samples.ids), np.asarray(samples.structure_distance)
