"""Measures whether guided pictures follow their sketches and look like photos.

    python -m experiments.evaluate --model=demo --num_sketches=100 --output_dir=runs/evaluation

Takes held-out scenes of the demo world, decodes from each one's sketch and label, and asks the
judge (`experiments/demo_world/judge.py`) where the object and its parts are and what it is. Prints
one table in Markdown: figures ± standard errors. With --output_dir also writes `evaluation.json`
and `grid.png` (rows: what guided, guided, unguided, photo).

Columns. Like the sketch: overlap of the object with the scene's (IoU) and of its parts (part mIoU),
agreement of edges with the drawing's lines (F-score within 1/24 of the side, mean distance in
sides), share of pictures of the right class, structure distance. Like a photo: Fréchet distance,
precision and recall of the judge's features against photos of other scenes. Like a copy of the
sketch: share of white backgrounds, share of the ids inside the object that are the sketch's own.

Rows. Ceilings: the scenes' photos and their tokenizer round trips. Floors: "unguided" is plain
MaskGIT sampling of the same classes, "lambda_s = 0" the guided decoder without structure, "guided,
other sketches" the guided pictures held against another scene; the sketches themselves, handed back
as answers, show what the columns of likeness alone would miss.

--condition takes another drawing of the scene than its outline sketch. --lambda_s_curve adds a row
for each given λ_s and draws `tradeoff.png`.

--drawings=FOLDER decodes from drawings by people instead: files named CLASS_ANYTHING.png, or in a
sub-folder for each class. Nobody knows the picture behind them, so two figures are left: class
accuracy, and the share of samples that are nearer in structure to their own drawing than to another
of the folder, of the same class or of any other.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Int, UInt8

from experiments.app import cli, guidance_flags
from experiments.app.drawings import label_of_path
from experiments.app.files import to_json
from experiments.app.guidance_flags import GuidanceFlags
from experiments.app.pictures import picture_files
from experiments.app.tables import Figures, cell, markdown_table
from experiments.demo_world.held_out import EVAL_SEED, REFERENCE_SEED, load_demo_world_model
from experiments.demo_world.judge import load_judge, predict
from experiments.metrics.measures import mean_and_error, other_drawings, psnr, ssim
from experiments.studies import tradeoff
from experiments.studies.samples import (
    Pictures,
    decode,
    encode,
    sample_guided,
    sample_unguided,
    structure_distances,
)
from experiments.studies.scenes import (
    COLUMNS,
    Scenes,
    draw_scenes,
    measure_pictures,
    reference_features,
)
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, make_grid, read_image, save_png, to_float
from maskgit_jax.model import Model

# --help lists them too.
flags.adopt_module_key_flags(guidance_flags)

_NUM_SKETCHES = flags.DEFINE_integer("num_sketches", 100, "Held-out scenes to decode.")
_NUM_REFERENCE = flags.DEFINE_integer("num_reference", 2000, "Photos to compare features with.")
_CONDITION = flags.DEFINE_enum(
    "condition", "sketch", ["sketch", "scribble", "edges"], "The drawing of a scene that guides."
)
_CURVE = flags.DEFINE_list("lambda_s_curve", [], "More rows, one for each λ_s: 0,0.5,1.")
_DRAWINGS = flags.DEFINE_string(
    "drawings", None, "Folder of people's drawings, in place of scenes."
)
_UNGUIDED_STEPS = flags.DEFINE_integer("unguided_steps", None, "Steps of plain MaskGIT sampling.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the results.")

_GUIDED_PER_DRAWING = 2
_FEWEST = 5  # the third neighbour needs four, the jackknife one more
_GRID_COLUMNS = 12

_DRAWING_COLUMNS = {
    "class_accuracy": ("class", 3),
    "structure_distance": ("structure", 3),
    "nearer_than_same_class": ("nearer than same class", 3),
    "nearer_than_other_class": ("nearer than other class", 3),
}


def main() -> None:
    """Evaluates as the flags say."""
    for flag, least in ((_NUM_SKETCHES, _FEWEST), (_NUM_REFERENCE, _FEWEST), (_UNGUIDED_STEPS, 1)):
        if flag.value is not None and flag.value < least:
            raise InputError(f"--{flag.name}={flag.value}: expected {least} or more")
    curve = read_curve()
    if curve and _OUTPUT_DIR.value is not None:
        tradeoff.check_matplotlib()  # before hours of sampling
    if _DRAWINGS.value is not None and (curve or _CONDITION.value != "sketch"):
        raise InputError("--drawings takes no --lambda_s_curve and no --condition")
    model = load_demo_world_model(flags.FLAGS.model, flags.FLAGS.dtype)
    guided_flags = guidance_flags.read(model.config)
    folder = None if _OUTPUT_DIR.value is None else cli.output_folder(_OUTPUT_DIR)
    if _DRAWINGS.value is not None:
        evaluate_drawings(model, guided_flags, Path(_DRAWINGS.value), folder)
    else:
        evaluate_scenes(model, guided_flags, curve, folder)


def unguided_steps(model: Model) -> int:
    """The value of --unguided_steps, else that of the model's presets."""
    return _UNGUIDED_STEPS.value or model.config.presets["maskgit"]["num_steps"]


