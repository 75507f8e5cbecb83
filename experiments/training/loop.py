"""The loop that every training command runs, and its hooks: logs, checkpoints, resuming."""

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from experiments.app.files import to_json, write_whole
from maskgit_jax.devices import copy_to_devices, device_mesh
from maskgit_jax.errors import InputError, notice
from maskgit_jax.files import read_file, sha256
from maskgit_jax.images import save_png
from maskgit_jax.training.losses import Batch, LossFn, Metrics, Params
from maskgit_jax.training.train_state import TrainState

_DIGESTS = "digests.json"
_MAX_THREADS = 16
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h

Update = Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Metrics]]
"""One update: `(state, batch, key) -> (state, metrics)`."""


class Data(NamedTuple):
    """What is trained on.

    Attributes:
      batch: of a step, NumPy arrays; called in threads, ahead of time.
      prepare: what is left to do to a batch on the devices.
    """

    batch: Callable[[int], Batch]
    prepare: Callable[[Batch], Batch] = lambda batch: batch


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


def spread(batch: Batch) -> Batch:
    """Places a batch so that every local device has its share of the rows.

    Rows that cannot be shared equally lie on all devices.
    """
    rows = len(jax.tree.leaves(batch)[0])
    if rows % len(jax.local_devices()):
        return copy_to_devices(batch)
    return jax.device_put(batch, NamedSharding(device_mesh(), PartitionSpec("samples")))


@dataclasses.dataclass
class Run:
    """A training in its folder, between two steps: what hooks see and change.

    `sums` are of the metrics since they were logged, at the time and step `logged`, and of the
    steps they are of; `record` is what is to be logged of this step.
    """

    state: TrainState
    sums: dict[str, Array]
    no_sums: dict[str, Array]
    rows: int
    directory: Path
    manager: ocp.CheckpointManager
    writer: SummaryWriter
    step: int
    logged: tuple[float, int]
    record: dict[str, float] = dataclasses.field(default_factory=dict)


Hook = Callable[[Run], None]


@contextlib.contextmanager
def opened(
    directory: Path, update: Update, state: TrainState, data: Data, key: Key[Array, ""]
) -> Iterator[Run]:
    """The newest run saved in `directory`, or a new one from `state`, whose arrays are used up.

    What a killed run logged after its last checkpoint is dropped: it is logged again.

    Raises:
      InputError: the batch cannot be spread, or the checkpoint does not fit the state.
    """
    state = copy_to_devices(state)
    example = data.prepare(spread(data.batch(int(state.step))))
    rows, devices = len(jax.tree.leaves(example)[0]), len(jax.local_devices())
    if rows % devices:
        raise InputError(
            f"a batch of {rows} cannot be spread over {devices} devices: "
            f"choose a batch size that is a multiple of {devices}"
        )
    names = jax.eval_shape(update, state, example, key)[1]
    no_sums = copy_to_devices({name: jnp.zeros(()) for name in ("steps", *names)})
    with contextlib.ExitStack() as stack:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=True, cleanup_tmp_directories=True
        )
        folder = directory.absolute() / "checkpoints"
        manager = stack.enter_context(ocp.CheckpointManager(folder, options=options))
        saved = _restored(manager, directory / "shapes.json", {"state": state, "sums": no_sums})
        step = int(saved["state"].step)
        path = directory / "metrics.jsonl"
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            os.truncate(path, sum(len(line) for line in lines if _logged_at(line) <= step))
        # Files are named by the second: the suffix keeps two quick starts apart.
        writer = SummaryWriter(
            str(directory), purge_step=step + 1 if step else None, filename_suffix=f".{step}"
        )
        stack.callback(writer.close)
        logged = time.monotonic(), step
        yield Run(*saved.values(), no_sums, rows, directory, manager, writer, step, logged)


