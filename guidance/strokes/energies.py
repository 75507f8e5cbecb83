"""Methods that change the logits by how well a code agrees with the stroke's: an energy.

Self-guidance has no usable confidence. It multiplies logits by weights around 1: a logit below 0
becomes less likely by what should favour it, and logits that mean the same, shifted by a number,
come out different. The published loop besides keeps the confidence as an integer: all below 1 is 0.
`Tilt` is the way that has one.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from guidance.strokes.base import Energy, StrokeMethod, has_guide
from maskgit_jax import files
from maskgit_jax.errors import InputError
from maskgit_jax.networks.stacked import code_logits

_LEAST_INVERSE_TEMPERATURE, _MOST_INVERSE_TEMPERATURE = 1e-6, 100.0
_HALVINGS = 16
_HEADER = 10_000
_LEAST_TILT, _MOST_TILT = -8.0, 12.0  # logarithms, in units of 1 / mean energy


def identity_energy(codebook: Float[Array, "K d"]) -> Energy:
    """1 for the guide's own code, 0 for every other."""
    return jnp.eye(len(codebook))


def code_distance_energy(codebook: Float[Array, "K d"]) -> Energy:
    """Minus the mean squared difference of two codes."""
    squares = jnp.sum(codebook**2, axis=1)
    # "highest": the guide's own code must come out nearest, on every device.
    products = jnp.matmul(codebook, codebook.T, precision="highest")
    distances = squares[:, None] - 2 * products + squares
    distances = jnp.maximum(distances, 0) * (1 - jnp.eye(len(codebook)))
    return -distances / codebook.shape[1]


def check_energy(energy: Float[Array | np.ndarray, "_ _"], codebook_size: int) -> None:
    """Raises InputError where an energy is not finite or not of the codebook's size."""
    if energy.shape != (codebook_size, codebook_size):
        rows, columns = energy.shape
        raise InputError(
            f"the energy is {rows}x{columns}: the model has {codebook_size} codes, expected "
            f"{codebook_size}x{codebook_size}"
        )
    if not np.all(np.isfinite(energy)):
        raise InputError("the energy is not finite everywhere: it was not learned")


def read_energy(path: str | Path, codebook_size: int) -> Float32[np.ndarray, "K K"]:
    """A learned energy, as `tune_energy` writes it.

    Raises:
      InputError: no such file, or no energy of a codebook of this size.
    """
    data = files.read_file(path, most=8 * codebook_size**2 + _HEADER)
    try:
        energy = np.load(io.BytesIO(data), allow_pickle=False)
    # A header may claim terabytes.
    except (OSError, ValueError, EOFError, MemoryError):
        raise InputError(
            f"{path} holds no array; expected the energy.npy that experiments.tune_energy writes"
        ) from None
    shape = getattr(energy, "shape", None)
    if shape != (codebook_size, codebook_size) or energy.dtype.kind != "f":
        found = "an archive" if shape is None else f"{energy.dtype} {list(shape)}"
        raise InputError(
            f"{str(path)!r} holds {found}; expected floats [{codebook_size}, {codebook_size}]: "
            "learn an energy for this model"
        )
    files.check_checksum(Path(path), hashlib.sha256(data).hexdigest())
    return energy.astype(np.float32)


def reweighting(
    energies: Float[Array, "*b K"], confidence: Float[Array, ""] | float
) -> Float[Array, "*b K"]:
    """Self-guidance's factors on the logits: softmax(κ·energies), scaled to mean 1 over codes.

    The inverse temperature κ goes from 1e-6 to 100 in even ratios as `confidence` goes from 0 to 1.
    """
    least, most = np.log(_LEAST_INVERSE_TEMPERATURE), np.log(_MOST_INVERSE_TEMPERATURE)
    weights = jax.nn.softmax(jnp.exp(least + confidence * (most - least)) * energies)
    return weights / jnp.mean(weights, axis=-1, keepdims=True)


def tilt(
    logits: Float[Array, "*b K"],
    energies: Float[Array, "*b K"],
    confidence: Float[Array, ""] | float,
) -> Float[Array, "*b K"]:
    """Logits of the distribution nearest to the model's that agrees with the stroke so far.

    p(k) ∝ p_model(k)·exp(β·energy_k) is of all distributions with its mean energy the nearest in
    Kullback-Leibler divergence to the model's (exponential tilting: Csiszár, 1975). β is found such
    that the mean energy is (1 - confidence) times the model's: at 0.3 the expected code distance to
    the stroke is 0.7 of what it is without guidance, whatever the model, the code and the step.

    Args:
      logits: the model's.
      energies: of each code: 0 the best, others below.
      confidence: in [0, 1]. 0 gives the logits back, 1 leaves the codes of energy 0 alone.
    """
    target = (1 - confidence) * jnp.sum(jax.nn.softmax(logits) * energies, axis=-1, keepdims=True)
    unit = -1 / jnp.mean(energies, axis=-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        tilted = jax.nn.softmax(logits + unit * jnp.exp(middle) * energies)
        short = jnp.sum(tilted * energies, axis=-1, keepdims=True) < target
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    bounds = jnp.full(target.shape, _LEAST_TILT), jnp.full(target.shape, _MOST_TILT)
    _, found = jax.lax.fori_loop(0, _HALVINGS, halve, bounds)
    tilted = logits + jnp.where(confidence > 0, unit * jnp.exp(found), 0) * energies
    return jnp.where(confidence < 1, tilted, jnp.where(energies < 0, -jnp.inf, logits))


@dataclasses.dataclass(frozen=True)
class _ByEnergy(StrokeMethod):
    """Predicts logits that an energy has changed.

    Attributes:
      of_codebook: makes the energy; None where it is learned.
    """

    of_codebook: Callable[[Float[Array, "K d"]], Energy] | None = code_distance_energy

    has_confidence: ClassVar[bool] = True

    def energy(self, codebook, learned):
        """See `StrokeMethod`."""
        super().energy(codebook, learned)
        if learned is None:
            return self.of_codebook(codebook)
        check_energy(learned, len(codebook))
        return jnp.asarray(learned, jnp.float32)

    def predict(self, transformer, params, energy, inputs):
        """See `StrokeMethod`."""

        def predict(ids, step):
            logits = code_logits(transformer, params, ids)
            changed = self.change(logits, energy[inputs.guide_ids], inputs.confidence)
            return jnp.where(has_guide(ids, inputs.guide_ids)[:, None], changed, logits)

        return predict


@dataclasses.dataclass(frozen=True)
class SelfGuidance(_ByEnergy):
    """Self-guidance: logits times weights."""

    def change(self, logits, energies, confidence):
        """The logits with the stroke's say."""
        return logits * reweighting(energies, confidence)


@dataclasses.dataclass(frozen=True)
class LearnedGuidance(SelfGuidance):
    """Self-guidance by an energy that `experiments.tune_energy` has learned."""

    of_codebook: None = None

    is_learned: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Tilt(_ByEnergy):
    """Exponential tilting, see `tilt`."""

    def change(self, logits, energies, confidence):
        """The logits with the stroke's say."""
        return tilt(logits, energies, confidence)