def read_curve() -> list[float]:
    """The values of --lambda_s_curve, ascending."""
    try:
        values = sorted({float(text) for text in _CURVE.value})
    except ValueError:
        values = [-1.0]
    if values and not 0 <= values[0] <= values[-1] <= 1:
        text = ",".join(_CURVE.value)
        raise InputError(f"--lambda_s_curve={text}: expected numbers from 0 to 1, such as 0,0.5,1")
    return values


def evaluate_scenes(
    model: Model, guided_flags: GuidanceFlags, curve: list[float], folder: Path | None
) -> None:
    """Prints the table of held-out scenes; with a folder, also writes it."""
    lambda_s = float(guided_flags.settings.lambda_s)
    scenes = draw_scenes(model, _NUM_SKETCHES.value, _CONDITION.value)
    judge = load_judge()
    reference = reference_features(model, judge, _NUM_REFERENCE.value)

    unguided = sample_unguided(
        model, scenes.labels, num_steps=unguided_steps(model), seed=guided_flags.record["seed"]
    )
    # Settings are traced: all λ_s share one compilation.
    by_lambda = {
        value: sample_guided(model, scenes.labels, scenes.drawing_ids, guided_flags, lambda_s=value)
        for value in sorted({0.0, lambda_s, *curve})
    }
    guided = by_lambda[lambda_s]
    round_trip = decode(model, encode(model, scenes.photos))
    # Scenes are independent draws, so the neighbour's is as good as any other.
    neighbours = Scenes(*(np.roll(field, 1, axis=0) for field in scenes))

    measure = functools.partial(measure_pictures, model, judge, reference, guided_flags)
    rows = {
        "real photos": measure(Pictures(scenes.photos), scenes),
        "tokenizer round trip": measure(round_trip, scenes),
        "sketches as answers": measure(Pictures(scenes.drawings, scenes.drawing_ids), scenes),
        "unguided": measure(unguided, scenes),
        "guided, other sketches": measure(guided, neighbours),
        "lambda_s = 0": measure(by_lambda[0.0], scenes),
        "guided": measure(guided, scenes),
    }
    names = {0.0: "lambda_s = 0", lambda_s: "guided"}
    for value in curve:
        if value not in names:
            names[value] = f"guided, lambda_s = {value:g}"
            rows[names[value]] = measure(by_lambda[value], scenes)
    fidelity = {
        name: mean_and_error(function(to_float(round_trip.images), to_float(scenes.photos)))
        for name, function in (("psnr", psnr), ("ssim", ssim))
    }

    print(markdown_table(rows, COLUMNS))
    print(
        f"n = {len(scenes.labels)} scenes, {len(reference)} reference photos; the Fréchet distance "
        "falls and precision and recall change as they grow. IoU, mIoU and edges count together "
        "with the others alone: a copied sketch scores high."
    )
    print(
        f"tokenizer: PSNR {cell(fidelity['psnr'], 2)} dB, SSIM {cell(fidelity['ssim'], 3)}; "
        f"guided: lambda_s = {lambda_s:g}, {guided_flags.num_steps} steps, {_CONDITION.value}"
    )
    if folder is None:
        return
    record = guided_flags.record | {
        "num_sketches": _NUM_SKETCHES.value,
        "num_reference": _NUM_REFERENCE.value,
        "condition": _CONDITION.value,
        "unguided_steps": unguided_steps(model),
        "unguided_temperature": model.config.presets["maskgit"]["temperature"],
        "eval_seed": EVAL_SEED,
        "reference_seed": REFERENCE_SEED,
    }
    write_results(
        folder,
        {"settings": record, "rows": summary(rows), "tokenizer": _entries(fidelity)},
        [scenes.drawings, guided.images, unguided.images, scenes.photos],
    )
    if curve:
        points = {value: rows[names[value]] for value in curve}
        save_png(folder / "tradeoff.png", tradeoff.plot(points, rows))
        print(f"look at {folder / 'tradeoff.png'}")


