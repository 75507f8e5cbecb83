"""Attention seen: does a sketch attend as the photo of the same layout does?

    python -m experiments.attention --scene_index=3 --output_dir=out

MaskSketch (arXiv:2302.05496) rests on this: self-attention of the masked transformer follows a
picture's layout, whether it is a photo or a drawing. For a held-out scene of the demo world, or for
--photo, --sketch and --label, this draws what one token looks at in every layer (`attention.png`)
and where photo and sketch differ in it (`distance.png`).

Prints one table, also in `auc.json` (`experiments/studies/study.py`): over --num_scenes held-out
scenes, the mean structure distance of a sketch to its own photo, to photos of other scenes of its
class, and to those of any class; and how well the distance tells the first from the others, as area
under the ROC curve ± standard error (jackknife over scenes). 0.5 is chance, 1 perfect. The last row
is the floor: grey levels of pixels. A model of other classes than the demo world's gets no table.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from experiments.app import cli
from experiments.app.flag_groups import MODEL_HELP, ToneFlags
from experiments.demo_world import world
from experiments.studies.attention import TABLE, Pair, centre_token, scene_pair, study_attention
from experiments.studies.attention_figures import draw_pair
from experiments.studies.plots import check_matplotlib
from experiments.studies.study import StudyFlags, save_pictures
from guidance.sketches import read_sketch
from guidance.structure import DIVERGENCES
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, read_image
from maskgit_jax.knobs import SEEDS, knob
from maskgit_jax.labels import find_label
from maskgit_jax.model import load_model, model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(StudyFlags, ToneFlags):
    """What is drawn and what is measured."""

    model: str = knob("demo", MODEL_HELP, kind=Path)
    seed: int = knob(1, "The world's seed: 1 is held out, models train on 0.", **SEEDS)
    scene_index: int = knob(0, "The scene to draw.", **SEEDS)
    photo: str | None = knob(None, "Picture file to draw instead of a scene.", kind=Path)
    sketch: str | None = knob(None, "Picture file: the photo's sketch.", kind=Path)
    label: str | None = knob(None, "What the photo shows: a class's name or number.")
    fit: str = knob("pad", "How files that are not square fit.", choices=("pad", "crop"))
    token: str | None = knob(None, "ROW,COLUMN from 0; the drawing's centre if not given.")
    head: int | None = knob(
        None, "Attention head to draw; the mean of all if not given.", low=0, kind=int
    )
    # The queries and keys of all scenes are in memory.
    num_scenes: int = knob(100, "Scenes in the table.", low=10, high=1000)
    divergence: str = knob("jeffreys", "Of attention maps.", choices=DIVERGENCES)
    output_dir: str = knob("out", "Folder for the results.", kind=Path)


def main(flags: Flags) -> None:
    """Draws the attention of a photo and its sketch, and measures that of many."""
    check_matplotlib()
    # All that can be wrong is looked at before anything large is fetched or made.
    config = model_config(flags.model)
    highest = config.transformer.num_heads - 1
    if flags.head is not None and not 0 <= flags.head <= highest:
        raise InputError(f"--head={flags.head}: expected 0 to {highest}")
    pair = _read_pair(flags, config)
    token = _read_token(flags.token, pair.sketch, config.tokenizer.latent_size)
    model = load_model(flags.model)
    places = flags.places()
    folder = places["folder"]
    pictures = ("attention.png", "distance.png")
    for name in ("photo", "sketch"):
        path = getattr(flags, name)
        if path is not None and Path(path).resolve() in [(folder / x).resolve() for x in pictures]:
            raise InputError(f"--{name}={path} would be overwritten: give another --output_dir")

    drawn = draw_pair(model, pair, token, flags.head, flags.divergence)
    if config.class_names == world.CLASS_NAMES:
        names = ("model", "seed", "num_scenes", "divergence")
        study_attention(model, places, {name: getattr(flags, name) for name in names})
    else:
        # An earlier run's would pass for this one's.
        for path in folder.glob(f"{TABLE}.*"):
            path.unlink()
        print("no table: the model's classes are not the demo world's")
    save_pictures(folder, dict(zip(pictures, drawn, strict=True)))


def _read_pair(flags: Flags, config: ModelConfig) -> Pair:
    """The files that the flags name, or the scene."""
    size = config.tokenizer.image_size
    files = {name: getattr(flags, name) for name in ("photo", "sketch", "label")}
    missing = [f"--{name}" for name, value in files.items() if value is None]
    if len(missing) < len(files):
        if missing:
            raise InputError(
                f"{' and '.join(missing)} missing: --photo, --sketch and --label go together"
            )
        label = find_label(flags.label, config.class_names)
        photo = fit_image(read_image(flags.photo), size, mode=flags.fit)
        sketch = read_sketch(flags.sketch, size, fit=flags.fit, invert=flags.invert).image
        return Pair(photo, sketch, label)
    if config.class_names != world.CLASS_NAMES:
        raise InputError(
            f"--model={flags.model}: its classes are not the demo world's; give --photo, "
            "--sketch and --label"
        )
    return scene_pair(flags.seed, flags.scene_index, size)


def _read_token(text: str | None, sketch: UInt8[np.ndarray, "H W 3"], side: int) -> tuple[int, int]:
    """Row and column on the latent grid: the given ones, or of the centre of what is drawn."""
    if text is None:
        return centre_token(sketch, side)
    found = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text)
    if found is None or max(map(int, found.groups())) >= side:
        raise InputError(
            f"--token={text}: expected ROW,COLUMN, each from 0 to {side - 1}, such as "
            f"{side // 2},{side // 2}"
        )
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    cli.run(main, Flags)
