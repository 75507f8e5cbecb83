"""Attention seen: does a sketch attend as the photo of the same layout does?

    python -m experiments.attention --scene_index=3 --output_dir=out

MaskSketch (arXiv:2302.05496) rests on this: self-attention of the masked transformer follows a
picture's layout, whether it is a photo or a drawing. For a held-out scene of the demo world, or for
--photo, --sketch and --label, this draws what one token looks at in every layer (`attention.png`)
and where photo and sketch differ in it (`distance.png`).

Prints one table, also in `auc.json`: over --num_scenes held-out scenes, the mean structure distance
of a sketch to its own photo, to photos of other scenes of its class, and to those of any class; and
how well the distance tells the first from the others, as area under the ROC curve ± standard error
(jackknife over scenes). 0.5 is chance, 1 perfect. The last row is the floor: grey levels of pixels.
A model of other classes than the demo world's gets no table.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8
from tqdm import tqdm

from experiments.app import cli
from experiments.app.files import to_json
from experiments.demo_world import world
from experiments.studies.attention_figures import draw_attention, draw_distances
from experiments.studies.attention_maps import (
    attention_inputs,
    centre_token,
    other_pairs,
    pair_distances,
    pixel_distances,
    separation,
    token_attention,
)
from experiments.studies.tradeoff import check_matplotlib
from guidance.structure import DIVERGENCES, layer_distances
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, read_image, save_png, to_float
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, load_model, model_config, with_class_token
from maskgit_jax.networks.stacked import AttentionInputs

_MODEL = flags.DEFINE_string("model", "demo", "demo, imagenet256, imagenet512, or a model folder.")
_SEED = flags.DEFINE_integer("seed", 1, "The world's seed: 1 is held out, models train on 0.")
_SCENE_INDEX = flags.DEFINE_integer("scene_index", 0, "The scene to draw.")
_PHOTO = flags.DEFINE_string("photo", None, "Picture file to draw instead of a scene.")
_SKETCH = flags.DEFINE_string("sketch", None, "Picture file: the photo's sketch.")
_LABEL = flags.DEFINE_string("label", None, "What the photo shows: a class's name or number.")
_FIT = flags.DEFINE_enum("fit", "pad", ["pad", "crop"], "How files that are not square fit.")
_TOKEN = flags.DEFINE_string("token", None, "ROW,COLUMN from 0; the drawing's centre if not given.")
_HEAD = flags.DEFINE_integer("head", None, "Attention head to draw; the mean of all if not given.")
_NUM_SCENES = flags.DEFINE_integer("num_scenes", 100, "Scenes in the table.")
_DIVERGENCE = flags.DEFINE_enum("divergence", "jeffreys", list(DIVERGENCES), "Of attention maps.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "out", "Folder for the results.")

_ATTENTION, _DISTANCE, _TABLE = "attention.png", "distance.png", "auc.json"
_FEWEST_SCENES, _MOST_SCENES = 10, 1000  # whose queries and keys are all in memory


class Pair(NamedTuple):
    """A photo and its sketch, and their class."""

    photo: UInt8[np.ndarray, "H W 3"]
    sketch: UInt8[np.ndarray, "H W 3"]
    label: int


def main() -> None:
    """Draws and measures as the flags say."""
    check_matplotlib()
    # All that can be wrong is looked at before anything large is fetched or made.
    config = model_config(_MODEL.value)
    _check_numbers(config)
    pair = _read_pair(config)
    token = _read_token(pair.sketch, config.tokenizer.latent_size)
    model = load_model(_MODEL.value)
    folder = cli.output_folder(_OUTPUT_DIR)
    for flag in (_PHOTO, _SKETCH):
        if flag.value is not None and _is_result(Path(flag.value), folder):
            raise InputError(
                f"--{flag.name}={flag.value} would be overwritten: give another --output_dir"
            )

    attention, distances = _draw(model, pair, token)
    table = _measure(model) if config.class_names == world.CLASS_NAMES else None
    save_png(folder / _ATTENTION, attention)
    save_png(folder / _DISTANCE, distances)
    if table is None:
        # An earlier run's would pass for this one's.
        (folder / _TABLE).unlink(missing_ok=True)
        print("no table: the model's classes are not the demo world's")
    else:
        settings = {flag.name: flag.value for flag in (_MODEL, _SEED, _NUM_SCENES, _DIVERGENCE)}
        text = to_json({"settings": settings, "rows": table}, indent=1)
        cli.write_text(folder / _TABLE, text + "\n")
        print(format_table(table))
    print(f"look at {folder / _ATTENTION} and {folder / _DISTANCE}")


def _is_result(path: Path, folder: Path) -> bool:
    return path.resolve() in [folder.resolve() / name for name in (_ATTENTION, _DISTANCE)]


def _check_numbers(config: ModelConfig) -> None:
    for flag, low, high in (
        (_SEED, 0, 2**32 - 1),
        (_SCENE_INDEX, 0, 2**32 - 1),
        (_HEAD, 0, config.transformer.num_heads - 1),
        (_NUM_SCENES, _FEWEST_SCENES, _MOST_SCENES),
    ):
        if flag.value is not None and not low <= flag.value <= high:
            raise InputError(f"--{flag.name}={flag.value}: expected {low} to {high}")


def _read_pair(config: ModelConfig) -> Pair:
    """The files that the flags name, or the scene."""
    size = config.tokenizer.image_size
    files = {flag.name: flag.value for flag in (_PHOTO, _SKETCH, _LABEL)}
    if any(value is not None for value in files.values()):
        missing = [f"--{name}" for name, value in files.items() if value is None]
        if missing:
            raise InputError(
                f"{' and '.join(missing)} missing: --photo, --sketch and --label go together"
            )
        label = find_label(_LABEL.value, config.class_names)
        photo, sketch = (
            fit_image(read_image(flag.value), size, mode=_FIT.value) for flag in (_PHOTO, _SKETCH)
        )
        return Pair(photo, sketch, label)
    if config.class_names != world.CLASS_NAMES:
        raise InputError(
            f"--model={_MODEL.value}: its classes are not the demo world's; give --photo, "
            "--sketch and --label"
        )
    return _draw_pair(_SCENE_INDEX.value, size)


def _draw_pair(index: int, size: int) -> Pair:
    scene = world.draw_scene(_SEED.value, index, size=size)
    return Pair(scene.image, np.repeat(scene.sketch[..., None], 3, axis=-1), scene.label)


def _read_token(sketch: UInt8[np.ndarray, "H W 3"], side: int) -> tuple[int, int]:
    """Row and column on the latent grid: the flag's, or of the centre of what is drawn."""
    if _TOKEN.value is None:
        return centre_token(sketch, side)
    found = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", _TOKEN.value)
    if found is None or max(map(int, found.groups())) >= side:
        raise InputError(
            f"--token={_TOKEN.value}: expected ROW,COLUMN, each from 0 to {side - 1}, such as "
            f"{side // 2},{side // 2}"
        )
    return int(found[1]), int(found[2])


