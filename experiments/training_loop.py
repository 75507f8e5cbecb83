"""The loop that both training commands run: batches, progress, checkpoints, resuming."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Int, Key, UInt8
from tqdm import tqdm

from maskgit_jax import training, world
from maskgit_jax.errors import InputError

TRAIN_SEED = 0
"""Pictures of this seed are trained on; every other seed is held out."""


def draw_pictures(
    num_images: int, size: int
) -> tuple[UInt8[np.ndarray, "n size size 3"], Int[np.ndarray, "n"]]:
    """The first pictures of the demo world's training seed, and their labels.

    Photos only: masks and sketches are never trained on.
    """
    images = np.empty((num_images, size, size, 3), np.uint8)
    labels = np.empty(num_images, np.int32)
    for i in tqdm(range(num_images), desc="drawing pictures", unit="", mininterval=1):
        scene = world.draw_scene(TRAIN_SEED, i, size=size)
        images[i], labels[i] = scene.image, scene.label
    return images, labels


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> Int[np.ndarray, "b"]:
    """The pictures of one step's batch: a function of seed and step, so a run can resume."""
    return np.random.default_rng([seed, step]).integers(num_images, size=batch_size)


def fit(
    update: Callable[[training.TrainState, Any, Key[Array, ""]], tuple],
    state: training.TrainState,
    batch_at: Callable[[int], Any],
    *,
    key: Key[Array, ""],
    num_steps: int,
    directory: Path,
    save_every: int,
    export: Callable[[training.Params], None] | None,
) -> training.TrainState:
    """Trains from the newest checkpoint in `directory` (or `state`) to `num_steps`.

    Every `save_every` steps and at the end the state is saved and the weights are exported, so a
    killed run loses less than that and goes on to the same result when started again.

    Args:
      update: one compiled update, `(state, batch, key) -> (state, metrics)`.
      state: the state of a new run.
      batch_at: the batch of a step.
      key: the run's randomness; each update folds in its step.
      num_steps: updates in all.
      directory: where checkpoints go.
      save_every: steps between checkpoints.
      export: writes the weights where they are used; None where nobody does.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
        newest = manager.latest_step()
        if newest is not None:
            state = manager.restore(newest, args=ocp.args.StandardRestore(state))
            print(f"resumed at step {newest}")
        first = int(state.step)
        progress = tqdm(range(first, num_steps), initial=first, total=num_steps, mininterval=1)
        sums: dict[str, float] = {}
        for step in progress:
            state, metrics = update(state, batch_at(step), key)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            done = step + 1
            if done % 100 == 0 or done == num_steps:
                count = done - max(first, (done - 1) // 100 * 100)
                means = " ".join(f"{name} {total / count:.4f}" for name, total in sums.items())
                tqdm.write(f"step {done}: {means}")
                if not np.all(np.isfinite(list(sums.values()))):
                    raise InputError(
                        f"the loss is no number near step {done}: start again in another folder "
                        "with a lower --learning_rate; earlier weights are kept"
                    )
                sums = {}
            if done % save_every == 0 or done == num_steps:
                manager.save(done, args=ocp.args.StandardSave(state))
                if export is not None:
                    export(jax.device_get(state.params))
        if export is not None:
            # A run killed between its last save and its export is whole after the next start.
            export(jax.device_get(state.params))
    return state
