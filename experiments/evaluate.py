"""Measures whether guided pictures follow their sketches.

    python -m experiments.evaluate --model=demo --num_sketches=100 --output_dir=runs/evaluation

Takes held-out scenes of the demo world, decodes from each one's sketch and label, and asks the
judge (`experiments/judge.py`) where the object is and what it is. Prints one table: guided
pictures between what could be reached at best and what comes about without guidance. With
--output_dir also writes `evaluation.json` and `grid.png` (rows: sketch, guided, unguided, photo).

Columns, means over the scenes ± their standard errors: overlap of the object with the scene's
(IoU), share of pictures of the right class, structure distance to the sketch, share of white
backgrounds, share of the ids inside the object that are the sketch's own.

Rows: the scenes' photos and their tokenizer round trips are ceilings. The sketches themselves,
handed back as answers, show what the first two columns alone would miss. "unguided" is plain
MaskGIT sampling of the same classes, "lambda_s = 0" the guided decoder without structure. "guided,
other sketches" holds the guided pictures against another scene: what chance gives.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from tqdm import tqdm

from experiments import cli, guidance_flags
from experiments.guidance_flags import GuidanceFlags
from experiments.judge import (
    load_judge,
    mean_and_error,
    predict,
    shared_token_share,
    silhouette_iou,
    white_background,
)
from guidance import masksketch
from guidance.structure import StructureSettings, structure_distance
from maskgit_jax import download, sampling, world
from maskgit_jax.decoding import MASK_ID
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, save_png, to_float, to_uint8
from maskgit_jax.model import Model, load_model, with_class_token

EVAL_SEED = 1
"""The world's seed of the sketches; the models and the judge were trained on seed 0."""

# --help lists them too.
flags.adopt_module_key_flags(guidance_flags)

_NUM_SKETCHES = flags.DEFINE_integer("num_sketches", 100, "Held-out scenes to decode.")
_UNGUIDED_STEPS = flags.DEFINE_integer("unguided_steps", 12, "Steps of plain MaskGIT sampling.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for evaluation.json and grid.png.")

_UNGUIDED_TEMPERATURE = 4.5
_GRID_COLUMNS = 12

# Title in the table and digits after the point.
_COLUMNS = {
    "silhouette_iou": ("silhouette IoU", 3),
    "class_accuracy": ("class accuracy", 3),
    "structure_distance": ("structure dist.", 4),
    "white_background": ("white", 3),
    "sketch_tokens": ("sketch tokens", 3),
}


class Scenes(NamedTuple):
    """What pictures are held against.

    Attributes:
      photos: the scenes as they look.
      sketches: their outline drawings.
      masks: where the objects are.
      labels: classes.
      sketch_ids: the sketches' image ids.
    """

    photos: UInt8[np.ndarray, "n H W 3"]
    sketches: UInt8[np.ndarray, "n H W 3"]
    masks: Bool[np.ndarray, "n H W"]
    labels: Int[np.ndarray, "n"]
    sketch_ids: Int[np.ndarray, "n N"]


class Pictures(NamedTuple):
    """What is measured: pictures and, where they came from ids, those."""

    images: UInt8[np.ndarray, "n H W 3"]
    ids: Int[np.ndarray, "n N"] | None = None


Scores = dict[str, Shaped[np.ndarray, "n"] | None]
"""Each picture's figures by column; None where there is none."""