def _draw(
    model: Model, pair: Pair, token: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "_ _ 3"], UInt8[np.ndarray, "_ _ 3"]]:
    """`attention.png` and `distance.png`."""
    side = model.config.tokenizer.latent_size
    photo, sketch = (
        jax.tree.map(lambda inputs: inputs[0], _look(model, image[None], np.array([pair.label])))
        for image in (pair.photo, pair.sketch)
    )
    number = token[0] * side + token[1]
    maps = (
        token_attention(inputs, number, _HEAD.value).reshape(-1, side, side)
        for inputs in (photo, sketch)
    )
    of_heads = "mean of heads" if _HEAD.value is None else f"head {_HEAD.value}"
    name = model.config.class_names[pair.label].split(",")[0]
    title = f"{name}: what token {token[0]},{token[1]} looks at"
    attention = draw_attention(pair.photo, pair.sketch, *maps, token, f"{title} ({of_heads})")
    distances = np.asarray(layer_distances(sketch, photo, _DIVERGENCE.value))[:, 1:]
    return attention, draw_distances(
        pair.photo,
        pair.sketch,
        distances.reshape(-1, side, side),
        f"where attention of photo and sketch differs ({_DIVERGENCE.value})",
    )


def _look(
    model: Model, images: UInt8[np.ndarray, "n H W 3"], labels: Int[np.ndarray, "n"]
) -> AttentionInputs:
    """Queries and keys of pictures, [n, L, S, H, d]."""
    # One at a time: in a batch, an id could depend on its size.
    ids = jnp.concatenate([model.encode(jnp.asarray(to_float(image))[None]) for image in images])
    tokens = with_class_token(model.config, jnp.asarray(labels), ids)
    return attention_inputs(model, np.asarray(tokens))


def _measure(model: Model) -> list[dict[str, Any]]:
    """The table's rows: each layer, the mean of layers, pixels."""
    size, count = model.config.tokenizer.image_size, _NUM_SCENES.value
    drawn = [
        _draw_pair(index, size)
        for index in tqdm(range(count), desc="drawing scenes", unit="", mininterval=1)
    ]
    photos, sketches, labels = map(np.stack, zip(*drawn, strict=True))
    rng = np.random.default_rng([_SEED.value, count])
    own = np.repeat(np.arange(count)[:, None], 2, axis=1)
    same, other = (other_pairs(labels, rng, same_class=chosen) for chosen in (True, False))
    pairs = np.concatenate([own, same, other])

    by_layer = pair_distances(
        _look(model, sketches, labels), _look(model, photos, labels), pairs, _DIVERGENCE.value
    )
    columns = {f"layer {layer}": column for layer, column in enumerate(by_layer.T)}
    columns["mean of layers"] = by_layer.mean(axis=1)
    columns["pixels (grey levels)"] = pixel_distances(sketches, photos, pairs)
    rows = []
    for name, distances in columns.items():
        near, far_same, far_any = np.split(distances, [count, count + len(same)])
        rows.append(
            {
                "distance": name,
                "own_photo": float(np.mean(near)),
                "same_class": separation(near, far_same, same)._asdict(),
                "any_class": separation(near, far_any, other)._asdict(),
            }
        )
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows in columns of equal width."""

    def number(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.3f}"

    def area(entry: dict[str, Any]) -> str:
        return f"{number(entry['auc'])} ± {number(entry['standard_error'])}"

    titles = ["distance", "own photo", "same class", "any class", "AUC same class", "AUC any class"]
    lines = [titles]
    for row in rows:
        same, other = row["same_class"], row["any_class"]
        means = (row["own_photo"], same["mean_far"], other["mean_far"])
        lines.append([row["distance"], *map(number, means), area(same), area(other)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    cli.run(main)
