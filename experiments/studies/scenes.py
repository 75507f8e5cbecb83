"""Held-out scenes of the demo world, samples that follow their sketches, and what is measured."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from experiments.app.batches import make_batches, map_rows
from experiments.app.tables import Figures
from experiments.demo_world import world
from experiments.demo_world.judge import EVAL_SEED, REFERENCE_SEED, load_judge, predict
from experiments.metrics.measures import (
    commonest_background,
    edge_alignment,
    find_edges,
    frechet_distance,
    mean_and_error,
    one_colour,
    part_miou,
    shared_token_share,
    silhouette_iou,
    white_background,
    within_manifold,
)
from guidance import masksketch
from guidance.settings import GuidanceSettings
from guidance.structure import StructureSettings, Target, structure_distance
from maskgit_jax.editing.inpaint import EditSettings
from maskgit_jax.images import to_float
from maskgit_jax.knobs import knobs_of, resolve
from maskgit_jax.model import Model, with_class_token
from maskgit_jax.networks.stacked import attention_inputs
from maskgit_jax.sampling import batched
from maskgit_jax.sampling.loop import MASK_ID, LoopSettings
from maskgit_jax.sampling.maskgit import MaskGit

_INK_BELOW = 128

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
    "one_colour": ("one colour", 3),
    "white_background": ("white", 3),
    "commonest_background": ("commonest", 3),
    "sketch_tokens": ("sketch ids", 3),
}

Labels = Int[np.ndarray, "n"]
Ids = Int[np.ndarray, "n N"]


class Pictures(NamedTuple):
    """What is measured: pictures and, where they came from ids, those."""

    images: UInt8[np.ndarray, "n H W 3"]
    ids: Ids | None = None


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
    labels: Labels
    drawing_ids: Ids


class Sampling(NamedTuple):
    """How all samples of a study are made.

    Attributes:
      model: the generator.
      guided: the guidance; its record has the seed.
      batch_size: samples decoded together.
    """

    model: Model
    guided: GuidanceSettings
    batch_size: int


class Edits(NamedTuple):
    """How all edits of a study are made.

    Attributes:
      model: the generator.
      settings: of the sampling.
      seed: of all samples.
      batch_size: samples decoded together.
    """

    model: Model
    settings: EditSettings
    seed: int
    batch_size: int


def map_rows_shown(
    title: str,
    function: Callable[..., Any],
    *arrays: np.ndarray,
    batch_size: int,
    num_steps: int | None = None,
) -> Any:
    """`map_rows` with a progress bar: of samples, or of steps.

    With the number of a batch's steps, `function` is given `progress`, to be called with the number
    of those that are done.
    """
    count = len(arrays[0])
    if num_steps is None:
        with tqdm(total=count, desc=title, unit="sample", mininterval=1) as bar:
            return map_rows(function, *arrays, batch_size=batch_size, progress=bar.update)
    total = len(make_batches(count, batch_size)) * num_steps
    with tqdm(total=total, desc=title, unit="step") as bar:

        def in_steps(*rows: np.ndarray) -> Any:
            first = bar.n
            return function(*rows, progress=lambda done: bar.update(first + done - bar.n))

        return map_rows(in_steps, *arrays, batch_size=batch_size)


def draw_world(seed: int, count: int, size: int) -> list[world.Scene]:
    """The first scenes of a seed."""
    indices = tqdm(range(count), desc="drawing scenes", unit="", delay=1)
    return [world.draw_scene(seed, index, size=size) for index in indices]


def draw_photos(count: int, size: int) -> tuple[UInt8[np.ndarray, "n H W 3"], Labels]:
    """The first held-out scenes as photos, and their classes."""
    scenes = draw_world(EVAL_SEED, count, size)
    labels = np.array([scene.label for scene in scenes], np.int32)
    return np.stack([scene.image for scene in scenes]), labels


def as_picture(drawing: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """A drawing in grey levels with three equal channels."""
    return np.repeat(drawing[..., None], 3, axis=-1)


def draw_scenes(sampling: Sampling, count: int, condition: str = "sketch") -> Scenes:
    """The first held-out scenes, at the size of the model's pictures."""
    drawn = draw_world(EVAL_SEED, count, sampling.model.config.tokenizer.image_size)
    drawings = np.stack([as_picture(getattr(scene, condition)) for scene in drawn])
    return Scenes(
        photos=np.stack([scene.image for scene in drawn]),
        drawings=drawings,
        parts=np.stack([scene.parts for scene in drawn]).astype(np.int32),
        labels=np.array([scene.label for scene in drawn], np.int32),
        drawing_ids=sampling.model.ids_of(drawings),
    )


