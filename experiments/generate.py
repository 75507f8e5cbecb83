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

import dataclasses
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.app import cli, digests
from experiments.app.batches import Batch, make_batches
from experiments.app.captions import named_grid
from experiments.app.flag_groups import MODEL_HELP
from experiments.app.generate_plan import Plan, choose_settings, read_labels
from experiments.app.picture_job import GRID
from experiments.app.picture_sets import ImageSet, write_adm_npz
from experiments.app.run_folder import RESULTS, Finished, Progress, RunFolder, read_picture
from experiments.metrics.inception import load_inception
from experiments.metrics.scoring import FEWEST, open_images, score
from guidance import classifier_free
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.images import png_bytes
from maskgit_jax.knobs import SEEDS, knob, knobs_of, optional
from maskgit_jax.model import Model, load_model, model_config, with_class_token
from maskgit_jax.sampling.loop import MASK_ID, LoopSettings
from maskgit_jax.sampling.samplers import SAMPLERS

_MOST = 10**6
_COLUMNS_UP_TO = 12
_MOST_IN_GRID = 100
_GRID_SIDE = 96  # pixels, at least
_PARTS = "parts"

_SamplerKnobs = dataclasses.make_dataclass(
    "_SamplerKnobs", optional(LoopSettings, *SAMPLERS.values()), frozen=True, kw_only=True
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(_SamplerKnobs):
    """Which classes, how they are sampled, and what is written."""

    model: str = knob("demo", MODEL_HELP, kind=Path)
    labels: str = knob("all", "all, or names, numbers and ranges: house,3,5-7.")
    num_samples: int = knob(4, "Pictures of each class.", low=1, high=_MOST)
    sampler: str = knob("maskgit", "Which ids come when.", choices=tuple(SAMPLERS))
    guidance_scale: float = knob(0.0, "Classifier-free guidance.", low=0.0, high=1e6)
    guidance_schedule: str = knob(
        "constant",
        "The same guidance in all steps, or rising to --guidance_scale in the last one.",
        choices=tuple(classifier_free.SCHEDULES),
    )
    guidance_power: float | None = knob(
        None,
        "Of rising guidance: the greater, the later it sets in; 1 if not given.",
        low=0.0,
        high=100.0,
        kind=float,
    )
    seed: int = knob(0, "Random seed; picture i uses fold_in(key(seed), i).", **SEEDS)
    batch_size: int = knob(32, "Pictures sampled together.", low=1, high=_MOST)
    output_dir: str = knob("samples", "Folder for the results.", kind=Path)
    format: str = knob(
        "png",
        "What is written beside grid.png: a file per picture, one .npz of all, or nothing.",
        choices=("png", "npz", "grid"),
    )
    inception: str | None = knob(
        None, "Score the pictures by this network, as experiments.score does.", kind=Path
    )
    reference: str | None = knob(
        None, "With --inception: real pictures for FID, precision and recall.", kind=Path
    )


def main(flags: Flags) -> None:
    """Samples pictures of classes."""
    plan = read_plan(flags, model_config(flags.model))
    reference = read_scoring(flags, plan)
    folder = RunFolder(flags.output_dir, "generate")
    record = plan._asdict()
    record |= record.pop("settings") | {"format": flags.format}
    with folder.claim(record):  # before anything large is loaded
        variables = None if flags.inception is None else load_inception(flags.inception)
        model = load_model(flags.model)
        folder.open(record | {"weights": digests.of_weights(model)})
        if (folder.path / GRID).exists():
            print(f"finished before: look at {folder.path / GRID}")
        else:
            folder.make_missing(
                make_batches(plan.count, flags.batch_size),
                maker(model, plan, flags.format),
                items=lambda batch: batch.rows.tolist(),
                num_steps=lambda _: plan.num_steps,
            )
            finish(folder, plan, flags.format)
            print(f"{plan.count} pictures; look at {folder.path / GRID}")
        if flags.format != "png":
            (folder.path / RESULTS).unlink(missing_ok=True)
            shutil.rmtree(folder.path / _PARTS, ignore_errors=True)
    if variables is not None:
        samples = open_images("output_dir", str(folder.path / "samples.npz"))
        score(samples, reference, variables, flags.batch_size)


def read_plan(flags: Flags, config: ModelConfig) -> Plan:
    """What the flags ask of a model."""
    given = {name: getattr(flags, name) for name in knobs_of(_SamplerKnobs)}
    given = {name: value for name, value in given.items() if value is not None}
    settings = choose_settings(config, flags.sampler, given)
    schedule, power = flags.guidance_schedule, flags.guidance_power
    if schedule == "constant" and power is not None:
        raise InputError(f"--guidance_power={power}: only --guidance_schedule=rising has one")
    plan = Plan(
        model=flags.model,
        labels=read_labels(flags.labels, config.class_names),
        num_samples=flags.num_samples,
        sampler=flags.sampler,
        num_steps=settings.pop("num_steps"),
        settings=settings,
        guidance_scale=flags.guidance_scale,
        seed=flags.seed,
        token_temperature=settings.pop("token_temperature"),
        guidance_power=classifier_free.SCHEDULES[schedule] if power is None else power,
    )
    plan.make_sampler()  # names that do not go together are told before anything is loaded
    return plan


def read_scoring(flags: Flags, plan: Plan) -> ImageSet | None:
    """The pictures to score against, if any."""
    if flags.inception is None:
        if flags.reference is not None:
            raise InputError("--reference without --inception: give the network's weights too")
        return None
    if flags.format != "npz":
        raise InputError(f"--inception with --format={flags.format}: give --format=npz")
    if plan.count < FEWEST:
        raise InputError(f"--inception: {plan.count} pictures, expected {FEWEST} or more")
    return None if flags.reference is None else open_images("reference", flags.reference)


def maker(model: Model, plan: Plan, form: str):
    """What makes the pictures of a batch, for `RunFolder.make_missing`."""
    name = "sample_{:06d}.png" if form == "png" else f"{_PARTS}/{{:06d}}.npy"

    def make(batch: Batch, first: bool, progress: Progress):
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
            progress=progress,
        )
        pictures = model.images_of(ids)
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
    names = [line["class_name"] for line in lines[:_MOST_IN_GRID]]
    folder.write(GRID, png_bytes(named_grid(shown, names, columns=columns, scale=scale)))


if __name__ == "__main__":
    cli.run(main, Flags)
