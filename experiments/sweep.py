"""Sweeps settings of structure-guided decoding over sketches, classes and seeds.

    python -m experiments.sweep --sketches='dir/*.png' --lambda_s=0,0.5,0.9,1 \\
        --guidance_scale=0,0.6,2 --layers='early;late;1,3,16' --seeds=4 --output_dir=sweep

Makes a picture for every combination: item by item the one that `experiments.sketch --seed=S
--num_samples=1` would make. All settings share one compilation. The folder gets `pictures`,
`results.jsonl` (one line per item), `plan.json`, `log.jsonl` (times), and in the end the report:
`report.html`, `summary.csv`, `plots`.

Whatever stops a sweep, the same command goes on with what is missing. Ctrl-C and SIGTERM finish the
batch in hand.

--sketches is a folder, or a pattern, quoted, of drawings named after their class (house_1.png, or
house/1.png), or of any names with --label; or a CSV file with the columns sketch and label.
--keep=best_of_8 draws eight candidates for each picture (those of `experiments.sketch
--num_samples=8`) and keeps the best.

Samples are spread over all local devices. With --multihost, given on all hosts of a TPU slice, each
does its share; elsewhere --coordinator_address, --num_processes and --process_id say who is who.
The folder must be one that all hosts see, such as gs://bucket/folder.
"""

import dataclasses
import functools
import math
import time
import timeit
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
from tqdm import tqdm

from experiments.app import cli, digests
from experiments.app.drawings import read_drawings
from experiments.app.flag_groups import GuidanceFlags, SketchFlags, read_grid
from experiments.app.ranges import MOST, read_seeds
from experiments.app.run_folder import RunFolder
from experiments.sweeps import best_of, page
from experiments.sweeps.best_of import BestOf, BestOfFlags
from experiments.sweeps.plan import (
    Item,
    Plan,
    operations_per_step,
    plan_batches,
    plan_items,
    plan_record,
    sketch_file,
)
from experiments.sweeps.run import make_decoder
from guidance.settings import SWEPT
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob
from maskgit_jax.model import load_model, model_config

_POLL_SECONDS = 2.0
# Of a matrix product's speed, what decoding reaches: roughly, for the estimate.
_EFFICIENCY = 0.3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(GuidanceFlags, BestOfFlags, SketchFlags):
    """Sketches, seeds, and the hosts that share the work; settings may have several values."""

    SEVERAL: ClassVar[tuple[str, ...]] = SWEPT

    sketches: str = knob(
        str(files("experiments") / "sketches" / "*.png"),
        "Folder or pattern of drawings, or a .csv file of sketch,label.",
        kind=Path,
    )
    label: str | None = knob(None, "Class of all pictures; else names say it.")
    seeds: str = knob(
        "1", "Of each combination: how many, from --seed on, or a list of them, 0,3,7 or 0-9."
    )
    output_dir: str = knob("sweep", "Folder for the results, or gs://….", kind=Path)
    dry_run: bool = knob(False, "Print the plan alone.")
    multihost: bool = knob(False, "Share the work with the other hosts.")
    coordinator_address: str | None = knob(None, "Address of host 0, as host:port.")
    num_processes: int | None = knob(None, "Number of hosts.", low=1, high=MOST, kind=int)
    process_id: int | None = knob(None, "This host's number.", low=0, high=MOST, kind=int)


