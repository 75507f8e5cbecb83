"""Trains the judge of `evaluate` on the demo world's photos, masks and labels.

    python -m experiments.train_judge --output_dir=runs/judge

Writes `judge_checkpoint` into the folder; started again, it resumes. At the end it prints how well
the judge does on held-out photos. It sees no sketches: its word about a sketch's shape must come
from what objects look like.
"""

import functools

import jax
import numpy as np
from absl import flags
from jaxtyping import Int, UInt8
from tqdm import tqdm

from experiments.app import cli
from experiments.demo_world import world
from experiments.demo_world.judge import Judge, predict
from experiments.demo_world.judge_training import empty_pictures, judge_loss, roughen
from experiments.metrics.measures import mean_and_error, part_miou, silhouette_iou
from experiments.training import datasets, loop
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.images import to_float
from maskgit_jax.keys import seed_key
from maskgit_jax.training import optimizers, train_state

_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/judge", "Folder for the weights.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 12_000, "Pictures to draw.", lower_bound=1)
_NUM_HELD_OUT = flags.DEFINE_integer("num_held_out", 500, "Pictures to test on.", lower_bound=1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 2_500, "Updates.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures per update.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 4e-3, "Peak learning rate.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, batches and augmentation.", lower_bound=0)
_SAVE_EVERY = flags.DEFINE_integer("save_every", 500, "Steps between checkpoints.", lower_bound=1)

HELD_OUT_SEED = 2
"""Neither the training seed nor the scenes that `evaluate` draws."""

_SIZE = 48  # pixels a side


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


def main() -> None:
    """Trains as the flags say."""
    loop.keep_freed_memory()
    folder = cli.output_folder(_OUTPUT_DIR)
    scenes = draw_scenes(datasets.TRAIN_SEED, _NUM_IMAGES.value)

    def batch_at(step: int):
        rows = datasets.batch_indices(_SEED.value, step, _BATCH_SIZE.value, _NUM_IMAGES.value)
        images, parts, labels = (array[rows] for array in scenes)
        return to_float(images), parts.astype(np.int32), labels

    judge = Judge()
    key = seed_key(_SEED.value)
    params = jax.jit(judge.init)(key, batch_at(0)[0])["params"]
    optimizer = optimizers.make_optimizer(
        _LEARNING_RATE.value, _NUM_STEPS.value, min(100, _NUM_STEPS.value // 2), 1e-4
    )
    loss = functools.partial(judge_loss, judge)
    state = loop.fit(
        functools.partial(train_state.update, loss, optimizer),
        train_state.init_state(params, optimizer),
        batch_at,
        key=key,
        num_steps=_NUM_STEPS.value,
        directory=folder / "judge_training",
        save_every=_SAVE_EVERY.value,
        export=functools.partial(checkpoint.write_checkpoint, folder / "judge_checkpoint"),
    )

    held_out, parts, labels = draw_scenes(HELD_OUT_SEED, _NUM_HELD_OUT.value)
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


if __name__ == "__main__":
    cli.run(main)
