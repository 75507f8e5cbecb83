"""What the package offers in Python: samples of classes, edited and extended pictures.

    import maskgit_jax

    model = maskgit_jax.load("demo")
    houses = maskgit_jax.generate(model, "house", num_samples=4).images

Pictures are given as the names of files, Pillow pictures or arrays (`images.as_image`), classes as
names or numbers. What is not given takes its value from the model's presets.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from maskgit_jax.config import ModelConfig
from maskgit_jax.editing.canvas import finish, prepare, read_mask
from maskgit_jax.editing.inpaint import EditSettings, remake
from maskgit_jax.editing.outpaint import SIDES, Growth, grow
from maskgit_jax.errors import InputError
from maskgit_jax.images import as_image
from maskgit_jax.knobs import SEEDS, Knob, resolve
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, with_class_token
from maskgit_jax.sampling import batched
from maskgit_jax.sampling.loop import MASK_ID, LoopSettings
from maskgit_jax.sampling.samplers import SAMPLERS

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
Labels = str | int | Sequence[str | int]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Samples.

    Attributes:
      images: the pictures.
      tokens: their ids, as sampled; those of pictures that grew are not kept.
      settings: every setting that made them, by name.
      structure_distance: of sketches: of each sample to its sketch.
    """

    images: UInt8[np.ndarray, "n H W 3"]
    tokens: Int[np.ndarray, "n N"] | None
    settings: dict[str, Any]
    structure_distance: Float[np.ndarray, "n"] | None = None


def generate(
    model: Model,
    labels: Labels,
    *,
    num_samples: int = 1,
    sampler: str = "maskgit",
    seed: int = 0,
    batch_size: int = 32,
    **knobs: Any,
) -> Pictures:
    """Samples pictures of classes (MaskGIT, section 3.2).

    Args:
      model: see `load`.
      labels: one class or several, names or numbers.
      num_samples: pictures of each, class by class in turn.
      sampler: one of `SAMPLERS`.
      seed: picture i's randomness is that of `fold_in(key(seed), i)`.
      batch_size: pictures sampled together.
      knobs: `num_steps`, `token_temperature`, and those of the sampler.

    Raises:
      InputError: an unknown class or setting, or a value that is not allowed.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"sampler={sampler}: expected one of {', '.join(SAMPLERS)}")
    chosen = find_labels(model.config, labels) * num_samples
    settings = resolve(model.config, sampler, LoopSettings, SAMPLERS[sampler], given=knobs)
    own = dict(settings)
    loop = {name: own.pop(name) for name in ("num_steps", "token_temperature")}

    def sample(rows: Int[np.ndarray, "b"]) -> Int[Array, "b N"]:
        masked = jnp.full((len(rows), model.config.transformer.sequence_length - 1), MASK_ID)
        tokens = with_class_token(model.config, jnp.array(chosen)[rows], masked)
        return batched.sample(
            model, tokens, sampler=SAMPLERS[sampler](**own), seed=seed, indices=rows, **loop
        )

    tokens = sample_rows(sample, len(chosen), batch_size, seed)
    record = {"labels": chosen, "sampler": sampler, "seed": seed, **settings}
    return Pictures(model.images_of(tokens), tokens, record)


def edit(
    model: Model,
    image: Picture,
    mask: Picture,
    label: str | int,
    *,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    **knobs: Any,
) -> Pictures:
    """Samples a part of a picture again: inpainting, class-conditional editing (section 4.3).

    What is farther from the mask than a token's side comes back bit by bit.

    Args:
      model: see `load`.
      image: of any size.
      mask: white, or transparent, where the picture is sampled again; of the picture's size, or
        stretched to it.
      label: the class to be seen.
      num_samples: how many pictures.
      seed: sample i's randomness is that of `fold_in(key(seed), i)`.
      batch_size: pictures sampled together.
      knobs: of `EditSettings`.

    Raises:
      InputError: no picture, a mask that is all or nothing, or a setting that is not allowed.
    """
    original = as_image(image)
    settings = EditSettings(**resolve(model.config, "edit", EditSettings, given=knobs))
    picture = prepare(original, read_mask(mask, *original.shape[:2])[0], model.config.tokenizer)
    chosen = find_label(label, model.config.class_names)

    def sample(rows: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b S S 3"]:
        squares, masked, labels = repeat(len(rows), picture.square, picture.masked, chosen)
        return remake(model, squares, masked, labels, settings, seed=seed, indices=rows)

    squares = sample_rows(sample, num_samples, batch_size, seed)
    images = np.stack([finish(picture, square) for square in squares])
    record = {"label": chosen, "seed": seed, **dataclasses.asdict(settings)}
    return Pictures(images, None, record)


def outpaint(
    model: Model,
    image: Picture,
    label: str | int,
    *,
    left: int = 0,
    right: int = 0,
    up: int = 0,
    down: int = 0,
    num_samples: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    **knobs: Any,
) -> Pictures:
    """Extends a picture, window by window (section 4.3).

    Args:
      model: see `load`.
      image: of any size.
      label: the class to be seen.
      left: pixels to grow to this side; so the others.
      right: likewise.
      up: likewise.
      down: likewise.
      num_samples: how many pictures.
      seed: sample i's randomness is that of `fold_in(key(seed), i)`.
      batch_size: pictures sampled together.
      knobs: of `EditSettings`.

    Raises:
      InputError: no picture, no side to grow to, or a setting that is not allowed.
    """
    growths = [
        Growth(side, size) for side, size in zip(SIDES, (left, right, up, down), strict=True)
    ]
    growths = [growth for growth in growths if growth.pixels]
    if not growths or min(growth.pixels for growth in growths) < 0:
        raise InputError("no side to grow to: expected pixels, such as left=32")
    original = as_image(image)
    settings = EditSettings(**resolve(model.config, "edit", EditSettings, given=knobs))
    chosen = find_label(label, model.config.class_names)

    def sample(rows: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b _ _ 3"]:
        images, labels = repeat(len(rows), original, chosen)
        return grow(model, images, growths, labels, settings, seed=seed, indices=rows)

    images = sample_rows(sample, num_samples, batch_size, seed)
    record = {"label": chosen, "seed": seed, "growths": dict(growths)}
    return Pictures(images, None, record | dataclasses.asdict(settings))


def find_labels(config: ModelConfig, labels: Labels) -> list[int]:
    """The classes that names or numbers mean."""
    each = [labels] if isinstance(labels, str | int | np.integer) else list(labels)
    return [find_label(label, config.class_names) for label in each]


def sample_rows(
    sample: Callable[[Int[np.ndarray, "b"]], Any], num_samples: int, batch_size: int, seed: int
) -> Any:
    """The results of `sample` on the numbers of samples, in batches of one size, put together."""
    Knob("", int, 1, 10**6).check("num_samples", num_samples)
    Knob("", int, 1, 10**6).check("batch_size", batch_size)
    Knob("", int, **SEEDS).check("seed", seed)
    size = -(-num_samples // -(-num_samples // batch_size))
    # Another size would be compiled anew: the last batch is filled up.
    batches = [
        np.minimum(np.arange(first, first + size), num_samples - 1)
        for first in range(0, num_samples, size)
    ]
    parts = [jax.tree.map(np.asarray, sample(rows)) for rows in batches]
    return jax.tree.map(lambda *each: np.concatenate(each)[:num_samples], *parts)


def repeat(count: int, *values: Any) -> list[np.ndarray]:
    """Each value `count` times, along a new leading axis."""
    return [np.repeat(np.asarray(value)[None], count, axis=0) for value in values]