def main(flags: Flags) -> None:
    """Samples a picture for every combination of settings, sketches and seeds."""
    config = model_config(flags.model)
    plan, chooser, host, num_hosts = _read_flags(flags, config)
    count = math.prod(map(len, (*plan.values.values(), plan.drawings, plan.seeds)))
    if count > MOST:
        raise InputError(f"{count} items: expected {MOST} at most; give fewer values")
    items = plan_items(plan)
    num_candidates = chooser.num_candidates
    batches = plan_batches(items, max(1, flags.batch_size // num_candidates))
    if flags.dry_run:
        _print_plan(config, plan, batches, num_candidates, num_hosts)
        return
    folder = RunFolder(flags.output_dir, "sweep", key="item", host=host, num_hosts=num_hosts)
    record = plan_record(plan)
    with folder.claim(record):  # before anything large is loaded
        measure = chooser.load()
        if host == 0:
            _print_plan(config, plan, batches, num_candidates, num_hosts)
        model = load_model(flags.model, dtype=plan.dtype)
        record["weights"] = digests.of_weights(model)
        folder.open(record, {sketch_file(i): each.image for i, each in enumerate(plan.drawings)})
        sizes = {"num_candidates": num_candidates, "batch_size": flags.batch_size}
        get_decoder = functools.cache(lambda: make_decoder(model, plan, batches, measure, **sizes))

        def make(batch: list[Item], first: bool, progress):
            start = time.perf_counter()
            made = get_decoder()(batch, progress)
            return made, {
                "host": host,
                "items": [item.number for item in batch],
                "num_steps": batch[0].setting["num_steps"],
                "seconds": round(time.perf_counter() - start, 3),
                "includes_compilation": first,
                "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }

        # Batches are filled up; one with more candidates than are decoded together takes several.
        passes = math.ceil(max(map(len, batches)) * num_candidates / flags.batch_size)
        folder.make_missing(
            batches[host::num_hosts],
            make,
            items=lambda batch: [item.number for item in batch],
            num_steps=lambda batch: passes * batch[0].setting["num_steps"],
        )
        _wait_for_other_hosts(folder, len(items))
        if host == 0:
            folder.merge()
            page.write_report(folder.path)
            print(f"{len(items)} pictures in {folder.path}")
            print(f"look at {folder.path / 'report.html'}")


def _read_flags(flags: Flags, config: ModelConfig) -> tuple[Plan, BestOf, int, int]:
    """The plan, what chooses among candidates, this host's number and how many there are."""
    grid = read_grid(flags, config)
    seeds = read_seeds(flags.seeds, flags.seed)
    drawings = read_drawings(
        "sketches",
        flags.sketches,
        config.class_names,
        config.tokenizer.image_size,
        label=flags.label,
        fit=flags.fit,
        invert=flags.invert,
    )
    page.check_packages()
    # Before anything touches the devices.
    host, num_hosts = _join_hosts(flags)
    chooser = best_of.read(flags, config)
    names = flags.model, config.class_names
    plan = Plan(*names, grid.options, flags.dtype, grid.values, drawings, seeds, chooser.record)
    return plan, chooser, host, num_hosts


def _join_hosts(flags: Flags) -> tuple[int, int]:
    """This host's number and how many there are."""
    names = ("coordinator_address", "num_processes", "process_id")
    places = {name: getattr(flags, name) for name in names}
    if not flags.multihost:
        for name, value in places.items():
            if value is not None:
                raise InputError(f"--{name} without --multihost: give that too, or neither")
        return 0, 1
    try:
        jax.distributed.initialize(**places)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"--multihost: the hosts cannot be joined ({error}); off TPU slices, give "
            "--coordinator_address, --num_processes and --process_id"
        ) from None
    return jax.process_index(), jax.process_count()


def _print_plan(
    config: ModelConfig,
    plan: Plan,
    batches: list[list[Item]],
    num_candidates: int,
    num_hosts: int,
) -> None:
    counts = {"sketches": len(plan.drawings), "seeds": len(plan.seeds)}
    counts |= {name: len(values) for name, values in plan.values.items()}
    grid = " × ".join(f"{count} {name}" for name, count in counts.items() if count > 1)
    num_items = sum(map(len, batches))
    num_samples = num_items * num_candidates
    devices = jax.local_device_count() * num_hosts
    print(f"{num_items} items: {grid or '1 sketch'}")
    if num_candidates > 1:
        print(f"{num_samples} samples: {num_candidates} candidates for each item")
    print(
        f"{len(batches)} batches of up to {max(map(len, batches))} items, "
        f"1 compilation of the decoder; hosts: {num_hosts}, devices: {devices}"
    )
    # Batches are filled up.
    steps = sum(batch[0].setting["num_steps"] for batch in batches) * max(map(len, batches))
    rate = _EFFICIENCY * _matrix_product_rate() * devices
    operations = operations_per_step(config.transformer, plan.options["num_proposals"])
    seconds = operations * num_candidates * steps / rate
    print(f"about {format_seconds(seconds)} and the compilation; the bar knows better as it goes")


def format_seconds(seconds: float) -> str:
    """Words for a duration: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _matrix_product_rate() -> float:
    """Floating-point operations per second of one device."""
    x, product = jnp.ones((1024, 1024)), jax.jit(jnp.matmul)
    # The first one is compiled.
    times = timeit.repeat(lambda: product(x, x).block_until_ready(), number=1, repeat=4)
    return 2 * 1024**3 / min(times)


def _wait_for_other_hosts(folder: RunFolder, num_items: int) -> None:
    """Returns when all items are finished; the other hosts need this one until then."""
    with tqdm(total=num_items, desc="waiting for other hosts", unit="item", delay=2) as bar:
        while (count := len(folder.finished())) < num_items:
            bar.update(count - bar.n)
            time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    cli.run(main, Flags)
