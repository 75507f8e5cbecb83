"""The study behind `attention`: maps of a token, and how well distances tell layouts apart."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from experiments.app import digests
from experiments.app.tables import Figures
from experiments.demo_world import world
from experiments.metrics.measures import jackknife_error, jackknife_groups
from experiments.studies.scenes import as_picture, class_tokens, map_rows_shown
from experiments.studies.study import Row, Study
from guidance.structure import layer_distances
from maskgit_jax.images import to_float
from maskgit_jax.model import Model
from maskgit_jax.networks import stacked
from maskgit_jax.networks.stacked import AttentionInputs

OTHERS_PER_SKETCH = 8
"""Other scenes that each sketch is held against, in each column of the table."""

TABLE = "auc"
"""The study's name."""

KINDS = ("same_class", "any_class")

_PAIRS_AT_ONCE = 16
_IMAGES_AT_ONCE = 16
COLUMNS = {
    "own_photo": ("own photo", 3),
    "same_class": ("same class", 3),
    "any_class": ("any class", 3),
    "auc_same_class": ("AUC same class", 3),
    "auc_any_class": ("AUC any class", 3),
}


class Separation(NamedTuple):
    """How well a distance tells pairs of one layout from pairs of two.

    Attributes:
      auc: share of all (near pair, far pair) whose far distance is the larger one; 0.5 is chance,
        1 perfect. NaN without far pairs.
      standard_error: of auc.
      mean_far: mean distance of the far pairs.
      num_far: how many far pairs.
    """

    auc: float
    standard_error: float
    mean_far: float
    num_far: int


class Pair(NamedTuple):
    """A photo and its sketch, and their class."""

    photo: UInt8[np.ndarray, "H W 3"]
    sketch: UInt8[np.ndarray, "H W 3"]
    label: int


def study_attention(
    model: Model,
    places: dict[str, Path | None],
    settings: dict[str, Any],
) -> None:
    """Prints the table of layers and writes it.

    Args:
      model: of the demo world's classes.
      places: where the results go.
      settings: what the figures depend on: the world's seed, num_scenes, divergence, and the
        model's name for the record.
    """
    seed, num_scenes = settings["seed"], settings["num_scenes"]

    size = model.config.tokenizer.image_size

    @functools.cache
    def measured() -> dict[str, Figures]:
        indices = tqdm(range(num_scenes), desc="drawing scenes", unit="", delay=1)
        scenes = [scene_pair(seed, index, size) for index in indices]
        photos, sketches, labels = map(np.stack, zip(*scenes, strict=True))
        rng = np.random.default_rng([seed, num_scenes])
        own = np.repeat(np.arange(num_scenes)[:, None], 2, axis=1)
        same, other = (other_pairs(labels, rng, same_class=chosen) for chosen in (True, False))
        pairs = np.concatenate([own, same, other])
        looks = look(model, sketches, labels), look(model, photos, labels)
        by_layer = pair_distances(*looks, pairs, settings["divergence"])
        distances = [*by_layer.T, by_layer.mean(axis=1), pixel_distances(sketches, photos, pairs)]
        figures = {}
        for name, each in zip(names, distances, strict=True):
            near, *far = np.split(each, [num_scenes, num_scenes + len(same)])
            figures[name] = {"own_photo": float(np.mean(near))}
            for kind, distances_far, far_pairs in zip(KINDS, far, (same, other), strict=True):
                found = separation(near, distances_far, far_pairs)
                figures[name] |= {
                    kind: found.mean_far,
                    f"auc_{kind}": (found.auc, found.standard_error),
                    f"num_{kind}": found.num_far,
                }
        return figures

    names = [f"layer {layer}" for layer in range(model.config.transformer.num_layers)]
    names += ["mean of layers", "pixels (grey levels)"]
    Study(
        TABLE,
        COLUMNS,
        {name: lambda name=name: Row(measured()[name]) for name in names},
        settings | {"weights": digests.of_weights(model)},
        heading="distance",
        **places,
    ).run()


def scene_pair(seed: int, index: int, size: int) -> Pair:
    """A scene of the demo world."""
    scene = world.draw_scene(seed, index, size=size)
    return Pair(scene.image, as_picture(scene.sketch), scene.label)


def look(
    model: Model, images: UInt8[np.ndarray, "n H W 3"], labels: Int[np.ndarray, "n"]
) -> AttentionInputs:
    """Queries and keys of all layers of pictures, [n, L, S, H, d]."""
    return attention_inputs(model, class_tokens(model, labels, model.ids_of(images)))


def attention_inputs(model: Model, tokens: Int[np.ndarray, "n S"]) -> AttentionInputs:
    """Queries and keys of all layers, [n, L, S, H, d], of tokens in batches."""
    batches = [
        _attention(model.transformer, model.transformer_params, jnp.asarray(batch))
        for batch in np.split(tokens, range(_IMAGES_AT_ONCE, len(tokens), _IMAGES_AT_ONCE))
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *batches)


def token_attention(
    inputs: AttentionInputs, token: int, head: int | None
) -> Float[np.ndarray, "L N"]:
    """What an image token looks at in each layer: shares of its attention, image tokens alone.

    What is missing from 1 goes to the class token.

    Args:
      inputs: of one picture, [L, S, H, d].
      token: number of the image token, from 0.
      head: one head, or None for the mean of all.
    """
    logits = jnp.einsum("lhd,lkhd->lhk", inputs.queries[:, token + 1], inputs.keys)
    maps = jax.nn.softmax(logits)
    maps = jnp.mean(maps, axis=1) if head is None else maps[:, head]
    return np.asarray(maps[:, 1:])


