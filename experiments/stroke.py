"""Makes a painted stroke into a picture (MaskGIT-Edit).

    python -m experiments.stroke --image=photo.png --label=house --stroke=paint.png --mask=mask.png
    python -m experiments.stroke --image=photo.png --label=house --auto=counterfactual

A stroke is the photo painted over, and a mask that is white where paint is; or one that is made
from the photo: a superpixel in its mean colour (`--auto=inversion`) or in a random one
(`counterfactual`). The label says what is to be seen.

--method says how the stroke leads, --confidence how far. The default, `tilt`, goes evenly from a
picture that does not know of the stroke (0) to the stroke itself (1); the others are there to be
compared (docs/maskgit_edit.md). `learned` needs an --energy of experiments.tune_energy, `iterative`
a --model of experiments.tune_iterative.

Writes `original.png`, `stroke.png`, `mask.png`, the pictures as they are made, `results.jsonl` (one
line per picture) and in the end `grid.png` (the photo with the mask outlined, the stroke, the
pictures). A stopped run goes on when the same command is given again; those of other settings are
replaced. What is farther from the mask than a token's side comes back bit by bit.
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from experiments.app import cli
from experiments.app.batches import Batch
from experiments.app.picture_job import (
    GRID,
    PictureFlags,
    contact_sheet,
    find_wanted,
    make_pictures,
    repeat_rows,
)
from experiments.app.run_folder import Progress
from experiments.metrics.strokes import colour_distance
from guidance.strokes.automatic import KINDS, Stroke, automatic_stroke
from guidance.strokes.energies import read_energy
from guidance.strokes.methods import CONFIDENT, METHODS, StrokeSettings, follow_strokes
from maskgit_jax.editing.canvas import finish, prepare, read_mask
from maskgit_jax.errors import InputError
from maskgit_jax.images import read_image
from maskgit_jax.knobs import knob, optional, resolve
from maskgit_jax.model import Model, model_config

_StrokeKnobs = dataclasses.make_dataclass(
    "_StrokeKnobs", optional(StrokeSettings), frozen=True, kw_only=True
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(PictureFlags, _StrokeKnobs):
    """The picture, what is painted on it, and how that leads."""

    image: str | None = knob(None, "Picture file.", kind=Path)
    label: str | None = knob(None, "Class to be seen: a name or a number.")
    stroke: str | None = knob(None, "The picture, painted over; of the same size.", kind=Path)
    mask: str | None = knob(
        None, "White, or transparent, where paint is; of the same size.", kind=Path
    )
    auto: str | None = knob(
        None, "In place of both: a stroke made from the picture.", choices=KINDS
    )
    method: str = knob("tilt", "How the stroke leads.", choices=METHODS)
    energy: str | None = knob(None, "For learned: the energy.npy of tune_energy.", kind=Path)


def main(flags: Flags) -> None:
    """Samples pictures that follow a stroke."""
    config = model_config(flags.model)
    given = {name: getattr(flags, name) for name in StrokeSettings.__dataclass_fields__}
    settings = StrokeSettings(**resolve(config, "stroke", StrokeSettings, given=given))
    if flags.confidence is not None and flags.method not in CONFIDENT:
        raise InputError(
            f"--confidence with --method={flags.method}: only {', '.join(CONFIDENT)} have one"
        )
    image, label = find_wanted(flags.image, flags.label, config)
    energy = read_method(flags, config.transformer.codebook_size)
    stroke = read_stroke(flags, image)
    picture = prepare(image, stroke.mask, config.tokenizer)
    painted = prepare(stroke.painted, stroke.mask, config.tokenizer).square

    def sampler(model: Model):
        def sample(batch: Batch, progress: Progress):
            samples = follow_strokes(
                model,
                *repeat_rows(batch, picture.square, painted, picture.masked, np.array(label)),
                settings,
                method=flags.method,
                energy=energy,
                seed=flags.seed,
                indices=batch.rows,
                progress=progress,
            )
            made = [finish(picture, square) for square in samples.images[: batch.count]]
            # One at a time: large pictures take gigabytes as floats.
            distances = [
                colour_distance(each[None], stroke.painted[None], stroke.mask[None])[0]
                for each in made
            ]
            return made, [{"colour_distance": round(float(each), 6)} for each in distances]

        return sample

    others = dataclasses.asdict(settings)
    confidence = others.pop("confidence")
    folder, lines = make_pictures(
        "stroke",
        flags,
        {
            **{name: getattr(flags, name) for name in ("image", "stroke", "mask", "auto")},
            "label": label,
            "class_name": config.class_names[label],
            "method": flags.method,
            "confidence": confidence if flags.method in CONFIDENT else None,
            "energy": flags.energy,
            **others,
            **{name: getattr(flags, name) for name in ("model", "dtype", "seed")},
        },
        inputs={name: getattr(flags, name) for name in ("image", "stroke", "mask", "energy")},
        sampler=sampler,
        num_steps=settings.num_steps,
        sheet=lambda pictures: contact_sheet(
            image, stroke.mask, [stroke.painted, *pictures], side=max(stroke.mask.shape)
        ),
        shown={
            "original.png": image,
            "stroke.png": stroke.painted,
            "mask.png": np.repeat(stroke.mask[..., None].astype(np.uint8) * 255, 3, axis=-1),
        },
    )
    mean = np.mean([line["colour_distance"] for line in lines])
    print(f"{len(lines)} pictures in {folder}, mean colour distance to the stroke {mean:.4f}")
    print(f"look at {folder / GRID}")


def read_method(flags: Flags, codebook_size: int) -> Float32[np.ndarray, "K K"] | None:
    """The energy of --energy; None for a method without a learned one."""
    if (flags.method == "learned") != (flags.energy is not None):
        raise InputError(
            "--method=learned and --energy go together: give the energy.npy that "
            "experiments.tune_energy writes"
        )
    return None if flags.energy is None else read_energy(flags.energy, codebook_size)


def read_stroke(flags: Flags, image: UInt8[np.ndarray, "h w 3"]) -> Stroke:
    """The stroke of --stroke and --mask, or of --auto."""
    given = [name for name in ("stroke", "mask", "auto") if getattr(flags, name) is not None]
    if given == ["auto"]:
        return automatic_stroke(image, flags.auto, flags.seed)
    if given != ["stroke", "mask"]:
        found = " and ".join(f"--{name}" for name in given) or "none"
        raise InputError(f"expected --stroke and --mask, or --auto; found {found}")
    height, width = image.shape[:2]
    painted = read_image(flags.stroke)
    mask, stretched = read_mask(flags.mask, height, width)
    for name, other_size in (("stroke", painted.shape != image.shape), ("mask", stretched)):
        if other_size:
            raise InputError(
                f"--{name}={getattr(flags, name)} is not of the picture's size, "
                f"{width}x{height} pixels"
            )
    return Stroke(painted, mask)


if __name__ == "__main__":
    cli.run(main, Flags)
