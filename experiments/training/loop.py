"""The loop that every training command runs: batches, devices, progress, checkpoints, resuming."""

import contextlib
import ctypes
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Key, UInt8
from tensorboardX import SummaryWriter
from tqdm import tqdm

from experiments.app import cli
from experiments.app.files import to_json
from maskgit_jax.errors import InputError
from maskgit_jax.images import save_png
from maskgit_jax.training import losses, train_state

_MAX_THREADS = 16
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


def keep_freed_memory() -> None:
    """Has the C library keep what is freed; for the start of a command that trains on CPUs.

    A step's temporaries are hundreds of megabytes. By default they go back to the system after
    each step and come again page by page, which takes a quarter of the time (docs/measurements.md).
    One arena: those of threads other than the first give back whatever the thresholds are. Does
    nothing where the C library is not GNU's, or refuses so large a threshold.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(_MMAP_THRESHOLD, 2**30):
            mallopt(_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_ARENA_MAX, 1)


def spread(batch: losses.Batch) -> losses.Batch:
    """Places a batch so that every local device has its share of the rows.

    Rows that cannot be shared equally lie on all devices.
    """
    rows = len(jax.tree.leaves(batch)[0])
    if rows % len(jax.local_devices()):
        return replicate(batch)
    return jax.device_put(batch, _sharding("batch"))


def replicate(tree: Any) -> Any:
    """Places a tree of arrays on all local devices."""
    return jax.device_put(tree, _sharding())


def _sharding(*axes: str) -> NamedSharding:
    return NamedSharding(jax.sharding.Mesh(jax.local_devices(), ("batch",)), PartitionSpec(*axes))


def validation(
    loss_fn: losses.LossFn,
    batches: list[losses.Batch],
    key: Key[Array, ""],
    prepare: Callable[[losses.Batch], losses.Batch] = lambda batch: batch,
) -> Callable[[losses.Params], dict[str, float]]:
    """Mean metrics of weights on fixed batches with fixed randomness; `prepare` is as in `fit`."""
    evaluate = jax.jit(lambda params, batch: loss_fn(params, batch, key)[1])

    def validate(params: losses.Params) -> dict[str, float]:
        found = [jax.device_get(evaluate(params, prepare(spread(batch)))) for batch in batches]
        weights = [metrics.pop("weight", 1.0) for metrics in found]
        return {
            name: float(np.average([metrics[name] for metrics in found], weights=weights))
            for name in found[0]
        }

    return validate


def fit(
    update: Callable[[train_state.TrainState, Any, Key[Array, ""]], tuple],
    state: train_state.TrainState,
    batch_at: Callable[[int], losses.Batch],
    *,
    key: Key[Array, ""],
    num_steps: int,
    directory: Path,
    save_every: int,
    log_every: int = 100,
    export: Callable[[losses.Params], None] | None = None,
    prepare: Callable[[losses.Batch], losses.Batch] = lambda batch: batch,
    learning_rate: optax.Schedule | None = None,
    validate: Callable[[losses.Params], dict[str, float]] | None = None,
    validate_every: int = 500,
    draw: Callable[[losses.Params], UInt8[np.ndarray, "H W 3"]] | None = None,
    sample_every: int = 1000,
) -> train_state.TrainState:
    """Trains from the newest checkpoint in `directory` (or `state`) to `num_steps`.

    Every `save_every` steps and at the end the state is saved and the average weights are
    exported, so a killed run loses less than that and goes on to the same result, with the same
    logged losses, when started again. Ctrl-C and SIGTERM save and end the process with status 130
    and 143. The batch is spread over all local devices.

    `directory` gets `checkpoints`, `measures.jsonl` (one line per step that something is logged
    at), TensorBoard's event files and, with `draw`, `samples`.

    Args:
      update: one update, `(state, batch, key) -> (state, metrics)`; compiled here.
      state: the state of a new run; its arrays are used up.
      batch_at: the batch of a step, NumPy arrays; called in threads, ahead of time.
      key: the run's randomness; each update folds in its step.
      num_steps: updates in all.
      directory: the run's folder.
      save_every: steps between checkpoints.
      log_every: steps between log lines, each the mean since the last; only then does the host
        fetch metrics.
      export: writes the average weights where they are used.
      prepare: what is left to do to a batch on the devices before the update.
      learning_rate: rate of a step, to be logged.
      validate: metrics of the average weights on held-out data.
      validate_every: steps between those; they are also made at the end; 0: never.
      draw: a picture that shows what the average weights can do.
      sample_every: steps between those, as for `validate_every`.

    Raises:
      InputError: the loss is no number, the batch cannot be spread, or the checkpoint does not
        fit the state.
    """
    state = replicate(state)
    example = prepare(spread(batch_at(int(state.step))))
    rows, devices = len(jax.tree.leaves(example)[0]), len(jax.local_devices())
    if rows % devices:
        raise InputError(
            f"a batch of {rows} cannot be spread over {devices} devices: "
            f"choose a batch size that is a multiple of {devices}"
        )
    names = jax.eval_shape(update, state, example, key)[1]
    no_sums = replicate({name: jnp.zeros(()) for name in ("steps", *names)})

    def advance(state, sums, batch, key):
        state, metrics = update(state, batch, key)
        return state, jax.tree.map(jnp.add, sums, {"steps": jnp.ones(()), **metrics})

    # Given no placement, the compiler might scatter the state.
    advance = jax.jit(advance, donate_argnums=0, out_shardings=_sharding())

    with contextlib.ExitStack() as stack:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=True, cleanup_tmp_directories=True
        )
        folder = directory.absolute() / "checkpoints"
        manager = stack.enter_context(ocp.CheckpointManager(folder, options=options))
        run = {"state": state, "sums": no_sums}
        newest = manager.latest_step()
        _check_shapes(directory / "shapes.json", run, begun=newest is not None)
        if newest is not None:
            run = _restore(manager, newest, run)
            print(f"resumed at step {newest}")
        state, sums = run["state"], run["sums"]
        first = int(state.step)
        log = stack.enter_context(_Log(directory, first))
        signals = stack.enter_context(cli.signals_noticed())

        progress = tqdm(range(first, num_steps), initial=first, total=num_steps, mininterval=1)
        clock, clock_step = time.monotonic(), first
        for step, batch in zip(progress, _ahead(batch_at, first, num_steps), strict=False):
            previous = sums
            state, sums = advance(state, sums, prepare(spread(batch)), key)
            # Were the host to run further ahead, batches would pile up on the devices.
            jax.block_until_ready(previous)

            done = step + 1
            due = functools.partial(_is_due, done, num_steps)
            logs, saves = due(log_every), due(save_every) or bool(signals)
            if logs or saves:
                means = _means(sums, done)
            record: dict[str, float] = {}
            if logs:
                record |= means
                if learning_rate is not None:
                    record["learning_rate"] = float(learning_rate(step))
                speed = rows * (done - clock_step) / (time.monotonic() - clock)
                record["images_per_second"] = speed
                sums = no_sums
                clock, clock_step = time.monotonic(), done
            if validate is not None and due(validate_every):
                found = validate(state.average)
                record |= {f"validation_{name}": value for name, value in found.items()}
            if record:
                log.write(done, record)
            if draw is not None and due(sample_every):
                log.draw(done, draw(state.average))
            if saves:
                log.flush()
                manager.save(done, args=ocp.args.StandardSave({"state": state, "sums": sums}))
                if export is not None and done < num_steps:
                    export(jax.device_get(state.average))
            if signals:
                manager.wait_until_finished()
                progress.close()
                print(f"saved at step {done}; the same command goes on from there", file=sys.stderr)
                sys.exit(128 + signals[0])
    if export is not None:
        # Also for a run that was killed between its last save and its export.
        export(jax.device_get(state.average))
    return state


def _is_due(step: int, num_steps: int, every: int) -> bool:
    return every > 0 and (step % every == 0 or step == num_steps)


def _ahead(batch_at: Callable[[int], Any], first: int, end: int) -> Iterable[Any]:
    """The batches of the steps, made by threads while the devices work."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    steps = grain.MapDataset.range(first, end).map(lambda step: batch_at(int(step)))
    return steps.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=threads))


