"""Measures whether what was made anew in a picture is of its class, and shows no seam.

    python -m experiments.evaluate_editing --output_dir=runs/editing

Takes held-out photos of the demo world. Inpainting: a centred box of half the height and half the
width is made anew. Outpainting: the right half is cut off and made anew from the left one. Beside
the photos themselves and photos whose hole has the mean colour of the rest, each row tells:

- class: the share of pictures that the judge (`experiments/demo_world/judge.py`) takes for the
  wanted class;
- edge: the colour's step across the hole's outline, as a multiple of that in the photos;
- seam: the largest such multiple from there to where the blend ends (`seams.seam`);
- kept: the share of pictures that are the photo, bit by bit, beyond the blend.

"as the next class" asks for another class than the photo's (class-conditional editing). Prints two
tables in Markdown; with --output_dir also writes `evaluation.json` and `grid.png` (rows: photo,
holes, made anew, as the next class; photo, made anew).
"""

from collections.abc import Callable

import numpy as np
from absl import flags
from jaxtyping import Bool, Int, UInt8
from tqdm import tqdm

from experiments.app import cli, edit_flags
from experiments.app.batches import in_batches
from experiments.app.files import to_json
from experiments.app.tables import Figures, markdown_table
from experiments.demo_world.held_out import EVAL_SEED, load_demo_world_model
from experiments.demo_world.judge import load_judge, predict
from experiments.metrics.measures import mean_and_error
from experiments.metrics.seams import (
    mean_colour_fill,
    ratio_and_error,
    seam,
    seam_steps,
)
from experiments.training.datasets import draw_pictures
from maskgit_jax.editing.canvas import blend_radius, finish, prepare
from maskgit_jax.editing.inpaint import EditSettings, decode, encode, remake
from maskgit_jax.editing.masks import blend_weights
from maskgit_jax.editing.outpaint import Growth, grow
from maskgit_jax.images import make_grid, save_png, to_float
from maskgit_jax.model import Model

# --help lists them too.
flags.adopt_module_key_flags(edit_flags)

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the results.")

_COLUMNS = {"class": ("class", 3), "edge": ("edge", 2), "seam": ("seam", 2), "kept": ("kept", 3)}
_GRID_COLUMNS = 12

Pictures = UInt8[np.ndarray, "n S S 3"]
Labels = Int[np.ndarray, "n"]


def main() -> None:
    """Evaluates as the flags say."""
    settings, record = edit_flags.read()
    model = load_demo_world_model(flags.FLAGS.model)
    folder = None if _OUTPUT_DIR.value is None else cli.output_folder(_OUTPUT_DIR)
    size = model.config.tokenizer.image_size
    photos, labels = draw_pictures(EVAL_SEED, flags.FLAGS.num_images, size)
    others = (labels + 1) % model.config.transformer.num_classes
    judge = load_judge()
    round_trips = decode(model, encode(model, photos))
    radius = blend_radius(model.config.tokenizer)

    def table(
        mask: Bool[np.ndarray, "S S"], rows: dict[str, tuple[Pictures, Labels]]
    ) -> dict[str, Figures]:
        reference = seam_steps(to_float(photos), mask, radius)
        untouched = blend_weights(mask, radius) == 0
        figures = {}
        for name, (pictures, wanted) in rows.items():
            steps = seam_steps(to_float(pictures), mask, radius)
            same = (pictures == photos)[:, untouched].all(axis=(1, 2))
            figures[name] = {
                "class": mean_and_error(predict(*judge, to_float(pictures)).labels == wanted),
                "edge": ratio_and_error(steps[:, 0], reference[:, 0]),
                "seam": seam(steps, reference),
                "kept": mean_and_error(same),
            }
        return figures

    box, right = centred_box(size), right_half(size)
    box_fill, right_fill = mean_colour_fill(photos, box), mean_colour_fill(photos, right)
    inpainted = inpaint(model, photos, box, labels, settings)
    as_others = inpaint(model, photos, box, others, settings)
    outpainted = outpaint(model, photos, labels, settings)
    tables = {
        "inpainting": table(
            box,
            {
                "photos": (photos, labels),
                "round trips": (round_trips, labels),
                "mean colour": (box_fill, labels),
                "made anew": (inpainted, labels),
                "as the next class": (as_others, others),
            },
        ),
        "outpainting": table(
            right,
            {
                "photos": (photos, labels),
                "round trips": (round_trips, labels),
                "mean colour": (right_fill, labels),
                "made anew": (outpainted, labels),
            },
        ),
    }
    for name, rows in tables.items():
        print(f"{name}\n\n{markdown_table(rows, _COLUMNS)}\n")
    print(f"n = {len(labels)} photos; {settings.num_steps} steps, {settings.temperature:g}")
    if folder is not None:
        text = to_json({"settings": record, "tables": tables}, indent=1)
        cli.write_text(folder / "evaluation.json", text + "\n")
        rows = (photos, box_fill, inpainted, as_others, right_fill, outpainted)
        images = [image for row in rows for image in row[:_GRID_COLUMNS]]
        columns = min(_GRID_COLUMNS, len(photos))
        save_png(folder / "grid.png", make_grid(images, columns=columns, scale=max(1, 96 // size)))
        print(f"look at {folder / 'grid.png'}")


def centred_box(size: int) -> Bool[np.ndarray, "{size} {size}"]:
    """Half the height and half the width."""
    mask = np.zeros((size, size), bool)
    mask[size // 4 : size - size // 4, size // 4 : size - size // 4] = True
    return mask


def right_half(size: int) -> Bool[np.ndarray, "{size} {size}"]:
    """All columns from the middle on."""
    return np.broadcast_to(np.arange(size) >= size // 2, (size, size))


def inpaint(
    model: Model,
    photos: Pictures,
    mask: Bool[np.ndarray, "S S"],
    labels: Labels,
    settings: EditSettings,
) -> Pictures:
    """The photos with the mask made anew."""

    def make(photos, labels, indices):
        prepared = [prepare(photo, mask, model.config.tokenizer) for photo in photos]
        hidden = np.stack([picture.hidden for picture in prepared])
        squares = np.stack([picture.square for picture in prepared])
        seed = flags.FLAGS.seed
        made = remake(model, squares, hidden, labels, settings, seed=seed, indices=indices)
        return np.stack([finish(*pair) for pair in zip(prepared, made, strict=True)])

    return _in_batches(make, photos, labels)


def outpaint(model: Model, photos: Pictures, labels: Labels, settings: EditSettings) -> Pictures:
    """The photos' left halves, grown to the right."""
    width = photos.shape[2]
    halves = photos[:, :, : width // 2]
    growths = [Growth("right", width - width // 2)]

    def make(halves, labels, indices):
        seed = flags.FLAGS.seed
        return grow(model, halves, growths, labels, settings, seed=seed, indices=indices)

    return _in_batches(make, halves, labels)


def _in_batches(make: Callable[..., Pictures], photos: np.ndarray, labels: Labels) -> Pictures:
    with tqdm(total=len(labels), desc="editing", unit="picture") as bar:
        rows = np.arange(len(labels))
        size = flags.FLAGS.batch_size
        return in_batches(make, photos, labels, rows, size=size, progress=bar.update)


if __name__ == "__main__":
    cli.run(main)
