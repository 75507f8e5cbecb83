"""The judge: a small network that finds the object in a demo-world picture and names it.

It stands in for a person who looks whether a guided picture shows the sketch's shape and class. It
has seen photos only (`train_judge`), never sketches. Beside it: the figures drawn from pictures,
masks and ids.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from maskgit_jax import checkpoint, world
from maskgit_jax.model import parameter_shapes

JUDGE_CHECKPOINT = Path(__file__).parent / "weights" / "judge_checkpoint"

_BATCH = 64
_WHITE_LEVEL = 0.94
_WHITE_BORDER_SHARE = 0.6


class Verdict(NamedTuple):
    """What `Judge` gives.

    Attributes:
      mask: logits, above 0 where the object is.
      label: logits of the classes.
    """

    mask: Float[Array, "b h w"]
    label: Float[Array, "b c"]


class Judge(nn.Module):
    """A U-Net of three scales; the class is read off the coarsest one.

    Attributes:
      widths: channels of each scale, from the full side down; the side halves in between.
      num_classes: number of classes.
    """

    widths: tuple[int, int, int] = (16, 32, 48)
    num_classes: int = len(world.CLASS_NAMES)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Verdict:
        """Judges pictures in [0, 1] whose sides are multiples of 4."""
        full, half, quarter = self.widths

        def block(x, width, **conv):
            x = nn.Conv(width, (3, 3), use_bias=False, **conv)(x)
            return nn.swish(nn.GroupNorm(num_groups=4)(x))

        def enlarge(x):
            return x.repeat(2, axis=1).repeat(2, axis=2)

        fine = block(images - 0.5, full)
        middle = block(block(fine, half, strides=2), half)
        coarse = block(middle, quarter, strides=2)
        # Dilated: the whole object comes into view.
        for dilation in (1, 2, 1):
            coarse = coarse + block(coarse, quarter, kernel_dilation=dilation)
        pooled = jnp.concatenate([coarse.mean(axis=(1, 2)), coarse.max(axis=(1, 2))], axis=-1)
        label = nn.Dense(self.num_classes)(nn.swish(nn.Dense(64)(pooled)))

        middle = block(middle + enlarge(nn.Conv(half, (1, 1))(coarse)), half)
        fine = block(fine + enlarge(nn.Conv(full, (1, 1))(middle)), full)
        return Verdict(nn.Conv(1, (3, 3))(fine)[..., 0], label)


def load_judge(path: Path = JUDGE_CHECKPOINT) -> tuple[Judge, Any]:
    """The judge that ships with the project, or another `train_judge` has made, and its weights.

    Raises:
      InputError: the file is missing, damaged or of another network.
    """
    judge = Judge()
    params = checkpoint.read_checkpoint(path)
    shapes = parameter_shapes(judge, jax.ShapeDtypeStruct((1, 48, 48, 3), jnp.float32))
    checkpoint.check_params(params, checkpoint.manifest_of(shapes), source=str(path))
    return judge, jax.tree.map(jnp.asarray, params)


def predict(
    judge: Judge, params: Any, images: Float[np.ndarray, "b h w 3"]
) -> tuple[Bool[np.ndarray, "b h w"], Int[np.ndarray, "b"]]:
    """Where the object is and its class, for pictures in [0, 1] whose sides are multiples of 4."""
    verdicts = [
        _predict(judge, params, images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)
    ]
    masks, labels = zip(*verdicts, strict=True)
    return np.concatenate(masks), np.concatenate(labels)


@functools.partial(jax.jit, static_argnums=0)
def _predict(judge, params, images):
    mask, label = judge.apply({"params": params}, images)
    return mask > 0, jnp.argmax(label, axis=-1)


def silhouette_iou(
    mask_a: Bool[np.ndarray, "b h w"], mask_b: Bool[np.ndarray, "b h w"]
) -> Float[np.ndarray, "b"]:
    """Intersection over union of two masks, in [0, 1]; 1 where both are empty."""
    intersection = np.sum(mask_a & mask_b, axis=(1, 2))
    union = np.sum(mask_a | mask_b, axis=(1, 2))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def white_background(images: Float[np.ndarray, "b h w 3"]) -> Bool[np.ndarray, "b"]:
    """Whether at least 60 % of a picture's border pixels have all channels above 0.94."""
    white = np.all(images > _WHITE_LEVEL, axis=-1)
    sides = (white[:, 0], white[:, -1], white[:, 1:-1, 0], white[:, 1:-1, -1])
    return np.mean(np.concatenate(sides, axis=1), axis=1) >= _WHITE_BORDER_SHARE


def shared_token_share(
    ids: Int[np.ndarray, "b N"],
    sketch_ids: Int[np.ndarray, "b N"],
    masks: Bool[np.ndarray, "b H W"],
) -> Float[np.ndarray, "b"]:
    """Share of a picture's ids that are the sketch's own, among the cells that the mask touches.

    High where a sample copies the sketch instead of painting it; 0 for an empty mask.
    """
    side = round(ids.shape[1] ** 0.5)
    batch, size, _ = masks.shape
    cells = masks.reshape(batch, side, size // side, side, size // side)
    touched = np.any(cells, axis=(2, 4)).reshape(batch, -1)
    same = np.sum((ids == sketch_ids) & touched, axis=1)
    return same / np.maximum(np.sum(touched, axis=1), 1)


def mean_and_error(values: Shaped[np.ndarray, "b"]) -> tuple[float, float]:
    """Mean and its standard error, s / √b; the error of a single value is NaN."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)
