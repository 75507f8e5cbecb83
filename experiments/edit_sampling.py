"""What edits decode with: MaskGIT in a picture's hidden ids, window by window where it grows.

No flags are defined here.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from experiments.edit_picture import blend_radius, resize
from guidance import masksketch
from guidance.structure import StructureSettings
from maskgit_jax import sampling
from maskgit_jax.config import ModelConfig, TokenizerConfig
from maskgit_jax.decoding import MASK_ID
from maskgit_jax.editing import blend, blend_weights, latent_mask, plan_windows
from maskgit_jax.images import to_float, to_uint8
from maskgit_jax.maskgit import MaskGit
from maskgit_jax.model import Model, with_class_token
from maskgit_jax.presets import KNOBS, check_value

SIDES = ("left", "right", "up", "down")
"""Where a picture can grow."""

Squares = UInt8[np.ndarray, "b S S 3"]
MakeWindow = Callable[[Squares, Bool[np.ndarray, "N"]], Squares]
"""`(squares, hidden) -> squares`: makes the hidden ids of a window, the same for each picture."""

_INDICES_PER_WINDOW = 100_000


class EditSettings(NamedTuple):
    """How hidden ids are filled.

    Attributes:
      num_steps: T.
      temperature: of the choice which ids to keep.
      token_temperature: τ of `decoding.tempered`.
    """

    num_steps: int
    temperature: float
    token_temperature: float = 1.0


class Growth(NamedTuple):
    """One of `SIDES` to grow to, and how far in pixels."""

    side: str
    pixels: int


def chosen_settings(
    config: ModelConfig,
    num_steps: int | None,
    temperature: float | None,
    token_temperature: float | None = None,
    method: str = "edit",
) -> EditSettings:
    """The settings of a model's presets for "edit" or "stroke", with what is given in their place.

    Raises:
      InputError: a value out of its range; names the flag.
    """
    given = {
        "num_steps": num_steps,
        "temperature": temperature,
        "token_temperature": token_temperature,
    }
    settings = {name: config.presets[method][name] for name in EditSettings._fields}
    for name, value in given.items():
        if value is not None:
            check_value(f"--{name}", value, KNOBS[method][name])
            settings[name] = value
    return EditSettings(**settings)


def encode(model: Model, squares: Squares) -> Int[np.ndarray, "b N"]:
    """The pictures' ids."""
    # One at a time, here and below: in a batch, rounding could depend on the batch's size.
    return np.stack([np.asarray(model.encode(jnp.asarray(to_float(s))[None])[0]) for s in squares])


def decode(model: Model, ids: Int[np.ndarray, "b N"]) -> Squares:
    """The pictures of ids, as they would be saved."""
    return np.stack([to_uint8(np.asarray(model.decode(jnp.asarray(row)[None])[0])) for row in ids])


def remake(
    model: Model,
    squares: Squares,
    hidden: Bool[np.ndarray, "b N"],
    labels: Int[np.ndarray, "b"],
    settings: EditSettings,
    *,
    seed: int,
    indices: Int[np.ndarray, "b"],
) -> Squares:
    """The pictures with their hidden ids made anew by MaskGIT (section 4.3).

    The others are the pictures' own: of those, what comes back is the tokenizer's round trip.
    """
    ids = np.where(hidden, MASK_ID, encode(model, squares))
    made = sampling.sample(
        model,
        with_class_token(model.config, jnp.asarray(labels), jnp.asarray(ids)),
        num_steps=settings.num_steps,
        # As published: the third of 12 steps.
        first_step=settings.num_steps // 6,
        sampler=MaskGit(settings.temperature),
        token_temperature=settings.token_temperature,
        seed=seed,
        indices=jnp.asarray(indices),
    )
    return decode(model, np.asarray(made))