def _restored(manager: ocp.CheckpointManager, noted: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The newest checkpoint of a run, or the run itself, whose shapes are then noted.

    Raises:
      InputError: those noted are others, or the checkpoint is damaged.
    """
    leaves = jax.tree_util.tree_leaves_with_path(run)
    shapes = {jax.tree_util.keystr(name): f"{x.dtype}{list(x.shape)}" for name, x in leaves}
    newest = manager.latest_step()
    if newest is None:
        noted.write_text(to_json(shapes, indent=1) + "\n", encoding="utf-8")
        return run
    others = json.loads(noted.read_text(encoding="utf-8"))
    for name in [*shapes, *others]:
        if shapes.get(name) != others.get(name):
            raise InputError(
                f"{noted.parent} holds the training of another model: {name} is "
                f"{others.get(name)} there, {shapes.get(name)} by these flags: train in another "
                "folder, or give the flags that it was started with"
            )
    digests = _digests(noted.parent)
    _check_digest(Path(manager.directory) / str(newest), digests.get(str(newest)))
    try:
        run = manager.restore(newest, args=ocp.args.StandardRestore(run))
    # Damaged files make Orbax raise nearly anything.
    except Exception as error:
        raise InputError(
            f"{manager.directory}/{newest} cannot be read "
            f"({' '.join(str(error).split())[:100]}): delete it, an earlier one may be whole"
        ) from error
    print(f"resumed at step {newest}")
    return run


def _check_digest(folder: Path, expected: str | None) -> None:
    """Compares a checkpoint with what was saved; Orbax itself does not notice changed numbers."""
    if expected is None:
        notice(f"{folder} has no line in {_DIGESTS}: damage to the numbers would not be noticed")
    elif expected != _digest(folder):
        raise InputError(
            f"{folder} is damaged: its files are not those that were saved: delete it, an earlier "
            "one may be whole"
        )


def _digest(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)} {sha256(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digests(directory: Path) -> dict[str, str]:
    path = directory / _DIGESTS
    if not path.exists():
        return {}
    try:
        return dict(json.loads(read_file(path)))
    except (ValueError, TypeError):
        raise InputError(f"{path} is damaged: remove it to go on without it") from None


def fit(
    update: Update,
    run: Run,
    data: Data,
    *,
    num_steps: int,
    key: Key[Array, ""],
    hooks: Sequence[tuple[int, Hook]] = (),
) -> None:
    """Trains on to `num_steps`, batches spread over all local devices.

    Args:
      update: compiled here; it folds the step into `key`.
      run: as `opened` gives it.
      data: what is trained on.
      num_steps: updates in all.
      key: the run's randomness.
      hooks: `(every, hook)`, called in order after each step whose number `every` divides, and
        after the last one; 0: never.
    """

    def advance(state, sums, batch, key):
        state, metrics = update(state, batch, key)
        return state, jax.tree.map(jnp.add, sums, {"steps": jnp.ones(()), **metrics})

    # Given no placement, the compiler might scatter the state.
    placed = NamedSharding(device_mesh(), PartitionSpec())
    advance = jax.jit(advance, donate_argnums=0, out_shardings=placed)
    steps = range(run.step, num_steps)
    with tqdm(steps, initial=run.step, total=num_steps, mininterval=1) as progress:
        for step, batch in zip(progress, _ahead(data.batch, steps), strict=False):
            previous, run.step = run.sums, step + 1
            batch = data.prepare(spread(batch))
            run.state, run.sums = advance(run.state, run.sums, batch, key)
            # Were the host to run further ahead, batches would pile up on the devices.
            jax.block_until_ready(previous)
            for every, hook in hooks:
                if every and (run.step % every == 0 or run.step == num_steps):
                    hook(run)


def _ahead(batch_at: Callable[[int], Any], steps: range) -> Iterable[Any]:
    """The batches of the steps, made by threads while the devices work."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    batches = grain.MapDataset.range(steps.start, steps.stop).map(lambda step: batch_at(int(step)))
    return batches.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=threads))


def train(
    directory: Path,
    update: Update,
    state: TrainState,
    data: Data,
    *,
    num_steps: int,
    key: Key[Array, ""],
    save_every: int,
    export: Callable[[Params], None],
    log_every: int = 100,
    learning_rate: optax.Schedule | None = None,
    hooks: Sequence[tuple[int, Hook]] = (),
) -> TrainState:
    """A whole training in its folder; the arguments are those of `opened`, `fit` and the hooks.

    A killed run loses less than `save_every` steps and goes on to the same result, with the same
    logged losses, when started again. Ctrl-C and SIGTERM save, and end the process with status 130
    and 143. The folder has `checkpoints`, `metrics.jsonl` (one line per step that something is
    logged at), TensorBoard's event files and `samples`.
    """
    with opened(directory, update, state, data, key) as run, cli.signals_noticed() as signals:
        save_now = functools.partial(save, export=export)
        hooks = [
            (log_every, functools.partial(log, learning_rate=learning_rate)),
            *hooks,
            (1, write),
            (save_every, save_now),
            (1, functools.partial(stop, signals=signals, save=save_now)),
        ]
        if run.step >= num_steps:  # It may have been killed between its last save and its export.
            export(jax.device_get(run.state.average))
        fit(update, run, data, num_steps=num_steps, key=key, hooks=hooks)
    return run.state


