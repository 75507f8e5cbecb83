"""Makes a part of a picture anew, or the picture larger.

    python -m experiments.edit --image=photo.png --label=house --box=10,10,24,24
    python -m experiments.edit --image=photo.png --label=house --mask=mask.png --sketch=roof.png
    python -m experiments.edit --image=photo.png --label=house --extend=left,right --by=50%
    python -m experiments.edit --image=photo.png --label=house --panorama=4

The label says what is to be seen: the picture's own class (inpainting) or another
(class-conditional editing). A mask is white where the picture is to be made anew; --sketch guides
there as in `experiments.sketch`, and only then the flags of structure guidance count. Writes the
pictures, `grid.png` (first what was given, the mask outlined) and `results.jsonl` (one line per
picture); an earlier run's in the same folder are replaced.

Pictures of any size: what is farther from the mask than a token's side comes back bit by bit.
"""

import re
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from experiments.app import cli, guidance_flags
from experiments.app.batches import Batch, make_batches
from experiments.app.guidance_flags import GuidanceFlags
from experiments.app.sample_folder import check_not_replaced, write_samples
from guidance.inpaint import follow_sketch
from maskgit_jax.config import ModelConfig
from maskgit_jax.editing.canvas import box_mask, finish, outlined, prepare, read_mask, resize
from maskgit_jax.editing.inpaint import EditSettings, chosen_settings, remake
from maskgit_jax.editing.masks import fit_mask
from maskgit_jax.editing.outpaint import SIDES, Growth, grow
from maskgit_jax.errors import InputError
from maskgit_jax.images import MAX_PIXELS, make_grid, read_image
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, load_model, model_config

_MOST_SAMPLES = 10_000
_MOST_BY = 400  # percent
_MOST_HEIGHTS = 20
_PAPER = 235
_GRID_SIDE = 384

# --help lists them too.
flags.adopt_module_key_flags(guidance_flags)

_IMAGE = flags.DEFINE_string("image", None, "Picture file to edit.")
_LABEL = flags.DEFINE_string("label", None, "Class to be seen: a name or a number.")
_MASK = flags.DEFINE_string("mask", None, "Picture file, white where to make the picture anew.")
_BOX = flags.DEFINE_string("box", None, "In place of a mask: top,left,height,width in pixels.")
_EXTEND = flags.DEFINE_list("extend", None, "Sides to grow to: left, right, up, down.")
_BY = flags.DEFINE_string("by", "50%", "How far to each side, as a share of the picture.")
_PANORAMA = flags.DEFINE_float("panorama", None, "Grow left and right to so many heights.")
_SKETCH = flags.DEFINE_string("sketch", None, "Drawing to follow inside the mask or box.")
_TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "Of the choice which ids to keep; where no sketch guides."
)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "Pictures to make.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "out", "Folder for the results.")


class Job(NamedTuple):
    """What is to be made.

    Attributes:
      image: the picture as given.
      label: class.
      mask: the pixels to be made anew; None where the picture grows.
      growths: the sides to grow to, one after the other; empty where there is a mask.
      sketch: what guides inside the mask, if anything does.
    """

    image: UInt8[np.ndarray, "H W 3"]
    label: int
    mask: Bool[np.ndarray, "H W"] | None
    growths: list[Growth]
    sketch: UInt8[np.ndarray, "H W 3"] | None