def random_mask(
    ratio: int | float, num_tokens: int, seed: Sequence[int | np.integer]
) -> Bool[np.ndarray, "N"]:
    """A random share of the ids; with the same seed, that of a larger ratio contains it."""
    return np.random.default_rng(seed).permutation(num_tokens) < round(ratio * num_tokens)


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
    """The pictures with a region's ids made anew by MaskSketch, and structure distances.

    What is followed is the picture with the sketch in place of the region. The `choices` are
    others of `masksketch.sample`, such as its divergence.
    """
    ids = np.where(region, encode(model, sketches), encode(model, squares))
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
    return decode(model, np.asarray(samples.ids)), np.asarray(samples.structure_distance)


def grow(
    model: Model,
    pictures: UInt8[np.ndarray, "b H W 3"],
    growths: Sequence[Growth],
    labels: Int[np.ndarray, "b"],
    settings: EditSettings,
    *,
    seed: int,
    indices: Int[np.ndarray, "b"],
) -> UInt8[np.ndarray, "b _ _ 3"]:
    """The pictures, grown to one side after the other; every window has randomness of its own."""
    numbers = itertools.count()

    def make(squares: Squares, hidden: Bool[np.ndarray, "N"]) -> Squares:
        rows = np.repeat(hidden[None], len(squares), axis=0)
        window = next(numbers) * _INDICES_PER_WINDOW
        return remake(model, squares, rows, labels, settings, seed=seed, indices=indices + window)

    for side, pixels in growths:
        pictures = extend(pictures, side, pixels, model.config.tokenizer, make)
    return pictures


def extend(
    pictures: UInt8[np.ndarray, "b H W 3"],
    side: str,
    pixels: int,
    tokenizer: TokenizerConfig,
    make: MakeWindow,
) -> UInt8[np.ndarray, "b _ _ 3"]:
    """The pictures, grown by `pixels` to one of `SIDES` (outpainting; many windows: a panorama).

    The model's windows are as high as the picture (as wide, upwards and downwards). What is farther
    than a token's side from the old edge comes back bit by bit.
    """
    if side in ("up", "down"):
        turned_side = "left" if side == "up" else "right"
        turned = extend(
            pictures.swapaxes(1, 2), turned_side, pixels, tokenizer, _turned(make, tokenizer)
        )
        return turned.swapaxes(1, 2)
    size = tokenizer.image_size
    batch, height, width, _ = pictures.shape
    known = max(1, round(width * size / height))
    total = max(known + 1, round((width + pixels) * size / height))
    # Columns low .. high - 1 of the canvas are known.
    low, high = (0, known) if side == "right" else (total - known, total)
    canvas = np.zeros((batch, size, total, 3), np.uint8)
    canvas[:, :, low:high] = [resize(picture, size, known) for picture in pictures]
    for start in plan_windows(known, total - known, size):
        start = start if side == "right" else total - start - size
        columns = np.arange(start, start + size)
        unknown = np.tile((columns < low) | (columns >= high), (size, 1))
        # The edge goes on where nothing is known: the tokenizer looks beyond a token's pixels.
        squares = canvas[:, :, np.clip(columns, low, high - 1)]
        made = make(squares, latent_mask(unknown, tokenizer.latent_size))
        made = blend(squares, made, blend_weights(unknown, blend_radius(tokenizer)))
        inside = (columns >= 0) & (columns < total)
        canvas[:, :, columns[inside]] = made[:, :, inside]
        low, high = max(0, min(low, start)), min(total, max(high, start + size))

    margins = (0, pixels) if side == "right" else (pixels, 0)
    unknown = np.pad(np.zeros((height, width), bool), ((0, 0), margins), constant_values=True)
    weights = blend_weights(unknown, blend_radius(tokenizer, size / height))
    # One at a time: large pictures take gigabytes as floats.
    return np.stack(
        [
            blend(
                np.pad(picture, ((0, 0), margins, (0, 0))),
                resize(strip, height, width + pixels),
                weights,
            )
            for picture, strip in zip(pictures, canvas, strict=True)
        ]
    )


def _turned(make: MakeWindow, tokenizer: TokenizerConfig) -> MakeWindow:
    """`make` for pictures whose rows and columns are exchanged."""

    def turned(squares, hidden):
        side = tokenizer.latent_size
        upright = hidden.reshape(side, side).T.reshape(-1)
        return make(squares.swapaxes(1, 2), upright).swapaxes(1, 2)

    return turned
