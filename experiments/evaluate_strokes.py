"""Measures how strokes lead: the table of methods and the curve of the confidence knob.

    python -m experiments.evaluate_strokes --num_images=100 --output_dir=runs/strokes

Takes held-out scenes of the demo world, each with a stroke: by turns an automatic one
(guidance/strokes.py) and one of the object's parts, painted in its mean colour (inversion) or a
random one (counterfactual). Prints one table in Markdown: figures ± standard errors. With
--output_dir also writes `strokes.json`, `confidence.png` and `grid.png`. Each row that is done is
kept there, in `strokes.jsonl` and `columns`: a stopped evaluation goes on.

Columns. Faithful to the stroke: mean absolute difference of the colours inside it (channels in
[0, 1]; all, inversion, counterfactual), the same as CIE Lab ΔE, share of the region's ids that are
the painted picture's. Realistic: share of pictures of the right class by the judge
(experiments/demo_world/judge.py), and the seam, the steps across the stroke's outline against those
of the photo (1: as in the photo; a counterfactual stroke cannot be 1).

Rows. The photo, the stroke as painted, and the methods of `experiments.stroke`, those with a
confidence at several. --energy and --iterative_model, the results of experiments.tune_energy and
experiments.tune_iterative, add their rows.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

from experiments.app import cli, digests, edit_flags, files
from experiments.app.batches import in_batches
from experiments.app.tables import Figures, markdown_table, read_figures, read_finished
from experiments.demo_world import judge, world
from experiments.demo_world.held_out import EVAL_SEED, load_demo_world_model
from experiments.metrics.measures import mean_and_error
from experiments.metrics.seams import seam, seam_steps
from experiments.metrics.strokes import colour_distance, lab_distance, part_stroke
from experiments.studies.strokes_plot import check_matplotlib, plot_confidence
from guidance.stroke_sampling import CONFIDENT, follow_strokes, read_energy
from guidance.strokes import automatic_stroke
from maskgit_jax.editing.canvas import EditPicture, finish, outlined, prepare
from maskgit_jax.editing.inpaint import EditSettings
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, read_image, save_png, to_float
from maskgit_jax.model import Model

# --help lists them too.
flags.adopt_module_key_flags(edit_flags)

_CONFIDENCES = flags.DEFINE_list(
    "confidences", [f"{c / 10:g}" for c in range(11)], "Of tilt; 0 is the baseline."
)
_OTHER_CONFIDENCES = flags.DEFINE_list(
    "other_confidences", ["0.5", "0.6", "0.7", "0.8", "0.9", "1"], "Of the published methods."
)
_ENERGY = flags.DEFINE_string("energy", None, "For rows of learned: energy.npy of tune_energy.")
_ITERATIVE = flags.DEFINE_string(
    "iterative_model", None, "For a row of iterative: model folder of tune_iterative."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the results.")

COLUMNS = {
    "colour_distance": ("colour", 4),
    "inversion_distance": ("inversion", 4),
    "counterfactual_distance": ("counterfactual", 4),
    "lab_distance": ("ΔE", 1),
    "guide_ids": ("guide ids", 3),
    "class_accuracy": ("class", 3),
    "seam": ("seam", 2),
}
_GRID_ROWS = 6
_FINISHED = "strokes.jsonl"


class Strokes(NamedTuple):
    """Scenes with a stroke on each.

    Attributes:
      photos: the scenes as they look.
      painted: the same with the stroke.
      masks: where it is.
      counterfactual: whether its colour is random.
      labels: classes.
      pictures: the photos and masks, fitted to the model.
    """

    photos: UInt8[np.ndarray, "n H W 3"]
    painted: UInt8[np.ndarray, "n H W 3"]
    masks: Bool[np.ndarray, "n H W"]
    counterfactual: Bool[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    pictures: list[EditPicture]


class Row(NamedTuple):
    """A row to be made: a method, at a confidence where it has one."""

    method: str
    confidence: float | None

    @property
    def name(self) -> str:
        return self.method if self.confidence is None else f"{self.method} {self.confidence:g}"


class Finished(NamedTuple):
    """A row that is made: its figures, and its pictures for the grid."""

    figures: Figures
    shown: UInt8[np.ndarray, "g H W 3"]


def main() -> None:
    """Measures as the flags say."""
    settings, record = edit_flags.read("stroke")
    rows = [Row(method, None) for method in ("baseline", "context", "zero_shot")]
    rows += [Row("tilt", c) for c in read_confidences(_CONFIDENCES)]
    published = [name for name in CONFIDENT if name != "tilt"]
    for method in published if _ENERGY.value else published[:-1]:
        rows += [Row(method, c) for c in read_confidences(_OTHER_CONFIDENCES)]
    rows += [Row("iterative", None)] if _ITERATIVE.value else []
    model = load_demo_world_model(flags.FLAGS.model)
    tuned = load_demo_world_model(_ITERATIVE.value) if _ITERATIVE.value else None
    energy = None
    if _ENERGY.value is not None:
        energy = read_energy(_ENERGY.value, model.config.transformer.codebook_size)
    folder = None
    if _OUTPUT_DIR.value is not None:
        check_matplotlib()  # before hours of sampling
        folder = cli.output_folder(_OUTPUT_DIR)
    record |= {
        "energy": _ENERGY.value,
        "iterative_model": _ITERATIVE.value,
        "weights": digests.of_weights(model),
        "energy_digest": None if energy is None else digests.of_path(_ENERGY.value),
        "iterative_weights": None if tuned is None else digests.of_weights(tuned),
    }
    finished = {} if folder is None else read_rows(folder, record)

    strokes = draw_strokes(model, flags.FLAGS.num_images)
    judged = judge.load_judge()
    figures = {
        "photo": measure(strokes, strokes.photos, None, judged),
        "stroke as painted": measure(strokes, strokes.painted, None, judged),
    }
    shown = {"photo": outline_all(strokes), "stroke as painted": strokes.painted}
    for row in rows:
        if row.method == "tilt" and row.confidence == 0:
            # The same ids by construction; tests hold it to that.
            figures[row.name] = figures["baseline"]
            continue
        if row.name not in finished:
            images, share = sample(
                tuned if row.method == "iterative" else model, strokes, row, settings, energy
            )
            made = Finished(measure(strokes, images, share, judged), images[:_GRID_ROWS])
            if folder is not None:
                add_row(folder, record, row, made)
            finished[row.name] = made
        figures[row.name], shown[row.name] = finished[row.name]
    table = markdown_table(figures, COLUMNS)
    print(table)
    print(f"n = {len(strokes.labels)} scenes; {settings.num_steps} steps")
    if folder is None:
        return
    results = {
        "settings": record,
        "rows": {name: entries(row) for name, row in figures.items()},
    }
    cli.write_text(folder / "strokes.json", files.to_json(results, indent=1) + "\n")
    curves = {
        method: {row.confidence: figures[row.name] for row in rows if row.method == method}
        for method in CONFIDENT
    }
    save_png(folder / "confidence.png", plot_confidence(curves, figures["baseline"]))
    save_png(folder / "grid.png", grid(shown))
    print(f"look at {folder / 'confidence.png'} and {folder / 'grid.png'}")


def read_confidences(flag: flags.FlagHolder) -> list[float]:
    """A flag's values, ascending."""
    try:
        values = sorted({float(text) for text in flag.value})
    except ValueError:
        values = []
    if not values or not all(0 <= value <= 1 for value in values):
        text = ",".join(flag.value)
        raise InputError(f"--{flag.name}={text}: expected numbers from 0 to 1, such as 0.5,1")
    return values


