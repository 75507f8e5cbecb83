"""From classes to pictures, without a sketch.

    python -m experiments.generate --labels=house,tree --num_samples=8 --output_dir=samples
    python -m experiments.generate --model=imagenet256 --labels=all --num_samples=50 --format=npz \\
        --batch_size=64 --output_dir=samples_npz

Three samplers fill the ids: MaskGIT's, which keeps the surest (arXiv:2202.04200); the Halton
scheduler, which spreads them over the picture (arXiv:2503.17076); and ReMDM, which masks some again
(arXiv:2503.00307). docs/samplers.md explains their settings. Writes, by --format, and in the end
`grid.png` of the first pictures,

    png    one file per picture as it is made, and `results.jsonl`, a line for each
    npz    `samples.npz` as ADM's evaluator and `experiments.score` take it: arr_0, uint8
           [n, H, W, 3], and the labels arr_1, int64
    grid   nothing else

A stopped run goes on when the same command is given again. With --inception, the pictures are
scored in the end (docs/imagenet.md).
"""

import shutil
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments.app import cli, digests
from experiments.app.batches import Batch, make_batches
from experiments.app.generate_plan import SAMPLERS, Plan, choose_settings, read_labels
from experiments.app.picture_job import GRID
from experiments.app.pictures import ImageSet, write_adm_npz
from experiments.app.run_folder import RESULTS, Finished, RunFolder, read_picture
from experiments.metrics.inception import load_inception
from experiments.metrics.scoring import FEWEST, open_images, score
from guidance import classifier_free
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, png_bytes, to_uint8
from maskgit_jax.model import Model, load_model, model_config, with_class_token
from maskgit_jax.sampling.loop import MASK_ID
from maskgit_jax.sampling.remdm import STRATEGIES, WINDOWS
from maskgit_jax.sampling.schedules import SCHEDULE_NAMES

_MOST = 10**6
_COLUMNS_UP_TO = 12
_MOST_IN_GRID = 100
_GRID_SIDE = 96  # pixels, at least
_PARTS = "parts"
FORMATS = ("png", "npz", "grid")

