"""From classes to pictures, without a sketch.

    python -m experiments.generate --labels=house,tree --num_samples=8 --output_dir=samples
    python -m experiments.generate --model=imagenet256 --labels=all --num_samples=50 --format=npz \\
        --batch_size=64 --output_dir=samples_npz

Three samplers fill the ids: MaskGIT's, which keeps the surest (arXiv:2202.04200); the Halton
scheduler, which spreads them over the picture (arXiv:2503.17076); and ReMDM, which hides some again
(arXiv:2503.00307). Writes `grid.png` of the first pictures, and by --format

    png    one file per picture, and `results.jsonl`
    npz    `samples.npz` as ADM's evaluator and `experiments.score` take it: arr_0, uint8
           [n, H, W, 3], and the labels arr_1, int64

A killed run goes on where it was when the same command is given again.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import UInt8
from tqdm import tqdm

from experiments import cli
from experiments.generate_folder import FORMATS, GenerateFolder
from experiments.generate_plan import SAMPLERS, Plan, check_settings, preset, read_labels
from guidance import classifier_free
from maskgit_jax.config import ModelConfig
from maskgit_jax.decoding import MASK_ID
from maskgit_jax.errors import InputError
from maskgit_jax.images import to_uint8
from maskgit_jax.model import Model, load_model, model_config, with_class_token
from maskgit_jax.remdm import STRATEGIES
from maskgit_jax.schedules import SCHEDULE_NAMES

_MOST = 10**6
_COLUMNS_UP_TO = 12

_MODEL = flags.DEFINE_string("model", "demo", "demo, imagenet256, imagenet512, or a model folder.")
_LABELS = flags.DEFINE_string("labels", "all", "all, or names, numbers and ranges: house,3,5-7.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "Pictures of each class.")
_SAMPLER = flags.DEFINE_enum("sampler", "maskgit", list(SAMPLERS), "Which ids come when.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Decoding steps.")
_SCHEDULE = flags.DEFINE_enum(
    "schedule", None, list(SCHEDULE_NAMES), "How the number of hidden ids falls."
)
_TEMPERATURE = flags.DEFINE_float("temperature", None, "maskgit: of the choice which ids to keep.")
_SHARPNESS = flags.DEFINE_float("sharpness", None, "halton: factor of the last step's logits.")
_REMASK = flags.DEFINE_enum("remask", None, list(STRATEGIES), "remdm: how ids are hidden again.")
_ETA = flags.DEFINE_float("eta", None, "remdm: how readily ids are hidden again, 0 to 1.")
_GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", 0.0, "Classifier-free guidance.")
_SEED = flags.DEFINE_integer("seed", 0, "With a picture's number, all that it depends on.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures made together.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "samples", "Folder for the results.")
_FORMAT = flags.DEFINE_enum("format", "grid", list(FORMATS), "What is written beside grid.png.")


def main() -> None:
    """Makes pictures as the flags say."""
    for flag, low, high in (
        (_NUM_SAMPLES, 1, _MOST),
        (_BATCH_SIZE, 1, _MOST),
        (_SEED, 0, 2**32 - 1),
        (_GUIDANCE_SCALE, 0, 1e6),
    ):
        if not low <= flag.value <= high:
            raise InputError(f"--{flag.name}={flag.value}: expected {low} to {high:.0f}")
    config = model_config(_MODEL.value)
    plan = _read_plan(config)
    model = load_model(_MODEL.value)
    folder = GenerateFolder(Path(_OUTPUT_DIR.value))
    record = plan._asdict()
    folder.open(record | record.pop("settings") | {"format": _FORMAT.value})
    if folder.finished():
        print(f"finished before: look at {folder.path / 'grid.png'}")
        return
    _make(model, plan, folder)

    lines = [
        {
            "file": f"sample_{index:06d}.png",
            "index": index,
            "label": plan.label(index),
            "class_name": config.class_names[plan.label(index)],
        }
        for index in range(plan.count)
    ]
    columns = len(plan.labels) if 1 < len(plan.labels) <= _COLUMNS_UP_TO else None
    folder.finish(_FORMAT.value, lines, columns)
    print(f"{plan.count} pictures; look at {folder.path / 'grid.png'}")


def _read_plan(config: ModelConfig) -> Plan:
    flags_of_samplers = (_NUM_STEPS, _SCHEDULE, _TEMPERATURE, _SHARPNESS, _REMASK, _ETA)
    given = {flag.name: flag.value for flag in flags_of_samplers if flag.value is not None}
    defaults = preset(_SAMPLER.value, _MODEL.value, config.tokenizer.image_size)
    check_settings(_SAMPLER.value, defaults, given)
    settings = defaults | given
    return Plan(
        model=_MODEL.value,
        labels=read_labels(_LABELS.value, config.class_names),
        num_samples=_NUM_SAMPLES.value,
        sampler=_SAMPLER.value,
        num_steps=settings.pop("num_steps"),
        settings=settings,
        guidance_scale=_GUIDANCE_SCALE.value,
        seed=_SEED.value,
    )


def _make(model: Model, plan: Plan, folder: GenerateFolder) -> None:
    """Makes the pictures that the folder lacks."""
    batch_size = min(_BATCH_SIZE.value, plan.count)
    done = folder.count()
    with tqdm(total=plan.count, initial=done, desc="pictures", unit="", mininterval=1) as bar:
        for first in range(done, plan.count, batch_size):
            # Filled up: every batch runs what the first one compiled.
            indices = np.minimum(np.arange(first, first + batch_size), plan.count - 1)
            kept = min(batch_size, plan.count - first)
            folder.add(first, _draw(model, plan, indices)[:kept])
            bar.update(kept)


def _draw(model: Model, plan: Plan, indices: np.ndarray) -> UInt8[np.ndarray, "b H W 3"]:
    """The pictures of these numbers."""
    labels = jnp.array([plan.label(int(index)) for index in indices])
    hidden = jnp.full((len(labels), model.config.transformer.sequence_length - 1), MASK_ID)
    ids = classifier_free.sample(
        model,
        with_class_token(model.config, labels, hidden),
        guidance_scale=plan.guidance_scale,
        sampler=plan.make_sampler(),
        num_steps=plan.num_steps,
        seed=plan.seed,
        indices=jnp.asarray(indices),
    )
    return to_uint8(np.asarray(model.decode(ids)))


if __name__ == "__main__":
    cli.run(main)