def main() -> None:
    """Evaluates as the flags say."""
    for flag in (_NUM_SKETCHES, _UNGUIDED_STEPS):
        if flag.value < 1:
            raise InputError(f"--{flag.name}={flag.value}: expected 1 or more")
    model = load_demo_world_model(flags.FLAGS.model)
    guided_flags = guidance_flags.read(model.config.transformer.num_layers)
    folder = None if _OUTPUT_DIR.value is None else cli.output_folder(_OUTPUT_DIR)

    scenes = draw_scenes(model, _NUM_SKETCHES.value)
    unguided = sample_unguided(model, scenes, guided_flags.record["seed"])
    no_structure = guided_flags.settings._replace(lambda_s=0.0)
    realistic = sample_guided(model, scenes, guided_flags, no_structure, "lambda_s = 0")
    guided = sample_guided(model, scenes, guided_flags, guided_flags.settings, "guided")
    photo_ids = encode(model, scenes.photos)
    # Scenes are independent draws, so the neighbour's is as good as any other.
    neighbours = Scenes(*(np.roll(field, 1, axis=0) for field in scenes))

    judge = load_judge()
    measure = functools.partial(score, model, judge, guided_flags)
    rows = {
        "real photos": measure(Pictures(scenes.photos), scenes),
        "tokenizer round trip": measure(decode(model, photo_ids), scenes),
        "sketches as answers": measure(Pictures(scenes.sketches, scenes.sketch_ids), scenes),
        "unguided": measure(unguided, scenes),
        "lambda_s = 0": measure(realistic, scenes),
        "guided": measure(guided, scenes),
    }
    if len(scenes.labels) > 1:
        rows["guided, other sketches"] = measure(guided, neighbours)

    print(format_table(rows))
    if folder is not None:
        record = guided_flags.record | {
            "num_sketches": _NUM_SKETCHES.value,
            "unguided_steps": _UNGUIDED_STEPS.value,
            "unguided_temperature": _UNGUIDED_TEMPERATURE,
            "eval_seed": EVAL_SEED,
        }
        text = json.dumps({"settings": record, "rows": summary(rows)}, indent=1)
        cli.write_text(folder / "evaluation.json", text + "\n")
        grid = (scenes.sketches, guided.images, unguided.images, scenes.photos)
        save_png(
            folder / "grid.png",
            make_grid(
                [image for images in grid for image in images[:_GRID_COLUMNS]],
                columns=min(_GRID_COLUMNS, len(scenes.labels)),
                scale=max(1, 96 // model.config.tokenizer.image_size),
            ),
        )
        print(f"look at {folder / 'grid.png'}")


def load_demo_world_model(name: str) -> Model:
    """Loads a model of the demo world's classes, the only ones that the judge knows.

    Raises:
      InputError: as `load_model`, or the model has other classes or an unsuited picture size.
    """
    known = "evaluate judges the demo world's pictures: give demo or a folder of such a model"
    if name in download.MODELS:  # before gigabytes of it are fetched
        raise InputError(f"--model={name}: an ImageNet model; {known}")
    model = load_model(name)
    if model.config.class_names != world.CLASS_NAMES:
        raise InputError(f"--model={name}: its classes are not the demo world's; {known}")
    size = model.config.tokenizer.image_size
    if size % 4:
        raise InputError(f"--model={name}: image_size is {size}, expected a multiple of 4")
    return model


def draw_scenes(model: Model, num_scenes: int) -> Scenes:
    """The first held-out scenes, at the size of the model's pictures."""
    size = model.config.tokenizer.image_size
    drawn = [
        world.draw_scene(EVAL_SEED, index, size=size)
        for index in tqdm(range(num_scenes), desc="drawing scenes", unit="", mininterval=1)
    ]
    sketches = np.stack([np.repeat(scene.sketch[..., None], 3, axis=-1) for scene in drawn])
    return Scenes(
        photos=np.stack([scene.image for scene in drawn]),
        sketches=sketches,
        masks=np.stack([scene.mask for scene in drawn]),
        labels=np.array([scene.label for scene in drawn], np.int32),
        sketch_ids=encode(model, sketches),
    )


def sample_unguided(model: Model, scenes: Scenes, seed: int) -> Pictures:
    """Plain MaskGIT samples of the scenes' classes."""
    tokens = _tokens(model, scenes, np.full_like(scenes.sketch_ids, MASK_ID))
    with tqdm(total=len(tokens), desc="unguided", unit="sample") as bar:

        def draw(tokens, indices):
            ids = sampling.sample(
                model,
                jnp.asarray(tokens),
                num_steps=_UNGUIDED_STEPS.value,
                seed=seed,
                indices=jnp.asarray(indices),
                temperature=_UNGUIDED_TEMPERATURE,
            )
            jax.block_until_ready(ids)
            bar.update(len(tokens))
            return ids

        return decode(model, _in_batches(draw, tokens, np.arange(len(tokens))))


def sample_guided(
    model: Model,
    scenes: Scenes,
    guided_flags: GuidanceFlags,
    settings: StructureSettings,
    name: str,
) -> Pictures:
    """Samples led by the scenes' sketches; `name` stands before the progress bar."""
    tokens = _tokens(model, scenes, scenes.sketch_ids)
    num_steps = guided_flags.num_steps
    num_batches = len(guidance_flags.batches(len(tokens)))
    with tqdm(total=num_batches * num_steps, desc=name, unit="step") as bar:

        def draw(tokens, indices):
            first = bar.n
            samples = masksketch.sample(
                model,
                jnp.asarray(tokens),
                settings,
                num_steps=num_steps,
                seed=guided_flags.record["seed"],
                indices=jnp.asarray(indices),
                divergence=guided_flags.divergence,
                progress=lambda done: bar.update(first + done - bar.n),
            )
            return samples.ids

        return decode(model, _in_batches(draw, tokens, np.arange(len(tokens))))


def encode(model: Model, images: UInt8[np.ndarray, "n H W 3"]) -> Int[np.ndarray, "n N"]:
    """Ids of pictures."""
    return _in_batches(lambda images: model.encode(jnp.asarray(to_float(images))), images)


def decode(model: Model, ids: Int[np.ndarray, "n N"]) -> Pictures:
    """The pictures of ids, as they would be saved."""
    images = _in_batches(lambda ids: to_uint8(np.asarray(model.decode(jnp.asarray(ids)))), ids)
    return Pictures(images, ids)


def score(
    model: Model,
    judge: tuple[Any, Any],
    guided_flags: GuidanceFlags,
    pictures: Pictures,
    scenes: Scenes,
) -> Scores:
    """Every figure of every picture against its scene."""
    images = to_float(pictures.images)
    masks, labels = predict(*judge, images)
    scores: Scores = {
        "silhouette_iou": silhouette_iou(masks, scenes.masks),
        "class_accuracy": labels == scenes.labels,
        "structure_distance": None,
        "white_background": white_background(images),
        "sketch_tokens": None,
    }
    if pictures.ids is not None:
        scores["structure_distance"] = _in_batches(
            functools.partial(
                _structure_distance,
                model.transformer,
                model.transformer_params,
                guided_flags.settings.layer_weights,
                guided_flags.divergence,
            ),
            _tokens(model, scenes, scenes.sketch_ids),
            _tokens(model, scenes, pictures.ids),
        )
        scores["sketch_tokens"] = shared_token_share(pictures.ids, scenes.sketch_ids, scenes.masks)
    return scores


def format_table(rows: dict[str, Scores]) -> str:
    """The rows' means and standard errors in columns of equal width."""

    def cell(values, digits) -> str:
        if values is None:
            return "-"
        mean, error = mean_and_error(values)
        return f"{mean:.{digits}f}" + ("" if np.isnan(error) else f" ± {error:.{digits}f}")

    lines = [["pictures", *(title for title, _ in _COLUMNS.values()), "n"]]
    for name, scores in rows.items():
        cells = [cell(scores[column], digits) for column, (_, digits) in _COLUMNS.items()]
        lines.append([name, *cells, str(len(scores["class_accuracy"]))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def summary(rows: dict[str, Scores]) -> list[dict[str, Any]]:
    """The table for evaluation.json; null where there is no figure."""

    def entry(values) -> dict[str, float | None] | None:
        if values is None:
            return None
        mean, error = mean_and_error(values)
        return {"mean": mean, "standard_error": None if np.isnan(error) else error}

    return [
        {"pictures": name, "n": len(scores["class_accuracy"])}
        | {column: entry(scores[column]) for column in _COLUMNS}
        for name, scores in rows.items()
    ]


def _tokens(model: Model, scenes: Scenes, ids: Int[np.ndarray, "n N"]) -> Int[np.ndarray, "n S"]:
    """Ids behind the class tokens of the scenes."""
    tokens = with_class_token(model.config, jnp.asarray(scenes.labels), jnp.asarray(ids))
    return np.asarray(tokens)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _structure_distance(
    transformer, params, layer_weights, divergence, sketch_tokens, tokens
) -> Float[jax.Array, "b"]:
    """Mean distance over the image tokens, as `masksketch.sample` reports it."""
    num_layers = layer_weights.shape[-1]

    def one(sketch_tokens, tokens):
        target, sampled = (
            transformer.apply({"params": params}, each, num_layers, method="attention")
            for each in (sketch_tokens, tokens)
        )
        return jnp.mean(structure_distance(target, sampled, layer_weights, divergence)[1:])

    return jax.vmap(one)(sketch_tokens, tokens)


def _in_batches(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """The function's results on batches of the arrays' rows, put together."""
    batches = guidance_flags.batches(len(arrays[0]))
    return np.concatenate(
        [np.asarray(function(*(array[batch] for array in arrays))) for batch in batches]
    )


if __name__ == "__main__":
    cli.run(main)
