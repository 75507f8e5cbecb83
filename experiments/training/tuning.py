"""What the tuning commands train on: pictures with a stroke on each, as tokens."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8

from experiments.training import datasets, frame, loop
from guidance.strokes.automatic import automatic_stroke
from maskgit_jax.devices import copy_to_devices
from maskgit_jax.editing.masks import latent_mask
from maskgit_jax.errors import InputError
from maskgit_jax.model import Model, with_class_token
from maskgit_jax.sampling.loop import MASK_ID
from maskgit_jax.training import losses

StrokeBatch = tuple[
    UInt8[Array | np.ndarray, "b H W 3"],
    UInt8[Array | np.ndarray, "b H W 3"],
    Bool[Array | np.ndarray, "b N"],
    Int[Array | np.ndarray, "b"],
]
"""Pictures, the same with a stroke on each, the ids that the strokes touch, labels."""


class Strokes:
    """A dataset with strokes in the mean colour of what they cover.

    A counterfactual stroke's colour says nothing about the picture, so it teaches nothing.
    """

    def __init__(self, data: datasets.Dataset, model: Model, seed: int):
        """Strokes of a training step depend on `seed` and the step, the held-out ones on neither.

        Raises:
          InputError: the data's classes are not the model's.
        """
        self._data, self._seed = data, seed
        self._labels = model_labels(data.class_names, model.config.class_names)
        self._latent_size = model.config.tokenizer.latent_size

    def batch(self, step: int) -> StrokeBatch:
        """The batch of a training step."""
        return self._with_strokes(self._data.batch(step), [self._seed, step, 1])

    def held_out(self) -> StrokeBatch:
        """All pictures held out."""
        return self._with_strokes(self._data.held_out(), [datasets.VALIDATION_SEED])

    def _with_strokes(self, batch: datasets.Batch, seed: list[int]) -> StrokeBatch:
        images, labels = batch
        seeds = np.random.default_rng(seed).integers(2**32, size=len(images)).tolist()
        strokes = [
            automatic_stroke(image, "inversion", seed)
            for image, seed in zip(images, seeds, strict=True)
        ]
        painted = np.stack([stroke.painted for stroke in strokes])
        touched = np.stack([latent_mask(stroke.mask, self._latent_size) for stroke in strokes])
        return images, painted, touched, self._labels[labels]


def model_labels(
    data_classes: tuple[str, ...], model_classes: tuple[str, ...]
) -> Int[np.ndarray, "_"]:
    """The model's label for each class of the data: by name, or by order if all names are others.

    Raises:
      InputError: a name is unknown and others are not, or there are not as many classes.
    """
    unknown = [name for name in data_classes if name not in model_classes]
    if not unknown:
        return np.array([model_classes.index(name) for name in data_classes], np.int32)
    if len(unknown) == len(model_classes) == len(data_classes):
        return np.arange(len(data_classes), dtype=np.int32)
    raise InputError(
        f"--data has {len(data_classes)} classes, and the model knows no {unknown[0]!r}: name the "
        f"sub-folders after its classes, or have one for each of its {len(model_classes)}, in order"
    )


def tokenize(model: Model) -> Callable[[StrokeBatch], tuple[Int[Array, "b S"], Int[Array, "b S"]]]:
    """Makes tokens of a batch: the pictures', and the strokes' ids, -1 outside."""
    tokenizer_params = copy_to_devices(model.tokenizer_params)
    model = dataclasses.replace(model, tokenizer_params=tokenizer_params)

    def prepare(batch: StrokeBatch) -> tuple[Int[Array, "b S"], Int[Array, "b S"]]:
        images, painted, touched, labels = batch
        ids, painted_ids = (model.encode(jnp.asarray(x) / 255) for x in (images, painted))
        stroke_ids = jnp.where(touched, painted_ids, MASK_ID)
        stroke_ids = jnp.pad(stroke_ids, ((0, 0), (1, 0)), constant_values=MASK_ID)
        return with_class_token(model.config, jnp.asarray(labels), ids), stroke_ids

    return prepare


def tune(
    flags: frame.TrainingFlags,
    directory: Path,
    loss: losses.LossFn,
    held_out_losses: dict[str, losses.LossFn],
    start: losses.Params,
    strokes: Strokes,
    prepare: Callable[[StrokeBatch], losses.Batch],
    export: Callable[[losses.Params], None],
) -> losses.Params:
    """Tunes weights, and prints what that changed on the held-out pictures; returns their average.

    Each of the `held_out_losses` is validated, its metrics named by its prefix.
    """
    data, held_out = loop.Data(strokes.batch, prepare), strokes.held_out()
    validations = {
        prefix: frame.validation(flags, each, held_out, data)
        for prefix, each in held_out_losses.items()
    }

    def validate(params: losses.Params) -> dict[str, float]:
        return {
            f"{prefix}{name}": value
            for prefix, measure in validations.items()
            for name, value in measure(params).items()
        }

    average = frame.train(
        flags, directory, lambda step: loss, start, data, export=export, validate=validate
    )
    after = validate(average)
    for name, value in validate(start).items():
        print(f"held-out {name}: {value:.4f} before, {after[name]:.4f} after")
    return average
