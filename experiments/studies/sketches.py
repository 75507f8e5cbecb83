"""The study behind `evaluate`: guided samples of held-out scenes, or of drawings by people."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from experiments.app import digests
from experiments.app.picture_sets import read_labelled
from experiments.app.tables import Figures, cell
from experiments.demo_world.judge import EVAL_SEED, REFERENCE_SEED, load_judge, predict
from experiments.metrics.measures import mean_and_error, other_drawings, psnr, sharpness, ssim
from experiments.studies import plots
from experiments.studies.scenes import (
    COLUMNS,
    Measure,
    Pictures,
    Sampling,
    Scenes,
    draw_scenes,
    sample_guided,
    sample_unguided,
    structure_distances,
)
from experiments.studies.study import Row, Study, grid, save_pictures
from guidance.sketches import read_sketch
from maskgit_jax.images import to_float

_GUIDED_PER_DRAWING = 2
_GRID_COLUMNS = 12

DRAWING_COLUMNS = {
    "class_accuracy": ("class", 3),
    "structure_distance": ("structure", 3),
    "nearer_than_same_class": ("nearer than same class", 3),
    "nearer_than_other_class": ("nearer than other class", 3),
}

_FLOORS = {"unguided": (plots.ORANGE, "--"), "sketches as answers": (plots.GREEN, ":")}
_IOU, _FRECHET, _WHITE = "silhouette_iou", "frechet_distance", "white_background"
_TITLES = {
    _IOU: "IoU with the sketch's object",
    _FRECHET: "Fréchet distance to photos",
    _WHITE: "share of white backgrounds",
}


def study_scenes(
    sampling: Sampling,
    places: dict[str, Path | None],
    *,
    num_sketches: int,
    num_reference: int,
    condition: str,
    unguided_steps: int,
    curve: list[float],
) -> None:
    """Prints the table of held-out scenes; with a folder, also writes it, a grid and the curve."""
    settings = sampling.guided.settings
    scenes = draw_scenes(sampling, num_sketches, condition)
    measure = functools.cache(lambda: Measure(sampling, num_reference))
    unguided = functools.cache(lambda: sample_unguided(sampling, scenes.labels, unguided_steps))

    @functools.cache
    def guided(lambda_s: float) -> Pictures:
        # Settings are traced: all λ_s share one compilation.
        changed = dataclasses.replace(settings, lambda_s=lambda_s)
        return sample_guided(sampling, scenes.labels, scenes.drawing_ids, changed)

    def row(pictures: Pictures, against: Scenes = scenes) -> Row:
        return Row(measure()(pictures, against), pictures.images[:_GRID_COLUMNS])

    def round_trip() -> Row:
        ids = sampling.model.ids_of(scenes.photos)
        pictures = Pictures(sampling.model.images_of(ids), ids)
        figures, shown = row(pictures)
        images, photos = to_float(pictures.images), to_float(scenes.photos)
        figures["psnr"] = mean_and_error(psnr(images, photos))
        figures["ssim"] = mean_and_error(ssim(images, photos))
        figures["sharpness"] = mean_and_error(sharpness(images) / sharpness(photos).mean())
        codes = np.arange(sampling.model.config.tokenizer.codebook_size)
        figures["codes_used"] = mean_and_error(np.isin(codes, ids))
        return Row(figures, shown)

    # Scenes are independent draws, so the neighbour's is as good as any other.
    neighbours = Scenes(*(np.roll(field, 1, axis=0) for field in scenes))
    names = {0.0: "lambda_s = 0", settings.lambda_s: "guided"}
    more = {x: f"guided, lambda_s = {x:g}" for x in sorted(curve) if x not in names}
    study = Study(
        "evaluation",
        COLUMNS,
        {
            "real photos": lambda: row(Pictures(scenes.photos)),
            "tokenizer round trip": round_trip,
            "sketches as answers": lambda: row(Pictures(scenes.drawings, scenes.drawing_ids)),
            "unguided": lambda: row(unguided()),
            "guided, other sketches": lambda: row(guided(settings.lambda_s), neighbours),
            "lambda_s = 0": lambda: row(guided(0.0)),
            "guided": lambda: row(guided(settings.lambda_s)),
            **{name: lambda x=x: row(guided(x)) for x, name in more.items()},
        },
        sampling.guided.record
        | {
            "num_sketches": num_sketches,
            "num_reference": num_reference,
            "condition": condition,
            "unguided_steps": unguided_steps,
            "unguided_temperature": sampling.model.config.presets["maskgit"]["temperature"],
            "eval_seed": EVAL_SEED,
            "reference_seed": REFERENCE_SEED,
            "weights": digests.of_weights(sampling.model),
        },
        **places,
    )
    rows = study.run()
    print(
        f"n = {num_sketches} scenes, {num_reference} reference photos; the Fréchet distance "
        "falls and precision and recall change as they grow. IoU, mIoU and edges count together "
        "with the others alone: a copied sketch scores high."
    )
    fidelity = rows["tokenizer round trip"].figures
    print(
        f"tokenizer: PSNR {cell(fidelity['psnr'], 2)} dB, SSIM {cell(fidelity['ssim'], 3)}, "
        f"sharpness {cell(fidelity['sharpness'], 3)} of the photos', "
        f"{fidelity['codes_used'][0]:.1%} of the codes used; "
        f"guided: lambda_s = {settings.lambda_s:g}, {sampling.guided.num_steps} steps, {condition}"
    )
    if study.folder is not None:
        shown = ("sketches as answers", "guided", "unguided", "real photos")
        columns = scenes.labels[:_GRID_COLUMNS], sampling.model.config.class_names
        picture = grid([rows[name].shown for name in shown], *columns)
        save_pictures(study.folder, {"grid.png": picture})
        if curve:
            figures = {name: row.figures for name, row in rows.items()}
            points = {x: figures[(names | more)[x]] for x in sorted(curve)}
            save_pictures(study.folder, {"tradeoff.png": plot_tradeoff(points, figures)})


def study_drawings(
    sampling: Sampling, places: dict[str, Path | None], drawings: str, unguided_steps: int
) -> None:
    """Prints the table of people's drawings; with a folder, also writes it and a grid."""
    images, labels = read_labelled(
        drawings,
        sampling.model.config,
        lambda path, size: read_sketch(path, size).image,
        flag="drawings",
    )
    ids, judge, count = sampling.model.ids_of(images), load_judge(), len(labels)
    # Evenly spread, so that the grid shows many classes.
    shown = np.linspace(0, count - 1, min(_GRID_COLUMNS, count)).astype(int)

    def row(pictures: Pictures) -> Row:
        repeats = len(pictures.images) // count
        wanted = np.tile(labels, repeats)

        def over_drawings(values) -> tuple[float, float]:
            """Samples of one drawing are no independent draws: their mean counts."""
            return mean_and_error(np.reshape(values, (repeats, count)).mean(axis=0))

        def distance_to(ids):
            return structure_distances(sampling, wanted, np.tile(ids, (repeats, 1)), pictures.ids)

        own = distance_to(ids)
        verdict = predict(*judge, to_float(pictures.images))
        figures: Figures = {
            "class_accuracy": over_drawings(verdict.labels == wanted),
            "structure_distance": over_drawings(own),
        }
        for name, same in (("nearer_than_same_class", True), ("nearer_than_other_class", False)):
            others = other_drawings(labels, same_class=same)
            figures[name] = (
                None if others is None else over_drawings(own < distance_to(ids[others]))
            )
        rows = pictures.images.reshape(repeats, count, *images.shape[1:])
        return Row(figures, rows[:, shown].reshape(-1, *images.shape[1:]))

    def guided() -> Pictures:
        tiled = np.tile(labels, _GUIDED_PER_DRAWING), np.tile(ids, (_GUIDED_PER_DRAWING, 1))
        return sample_guided(sampling, *tiled, sampling.guided.settings)

    study = Study(
        "drawings",
        DRAWING_COLUMNS,
        {
            "unguided": lambda: row(sample_unguided(sampling, labels, unguided_steps)),
            "guided": lambda: row(guided()),
        },
        sampling.guided.record
        | {
            "num_drawings": count,
            "unguided_steps": unguided_steps,
            "drawings": digests.of_tree((images, labels)),
            "weights": digests.of_weights(sampling.model),
        },
        **places,
    )
    rows = study.run()
    print(f"n = {count} drawings, {_GUIDED_PER_DRAWING} guided samples of each")
    if study.folder is not None:
        samples = np.split(rows["guided"].shown, _GUIDED_PER_DRAWING)
        lines = [images[shown], *samples, rows["unguided"].shown]
        picture = grid(lines, labels[shown], sampling.model.config.class_names)
        save_pictures(study.folder, {"grid.png": picture})


