"""Sweeps settings of structure-guided decoding over sketches, classes and seeds.

    python -m experiments.sweep --sketches='dir/*.png' --lambda_s=0,0.5,0.9,1 \
        --guidance_scale=0,0.6,2 --layers='early;late;1,3,16' --seeds=4 --output_dir=sweep

Makes a picture for every combination: item by item the one that `experiments.sketch --seed=S
--num_samples=1` would make. All settings share one compilation. The folder gets `pictures`,
`results.jsonl` (one line per item), `plan.json`, `log.jsonl` (times), and in the end the report:
`report.html`, `summary.csv`, `plots`.

Whatever stops a sweep, the same command goes on with what is missing. Ctrl-C and SIGTERM finish the
batch in hand.

--sketches is a pattern, quoted, of drawings named after their class (house_1.png), or of any names
with --label; or a CSV file with the columns sketch and label. --keep=best_of_8 draws eight
candidates for each picture (those of `experiments.sketch --num_samples=8`) and keeps the best.

Samples are spread over all local devices. With --multihost, given on all hosts of a TPU slice, each
does its share; elsewhere --coordinator_address, --num_processes and --process_id say who is who.
The folder must be one that all hosts see, such as gs://bucket/folder.
"""

import functools
import math
import time
from importlib.resources import files

import jax
import jax.numpy as jnp
from absl import flags
from tqdm import tqdm

from experiments.app import cli, digests, guidance_flags
from experiments.app.drawings import read_drawings
from experiments.app.run_folder import RunFolder
from experiments.sweeps import best_of, page
from experiments.sweeps.best_of import BestOf
from experiments.sweeps.plan import (
    Item,
    Plan,
    operations_per_step,
    plan_batches,
    plan_items,
    plan_record,
    sketch_file,
)
from experiments.sweeps.run import decode_batch, make_decoder
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.model import load_model, model_config

# --help lists them too.
flags.adopt_module_key_flags(guidance_flags)
flags.adopt_module_key_flags(best_of)

_SKETCHES = flags.DEFINE_string(
    "sketches",
    str(files("experiments") / "sketches" / "*.png"),
    "Pattern of drawings, or a .csv file of sketch,label.",
)
_LABEL = flags.DEFINE_string("label", None, "Class of all pictures; else names say it.")
_FIT = flags.DEFINE_enum("fit", "pad", ["pad", "crop"], "How a sketch that is not square fits.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Pictures for each combination: --seed, and following.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "sweep", "Folder for the results, or gs://….")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan alone.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "Share the work with the other hosts.")
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Host 0, host:port.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of hosts.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This host's number.")

_MOST = 10**6
_POLL_SECONDS = 2.0
# Of a matrix product's speed, what decoding reaches: roughly, for the estimate.
_EFFICIENCY = 0.3


def main() -> None:
    """Sweeps as the flags say."""
    config = model_config(flags.FLAGS.model)
    plan, chooser, host, num_hosts = _read_flags(config)
    items = plan_items(plan)
    if len(items) > _MOST:
        raise InputError(f"{len(items)} items: expected {_MOST} at most; give fewer values")
    per_batch = max(1, flags.FLAGS.batch_size // chooser.num_candidates)
    batches = plan_batches(items, per_batch)
    if _DRY_RUN.value:
        _print_plan(config, plan, batches, chooser.num_candidates, num_hosts)
        return
    folder = RunFolder(_OUTPUT_DIR.value, "sweep", key="item", host=host, num_hosts=num_hosts)
    record = plan_record(plan)
    with folder.claim(record):  # before anything large is loaded
        if host == 0:
            _print_plan(config, plan, batches, chooser.num_candidates, num_hosts)
        model = load_model(flags.FLAGS.model, dtype=plan.dtype)
        measure = chooser.load()
        record["weights"] = digests.of_weights(model)
        folder.open(record, {sketch_file(i): each.image for i, each in enumerate(plan.drawings)})
        get_decoder = functools.cache(
            lambda: make_decoder(
                model,
                plan,
                batches,
                measure,
                num_candidates=chooser.num_candidates,
                batch_size=flags.FLAGS.batch_size,
            )
        )

        def make(batch: list[Item], first: bool, progress):
            start = time.perf_counter()
            made = decode_batch(get_decoder(), batch, progress)
            return made, {
                "host": host,
                "items": [item.number for item in batch],
                "num_steps": batch[0].setting["num_steps"],
                "seconds": round(time.perf_counter() - start, 3),
                "includes_compilation": first,
                "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }

        # Batches are filled up; one with more candidates than are decoded together takes several.
        largest = max(map(len, batches)) * chooser.num_candidates
        passes = math.ceil(largest / flags.FLAGS.batch_size)
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


def _read_flags(config: ModelConfig) -> tuple[Plan, BestOf, int, int]:
    """The plan, what chooses among candidates, this host's number and how many there are."""
    grid = guidance_flags.read_grid(config)
    first = flags.FLAGS.seed
    if not 1 <= _SEEDS.value <= _MOST or first + _SEEDS.value > 2**32:
        raise InputError(f"--seeds={_SEEDS.value}: expected a number of seeds from 1 to {_MOST}")
    drawings = read_drawings(
        _SKETCHES.value,
        config.class_names,
        config.tokenizer.image_size,
        label=_LABEL.value,
        fit=_FIT.value,
    )
    page.check_packages()
    # Before anything touches the devices.
    host, num_hosts = _join_hosts()
    chooser = best_of.read(config)
    plan = Plan(
        model=flags.FLAGS.model,
        class_names=config.class_names,
        choices=grid.choices,
        dtype=flags.FLAGS.dtype,
        values=grid.values,
        drawings=drawings,
        seeds=list(range(first, first + _SEEDS.value)),
        rejection=chooser.record,
    )
    return plan, chooser, host, num_hosts


def _join_hosts() -> tuple[int, int]:
    """This host's number and how many there are."""
    places = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
    if not _MULTIHOST.value:
        for flag in places:
            if flag.value is not None:
                raise InputError(f"--{flag.name} without --multihost: give that too, or neither")
        return 0, 1
    try:
        jax.distributed.initialize(*(flag.value for flag in places))
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
    operations = operations_per_step(config.transformer, plan.choices.num_proposals)
    seconds = operations * num_candidates * steps / rate
    print(f"about {format_seconds(seconds)} and the compilation; the bar knows better as it goes")


def format_seconds(seconds: float) -> str:
    """Words for a duration: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _matrix_product_rate() -> float:
    """Floating-point operations per second of one device."""
    side = 1024
    x = jnp.ones((side, side))
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


def _wait_for_other_hosts(folder: RunFolder, num_items: int) -> None:
    """Returns when all items are finished; the other hosts need this one until then."""
    with tqdm(total=num_items, desc="waiting for other hosts", unit="item", delay=2) as bar:
        while (count := len(folder.finished())) < num_items:
            bar.update(count - bar.n)
            time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    cli.run(main)