def log(run: Run, learning_rate: optax.Schedule | None = None) -> None:
    """Notes means since it did so last, and the speed; only then does the host fetch metrics."""
    run.record |= _means(run)
    if learning_rate is not None:
        run.record["learning_rate"] = float(learning_rate(run.step - 1))
    clock, step = run.logged
    speed = run.rows * (run.step - step) / (time.monotonic() - clock)
    run.record["images_per_second"] = speed
    run.sums, run.logged = run.no_sums, (time.monotonic(), run.step)


def validate(run: Run, measure: Callable[[Params], dict[str, float]]) -> None:
    """Notes measures of the average weights on held-out data."""
    found = measure(run.state.average)
    run.record |= {f"validation_{name}": value for name, value in found.items()}


def draw(run: Run, picture_of: Callable[[Params], UInt8[np.ndarray, "H W 3"]]) -> None:
    """Writes a picture that shows what the average weights can do."""
    picture, folder = picture_of(run.state.average), run.directory / "samples"
    folder.mkdir(exist_ok=True)
    save_png(folder / f"{run.step:07d}.png", picture)
    run.writer.add_image("samples", picture, run.step, dataformats="HWC")


def write(run: Run) -> None:
    """Writes what was noted of the step, if anything was."""
    if not run.record:
        return
    shown = " ".join(f"{name} {value:.4g}" for name, value in run.record.items())
    tqdm.write(f"step {run.step}: {shown}")
    with (run.directory / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(to_json({"step": run.step, **run.record}) + "\n")
    for name, value in run.record.items():
        run.writer.add_scalar(name, value, run.step)
    run.record = {}


def save(run: Run, export: Callable[[Params], None]) -> None:
    """Saves the run, and exports its average weights to where they are used."""
    _means(run)  # Nothing that is no number is saved.
    run.writer.flush()
    saved = {"state": run.state, "sums": run.sums}
    run.manager.save(run.step, args=ocp.args.StandardSave(saved))
    export(jax.device_get(run.state.average))
    run.manager.wait_until_finished()  # the files are as they stay
    kept = {str(step) for step in run.manager.all_steps()}
    noted = {step: found for step, found in _digests(run.directory).items() if step in kept}
    noted[str(run.step)] = _digest(Path(run.manager.directory) / str(run.step))
    write_whole(run.directory / _DIGESTS, to_json(noted, indent=1).encode())


def stop(run: Run, signals: Sequence[int], save: Hook) -> None:
    """After a signal, saves the run and ends the process."""
    if not signals:
        return
    if run.manager.latest_step() != run.step:
        save(run)
    message = f"saved at step {run.step}; the same command goes on from there"
    tqdm.write(message, file=sys.stderr)
    sys.exit(128 + signals[0])


def _means(run: Run) -> dict[str, float]:
    values = {name: float(value) for name, value in jax.device_get(run.sums).items()}
    count = values.pop("steps")
    if not np.all(np.isfinite(list(values.values()))):
        raise InputError(
            f"the loss is no number near step {run.step}: start again in another folder "
            "with a lower --learning_rate; earlier weights are kept"
        )
    return {name: value / count for name, value in values.items() if count}


def validation(
    loss_fn: LossFn,
    batches: Sequence[Batch],
    key: Key[Array, ""],
    prepare: Callable[[Batch], Batch] = lambda batch: batch,
) -> Callable[[Params], dict[str, float]]:
    """Mean metrics of weights on fixed batches with fixed randomness; `prepare` is as in `Data`."""
    evaluate = jax.jit(lambda params, batch: loss_fn(params, batch, key)[1])

    def measure(params: Params) -> dict[str, float]:
        found = [jax.device_get(evaluate(params, prepare(spread(batch)))) for batch in batches]
        weights = [metrics.pop("weight", 1.0) for metrics in found]
        return {
            name: float(np.average([metrics[name] for metrics in found], weights=weights))
            for name in found[0]
        }

    return measure


def _logged_at(line: bytes) -> int | float:
    """The step of a line of `metrics.jsonl`; infinite for one that was cut by a kill."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