def pair_distances(
    sketches: AttentionInputs,
    photos: AttentionInputs,
    pairs: Int[np.ndarray, "p 2"],
    divergence: str,
) -> Float[np.ndarray, "p L"]:
    """Mean distance over the image tokens, layer by layer, of pairs (sketch, photo).

    Args:
      sketches: attention inputs, [n, L, S, H, d].
      photos: the same.
      pairs: numbers of a sketch and a photo.
      divergence: one of `structure.DIVERGENCES`.
    """

    def distances(pairs):
        return _pair_distances(sketches, photos, jnp.asarray(pairs), divergence)

    return map_rows_shown("distances", distances, pairs, batch_size=_PAIRS_AT_ONCE)


def pixel_distances(
    sketches: UInt8[np.ndarray, "n H W 3"],
    photos: UInt8[np.ndarray, "n H W 3"],
    pairs: Int[np.ndarray, "p 2"],
) -> Float[np.ndarray, "p"]:
    """Root mean squared difference of grey levels (mean of the colours) in [0, 1] of pairs."""
    grey_sketches, grey_photos = (to_float(side).mean(axis=-1) for side in (sketches, photos))
    difference = grey_sketches[pairs[:, 0]] - grey_photos[pairs[:, 1]]
    return np.sqrt(np.mean(difference**2, axis=(1, 2)))


def ink(sketch: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    """How far each pixel is from the sketch's background, its median colour."""
    colours = to_float(sketch)
    return np.abs(colours - np.median(colours, axis=(0, 1))).sum(axis=-1)


def centre_token(sketch: UInt8[np.ndarray, "H W 3"], side: int) -> tuple[int, int]:
    """Row and column, of `side` each, of the token in the middle of what is drawn."""
    drawn = ink(sketch)
    rows, columns = np.nonzero(drawn >= drawn.max() / 2)
    middle = ((places.min() + places.max() + 1) / 2 for places in (rows, columns))
    row, column = (int(place * side / len(sketch)) for place in middle)
    return row, column


def other_pairs(
    labels: Int[np.ndarray, "n"], rng: np.random.Generator, *, same_class: bool
) -> Int[np.ndarray, "p 2"]:
    """For each scene up to `OTHERS_PER_SKETCH` different other scenes, of its class or of any."""
    pairs = []
    for scene, label in enumerate(labels):
        others = np.flatnonzero(labels == label) if same_class else np.arange(len(labels))
        others = others[others != scene]
        drawn = rng.choice(others, min(OTHERS_PER_SKETCH, len(others)), replace=False)
        pairs += [(scene, int(other)) for other in drawn]
    return np.array(pairs, np.int64).reshape(-1, 2)


def area_under_curve(near: Float[np.ndarray, "p"], far: Float[np.ndarray, "q"]) -> float:
    """P(near < far) + ½ P(near = far): the area under the ROC curve, by ranks; NaN if one is empty.

    The Mann-Whitney statistic over p · q.
    """
    if not len(near) or not len(far):
        return float("nan")
    ordered = np.sort(far)
    not_above, below = (np.searchsorted(ordered, near, side) for side in ("right", "left"))
    return float(1 - np.mean(not_above + below) / (2 * len(far)))


def separation(
    near: Float[np.ndarray, "n"],
    far: Float[np.ndarray, "p"],
    far_pairs: Int[np.ndarray, "p 2"],
) -> Separation:
    """The area under the curve and its standard error.

    The error is a jackknife over scenes, because a scene's pairs go together: an estimate is the
    area without every pair that has a scene of one group on either side.

    Args:
      near: distance of each scene's sketch to its own photo.
      far: distances of sketches to other scenes' photos.
      far_pairs: the scenes of each of those.
    """
    groups = jackknife_groups(len(near))
    estimates = [
        area_under_curve(near[groups != k], far[(groups[far_pairs] != k).all(axis=1)])
        for k in range(groups.max() + 1)
    ]
    return Separation(
        auc=area_under_curve(near, far),
        standard_error=jackknife_error(np.array(estimates)),
        mean_far=float(np.mean(far)) if len(far) else float("nan"),
        num_far=len(far),
    )


@functools.partial(jax.jit, static_argnums=0)
def _attention(transformer: Any, params: Any, tokens: Int[Array, "b S"]) -> AttentionInputs:
    inputs = stacked.attention_inputs(transformer, params, tokens, transformer.config.num_layers)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), inputs)


@functools.partial(jax.jit, static_argnames="divergence")
def _pair_distances(
    sketches: AttentionInputs,
    photos: AttentionInputs,
    pairs: Int[Array, "p 2"],
    divergence: str,
) -> Float[Array, "p L"]:
    def one(pair):
        sketch = jax.tree.map(lambda side: side[pair[0]], sketches)
        photo = jax.tree.map(lambda side: side[pair[1]], photos)
        return jnp.mean(layer_distances(sketch, photo, divergence)[:, 1:], axis=1)

    return jax.vmap(one)(pairs)
