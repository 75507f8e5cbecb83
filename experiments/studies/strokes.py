"""The study behind `evaluate_strokes`: how strokes lead, method by method."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from experiments.app import digests
from experiments.app.tables import Figures
from experiments.demo_world import judge
from experiments.metrics.measures import mean_and_error
from experiments.metrics.seams import seam, seam_steps
from experiments.metrics.strokes import colour_distance, lab_distance, part_stroke
from experiments.studies import plots
from experiments.studies.scenes import Edits, draw_world, map_rows_shown
from experiments.studies.study import Pictures, Row, Study, grid, save_pictures
from guidance.strokes.automatic import automatic_stroke
from guidance.strokes.methods import CONFIDENT, follow_strokes
from maskgit_jax.editing.canvas import EditPicture, finish, outlined, prepare
from maskgit_jax.images import to_float
from maskgit_jax.model import Model

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
_STYLES = {
    "tilt": (plots.BLUE, "o"),
    "code_distance": (plots.ORANGE, "s"),
    "identity": (plots.GREEN, "^"),
    "learned": (plots.PINK, "D"),
}
_PANELS = {
    "colour_distance": "colour distance to the stroke",
    "class_accuracy": "share of the right class",
}


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

    photos: Pictures
    painted: Pictures
    masks: Bool[np.ndarray, "n S S"]
    counterfactual: Bool[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    pictures: list[EditPicture]


class Way(NamedTuple):
    """How a row's pictures are sampled: a method, at a confidence where it has one."""

    method: str
    confidence: float | None = None

    @property
    def name(self) -> str:
        return self.method if self.confidence is None else f"{self.method} {self.confidence:g}"


def study_strokes(
    edits: Edits,
    num_images: int,
    confidences: Sequence[float],
    other_confidences: Sequence[float],
    energy: Float[np.ndarray, "K K"] | None,
    tuned: Model | None,
    places: dict[str, Path | None],
    record: dict[str, Any],
) -> None:
    """Prints the table of methods; with a folder, also writes it, a grid and the curves.

    Args:
      edits: how the pictures are sampled.
      num_images: held-out scenes.
      confidences: of tilt; 0 is the baseline.
      other_confidences: of the published methods.
      energy: for rows of learned.
      tuned: the model for a row of iterative.
      places: where the results go.
      record: what the figures depend on, the weights excepted.
    """
    ways = [Way("baseline"), Way("context"), Way("zero_shot")]
    ways += [Way("tilt", c) for c in confidences]
    for method in CONFIDENT:
        if method != "tilt" and (method != "learned" or energy is not None):
            ways += [Way(method, c) for c in other_confidences]
    ways += [] if tuned is None else [Way("iterative")]
    strokes, judged = draw_strokes(edits.model, num_images), judge.load_judge()

    def row(images: Pictures, shown: Pictures, guide_ids=None) -> Row:
        return Row(measure(strokes, images, guide_ids, judged), shown[:_GRID_ROWS])

    def sampled(way: Way) -> Row:
        model = tuned if way.method == "iterative" else edits.model
        images, share = sample(edits._replace(model=model), strokes, way, energy)
        return row(images, images, share)

    outlines = np.stack(
        [outlined(*each) for each in zip(strokes.photos, strokes.masks, strict=True)]
    )
    rows = {way.name: lambda way=way: sampled(way) for way in ways}
    if "tilt 0" in rows:
        rows["tilt 0"] = "baseline"  # the same ids by construction; tests hold it to that
    study = Study(
        "strokes",
        COLUMNS,
        {
            "photo": lambda: row(strokes.photos, outlines),
            "stroke as painted": lambda: row(strokes.painted, strokes.painted),
            **rows,
        },
        record
        | {
            "weights": digests.of_weights(edits.model),
            "energy_digest": None if energy is None else digests.of_path(record["energy"]),
            "iterative_weights": None if tuned is None else digests.of_weights(tuned),
        },
        **places,
    )
    finished = study.run()
    print(f"n = {num_images} scenes; {edits.settings.num_steps} steps")
    if study.folder is None:
        return
    curves = {
        method: {w.confidence: finished[w.name].figures for w in ways if w.method == method}
        for method in CONFIDENT
    }
    shown = [each.shown for name, each in finished.items() if name != "tilt 0"]
    pictures = {
        "confidence.png": plot_confidence(curves, finished["baseline"].figures),
        "grid.png": grid(list(zip(*shown, strict=True))),
    }
    save_pictures(study.folder, pictures)


