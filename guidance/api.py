"""What the package offers in Python: pictures that follow a sketch or a painted stroke.

    import guidance, maskgit_jax

    model = maskgit_jax.load("demo")
    fish = guidance.sketch(model, "fish.png", "fish", num_samples=4, lambda_s=0.8)

Pictures and classes are given as in `maskgit_jax.api`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from guidance import masksketch
from guidance.inpaint import follow_sketch
from guidance.settings import guidance_settings
from guidance.sketches import clean_sketch, read_sketch
from guidance.strokes.methods import StrokeSettings, follow_strokes
from maskgit_jax.api import Picture, Pictures, repeat, sample_rows
from maskgit_jax.editing.canvas import finish, prepare, read_mask, resize
from maskgit_jax.errors import InputError
from maskgit_jax.images import as_image
from maskgit_jax.knobs import resolve
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, with_class_token


def sketch(
    model: Model,
    sketch: Picture,
    label: str | int,
    *,
    image: Picture | None = None,
    mask: Picture | None = None,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    fit: str = "auto",
    invert: str = "auto",
    fast: bool = False,
    **knobs: Any,
) -> Pictures:
    """Samples pictures that follow a sketch (MaskSketch, arXiv:2302.05496).

    Args:
      model: see `maskgit_jax.load`.
      sketch: lines on paper or on transparency; fitted to the model's pictures, or to `image`.
      label: the class to be seen.
      image: a picture in which the sketch is followed inside a mask; with `mask`.
      mask: white or transparent where the picture is sampled again.
      num_samples: how many pictures.
      seed: sample i's randomness is that of `fold_in(key(seed), i)`.
      batch_size: pictures sampled together.
      fit: how it becomes a square, one of `sketches.FITS`; `Notice` tells what "auto" changes.
      invert: whether its tones are inverted, one of `sketches.INVERTS`; likewise.
      fast: as `--sampler=proposals`: few steps, several proposals in each (docs/steps.md).
      knobs: `lambda_s`, `guidance_scale`, `num_steps`, `layers`, …, see
        `settings.guidance_settings`.

    Raises:
      InputError: no picture, an unknown class or setting, or a value that is not allowed.
    """
    settings = guidance_settings(model.config, knobs, fast=fast)
    chosen = find_label(label, model.config.class_names)
    arguments = {"num_steps": settings.num_steps, "seed": seed, **settings.options}
    if (image is None) != (mask is None):
        raise InputError("image and mask go together: give both, or neither")
    if image is None:
        tokens = _sketch_tokens(model, sketch, chosen, fit, invert)

        def sample(rows: Int[np.ndarray, "b"]) -> Any:
            (each,) = repeat(len(rows), tokens)
            found = masksketch.sample(model, each, settings.settings, indices=rows, **arguments)
            return found.ids, found.structure_distance

        ids, distances = sample_rows(sample, num_samples, batch_size, seed)
        images = model.images_of(ids)
    else:
        original = as_image(image)
        region = read_mask(mask, *original.shape[:2])[0]
        picture = prepare(original, region, model.config.tokenizer)
        drawn, _ = clean_sketch(sketch, invert=invert)
        followed = prepare(resize(drawn, *original.shape[:2]), region, model.config.tokenizer)

        def sample(rows: Int[np.ndarray, "b"]) -> Any:
            given = repeat(len(rows), picture.square, followed.square, picture.masked, chosen)
            return follow_sketch(model, *given, settings.settings, indices=rows, **arguments)

        squares, distances = sample_rows(sample, num_samples, batch_size, seed)
        images, ids = np.stack([finish(picture, square) for square in squares]), None
    record = {"label": chosen, "seed": seed, **settings.record}
    return Pictures(images, ids, record, distances)


def stream_sketch(
    model: Model,
    sketch: Picture,
    label: str | int,
    *,
    num_samples: int = 1,
    seed: int = 0,
    fit: str = "auto",
    invert: str = "auto",
    fast: bool = False,
    every: int = 1,
    **knobs: Any,
) -> Iterator[masksketch.Samples]:
    """As `sketch`, in one batch; shows the samples every few steps.

    `model.images_of(samples.ids)` are the pictures so far, the last ones the result.
    """
    settings = guidance_settings(model.config, knobs, fast=fast)
    chosen = find_label(label, model.config.class_names)
    (tokens,) = repeat(num_samples, _sketch_tokens(model, sketch, chosen, fit, invert))
    yield from masksketch.stream(
        model,
        tokens,
        settings.settings,
        num_steps=settings.num_steps,
        seed=seed,
        indices=np.arange(num_samples),
        every=every,
        **settings.options,
    )


def stroke(
    model: Model,
    image: Picture,
    painted: Picture,
    mask: Picture,
    label: str | int,
    *,
    method: str = "tilt",
    energy: Float[np.ndarray, "_ _"] | None = None,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    **knobs: Any,
) -> Pictures:
    """Samples a painted part of a picture so that it is real (MaskGIT-Edit).

    Args:
      model: see `maskgit_jax.load`.
      image: the picture.
      painted: the same, painted over.
      mask: white or transparent where paint is.
      label: the class to be seen.
      method: one of `strokes.methods.METHODS`.
      energy: of the method "learned".
      num_samples: how many pictures.
      seed: sample i's randomness is that of `fold_in(key(seed), i)`.
      batch_size: pictures sampled together.
      knobs: of `StrokeSettings`: `confidence`, `num_steps`, …

    Raises:
      InputError: pictures of unequal size, an unknown class or setting, or a value that is not
        allowed.
    """
    original, stroke = as_image(image), as_image(painted)
    if stroke.shape != original.shape:
        raise InputError(f"the painted picture is {stroke.shape}, the picture {original.shape}")
    settings = StrokeSettings(**resolve(model.config, "stroke", StrokeSettings, given=knobs))
    region = read_mask(mask, *original.shape[:2])[0]
    picture, paint = (prepare(x, region, model.config.tokenizer) for x in (original, stroke))
    chosen = find_label(label, model.config.class_names)

    def sample(rows: Int[np.ndarray, "b"]) -> Any:
        found = follow_strokes(
            model,
            *repeat(len(rows), picture.square, paint.square, picture.masked, chosen),
            settings,
            method=method,
            energy=energy,
            seed=seed,
            indices=rows,
        )
        return found.images, found.ids

    squares, ids = sample_rows(sample, num_samples, batch_size, seed)
    images = np.stack([finish(picture, square) for square in squares])
    record = {"label": chosen, "seed": seed, "method": method, **dataclasses.asdict(settings)}
    return Pictures(images, ids, record)


def _sketch_tokens(
    model: Model, drawn: Picture, label: int, fit: str, invert: str
) -> Int[np.ndarray, "S"]:
    size = model.config.tokenizer.image_size
    square = read_sketch(drawn, size, fit=fit, invert=invert).image
    ids = jnp.asarray(model.ids_of(square[None]))
    return np.asarray(with_class_token(model.config, jnp.array([label]), ids))[0]