def _check_shapes(path: Path, run: Any, *, begun: bool) -> None:
    """Notes what a new run's arrays are; InputError if one that has begun has others."""
    leaves = jax.tree_util.tree_leaves_with_path(run)
    shapes = {jax.tree_util.keystr(name): f"{x.dtype}{list(x.shape)}" for name, x in leaves}
    if not begun:
        path.write_text(to_json(shapes, indent=1) + "\n", encoding="utf-8")
        return
    noted = json.loads(path.read_text(encoding="utf-8"))
    for name in [*shapes, *noted]:
        if shapes.get(name) != noted.get(name):
            raise InputError(
                f"{path.parent} holds the training of another model: {name} is {noted.get(name)} "
                f"there, {shapes.get(name)} by these flags: train in another folder, or give the "
                "flags that it was started with"
            )


def _restore(manager: ocp.CheckpointManager, step: int, template: Any) -> Any:
    try:
        return manager.restore(step, args=ocp.args.StandardRestore(template))
    # Damaged files make Orbax raise nearly anything.
    except Exception as error:
        raise InputError(
            f"{manager.directory}/{step} cannot be read "
            f"({' '.join(str(error).split())[:100]}): delete it, an earlier one may be whole"
        ) from error


def _means(sums: dict[str, Array], step: int) -> dict[str, float]:
    values = {name: float(value) for name, value in jax.device_get(sums).items()}
    count = values.pop("steps")
    if not np.all(np.isfinite(list(values.values()))):
        raise InputError(
            f"the loss is no number near step {step}: start again in another folder "
            "with a lower --learning_rate; earlier weights are kept"
        )
    return {name: value / count for name, value in values.items()}


class _Log:
    """A run's `measures.jsonl`, event files and sample pictures.

    What a killed run logged after its last checkpoint is dropped: it is logged again.
    """

    def __init__(self, directory: Path, step: int):
        self.directory = directory
        path = directory / "metrics.jsonl"
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            os.truncate(path, sum(len(line) for line in lines if _logged_at(line) <= step))
        self._file = path.open("a", encoding="utf-8")
        # Files are named by the second: the suffix keeps two quick starts apart.
        self._writer = SummaryWriter(
            str(directory), purge_step=step + 1 if step else None, filename_suffix=f".{step}"
        )

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *error) -> None:
        self._file.close()
        self._writer.close()

    def write(self, step: int, record: dict[str, float]) -> None:
        tqdm.write(f"step {step}: " + " ".join(f"{k} {v:.4g}" for k, v in record.items()))
        self._file.write(to_json({"step": step, **record}) + "\n")
        self._file.flush()
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)

    def draw(self, step: int, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        folder = self.directory / "samples"
        folder.mkdir(exist_ok=True)
        save_png(folder / f"{step:07d}.png", picture)
        self._writer.add_image("samples", picture, step, dataformats="HWC")

    def flush(self) -> None:
        self._writer.flush()


def _logged_at(line: bytes) -> int | float:
    """The step of a line of `measures.jsonl`; infinite for one that was cut by a kill."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