def draw_strokes(model: Model, count: int) -> Strokes:
    """The first held-out scenes, each with a stroke."""
    size = model.config.tokenizer.image_size
    scenes, drawn = [], []
    for index in tqdm(range(count), desc="drawing", unit="scene", mininterval=1):
        scenes.append(world.draw_scene(EVAL_SEED, index, size=size))
        kind = "counterfactual" if index % 2 else "inversion"
        made = part_stroke(scenes[-1], kind) if index // 2 % 2 else None
        drawn.append(made or automatic_stroke(scenes[-1].image, kind, index))
    return Strokes(
        photos=np.stack([scene.image for scene in scenes]),
        painted=np.stack([stroke.painted for stroke in drawn]),
        masks=np.stack([stroke.mask for stroke in drawn]),
        counterfactual=np.arange(count) % 2 == 1,
        labels=np.array([scene.label for scene in scenes], np.int32),
        pictures=[
            prepare(scene.image, stroke.mask, model.config.tokenizer)
            for scene, stroke in zip(scenes, drawn, strict=True)
        ],
    )


def sample(
    model: Model, strokes: Strokes, row: Row, settings: EditSettings, energy: Any
) -> tuple[UInt8[np.ndarray, "n H W 3"], Float[np.ndarray, "n"]]:
    """A row's pictures, blended, and the share of the region's ids that are the guide's."""
    hidden = np.stack([picture.hidden for picture in strokes.pictures])

    def make(rows):
        samples = follow_strokes(
            model,
            strokes.photos[rows],
            strokes.painted[rows],
            hidden[rows],
            strokes.labels[rows],
            settings,
            method=row.method,
            confidence=1.0 if row.confidence is None else row.confidence,
            energy=energy if row.method == "learned" else None,
            seed=flags.FLAGS.seed,
            indices=rows,
        )
        same = (samples.ids == samples.guide_ids) & hidden[rows]
        images = [finish(strokes.pictures[i], x) for i, x in zip(rows, samples.images, strict=True)]
        return np.stack(images), same.sum(axis=1) / hidden[rows].sum(axis=1)

    rows = np.arange(len(strokes.labels))
    with tqdm(total=len(rows), desc=row.name, unit="picture") as bar:
        return in_batches(make, rows, size=flags.FLAGS.batch_size, progress=bar.update)