def main() -> None:
    """Edits as the flags say."""
    check_flags()
    # All that can be wrong is looked at before anything large is fetched or made.
    image = read_image(_IMAGE.value)
    config = model_config(flags.FLAGS.model)
    label = find_label(_LABEL.value, config.class_names)
    shape = image.shape[:2]
    job = Job(image, label, read_region(*shape), read_growths(*shape), read_sketch(*shape))
    guided = guidance_flags.read(config)
    settings = read_settings(config, guided)
    model = load_model(flags.FLAGS.model, dtype=flags.FLAGS.dtype)
    output_dir = cli.output_folder(_OUTPUT_DIR)
    for flag in (_IMAGE, _MASK, _SKETCH):
        if flag.value is not None:
            check_not_replaced(flag.name, flag.value, output_dir)

    record = {
        **{flag.name: flag.value for flag in (_IMAGE, _MASK, _BOX, _SKETCH)},
        "growths": dict(job.growths),
        "label": label,
        "class_name": config.class_names[label],
        **(guided.record if job.sketch is not None else settings._asdict()),
        **{name: flags.FLAGS[name].value for name in ("model", "dtype", "seed")},
    }
    pictures, lines = [], []
    batches = make_batches(_NUM_SAMPLES.value, flags.FLAGS.batch_size)
    for batch in tqdm(batches, desc="editing", unit="batch"):
        start = time.perf_counter()
        made, distances = edit(model, job, guided, settings, batch)
        seconds = (time.perf_counter() - start) / batch.count
        pictures.extend(made)
        for index, distance in enumerate(distances, batch.first):
            lines.append(
                {
                    "file": f"sample_{index:03d}.png",
                    "index": index,
                    **({} if distance is None else {"structure_distance": distance}),
                    "seconds_per_sample": round(seconds, 3),
                    "includes_compilation": batch is batches[0],
                    **record,
                }
            )
    write_samples(output_dir, pictures, lines, contact_sheet(*before(job), pictures))
    print(f"{len(lines)} pictures in {output_dir}, look at {output_dir / 'grid.png'}")


def check_flags() -> None:
    """Raises InputError where flags are missing or do not go together."""
    if not 1 <= _NUM_SAMPLES.value <= _MOST_SAMPLES:
        raise InputError(f"--num_samples={_NUM_SAMPLES.value}: expected 1 to {_MOST_SAMPLES}")
    if _IMAGE.value is None:
        raise InputError("no --image: give the picture to edit, such as --image=photo.png")
    if _LABEL.value is None:
        raise InputError("--image without --label: say what is to be seen, such as --label=house")
    tasks = [flag for flag in (_MASK, _BOX, _EXTEND, _PANORAMA) if flag.value is not None]
    if len(tasks) != 1:
        found = " and ".join(f"--{flag.name}" for flag in tasks) or "none"
        raise InputError(f"expected one of --mask, --box, --extend, --panorama; found {found}")
    if _BY.present and _EXTEND.value is None:
        raise InputError("--by without --extend: say to which side, such as --extend=right")
    if _SKETCH.value is None:
        of_structure = {"sampler", *guidance_flags.SETTINGS, *guidance_flags.Choices._fields}
        of_structure |= {"guidance_schedule"}
        for name in sorted(of_structure - {"num_steps", "token_temperature"}):
            if flags.FLAGS[name].present:
                raise InputError(f"--{name} without --sketch: only a sketch gives structure")
    elif _MASK.value is None and _BOX.value is None:
        raise InputError(f"--sketch with --{tasks[0].name}: a sketch guides a --mask or --box")
    elif _TEMPERATURE.value is not None:
        raise InputError(
            "--temperature with --sketch: its noise is --structure_temperature and "
            "--confidence_temperature"
        )


def read_region(height: int, width: int) -> Bool[np.ndarray, "_ _"] | None:
    """The mask of --mask or --box, for a picture of a size."""
    if _BOX.value is not None:
        try:
            top, left, box_height, box_width = map(int, _BOX.value.split(","))
        except ValueError:
            raise InputError(
                f"--box={_BOX.value}: expected top,left,height,width in pixels, such as 10,10,24,24"
            ) from None
        return box_mask(top, left, box_height, box_width, height, width)
    if _MASK.value is None:
        return None
    mask, stretched = read_mask(_MASK.value, height, width)
    if stretched:
        print(f"--mask={_MASK.value} stretched to the picture's {width}x{height}", file=sys.stderr)
    return mask