def draw_strokes(model: Model, count: int) -> Strokes:
    """The first held-out scenes, each with a stroke."""
    scenes = draw_world(judge.EVAL_SEED, count, model.config.tokenizer.image_size)
    drawn = []
    for index, scene in enumerate(scenes):
        kind = "counterfactual" if index % 2 else "inversion"
        part = part_stroke(scene, kind) if index // 2 % 2 else None
        drawn.append(part or automatic_stroke(scene.image, kind, index))
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
    edits: Edits, strokes: Strokes, way: Way, energy: Float[np.ndarray, "K K"] | None
) -> tuple[Pictures, Float[np.ndarray, "n"]]:
    """A row's pictures, blended, and the share of the region's ids that are the guide's."""
    masked = np.stack([picture.masked for picture in strokes.pictures])

    def sample_rows(rows, progress):
        samples = follow_strokes(
            edits.model,
            strokes.photos[rows],
            strokes.painted[rows],
            masked[rows],
            strokes.labels[rows],
            dataclasses.replace(edits.settings, confidence=way.confidence or 0.0),
            method=way.method,
            energy=energy if way.method == "learned" else None,
            seed=edits.seed,
            indices=rows,
            progress=progress,
        )
        same = (samples.ids == samples.guide_ids) & masked[rows]
        images = [finish(strokes.pictures[i], x) for i, x in zip(rows, samples.images, strict=True)]
        return np.stack(images), same.sum(axis=1) / masked[rows].sum(axis=1)

    rows = np.arange(len(strokes.labels))
    sizes = {"batch_size": edits.batch_size, "num_steps": edits.settings.num_steps}
    return map_rows_shown(way.name, sample_rows, rows, **sizes)


def measure(
    strokes: Strokes,
    images: Pictures,
    guide_ids: Float[np.ndarray, "n"] | None,
    judged: tuple[Any, Any],
) -> Figures:
    """The figures of a row of pictures; `guide_ids`: each one's share of guide ids."""
    distance = colour_distance(images, strokes.painted, strokes.masks)
    radius = strokes.pictures[0].blend_radius
    steps, own_steps = (
        np.concatenate(
            [
                seam_steps(to_float(image[None]), mask, radius)
                for image, mask in zip(pictures, strokes.masks, strict=True)
            ]
        )
        for pictures in (images, strokes.photos)
    )
    right = judge.predict(*judged, to_float(images)).labels == strokes.labels
    return {
        "colour_distance": mean_and_error(distance),
        "inversion_distance": mean_and_error(distance[~strokes.counterfactual]),
        "counterfactual_distance": mean_and_error(distance[strokes.counterfactual]),
        "lab_distance": mean_and_error(lab_distance(images, strokes.painted, strokes.masks)),
        "guide_ids": None if guide_ids is None else mean_and_error(guide_ids),
        "class_accuracy": mean_and_error(right),
        "seam": seam(steps, own_steps),
    }


def plot_confidence(
    curves: dict[str, dict[float, Figures]], baseline: Figures
) -> UInt8[np.ndarray, "h w 3"]:
    """Colour distance and class accuracy against the confidence.

    Args:
      curves: by method, the figures at each confidence; methods without any are left out.
      baseline: the figures without guidance, drawn as a line.
    """
    figure = plots.new_figure(12, 5, 110)
    for axes, (name, title) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        axes.axhline(baseline[name][0], color="0.4", ls="--", lw=2, label="no guidance")
        for method, points in curves.items():
            if points:
                colour, marker = _STYLES[method]
                style = {"color": colour, "marker": marker, "lw": 2.5, "label": method}
                confidences = sorted(points)
                plots.error_bars(axes, confidences, [points[c][name] for c in confidences], **style)
        plots.label_axes(axes, "confidence", title)
        axes.set_ylim(bottom=0)
    plots.legend_outside(figure, "upper", 5, 14)
    return plots.pixels(figure)
