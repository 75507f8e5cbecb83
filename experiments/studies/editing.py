"""The study behind `evaluate_editing`: parts of held-out photos sampled anew."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from experiments.app import digests
from experiments.app.tables import Figures
from experiments.demo_world.judge import load_judge, predict
from experiments.metrics.measures import mean_and_error
from experiments.metrics.seams import mean_colour_fill, ratio_and_error, seam, seam_steps
from experiments.studies.scenes import Edits, draw_photos, map_rows_shown
from experiments.studies.study import Pictures, Row, Study, grid, save_pictures
from maskgit_jax.editing.blend import blend_radius, blend_weights
from maskgit_jax.editing.canvas import finish, prepare
from maskgit_jax.editing.inpaint import EditSettings, remake
from maskgit_jax.editing.outpaint import Growth, grow
from maskgit_jax.images import to_float
from maskgit_jax.model import Model

COLUMNS = {"class": ("class", 3), "edge": ("edge", 2), "seam": ("seam", 2), "kept": ("kept", 3)}
_GRID_COLUMNS = 12

Labels = Int[np.ndarray, "n"]


def study_editing(
    edits: Edits, places: dict[str, Path | None], record: dict[str, Any], num_images: int
) -> None:
    """Prints the tables of inpainting and outpainting; with a folder, also writes them and a grid.

    `record` is what the figures depend on, the weights excepted.
    """
    model, settings = edits.model, edits.settings
    size = model.config.tokenizer.image_size
    photos, labels = draw_photos(num_images, size)
    others = (labels + 1) % model.config.transformer.num_classes
    round_trips = functools.cache(lambda: model.images_of(model.ids_of(photos)))
    judge, radius = load_judge(), blend_radius(model.config.tokenizer)

    def in_hole(
        mask: Bool[np.ndarray, "S S"], edits: dict[str, tuple[Callable[[], Pictures], Labels]]
    ) -> dict[str, Callable[[], Row]]:
        reference = seam_steps(to_float(photos), mask, radius)
        untouched = blend_weights(mask, radius) == 0

        def figures(pictures: Pictures, wanted: Labels) -> Figures:
            steps = seam_steps(to_float(pictures), mask, radius)
            same = (pictures == photos)[:, untouched].all(axis=(1, 2))
            return {
                "class": mean_and_error(predict(*judge, to_float(pictures)).labels == wanted),
                "edge": ratio_and_error(steps[:, 0], reference[:, 0]),
                "seam": seam(steps, reference),
                "kept": mean_and_error(same),
            }

        def row(edit: Callable[[], Pictures], wanted: Labels) -> Row:
            pictures = edit()
            return Row(figures(pictures, wanted), pictures[:_GRID_COLUMNS])

        shared = {
            "photos": (lambda: photos, labels),
            "round trips": (round_trips, labels),
            "mean colour": (lambda: mean_colour_fill(photos, mask), labels),
        }
        rows = (shared | edits).items()
        return {name: functools.partial(row, *edit) for name, edit in rows}

    def edit(how: Callable[..., Pictures], wanted: Labels) -> Callable[[], Pictures]:
        function = functools.partial(how, model, settings, seed=edits.seed)
        rows = photos, wanted, np.arange(num_images)
        # Half a picture is one window.
        sizes = {"batch_size": edits.batch_size, "num_steps": settings.num_steps}
        return functools.partial(map_rows_shown, "editing", function, *rows, **sizes)

    box, right = centred_box(size), right_half(size)
    fill_box = functools.partial(inpaint, box)
    tables = {
        "inpainting": in_hole(
            box,
            {
                "sampled again": (edit(fill_box, labels), labels),
                "as the next class": (edit(fill_box, others), others),
            },
        ),
        "outpainting": in_hole(right, {"sampled again": (edit(outpaint, labels), labels)}),
    }
    record = record | {"weights": digests.of_weights(model)}
    studies = [Study(name, COLUMNS, rows, record, **places) for name, rows in tables.items()]
    finished = []
    for study in studies:
        print(f"{study.name}\n")
        finished.append(study.run())
        print()
    print(f"n = {num_images} photos; {settings.num_steps} steps, {settings.temperature:g}")
    if studies[0].folder is not None:
        inpainted, outpainted = finished
        shown = [
            *(inpainted[name] for name in ("photos", "mean colour", "sampled again")),
            inpainted["as the next class"],
            *(outpainted[name] for name in ("mean colour", "sampled again")),
        ]
        columns = labels[:_GRID_COLUMNS], model.config.class_names
        save_pictures(studies[0].folder, {"grid.png": grid([row.shown for row in shown], *columns)})


def centred_box(size: int) -> Bool[np.ndarray, "{size} {size}"]:
    """Half the height and half the width."""
    mask = np.zeros((size, size), bool)
    mask[size // 4 : size - size // 4, size // 4 : size - size // 4] = True
    return mask


def right_half(size: int) -> Bool[np.ndarray, "{size} {size}"]:
    """All columns from the middle on."""
    return np.broadcast_to(np.arange(size) >= size // 2, (size, size))


def inpaint(
    mask: Bool[np.ndarray, "S S"],
    model: Model,
    settings: EditSettings,
    photos: Pictures,
    labels: Labels,
    indices: Int[np.ndarray, "n"],
    **options: Any,
) -> Pictures:
    """The photos with the mask sampled anew."""
    prepared = [prepare(photo, mask, model.config.tokenizer) for photo in photos]
    masked = np.stack([picture.masked for picture in prepared])
    squares = np.stack([picture.square for picture in prepared])
    sampled = remake(model, squares, masked, labels, settings, indices=indices, **options)
    return np.stack([finish(*pair) for pair in zip(prepared, sampled, strict=True)])


def outpaint(
    model: Model,
    settings: EditSettings,
    photos: Pictures,
    labels: Labels,
    indices: Int[np.ndarray, "n"],
    **options: Any,
) -> Pictures:
    """The photos' left halves, grown to the right."""
    width = photos.shape[2]
    growths = [Growth("right", width - width // 2)]
    left = photos[:, :, : width // 2]
    return grow(model, left, growths, labels, settings, indices=indices, **options)
