"""How near pictures come to their strokes, and strokes whose answer is known.

No flags are defined here.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from experiments.demo_world import world
from guidance.strokes.automatic import Stroke, paint
from maskgit_jax.images import to_float

Images = UInt8[np.ndarray, "n H W 3"]

_PARTS_SHARE = (0.01, 0.3)  # of the picture, for a part to be painted


def colour_distance(
    images: Images, painted: Images, masks: Bool[np.ndarray, "n H W"]
) -> Float[np.ndarray, "n"]:
    """Mean absolute difference of the channels, in [0, 1], inside each stroke."""
    return _mean_inside(np.abs(to_float(images) - to_float(painted)).mean(axis=-1), masks)


def lab_distance(
    images: Images, painted: Images, masks: Bool[np.ndarray, "n H W"]
) -> Float[np.ndarray, "n"]:
    """Mean CIE Lab ΔE (1976) inside each stroke; 2.3 is just noticeable. Needs scikit-image."""
    from skimage.color import deltaE_cie76, rgb2lab

    return _mean_inside(deltaE_cie76(rgb2lab(images), rgb2lab(painted)), masks)


def part_stroke(scene: world.Scene, kind: str) -> Stroke | None:
    """A random part of the scene's object, painted; None where all are too small or too large.

    `kind` is one of `strokes.automatic.KINDS`.
    """
    least, most = _PARTS_SHARE
    shares = np.bincount(scene.parts.ravel()) / scene.parts.size
    parts = [part for part in np.flatnonzero(shares) if part and least <= shares[part] <= most]
    if not parts:
        return None
    rng = np.random.default_rng([scene.seed, scene.index])
    return paint(scene.image, scene.parts == rng.choice(parts), kind, rng)


def _mean_inside(
    values: Float[np.ndarray, "n H W"], masks: Bool[np.ndarray, "n H W"]
) -> Float[np.ndarray, "n"]:
    return (values * masks).sum(axis=(1, 2)) / masks.sum(axis=(1, 2))