_MODEL = flags.DEFINE_string("model", "demo", "demo, imagenet256, imagenet512, or a model folder.")
_LABELS = flags.DEFINE_string("labels", "all", "all, or names, numbers and ranges: house,3,5-7.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 4, "Pictures of each class.")
_SAMPLER = flags.DEFINE_enum("sampler", "maskgit", list(SAMPLERS), "Which ids come when.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Decoding steps.")
_SCHEDULE = flags.DEFINE_enum(
    "schedule", None, list(SCHEDULE_NAMES), "How the number of hidden ids falls."
)
_TOKEN_TEMPERATURE = flags.DEFINE_float(
    "token_temperature", None, "Ids are sampled from softmax(logits / it)."
)
_TEMPERATURE = flags.DEFINE_float("temperature", None, "maskgit: of the choice which ids to keep.")
_SHARPNESS = flags.DEFINE_float("sharpness", None, "halton: factor of the last step's logits.")
_REMASK = flags.DEFINE_enum("remask", None, list(STRATEGIES), "remdm: how ids are masked again.")
_ETA = flags.DEFINE_float("eta", None, "remdm: how readily ids are masked again, 0 to 1.")
_WINDOW = flags.DEFINE_enum(
    "window",
    None,
    list(WINDOWS),
    "remdm: from --t_on to --t_off, ids are masked again while the schedule goes on (switch), or "
    "while the share of unmasked ids stays at --alpha_on (loop).",
)
_T_ON = flags.DEFINE_float(
    "t_on", None, "remdm: begin of the window, as time that remains, 0 to 1."
)
_T_OFF = flags.DEFINE_float("t_off", None, "remdm: end of the window, likewise.")
_ALPHA_ON = flags.DEFINE_float("alpha_on", None, "remdm: see --window.")
_GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", 0.0, "Classifier-free guidance.")
_GUIDANCE_SCHEDULE = flags.DEFINE_enum(
    "guidance_schedule",
    "constant",
    list(classifier_free.SCHEDULES),
    "The same guidance in all steps, or rising to --guidance_scale in the last one.",
)
_GUIDANCE_POWER = flags.DEFINE_float(
    "guidance_power", None, "Of rising guidance: the greater, the later it sets in; 1 if not given."
)
_SEED = flags.DEFINE_integer("seed", 0, "With a picture's number, all that it depends on.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures made together.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "samples", "Folder for the results.")
_FORMAT = flags.DEFINE_enum("format", "png", list(FORMATS), "What is written beside grid.png.")
_INCEPTION = flags.DEFINE_string(
    "inception", None, "Score the pictures by this network, as experiments.score does."
)
_REFERENCE = flags.DEFINE_string(
    "reference", None, "With --inception: real pictures for FID, precision and recall."
)


def main() -> None:
    """Makes pictures as the flags say."""
    for flag, low, high in (
        (_NUM_SAMPLES, 1, _MOST),
        (_BATCH_SIZE, 1, _MOST),
        (_SEED, 0, 2**32 - 1),
        (_GUIDANCE_SCALE, 0, 1e6),
        (_GUIDANCE_POWER, *classifier_free.POWERS),
    ):
        if flag.value is not None and not low <= flag.value <= high:
            raise InputError(f"--{flag.name}={flag.value}: expected {low:g} to {high:.0f}")
    config = model_config(_MODEL.value)
    plan = _read_plan(config)
    reference = _read_scoring(plan)
    folder = RunFolder(_OUTPUT_DIR.value, "generate")
    record = plan._asdict()
    record |= record.pop("settings") | {"format": _FORMAT.value}
    with folder.claim(record):  # before anything large is loaded
        variables = None if _INCEPTION.value is None else load_inception(_INCEPTION.value)
        model = load_model(_MODEL.value)
        folder.open(record | {"weights": digests.of_weights(model)})
        if (folder.path / GRID).exists():
            print(f"finished before: look at {folder.path / GRID}")
        else:
            folder.make_missing(
                make_batches(plan.count, _BATCH_SIZE.value),
                maker(model, plan, _FORMAT.value),
                items=lambda batch: batch.rows.tolist(),
                num_steps=lambda _: plan.num_steps,
            )
            finish(folder, plan, _FORMAT.value)
            print(f"{plan.count} pictures; look at {folder.path / GRID}")
        if _FORMAT.value != "png":
            (folder.path / RESULTS).unlink(missing_ok=True)
            shutil.rmtree(folder.path / _PARTS, ignore_errors=True)
    if variables is not None:
        samples = open_images("output_dir", str(folder.path / "samples.npz"))
        score(samples, reference, variables, _BATCH_SIZE.value)


def _read_scoring(plan: Plan) -> ImageSet | None:
    """The pictures to score against, if any."""
    if _INCEPTION.value is None:
        if _REFERENCE.value is not None:
            raise InputError("--reference without --inception: give the network's weights too")
        return None
    if _FORMAT.value != "npz":
        raise InputError(f"--inception with --format={_FORMAT.value}: give --format=npz")
    if plan.count < FEWEST:
        raise InputError(f"--inception: {plan.count} pictures, expected {FEWEST} or more")
    return None if _REFERENCE.value is None else open_images("reference", _REFERENCE.value)


def _read_plan(config: ModelConfig) -> Plan:
    flags_of_samplers = (_NUM_STEPS, _SCHEDULE, _TOKEN_TEMPERATURE, _TEMPERATURE, _SHARPNESS)
    flags_of_samplers += (_REMASK, _ETA, _WINDOW, _T_ON, _T_OFF, _ALPHA_ON)
    given = {flag.name: flag.value for flag in flags_of_samplers if flag.value is not None}
    settings = choose_settings(_SAMPLER.value, config.presets[_SAMPLER.value], given)
    schedule, power = _GUIDANCE_SCHEDULE.value, _GUIDANCE_POWER.value
    if schedule == "constant" and power is not None:
        raise InputError(f"--guidance_power={power}: only --guidance_schedule=rising has one")
    plan = Plan(
        model=_MODEL.value,
        labels=read_labels(_LABELS.value, config.class_names),
        num_samples=_NUM_SAMPLES.value,
        sampler=_SAMPLER.value,
        num_steps=settings.pop("num_steps"),
        settings=settings,
        guidance_scale=_GUIDANCE_SCALE.value,
        seed=_SEED.value,
        token_temperature=settings.pop("token_temperature"),
        guidance_power=classifier_free.SCHEDULES[schedule] if power is None else power,
    )
    plan.make_sampler()  # names that do not go together are told before anything is loaded
    return plan


def maker(model: Model, plan: Plan, form: str):
    """What makes the pictures of a batch, for `RunFolder.make_missing`."""
    name = "sample_{:06d}.png" if form == "png" else f"{_PARTS}/{{:06d}}.npy"

    def make(batch: Batch, first: bool, progress: Callable[[int], None]):
        labels = jnp.array([plan.label(index) for index in batch.rows.tolist()])
        masked = jnp.full((len(labels), model.config.transformer.sequence_length - 1), MASK_ID)
        ids = classifier_free.sample(
            model,
            with_class_token(model.config, labels, masked),
            guidance_scale=plan.guidance_scale,
            power=plan.guidance_power,
            sampler=plan.make_sampler(),
            token_temperature=plan.token_temperature,
            num_steps=plan.num_steps,
            seed=plan.seed,
            indices=jnp.asarray(batch.rows),
        )
        pictures = to_uint8(np.asarray(model.decode(ids)))
        made = []
        for index in batch.rows[: batch.count].tolist():
            label = plan.label(index)
            line = {"file": name.format(index), "index": index, "label": label}
            line["class_name"] = model.config.class_names[label]
            made.append(Finished(pictures[index - batch.first], line))
        return made, None

    return make


def finish(folder: RunFolder, plan: Plan, form: str) -> None:
    """Puts the results together, all pictures being there; `grid.png` is the last."""
    folder.merge()
    lines = list(folder.finished().values())
    files = [folder.path / line["file"] for line in lines]
    if form == "npz":
        pictures = (read_picture(file)[None] for file in tqdm(files, "writing", mininterval=1))
        labels = np.array([line["label"] for line in lines], np.int64)
        write_adm_npz(folder.path / "samples.npz", pictures, len(lines), labels)
    shown = [read_picture(file) for file in files[:_MOST_IN_GRID]]
    columns = len(plan.labels) if 1 < len(plan.labels) <= _COLUMNS_UP_TO else None
    scale = max(1, _GRID_SIDE // len(shown[0]))
    folder.write(GRID, png_bytes(make_grid(shown, columns=columns, scale=scale)))


if __name__ == "__main__":
    cli.run(main)
