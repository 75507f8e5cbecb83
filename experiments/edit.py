"""Makes a part of a picture anew, or the picture larger.

    python -m experiments.edit --image=photo.png --label=house --box=10,10,24,24
    python -m experiments.edit --image=photo.png --label=house --mask=mask.png --sketch=roof.png
    python -m experiments.edit --image=photo.png --label=house --extend=left,right --by=50%
    python -m experiments.edit --image=photo.png --label=house --panorama=4

The label says what is to be seen: the picture's own class (inpainting) or another
(class-conditional editing). A mask is white where the picture is sampled again, or transparent, as
image editors cut holes; --sketch guides there as in `experiments.sketch`, and only then the flags
of structure guidance count. Writes the pictures as they are made, `results.jsonl` (one line per
picture) and in the end `grid.png` (first the picture, its mask outlined). A stopped run goes on
when the same command is given again; those of other settings are replaced.

Pictures of any size: what is farther from the mask than a token's side comes back bit by bit.
"""

import dataclasses
from pathlib import Path

import numpy as np

from experiments.app import cli
from experiments.app.batches import Batch
from experiments.app.flag_groups import GuidanceFlags, ToneFlags, edit_settings, read_guidance
from experiments.app.picture_job import (
    GRID,
    PictureFlags,
    contact_sheet,
    find_wanted,
    make_pictures,
    repeat_rows,
)
from experiments.app.regions import on_paper, read_growths, read_region, stretch_sketch
from experiments.app.run_folder import Progress
from guidance.inpaint import follow_sketch
from guidance.settings import STATIC, SWEPT
from maskgit_jax.editing.canvas import finish, prepare
from maskgit_jax.editing.inpaint import EditSettings, remake
from maskgit_jax.editing.outpaint import count_windows, grow
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob, optional
from maskgit_jax.model import Model, model_config

_EditKnobs = dataclasses.make_dataclass(
    "_EditKnobs",
    optional(EditSettings, leave=("num_steps", "token_temperature")),
    frozen=True,
    kw_only=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(GuidanceFlags, PictureFlags, ToneFlags, _EditKnobs):
    """The picture, and what of it is sampled."""

    image: str | None = knob(None, "Picture file to edit.", kind=Path)
    label: str | None = knob(None, "Class to be seen: a name or a number.")
    mask: str | None = knob(
        None,
        "Picture file, white or transparent where the picture is sampled anew.",
        kind=Path,
    )
    box: str | None = knob(None, "In place of a mask: top,left,height,width in pixels.")
    extend: tuple[str, ...] | None = knob(
        None, "Sides to grow to: left, right, up, down.", kind=tuple
    )
    by: str | None = knob(None, "How far to each side, as a share of the picture; else 50%.")
    panorama: float | None = knob(
        None, "Grow left and right until the width is so many heights.", kind=float
    )
    sketch: str | None = knob(None, "Drawing to follow inside the mask or box.", kind=Path)


def main(flags: Flags) -> None:
    """Samples a part of a picture, or what is beyond its edges."""
    config = model_config(flags.model)
    image, label = find_wanted(flags.image, flags.label, config)
    check_flags(flags)
    shape = image.shape[:2]
    mask = read_region(flags.mask, flags.box, *shape)
    growths = read_growths(flags.extend, flags.by or "50%", flags.panorama, *shape)
    sketch, changes = stretch_sketch(flags.sketch, flags.invert, *shape)
    windows = count_windows(growths, *shape, config.tokenizer.image_size) if growths else 1
    guided = read_guidance(flags, config)
    settings = edit_settings(config, flags)

    def sampler(model: Model):
        if mask is not None:
            picture = prepare(image, mask, config.tokenizer)
        if sketch is not None:
            drawn = prepare(sketch, mask, config.tokenizer).square

        def sample(batch: Batch, progress: Progress):
            common = {"seed": flags.seed, "indices": batch.rows}
            (labels,), measures = repeat_rows(batch, np.array(label)), [{}] * batch.count
            if growths:
                (images,) = repeat_rows(batch, image)
                made = grow(model, images, growths, labels, settings, **common, progress=progress)
                return made[: batch.count], measures
            squares, masked = repeat_rows(batch, picture.square, picture.masked)
            if sketch is None:
                made = remake(model, squares, masked, labels, settings, **common, progress=progress)
            else:
                made, distances = follow_sketch(
                    model,
                    squares,
                    *repeat_rows(batch, drawn),
                    masked,
                    labels,
                    guided.settings,
                    num_steps=guided.num_steps,
                    **guided.options,
                    **common,
                    progress=progress,
                )
                measures = [
                    {"structure_distance": round(float(each), 6)}
                    for each in distances[: batch.count]
                ]
            return [finish(picture, square) for square in made[: batch.count]], measures

        return sample

    def sheet(pictures: list[np.ndarray]) -> np.ndarray:
        shown, region = (image, mask) if mask is not None else on_paper(image, growths)
        height, width = region.shape
        columns = 1 if width > 2 * height else None
        return contact_sheet(shown, region, pictures, side=height, columns=columns)

    folder, lines = make_pictures(
        "edit",
        flags,
        {
            **{name: getattr(flags, name) for name in ("image", "mask", "box", "sketch")},
            **({"changes": list(changes)} if changes else {}),
            "growths": dict(growths),
            "label": label,
            "class_name": config.class_names[label],
            **(guided.record if sketch is not None else dataclasses.asdict(settings)),
            **{name: getattr(flags, name) for name in ("model", "dtype", "seed")},
        },
        inputs={name: getattr(flags, name) for name in ("image", "mask", "sketch")},
        sampler=sampler,
        num_steps=guided.num_steps if sketch is not None else windows * settings.num_steps,
        sheet=sheet,
    )
    print(f"{len(lines)} pictures in {folder}, look at {folder / GRID}")


def check_flags(flags: Flags) -> None:
    """Raises InputError where flags do not go together."""
    tasks = [
        name for name in ("mask", "box", "extend", "panorama") if getattr(flags, name) is not None
    ]
    if len(tasks) != 1:
        found = " and ".join(f"--{name}" for name in tasks) or "none"
        raise InputError(f"expected one of --mask, --box, --extend, --panorama; found {found}")
    if flags.by is not None and flags.extend is None:
        raise InputError("--by without --extend: say to which side, such as --extend=right")
    if flags.sketch is None:
        of_structure = {*SWEPT, *STATIC, "sampler", "guidance_schedule"}
        # First the preset, which gives some of the others.
        for name in ("preset", *sorted(of_structure - {"num_steps", "token_temperature"})):
            if getattr(flags, name) is not None:
                raise InputError(f"--{name} without --sketch: only a sketch gives structure")
    elif flags.mask is None and flags.box is None:
        raise InputError(f"--sketch with --{tasks[0]}: a sketch guides a --mask or --box")
    elif flags.temperature is not None:
        raise InputError(
            "--temperature with --sketch: its noise is --structure_temperature and "
            "--confidence_temperature"
        )


if __name__ == "__main__":
    cli.run(main, Flags)