def evaluate_drawings(
    model: Model, guided_flags: GuidanceFlags, drawings: Path, folder: Path | None
) -> None:
    """Prints the table of people's drawings; with a folder, also writes it."""
    images, labels = read_drawings(drawings, model)
    ids = encode(model, images)
    judge = load_judge()
    count = len(labels)
    unguided = sample_unguided(
        model, labels, num_steps=unguided_steps(model), seed=guided_flags.record["seed"]
    )
    guided = sample_guided(
        model,
        np.tile(labels, _GUIDED_PER_DRAWING),
        np.tile(ids, (_GUIDED_PER_DRAWING, 1)),
        guided_flags,
        lambda_s=float(guided_flags.settings.lambda_s),
    )

    def measure(pictures: Pictures) -> Figures:
        repeats = len(pictures.images) // count

        def over_drawings(values) -> tuple[float, float]:
            """Samples of one drawing are no independent draws: their mean counts."""
            return mean_and_error(np.reshape(values, (repeats, count)).mean(axis=0))

        def distance_to(ids):
            return structure_distances(
                model,
                guided_flags,
                np.tile(labels, repeats),
                np.tile(ids, (repeats, 1)),
                pictures.ids,
            )

        own = distance_to(ids)
        figures = {
            "class_accuracy": over_drawings(
                predict(*judge, to_float(pictures.images)).labels == np.tile(labels, repeats)
            ),
            "structure_distance": over_drawings(own),
        }
        for name, same in (("nearer_than_same_class", True), ("nearer_than_other_class", False)):
            others = other_drawings(labels, same_class=same)
            figures[name] = (
                None if others is None else over_drawings(own < distance_to(ids[others]))
            )
        return figures

    rows = {"unguided": measure(unguided), "guided": measure(guided)}
    print(markdown_table(rows, _DRAWING_COLUMNS))
    print(f"n = {count} drawings, {_GUIDED_PER_DRAWING} guided samples of each")
    if folder is not None:
        # Evenly spread, so that the grid shows many classes.
        shown = np.linspace(0, count - 1, min(_GRID_COLUMNS, count)).astype(int)
        samples = guided.images.reshape(_GUIDED_PER_DRAWING, count, *guided.images.shape[1:])
        write_results(
            folder,
            {"settings": guided_flags.record | {"num_drawings": count}, "rows": summary(rows)},
            [row[shown] for row in (images, *samples, unguided.images)],
        )


def write_results(folder: Path, record: dict[str, Any], rows: list[np.ndarray]) -> None:
    """Writes `evaluation.json`, and the beginnings of the rows of pictures as `grid.png`."""
    cli.write_text(folder / "evaluation.json", to_json(record, indent=1) + "\n")
    columns = min(_GRID_COLUMNS, len(rows[0]))
    images = [image for row in rows for image in row[:columns]]
    scale = max(1, 96 // len(images[0]))
    save_png(folder / "grid.png", make_grid(images, columns=columns, scale=scale))
    print(f"look at {folder / 'grid.png'}")


def read_drawings(
    folder: Path, model: Model
) -> tuple[UInt8[np.ndarray, "n H W 3"], Int[np.ndarray, "n"]]:
    """The drawings in a folder and its sub-folders, fitted to the model's pictures, and classes.

    Raises:
      InputError: no such folder, no or too few pictures in it, or one of an unknown class.
    """
    files = picture_files(folder)
    if len(files) < 2:
        raise InputError(
            f"--drawings={folder}: found {len(files)} pictures, expected 2 or more, named "
            "CLASS_ANYTHING.png or in a sub-folder for each class"
        )
    labels = [label_of_path(path, model.config.class_names) for path in files]
    size = model.config.tokenizer.image_size
    images = np.stack([fit_image(read_image(path), size) for path in files])
    return images, np.array(labels, np.int32)


def summary(rows: dict[str, Figures]) -> list[dict[str, Any]]:
    """The table for evaluation.json; null where there is no figure."""
    return [{"pictures": name} | _entries(figures) for name, figures in rows.items()]


def _entries(figures: Figures) -> dict[str, Any]:
    return {
        name: None if figure is None else {"value": figure[0], "standard_error": figure[1]}
        for name, figure in figures.items()
    }


if __name__ == "__main__":
    cli.run(main)
