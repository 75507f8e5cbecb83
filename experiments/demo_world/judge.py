"""The judge: a small network that finds the object in a demo-world picture, its parts and class.

It stands in for a person who looks whether a guided picture shows the sketch's shape, parts and
class, and for the network behind the Fréchet distance: its features tell photos from what is none.
It has seen photos only (`train_judge`), never sketches.
"""

import functools
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.app.batches import map_rows
from experiments.demo_world import world
from maskgit_jax.checkpoints import checkpoint, download
from maskgit_jax.errors import InputError
from maskgit_jax.model import Model, load_model

JUDGE_CHECKPOINT = Path(str(files("experiments.demo_world"))) / "weights" / "judge_checkpoint"

_BATCH = 64

EVAL_SEED = 1
"""The world's seed of the sketches; the models and the judge were trained on seed 0."""
REFERENCE_SEED = 5
"""That of the photos which the Fréchet distance, precision and recall compare with."""


class Logits(NamedTuple):
    """What `Judge` gives.

    Attributes:
      parts: logits of `world.PART_NAMES` for each pixel; the first is the background.
      label: logits of the classes.
      features: what the class is read off.
    """

    parts: Float[Array, "b h w p"]
    label: Float[Array, "b c"]
    features: Float[Array, "b d"]


class Verdict(NamedTuple):
    """What `predict` gives.

    Attributes:
      parts: the part at each pixel, an index in `world.PART_NAMES`; 0 where the object is not.
      labels: classes.
      features: what the classes were read off, for `measures.frechet_distance`.
      probabilities: of the classes.
    """

    parts: Int[np.ndarray, "b h w"]
    labels: Int[np.ndarray, "b"]
    features: Float[np.ndarray, "b d"]
    probabilities: Float[np.ndarray, "b c"]


class Judge(nn.Module):
    """A U-Net of three scales on squares of 2×2 pixels; the class is read off the two coarser ones.

    Attributes:
      widths: channels of each scale, from half the side down; the side halves in between.
      num_classes: number of classes.
      num_parts: number of parts, background included.
    """

    widths: tuple[int, int, int] = (16, 32, 48)
    num_classes: int = len(world.CLASS_NAMES)
    num_parts: int = len(world.PART_NAMES)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Logits:
        """Judges pictures in [0, 1] whose sides are multiples of 8."""
        full, half, quarter = self.widths
        batch, height, width, channels = images.shape

        def block(x, width, **conv):
            x = nn.Conv(width, (3, 3), use_bias=False, **conv)(x)
            return nn.swish(nn.GroupNorm(num_groups=4)(x))

        def enlarge(x):
            return x.repeat(2, axis=1).repeat(2, axis=2)

        squares = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
        squares = squares.swapaxes(2, 3).reshape(batch, height // 2, width // 2, -1)
        fine = block(squares - 0.5, full)
        middle = block(block(fine, half, strides=2), half)
        coarse = block(middle, quarter, strides=2)
        # Dilated: the whole object comes into view.
        for dilation in (1, 2, 1):
            coarse = coarse + block(coarse, quarter, kernel_dilation=dilation)
        pooled = (middle.mean(axis=(1, 2)), coarse.mean(axis=(1, 2)), coarse.max(axis=(1, 2)))
        features = jnp.concatenate(pooled, axis=-1)
        label = nn.Dense(self.num_classes)(nn.swish(nn.Dense(64)(features)))

        middle = block(middle + enlarge(nn.Conv(half, (1, 1))(coarse)), half)
        fine = block(fine + enlarge(nn.Conv(full, (1, 1))(middle)), 2 * full)
        parts = nn.Conv(4 * self.num_parts, (1, 1))(fine)
        parts = parts.reshape(batch, height // 2, width // 2, 2, 2, self.num_parts)
        parts = parts.swapaxes(2, 3).reshape(batch, height, width, self.num_parts)
        return Logits(parts, label, features)


def load_demo_world_model(name: str, dtype: str = "float32") -> Model:
    """Loads a model of the demo world's classes, the only ones that the judge knows.

    Raises:
      InputError: as `load_model`, or the model has other classes or an unsuited picture size.
    """
    known = "the judge knows the demo world's pictures: give demo or a folder of such a model"
    if name in download.MODELS:  # before gigabytes of it are fetched
        raise InputError(f"--model={name}: an ImageNet model; {known}")
    model = load_model(name, dtype=dtype)
    if model.config.class_names != world.CLASS_NAMES:
        raise InputError(f"--model={name}: its classes are not the demo world's; {known}")
    size = model.config.tokenizer.image_size
    if size % 8:
        raise InputError(f"--model={name}: image_size is {size}, expected a multiple of 8")
    return model


def load_judge(path: Path = JUDGE_CHECKPOINT) -> tuple[Judge, Any]:
    """The judge that ships with the project, or another `train_judge` has made, and its weights.

    Raises:
      InputError: the file is missing, damaged or of another network.
    """
    judge = Judge()
    params = checkpoint.read_checkpoint(path)
    shapes = checkpoint.parameter_shapes(judge, jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32))
    checkpoint.check_params(params, checkpoint.manifest_of(shapes), source=str(path))
    return judge, jax.tree.map(jnp.asarray, params)


def predict(judge: Judge, params: Any, images: Float[np.ndarray, "b h w 3"]) -> Verdict:
    """Parts, classes and features of pictures in [0, 1] whose sides are multiples of 8."""
    return map_rows(
        functools.partial(_predict, judge, params), images, batch_size=_BATCH, exact=True
    )


@functools.partial(jax.jit, static_argnums=0)
def _predict(judge, params, images):
    logits = judge.apply({"params": params}, images)
    # Parts of an unsure pixel may share what together outweighs the background.
    likeliest = 1 + jnp.argmax(logits.parts[..., 1:], axis=-1)
    background = jax.nn.softmax(logits.parts)[..., 0] > 0.5
    parts = jnp.where(background, 0, likeliest)
    labels, probabilities = jnp.argmax(logits.label, axis=-1), jax.nn.softmax(logits.label)
    return Verdict(parts, labels, logits.features, probabilities)
