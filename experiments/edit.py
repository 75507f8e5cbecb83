"""Makes a part of a picture anew, or the picture larger.

    python -m experiments.edit --image=photo.png --label=house --box=10,10,24,24
    python -m experiments.edit --image=photo.png --label=house --mask=mask.png --sketch=roof.png
    python -m experiments.edit --image=photo.png --label=house --extend=left,right --by=50%
    python -m experiments.edit --image=photo.png --label=house --panorama=4

The label says what is to be seen: the picture's own class (inpainting) or another
(class-conditional editing). A mask is white where the picture is to be made anew; --sketch guides
there as in `experiments.sketch`, and only then the flags of structure guidance count. Writes the
pictures as they are made, `results.jsonl` (one line per picture) and in the end `grid.png` (first
the picture, its mask outlined). A stopped run goes on when the same command is given again; those
of other settings are replaced.

Pictures of any size: what is farther from the mask than a token's side comes back bit by bit.
"""

import re
import sys

import numpy as np
from absl import flags
from jaxtyping import Bool, UInt8

from experiments.app import cli, guidance_flags
from experiments.app.batches import Batch
from experiments.app.picture_job import GRID, Progress, contact_sheet, make_pictures
from experiments.app.run_folder import RunFolder
from guidance.inpaint import follow_sketch
from maskgit_jax.editing.canvas import box_mask, finish, prepare, read_mask, resize
from maskgit_jax.editing.inpaint import chosen_settings, remake
from maskgit_jax.editing.outpaint import SIDES, Growth, grow
from maskgit_jax.errors import InputError
from maskgit_jax.images import MAX_PIXELS, read_image
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, load_model, model_config

_MOST_SAMPLES = 10_000
_MOST_BY = 400  # percent
_MOST_HEIGHTS = 20
_PAPER = 235

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


def main() -> None:
    """Edits as the flags say."""
    check_flags()
    image = read_image(_IMAGE.value)
    config = model_config(flags.FLAGS.model)
    label = find_label(_LABEL.value, config.class_names)
    shape = image.shape[:2]
    mask, growths, sketch = read_region(*shape), read_growths(*shape), read_sketch(*shape)
    guided = guidance_flags.read(config)
    given = {name: flags.FLAGS[name].value for name in ("num_steps", "token_temperature")}
    if given["num_steps"] is not None:
        given["num_steps"] = guided.num_steps
    if given["token_temperature"] is not None:
        given["token_temperature"] = guided.settings.token_temperature
    settings = chosen_settings(config, temperature=_TEMPERATURE.value, **given)
    seed = flags.FLAGS.seed

    def sampler(model: Model):
        if mask is not None:
            picture = prepare(image, mask, config.tokenizer)
        if sketch is not None:
            drawn = prepare(sketch, mask, config.tokenizer).square

        def sample(batch: Batch, progress: Progress):
            def repeated(x: np.ndarray) -> np.ndarray:
                return np.repeat(x[None], len(batch.rows), axis=0)

            common = {"seed": seed, "indices": batch.rows}
            labels, measures = np.full(len(batch.rows), label), [{}] * batch.count
            if growths:
                made = grow(model, repeated(image), growths, labels, settings, **common)
                return made[: batch.count], measures
            squares, hidden = repeated(picture.square), repeated(picture.hidden)
            if sketch is None:
                made = remake(model, squares, hidden, labels, settings, **common)
            else:
                made, distances = follow_sketch(
                    model,
                    squares,
                    repeated(drawn),
                    hidden,
                    labels,
                    guided.settings,
                    num_steps=guided.num_steps,
                    **guided.choices._asdict(),
                    **common,
                )
                measures = [{"structure_distance": round(float(each), 6)} for each in distances]
            made = [finish(picture, square) for square in made[: batch.count]]
            return made, measures[: batch.count]

        return sample

    def sheet(pictures: list[np.ndarray]) -> np.ndarray:
        shown, region = (image, mask) if mask is not None else on_paper(image, growths)
        height, width = region.shape
        columns = 1 if width > 2 * height else None
        return contact_sheet(shown, region, pictures, side=height, columns=columns)

    folder = RunFolder(_OUTPUT_DIR.value, "edit")
    lines = make_pictures(
        folder,
        {
            **{flag.name: flag.value for flag in (_IMAGE, _MASK, _BOX, _SKETCH)},
            "growths": dict(growths),
            "label": label,
            "class_name": config.class_names[label],
            **(guided.record if sketch is not None else settings._asdict()),
            **{name: flags.FLAGS[name].value for name in ("model", "dtype", "seed")},
        },
        inputs={flag.name: flag.value for flag in (_IMAGE, _MASK, _SKETCH)},
        load=lambda: load_model(flags.FLAGS.model, dtype=flags.FLAGS.dtype),
        sampler=sampler,
        num_samples=_NUM_SAMPLES.value,
        batch_size=flags.FLAGS.batch_size,
        num_steps=settings.num_steps if sketch is None else guided.num_steps,
        sheet=sheet,
    )
    print(f"{len(lines)} pictures in {folder.path}, look at {folder.path / GRID}")


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


def on_paper(
    image: UInt8[np.ndarray, "H W 3"], growths: list[Growth]
) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
    """The picture with paper where it will grow, and that as a mask."""
    room = {side: 0 for side in SIDES} | dict(growths)
    margins = (room["up"], room["down"]), (room["left"], room["right"])
    mask = np.pad(np.zeros(image.shape[:2], bool), margins, constant_values=True)
    return np.pad(image, (*margins, (0, 0)), constant_values=_PAPER), mask


if __name__ == "__main__":
    cli.run(main)