class Measure:
    """Every figure of pictures against their scenes and photos of other scenes."""

    def __init__(self, sampling: Sampling, num_reference: int):
        self.sampling, self.judge = sampling, load_judge()
        size = sampling.model.config.tokenizer.image_size
        drawn = draw_world(REFERENCE_SEED, num_reference, size)
        photos = np.stack([scene.image for scene in drawn])
        self.reference = predict(*self.judge, to_float(photos)).features

    def __call__(self, pictures: Pictures, scenes: Scenes) -> Figures:
        images = to_float(pictures.images)
        verdict = predict(*self.judge, images)
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
            "precision": within_manifold(verdict.features, self.reference),
            "recall": within_manifold(self.reference, verdict.features),
            "one_colour": one_colour(images, verdict.parts),
            "white_background": white_background(images),
        }
        if pictures.ids is not None:
            values["structure_distance"] = structure_distances(
                self.sampling, scenes.labels, scenes.drawing_ids, pictures.ids
            )
            values["sketch_tokens"] = shared_token_share(pictures.ids, scenes.drawing_ids, masks)
        figures = {name: mean_and_error(value) for name, value in values.items()}
        figures["frechet_distance"] = frechet_distance(verdict.features, self.reference)
        figures["commonest_background"] = commonest_background(images)
        return {name: figures.get(name) for name in (*COLUMNS, "ink_to_edge", "edge_to_ink")}


def sample_unguided(sampling: Sampling, labels: Labels, num_steps: int) -> Pictures:
    """MaskGIT samples of classes, by the model's presets."""
    model = sampling.model
    settings = resolve(model.config, "maskgit", LoopSettings, MaskGit)
    sampler = {name: settings[name] for name in knobs_of(MaskGit)}
    masked = np.full((len(labels), model.config.transformer.sequence_length - 1), MASK_ID, np.int32)

    def sample(tokens, indices, progress):
        return batched.sample(
            model,
            jnp.asarray(tokens),
            num_steps=num_steps,
            seed=sampling.guided.record["seed"],
            indices=indices,
            sampler=MaskGit(**sampler),
            token_temperature=settings["token_temperature"],
            progress=progress,
        )

    rows = class_tokens(model, labels, masked), np.arange(len(labels))
    sizes = {"batch_size": sampling.batch_size, "num_steps": num_steps}
    ids = map_rows_shown("unguided", sample, *rows, **sizes)
    return Pictures(model.images_of(ids), ids)


def sample_guided(
    sampling: Sampling, labels: Labels, drawing_ids: Ids, settings: StructureSettings
) -> Pictures:
    """Samples of classes that follow drawings."""
    model, guided, batch_size = sampling

    def sample(tokens, indices, progress):
        return masksketch.sample(
            model,
            tokens,
            settings,
            num_steps=guided.num_steps,
            seed=guided.record["seed"],
            indices=indices,
            **guided.options,
            progress=progress,
        ).ids

    rows = class_tokens(model, labels, drawing_ids), np.arange(len(labels))
    sizes = {"batch_size": batch_size, "num_steps": guided.num_steps}
    ids = map_rows_shown(f"lambda_s = {settings.lambda_s:g}", sample, *rows, **sizes)
    return Pictures(model.images_of(ids), ids)


def structure_distances(
    sampling: Sampling, labels: Labels, drawing_ids: Ids, ids: Ids
) -> Float[np.ndarray, "n"]:
    """Each sample's distance to a drawing, both of its class, as `masksketch.sample` reports it."""
    model, guided = sampling.model, sampling.guided
    distance = functools.partial(
        _structure_distance,
        model.transformer,
        model.transformer_params,
        guided.settings.layer_weights,
        guided.options["divergence"],
    )
    rows = (class_tokens(model, labels, each) for each in (drawing_ids, ids))
    return map_rows(distance, *rows, batch_size=sampling.batch_size)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _structure_distance(
    transformer, params, layer_weights, divergence, drawing_tokens, tokens
) -> Float[Array, "b"]:
    def one(drawing_tokens, tokens):
        sketch = attention_inputs(transformer, params, drawing_tokens, len(layer_weights))
        target = Target(sketch, layer_weights)
        used = layer_weights > 0
        distance = structure_distance(transformer, params, tokens, target, used, divergence)
        return jnp.mean(distance[1:])

    return jax.vmap(one)(drawing_tokens, tokens)


def class_tokens(model: Model, labels: Labels, ids: Ids) -> Int[np.ndarray, "n S"]:
    """Ids behind their class tokens."""
    return np.asarray(with_class_token(model.config, jnp.asarray(labels), jnp.asarray(ids)))