def read_growths(height: int, width: int) -> list[Growth]:
    """What --extend and --by, or --panorama, say for a picture of a size."""
    growths = []
    if _EXTEND.value is not None:
        sides, text = _EXTEND.value, ",".join(_EXTEND.value)
        if not sides or not set(sides) <= set(SIDES) or len(set(sides)) < len(sides):
            raise InputError(f"--extend={text}: expected some of {','.join(SIDES)}, each once")
        number = re.fullmatch(r"(\d+(?:\.\d*)?)%", _BY.value.strip())
        if number is None or not 0 < float(number[1]) <= _MOST_BY:
            raise InputError(f"--by={_BY.value}: expected more than 0% and up to {_MOST_BY}%")
        for side in sides:
            own = width if side in ("left", "right") else height
            growths.append(Growth(side, max(1, round(own * float(number[1]) / 100))))
    if _PANORAMA.value is not None:
        # Also false of NaN.
        if not width / height < _PANORAMA.value <= _MOST_HEIGHTS:
            raise InputError(
                f"--panorama={_PANORAMA.value:g}: expected a width in heights, above the "
                f"picture's own {width / height:g} and up to {_MOST_HEIGHTS}"
            )
        new = max(2, round(_PANORAMA.value * height) - width)
        growths = [Growth("left", new // 2), Growth("right", new - new // 2)]
    for side, pixels in growths:
        if side in ("left", "right"):
            width += pixels
        else:
            height += pixels
    if width * height > MAX_PIXELS:
        raise InputError(
            f"the result would be {width}x{height} pixels; expected at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels: grow it less, or shrink the picture first"
        )
    return growths


def read_sketch(height: int, width: int) -> UInt8[np.ndarray, "_ _ 3"] | None:
    """The sketch at a picture's size, on which it is drawn."""
    if _SKETCH.value is None:
        return None
    sketch = read_image(_SKETCH.value)
    if sketch.shape[:2] != (height, width):
        print(
            f"--sketch={_SKETCH.value} stretched to the picture's {width}x{height}",
            file=sys.stderr,
        )
    return resize(sketch, height, width)


def read_settings(config: ModelConfig, guided: GuidanceFlags) -> EditSettings:
    """The settings where no sketch guides."""
    num_steps = None if flags.FLAGS.num_steps is None else guided.num_steps
    token_temperature = None
    if flags.FLAGS.token_temperature is not None:
        token_temperature = guided.settings.token_temperature
    return chosen_settings(config, num_steps, _TEMPERATURE.value, token_temperature)


def edit(
    model: Model, job: Job, guided: GuidanceFlags, settings: EditSettings, batch: Batch
) -> tuple[list[UInt8[np.ndarray, "_ _ 3"]], list[float | None]]:
    """One batch of results and, where a sketch guides, their distances to it."""
    indices, size, seed = batch.rows, len(batch.rows), flags.FLAGS.seed
    labels = np.full(size, job.label)
    if job.growths:
        images = np.repeat(job.image[None], size, axis=0)
        made = grow(model, images, job.growths, labels, settings, seed=seed, indices=indices)
        return list(made[: batch.count]), [None] * batch.count
    picture = prepare(job.image, job.mask, model.config.tokenizer)
    squares = np.repeat(picture.square[None], size, axis=0)
    hidden = np.repeat(picture.hidden[None], size, axis=0)
    if job.sketch is None:
        made = remake(model, squares, hidden, labels, settings, seed=seed, indices=indices)
        distances = [None] * size
    else:
        sketch = prepare(job.sketch, job.mask, model.config.tokenizer).square
        made, distances = follow_sketch(
            model,
            squares,
            np.repeat(sketch[None], size, axis=0),
            hidden,
            labels,
            guided.settings,
            num_steps=guided.num_steps,
            **guided.choices._asdict(),
            seed=seed,
            indices=indices,
        )
        distances = [round(float(distance), 6) for distance in distances]
    return [finish(picture, square) for square in made[: batch.count]], distances[: batch.count]


def before(job: Job) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """The picture as given, on paper where it grows, and what is to be made of it."""
    if job.mask is not None:
        return job.image, job.mask
    room = {side: 0 for side in SIDES} | dict(job.growths)
    margins = (room["up"], room["down"]), (room["left"], room["right"])
    image = np.pad(job.image, (*margins, (0, 0)), constant_values=_PAPER)
    return image, np.pad(np.zeros(job.image.shape[:2], bool), margins, constant_values=True)


def contact_sheet(
    image: UInt8[np.ndarray, "H W 3"],
    mask: Bool[np.ndarray, "H W"],
    pictures: Sequence[UInt8[np.ndarray, "H W 3"]],
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with its mask, then the results; large ones shrunk, wide ones in a column."""
    height, width = mask.shape
    scale = min(1.0, _GRID_SIDE / height)
    small = max(1, round(height * scale)), max(1, round(width * scale))
    shown = [outlined(resize(image, *small), fit_mask(mask, *small))]
    shown += [resize(picture, *small) for picture in pictures]
    columns = 1 if width > 2 * height else None
    return make_grid(shown, columns=columns, scale=max(1, _GRID_SIDE // 2 // height))


if __name__ == "__main__":
    cli.run(main)
