"""The study behind `reconstruct`: pictures sampled anew from a random part of their ids."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8

from experiments.app import digests
from experiments.app.tables import Figures
from experiments.metrics.measures import mean_and_error, psnr
from experiments.studies import plots
from experiments.studies.scenes import Edits, map_rows_shown
from experiments.studies.study import Pictures, Row, Study, grid, save_pictures
from maskgit_jax.editing.inpaint import remake
from maskgit_jax.images import to_float
from maskgit_jax.training.perceptual import perceptual_distance

_MASKS = 2
COLUMNS = {
    "psnr": ("PSNR in dB", 2),
    "perceptual": ("perceptual distance", 4),
    "diversity": ("diversity", 4),
}
_GRID_ROWS = 4
_MASKED_GREY = 200


def study_reconstruction(
    edits: Edits,
    photos: Pictures,
    labels: Int[np.ndarray, "n"],
    ratios: Sequence[float],
    places: dict[str, Path | None],
    record: dict[str, Any],
) -> None:
    """Prints the table of mask ratios; with a folder, also writes it, the curves and a grid.

    `record` is what the figures depend on, weights and pictures excepted.
    """
    model, settings, seed, _ = edits

    def row(ratio: float) -> Row:
        pair = [reconstruct(edits, photos, labels, ratio, number) for number in range(_MASKS)]
        return Row(measure(photos, pair), pair[0][:_GRID_ROWS])

    def round_trip() -> Row:
        pictures = model.images_of(model.ids_of(photos))
        return Row(measure(photos, [pictures] * _MASKS), pictures[:_GRID_ROWS])

    names = {ratio: f"{ratio:g} masked" for ratio in (0.0, *ratios)}
    rows = {name: functools.partial(row, ratio) for ratio, name in names.items()}
    study = Study(
        "reconstruction",
        COLUMNS,
        rows | {names[0.0]: round_trip},
        record
        | {
            "num_images": len(photos),
            "photos": digests.of_tree((photos, labels)),
            "weights": digests.of_weights(model),
        },
        **places,
    )
    finished = study.run()
    print(f"n = {len(photos)} pictures; {settings.num_steps} steps, {settings.temperature:g}")
    if study.folder is not None:
        figures = {ratio: finished[name].figures for ratio, name in names.items()}
        shown = [each.shown for each in finished.values()]
        latent_size = model.config.tokenizer.latent_size
        lines: list[Any] = []
        for index in range(len(shown[0])):
            lines.append([left_of(photos[index], x, latent_size, [seed, index, 0]) for x in names])
            lines.append([pictures[index] for pictures in shown])
        pictures = {"reconstruction.png": plot_ratios(figures), "grid.png": grid(lines)}
        save_pictures(study.folder, pictures)


def reconstruct(
    edits: Edits, photos: Pictures, labels: Int[np.ndarray, "n"], ratio: float, number: int
) -> Pictures:
    """The photos with a random share of the ids sampled anew; `number` counts the masks."""
    model, settings, seed, batch_size = edits
    num_tokens = model.config.transformer.sequence_length - 1

    def of_rows(photos, labels, rows, progress):
        masked = np.stack([random_mask(ratio, num_tokens, [seed, row, number]) for row in rows])
        indices = rows * _MASKS + number
        options = {"seed": seed, "indices": indices, "progress": progress}
        return remake(model, photos, masked, labels, settings, **options)

    title = f"{ratio:g} masked, {number + 1} of {_MASKS}"
    rows = photos, labels, np.arange(len(photos))
    sizes = {"batch_size": batch_size, "num_steps": settings.num_steps}
    return map_rows_shown(title, of_rows, *rows, **sizes)


def random_mask(
    ratio: int | float, num_tokens: int, seed: Sequence[int | np.integer]
) -> Bool[np.ndarray, "N"]:
    """A random share of the ids; with the same seed, that of a larger ratio contains it."""
    return np.random.default_rng(seed).permutation(num_tokens) < round(ratio * num_tokens)


def left_of(
    photo: UInt8[np.ndarray, "S S 3"], ratio: float, latent_size: int, seed: Sequence[int]
) -> UInt8[np.ndarray, "S S 3"]:
    """The photo with the masked tokens in grey."""
    masked = random_mask(ratio, latent_size**2, seed).reshape(latent_size, latent_size)
    pixels = masked.repeat(len(photo) // latent_size, 0).repeat(len(photo) // latent_size, 1)
    return np.where(pixels[..., None], np.uint8(_MASKED_GREY), photo)


def measure(photos: Pictures, pair: list[Pictures]) -> Figures:
    """Figures of two reconstructions of each photo, no independent samples: their mean counts."""

    def distance(images: Pictures, others: Pictures) -> np.ndarray:
        return np.asarray(perceptual_distance(*map(jnp.asarray, map(to_float, (images, others)))))

    return {
        "psnr": mean_and_error(
            np.mean([psnr(to_float(each), to_float(photos)) for each in pair], axis=0)
        ),
        "perceptual": mean_and_error(np.mean([distance(each, photos) for each in pair], axis=0)),
        "diversity": mean_and_error(distance(*pair)),
    }


def plot_ratios(figures: dict[float, Figures]) -> UInt8[np.ndarray, "h w 3"]:
    """PSNR, and perceptual distance with diversity, against the mask ratio."""
    figure = plots.new_figure(10, 4, 100)
    quality, distance = figure.subplots(1, 2)
    for axes, name, colour, label in (
        (quality, "psnr", plots.BLUE, None),
        (distance, "perceptual", plots.BLUE, "picture and reconstruction"),
        (distance, "diversity", plots.ORANGE, "two reconstructions"),
    ):
        values = [each[name] for each in figures.values()]
        plots.error_bars(axes, list(figures), values, color=colour, label=label)
    distance.set_ylim(bottom=0)
    distance.legend(fontsize=12)
    plots.label_axes(quality, "mask ratio", "PSNR in dB", 14, 12)
    plots.label_axes(distance, "mask ratio", "perceptual distance", 14, 12)
    return plots.pixels(figure)
