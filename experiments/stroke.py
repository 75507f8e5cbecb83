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

import numpy as np
from absl import flags
from jaxtyping import Float32, UInt8

from experiments.app import cli
from experiments.app.batches import Batch
from experiments.app.picture_job import GRID, Progress, contact_sheet, make_pictures
from experiments.app.run_folder import RunFolder
from experiments.metrics.strokes import colour_distance
from guidance.stroke_methods import METHODS
from guidance.stroke_sampling import CONFIDENT, follow_strokes, read_energy
from guidance.strokes import KINDS, Stroke, automatic_stroke
from maskgit_jax.config import ModelConfig
from maskgit_jax.editing.canvas import finish, prepare, read_mask
from maskgit_jax.editing.inpaint import EditSettings, chosen_settings
from maskgit_jax.errors import InputError
from maskgit_jax.images import read_image
from maskgit_jax.knobs import KNOBS, check_value
from maskgit_jax.labels import find_label
from maskgit_jax.model import DTYPES, Model, load_model, model_config

_MOST_SAMPLES = 10_000

_IMAGE = flags.DEFINE_string("image", None, "Picture file.")
_LABEL = flags.DEFINE_string("label", None, "Class to be seen: a name or a number.")
_STROKE = flags.DEFINE_string("stroke", None, "The picture, painted over; of the same size.")
_MASK = flags.DEFINE_string("mask", None, "White where paint is; of the same size.")
_AUTO = flags.DEFINE_enum("auto", None, KINDS, "In place of both: a stroke made from the picture.")
_METHOD = flags.DEFINE_enum("method", "tilt", METHODS, "How the stroke leads.")
_CONFIDENCE = flags.DEFINE_float("confidence", None, "How far the stroke is followed, 0 to 1.")
_ENERGY = flags.DEFINE_string("energy", None, "For learned: the energy.npy of tune_energy.")
_MODEL = flags.DEFINE_string("model", "demo", "demo, imagenet256, imagenet512 or a model's folder.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPES, "What the transformer computes in.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Decoding steps.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "Of the choice which ids to keep.")
_TOKEN_TEMPERATURE = flags.DEFINE_float(
    "token_temperature", None, "Ids are sampled from softmax(logits / it)."
)
_SEED = flags.DEFINE_integer("seed", 0, "With a sample's index, all that it depends on.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "Pictures to make.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Samples decoded together.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "out", "Folder for the results.")


def main() -> None:
    """Makes pictures as the flags say."""
    # All that can be wrong is looked at before anything large is fetched or made.
    config = model_config(_MODEL.value)
    settings, confidence = read_settings(config)
    if _IMAGE.value is None:
        raise InputError("no --image: give the picture to edit, such as --image=photo.png")
    if _LABEL.value is None:
        raise InputError("--image without --label: say what is to be seen, such as --label=house")
    label = find_label(_LABEL.value, config.class_names)
    energy = read_method(config.transformer.codebook_size)
    image = read_image(_IMAGE.value)
    stroke = read_stroke(image)
    picture = prepare(image, stroke.mask, config.tokenizer)
    painted = prepare(stroke.painted, stroke.mask, config.tokenizer).square

    def sampler(model: Model):
        def sample(batch: Batch, progress: Progress):
            def repeated(x: np.ndarray) -> np.ndarray:
                return np.repeat(x[None], len(batch.rows), axis=0)

            samples = follow_strokes(
                model,
                repeated(picture.square),
                repeated(painted),
                repeated(picture.hidden),
                np.full(len(batch.rows), label),
                settings,
                method=_METHOD.value,
                confidence=confidence,
                energy=energy,
                seed=_SEED.value,
                indices=batch.rows,
            )
            made = [finish(picture, square) for square in samples.images[: batch.count]]
            # One at a time: large pictures take gigabytes as floats.
            distances = [
                colour_distance(each[None], stroke.painted[None], stroke.mask[None])[0]
                for each in made
            ]
            return made, [{"colour_distance": round(float(each), 6)} for each in distances]

        return sample

    folder = RunFolder(_OUTPUT_DIR.value, "stroke")
    lines = make_pictures(
        folder,
        {
            **{flag.name: flag.value for flag in (_IMAGE, _STROKE, _MASK, _AUTO)},
            "label": label,
            "class_name": config.class_names[label],
            "method": _METHOD.value,
            "confidence": confidence if _METHOD.value in CONFIDENT else None,
            "energy": _ENERGY.value,
            **settings._asdict(),
            **{flag.name: flag.value for flag in (_MODEL, _DTYPE, _SEED)},
        },
        inputs={flag.name: flag.value for flag in (_IMAGE, _STROKE, _MASK, _ENERGY)},
        load=lambda: load_model(_MODEL.value, dtype=_DTYPE.value),
        sampler=sampler,
        num_samples=_NUM_SAMPLES.value,
        batch_size=_BATCH_SIZE.value,
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
    print(f"{len(lines)} pictures in {folder.path}, mean colour distance to the stroke {mean:.4f}")
    print(f"look at {folder.path / GRID}")


def read_settings(config: ModelConfig) -> tuple[EditSettings, float]:
    """The settings and the confidence: the flags' values, else those of the model's presets."""
    for flag, most in ((_NUM_SAMPLES, _MOST_SAMPLES), (_BATCH_SIZE, 10_000)):
        if not 1 <= flag.value <= most:
            raise InputError(f"--{flag.name}={flag.value}: expected 1 to {most}")
    if not 0 <= _SEED.value < 2**32:
        raise InputError(f"--seed={_SEED.value}: expected 0 to {2**32 - 1}")
    settings = chosen_settings(
        config, _NUM_STEPS.value, _TEMPERATURE.value, _TOKEN_TEMPERATURE.value, "stroke"
    )
    confidence = config.presets["stroke"]["confidence"]
    if _CONFIDENCE.value is not None:
        confidence = _CONFIDENCE.value
        check_value("--confidence", confidence, KNOBS["stroke"]["confidence"])
    if _CONFIDENCE.value is not None and _METHOD.value not in CONFIDENT:
        raise InputError(
            f"--confidence with --method={_METHOD.value}: only {', '.join(CONFIDENT)} have one"
        )
    return settings, confidence


def read_method(codebook_size: int) -> Float32[np.ndarray, "K K"] | None:
    """The energy of --energy; None for a method without a learned one."""
    if (_METHOD.value == "learned") != (_ENERGY.value is not None):
        raise InputError(
            "--method=learned and --energy go together: give the energy.npy that "
            "experiments.tune_energy writes"
        )
    return None if _ENERGY.value is None else read_energy(_ENERGY.value, codebook_size)


def read_stroke(image: UInt8[np.ndarray, "h w 3"]) -> Stroke:
    """The stroke of --stroke and --mask, or of --auto."""
    given = [flag.name for flag in (_STROKE, _MASK, _AUTO) if flag.value is not None]
    if given == ["auto"]:
        return automatic_stroke(image, _AUTO.value, _SEED.value)
    if given != ["stroke", "mask"]:
        found = " and ".join(f"--{name}" for name in given) or "none"
        raise InputError(f"expected --stroke and --mask, or --auto; found {found}")
    height, width = image.shape[:2]
    painted = read_image(_STROKE.value)
    mask, stretched = read_mask(_MASK.value, height, width)
    for flag, other_size in ((_STROKE, painted.shape != image.shape), (_MASK, stretched)):
        if other_size:
            raise InputError(
                f"--{flag.name}={flag.value} is not of the picture's size, {width}x{height} pixels"
            )
    return Stroke(painted, mask)


if __name__ == "__main__":
    cli.run(main)