def measure(
    strokes: Strokes,
    images: UInt8[np.ndarray, "n H W 3"],
    guide_ids: Float[np.ndarray, "n"] | None,
    judged: tuple[Any, Any],
) -> Figures:
    """The figures of a row of pictures; `guide_ids`: each one's share of guide ids."""
    distance = colour_distance(images, strokes.painted, strokes.masks)
    radius = strokes.pictures[0].blend_radius
    steps = [
        seam_steps(to_float(image[None]), mask, radius)[0]
        for pictures in (images, strokes.photos)
        for image, mask in zip(pictures, strokes.masks, strict=True)
    ]
    made, own = np.split(np.array(steps), 2)
    right = judge.predict(*judged, to_float(images)).labels == strokes.labels
    return {
        "colour_distance": mean_and_error(distance),
        "inversion_distance": mean_and_error(distance[~strokes.counterfactual]),
        "counterfactual_distance": mean_and_error(distance[strokes.counterfactual]),
        "lab_distance": mean_and_error(lab_distance(images, strokes.painted, strokes.masks)),
        "guide_ids": None if guide_ids is None else mean_and_error(guide_ids),
        "class_accuracy": mean_and_error(right),
        "seam": seam(made, own),
    }


def read_rows(folder: Path, record: dict[str, Any]) -> dict[str, Finished]:
    """The rows that `add_row` has added, by name; InputError if other flags made them."""
    rows = {}
    for line in read_finished(folder / _FINISHED, record):
        column = read_image(folder / line["column"])
        side = column.shape[1]
        shown = column.reshape(-1, side, side, 3)
        rows[line["name"]] = Finished(read_figures(line["figures"]), shown)
    return rows


def add_row(folder: Path, record: dict[str, Any], row: Row, made: Finished) -> None:
    """Adds a row to the folder: its pictures, then its line."""
    (folder / "columns").mkdir(exist_ok=True)
    column = f"columns/{row.name.replace(' ', '_')}.png"
    save_png(folder / column, np.concatenate(made.shown))
    line = {"name": row.name, "column": column, "figures": made.figures, "record": record}
    files.append(folder / _FINISHED, (files.to_json(line) + "\n").encode())


def entries(figures: Figures) -> dict[str, Any]:
    """A row for strokes.json; null where there is no figure."""
    return {
        name: None if figure is None else {"value": figure[0], "standard_error": figure[1]}
        for name, figure in figures.items()
    }


def outline_all(strokes: Strokes) -> UInt8[np.ndarray, "n H W 3"]:
    """The photos with their strokes' outlines."""
    return np.stack([outlined(*each) for each in zip(strokes.photos, strokes.masks, strict=True)])


def grid(shown: dict[str, UInt8[np.ndarray, "n H W 3"]]) -> UInt8[np.ndarray, "h w 3"]:
    """One row of pictures for each of the first scenes, one column for each row of the table."""
    rows = zip(*(column[:_GRID_ROWS] for column in shown.values()), strict=True)
    images = [image for row in rows for image in row]
    return make_grid(images, columns=len(shown), scale=max(1, 96 // len(images[0])))


if __name__ == "__main__":
    cli.run(main)