def plot_tradeoff(
    points: dict[float, Figures], rows: dict[str, Figures]
) -> UInt8[np.ndarray, "h w 3"]:
    """What structure costs: IoU and Fréchet distance against λ_s, IoU against the share of white.

    Args:
      points: figures by λ_s.
      rows: figures by name, of which "unguided" and "sketches as answers" are drawn as floors.
    """
    figure = plots.new_figure(15, 5, 120)
    *against_lambda, last = figure.subplots(1, 3)
    style = {"color": plots.BLUE, "capsize": 5, "lw": 2.5}
    for axes, name in zip(against_lambda, (_IOU, _FRECHET), strict=True):
        figures = [each[name] for each in points.values()]
        plots.error_bars(axes, list(points), figures, label="guided", **style)
        for floor, (colour, dashes) in _FLOORS.items():
            axes.axhline(rows[floor][name][0], color=colour, ls=dashes, lw=2.5, label=floor)
        plots.label_axes(axes, "$λ_s$: share of structure", _TITLES[name], 17, 14)

    for place, (value, each) in enumerate(points.items()):
        side = -1 if place % 2 else 1  # neighbours lie close together
        last.annotate(
            f"{value:g}",
            (each[_WHITE][0], each[_IOU][0]),
            xytext=(12 * side, 12 * side - 5),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            fontsize=14,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )
    drawn = [(list(points.values()), plots.BLUE, "o")]
    drawn += [([rows[floor]], colour, "s") for floor, (colour, _) in _FLOORS.items()]
    for figures, colour, mark in drawn:
        (x, x_errors), (y, y_errors) = (
            np.array([each[name] for each in figures]).T for name in (_WHITE, _IOU)
        )
        last.errorbar(x, y, y_errors, x_errors, marker=mark, **style | {"color": colour})
    last.set_xlim(-0.08, 1.12)
    last.set_title("$λ_s$ beside the points", fontsize=14)
    plots.label_axes(last, _TITLES[_WHITE], _TITLES[_IOU], 17, 14)
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    plots.legend_outside(figure, "upper", 3, 16)
    return plots.pixels(figure)
