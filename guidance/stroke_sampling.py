"""What `stroke` and `evaluate_strokes` share: strokes decoded, energies read.

No flags are defined here.
"""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from guidance import stroke_methods
from maskgit_jax.editing.inpaint import EditSettings
from maskgit_jax.errors import InputError
from maskgit_jax.model import Model, with_class_token
from maskgit_jax.sampling.loop import MASK_ID

CONFIDENT = ("identity", "code_distance", "learned", "tilt")
"""The methods that a confidence changes."""

Squares = UInt8[np.ndarray, "b S S 3"]


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
    hidden: Bool[np.ndarray, "b N"],
    labels: Int[np.ndarray, "b"],
    settings: EditSettings,
    *,
    method: str,
    confidence: float,
    energy: Float[np.ndarray, "_ _"] | None,
    seed: int,
    indices: Int[np.ndarray, "b"],
) -> StrokeSamples:
    """The pictures with their hidden ids made anew, led by the painted ones.

    See `stroke_methods.sample`; the schedule starts where that of plain edits does.
    """
    guide_ids = model.ids_of(painted)
    tokens = jnp.asarray(np.where(hidden, MASK_ID, model.ids_of(squares)))
    ids = stroke_methods.sample(
        model,
        with_class_token(model.config, jnp.asarray(labels), tokens),
        jnp.asarray(guide_ids),
        method=method,
        confidence=confidence,
        energy=energy,
        num_steps=settings.num_steps,
        first_step=settings.num_steps // 6,
        temperature=settings.temperature,
        token_temperature=settings.token_temperature,
        seed=seed,
        indices=jnp.asarray(indices),
    )
    ids = np.asarray(ids)
    return StrokeSamples(model.images_of(ids), ids, guide_ids)


def read_energy(path: str | Path, codebook_size: int) -> Float32[np.ndarray, "K K"]:
    """A learned energy, as `tune_energy` writes it.

    Raises:
      InputError: no such file, or no energy of a codebook of this size.
    """
    try:
        energy = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "no array"
        raise InputError(
            f"cannot read {str(path)!r} ({reason}); expected the energy.npy that "
            "experiments.tune_energy writes"
        ) from None
    shape = getattr(energy, "shape", None)
    if shape != (codebook_size, codebook_size) or energy.dtype.kind != "f":
        found = "an archive" if shape is None else f"{energy.dtype} {list(shape)}"
        raise InputError(
            f"{str(path)!r} holds {found}; expected floats [{codebook_size}, {codebook_size}]: "
            "learn an energy for this model"
        )
    return energy.astype(np.float32)
