"""Trains the judge of `evaluate` on the demo world's photos, masks and labels.

    python -m experiments.train_judge --output_dir=runs/judge

Writes `judge_checkpoint` into the folder; started again, it resumes. At the end it prints how well
the judge does on held-out photos. It sees no sketches: its word about a sketch's shape must come
from what objects look like.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, UInt8
from tqdm import tqdm

from experiments.app import cli
from experiments.demo_world import world
from experiments.demo_world.judge import Judge, predict
from experiments.metrics.measures import mean_and_error, part_miou, silhouette_iou
from experiments.training import datasets, loop
from experiments.training.judge import empty_pictures, judge_loss, roughen
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.images import to_float
from maskgit_jax.keys import seed_key
from maskgit_jax.knobs import SEEDS, knob
from maskgit_jax.training import optimizers, train_state

HELD_OUT_SEED = 2
"""Neither the training seed nor the scenes that `evaluate` draws."""

_SIZE = 96  # pixels a side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is trained on, and how."""

    output_dir: str = knob("runs/judge", "Folder for the weights.", kind=Path)
    num_images: int = knob(12_000, "Pictures to train on.", low=1)
    num_held_out: int = knob(500, "Pictures to test on.", low=1)
    num_steps: int = knob(2_500, "Updates.", low=1)
    batch_size: int = knob(32, "Pictures per update.", low=1)
    learning_rate: float = knob(4e-3, "Peak learning rate.", low=0.0)
    seed: int = knob(0, "Random seed of weights, batches and augmentation.", **SEEDS)
    save_every: int = knob(500, "Steps between checkpoints.", low=1)


def draw_scenes(
    seed: int, num_scenes: int
) -> tuple[
    UInt8[np.ndarray, "n size size 3"], UInt8[np.ndarray, "n size size"], Int[np.ndarray, "n"]
]:
    """The first photos of a seed, the parts at their pixels, and their labels."""
    images = np.empty((num_scenes, _SIZE, _SIZE, 3), np.uint8)
    parts = np.empty((num_scenes, _SIZE, _SIZE), np.uint8)
    labels = np.empty(num_scenes, np.int32)
    for i in tqdm(range(num_scenes), desc="drawing pictures", unit="", mininterval=1):
        scene = world.draw_scene(seed, i, size=_SIZE)
        images[i], parts[i], labels[i] = scene.image, scene.parts, scene.label
    return images, parts, labels


def main(flags: Flags) -> None:
    """Trains the judge, and judges it."""
    loop.keep_freed_memory()
    folder = cli.output_folder(flags.output_dir)
    scenes = draw_scenes(datasets.TRAIN_SEED, flags.num_images)

    def batch_at(step: int):
        rows = datasets.batch_indices(flags.seed, step, flags.batch_size, flags.num_images)
        images, parts, labels = (array[rows] for array in scenes)
        return to_float(images), parts.astype(np.int32), labels

    judge = Judge()
    key = seed_key(flags.seed)
    params = jax.jit(judge.init)(key, batch_at(0)[0])["params"]
    schedule = optimizers.learning_rate_schedule(
        flags.learning_rate, flags.num_steps, min(100, flags.num_steps // 2)
    )
    optimizer = optimizers.make_optimizer(schedule, 1e-4)
    loss = functools.partial(judge_loss, judge)
    state = loop.train(
        folder / "judge_training",
        functools.partial(train_state.update, loss, optimizer),
        train_state.init_state(params, optimizer),
        loop.Data(batch_at),
        num_steps=flags.num_steps,
        key=key,
        save_every=flags.save_every,
        export=functools.partial(checkpoint.write_checkpoint, folder / "judge_checkpoint"),
    )

    held_out, parts, labels = draw_scenes(HELD_OUT_SEED, flags.num_held_out)
    photos = to_float(held_out)
    for kind, images in (
        ("photos", photos),
        ("roughened", np.asarray(jax.jit(roughen)(key, photos))),
    ):
        verdict = predict(judge, state.average, images)
        for name, values in (
            ("class accuracy", verdict.labels == labels),
            ("silhouette IoU", silhouette_iou(verdict.parts > 0, parts > 0)),
            ("part mIoU", part_miou(verdict.parts, parts.astype(np.int32))),
        ):
            mean, error = mean_and_error(values)
            print(f"held-out {kind}: {name} {mean:.3f} ± {error:.3f}")
    empty = empty_pictures(jax.random.fold_in(key, HELD_OUT_SEED), *photos.shape[:3])
    verdict = predict(judge, state.average, np.asarray(empty))
    print(f"empty pictures: {np.mean(verdict.parts > 0):.3f} of the pixels taken for an object")
    print(f"model saved in {folder}")


if __name__ == "__main__":
    cli.run(main, Flags)
