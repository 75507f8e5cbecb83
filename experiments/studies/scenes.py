"""Held-out scenes of the demo world, and what is measured of pictures against them."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from experiments.app.guidance_flags import GuidanceFlags
from experiments.app.tables import Figures
from experiments.demo_world import world
from experiments.demo_world.held_out import EVAL_SEED, REFERENCE_SEED
from experiments.demo_world.judge import predict
from experiments.metrics.measures import (
    edge_alignment,
    find_edges,
    frechet_distance,
    mean_and_error,
    part_miou,
    shared_token_share,
    silhouette_iou,
    white_background,
    within_manifold,
)
from experiments.studies.samples import Pictures, encode, structure_distances
from maskgit_jax.images import to_float
from maskgit_jax.model import Model

_INK_BELOW = 128

# Title in the table and digits after the point.
COLUMNS = {
    "silhouette_iou": ("IoU", 3),
    "part_miou": ("part mIoU", 3),
    "edge_f_score": ("edge F", 3),
    "edge_distance": ("edge dist.", 3),
    "class_accuracy": ("class", 3),
    "structure_distance": ("structure", 3),
    "frechet_distance": ("Fréchet", 2),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "white_background": ("white", 3),
    "sketch_tokens": ("sketch ids", 3),
}


class Scenes(NamedTuple):
    """What pictures are held against.

    Attributes:
      photos: the scenes as they look.
      drawings: what guides.
      parts: the part at each pixel, 0 where the object is not.
      labels: classes.
      drawing_ids: the drawings' image ids.
    """

    photos: UInt8[np.ndarray, "n H W 3"]
    drawings: UInt8[np.ndarray, "n H W 3"]
    parts: Int[np.ndarray, "n H W"]
    labels: Int[np.ndarray, "n"]
    drawing_ids: Int[np.ndarray, "n N"]


def draw_scenes(model: Model, num_scenes: int, condition: str) -> Scenes:
    """The first held-out scenes, at the size of the model's pictures."""
    drawn = list(_scenes(EVAL_SEED, num_scenes, model))
    drawings = np.stack([np.repeat(getattr(scene, condition)[..., None], 3, -1) for scene in drawn])
    return Scenes(
        photos=np.stack([scene.image for scene in drawn]),
        drawings=drawings,
        parts=np.stack([scene.parts for scene in drawn]).astype(np.int32),
        labels=np.array([scene.label for scene in drawn], np.int32),
        drawing_ids=encode(model, drawings),
    )


def reference_features(
    model: Model, judge: tuple[Any, Any], num_photos: int
) -> Float[np.ndarray, "n d"]:
    """The judge's features of photos that are no scene's."""
    photos = np.stack([scene.image for scene in _scenes(REFERENCE_SEED, num_photos, model)])
    return predict(*judge, to_float(photos)).features


def _scenes(seed: int, count: int, model: Model):
    size = model.config.tokenizer.image_size
    for index in tqdm(range(count), desc="drawing scenes", unit="", mininterval=1):
        yield world.draw_scene(seed, index, size=size)


def measure_pictures(
    model: Model,
    judge: tuple[Any, Any],
    reference: Float[np.ndarray, "m d"],
    guided_flags: GuidanceFlags,
    pictures: Pictures,
    scenes: Scenes,
) -> Figures:
    """Every figure of pictures against their scenes and the reference photos."""
    images = to_float(pictures.images)
    verdict = predict(*judge, images)
    masks = scenes.parts > 0
    edges = edge_alignment(scenes.drawings[..., 0] < _INK_BELOW, find_edges(images))
    values = {
        "silhouette_iou": silhouette_iou(verdict.parts > 0, masks),
        "part_miou": part_miou(verdict.parts, scenes.parts),
        "edge_f_score": edges.f_score,
        "edge_distance": (edges.ink_to_edge + edges.edge_to_ink) / 2,
        "ink_to_edge": edges.ink_to_edge,
        "edge_to_ink": edges.edge_to_ink,
        "class_accuracy": verdict.labels == scenes.labels,
        "precision": within_manifold(verdict.features, reference),
        "recall": within_manifold(reference, verdict.features),
        "white_background": white_background(images),
    }
    if pictures.ids is not None:
        values["structure_distance"] = structure_distances(
            model, guided_flags, scenes.labels, scenes.drawing_ids, pictures.ids
        )
        values["sketch_tokens"] = shared_token_share(pictures.ids, scenes.drawing_ids, masks)
    figures = {name: mean_and_error(value) for name, value in values.items()}
    figures["frechet_distance"] = frechet_distance(verdict.features, reference)
    return {name: figures.get(name) for name in (*COLUMNS, "ink_to_edge", "edge_to_ink")}
