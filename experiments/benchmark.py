"""How fast structure-guided decoding is, against a plain variant as the published code has it.

    python -m experiments.benchmark --model=imagenet256 --random_weights --batch_size=2

Each variant (`ours`, and `plain`, see `benchmarks.plain`) runs in a fresh process, and so does the
measurement of the machine's matrix products; they take turns, so what else the machine does hits
all alike. Figures are medians of --repeats turns, ratios those of neighbours in time. Compilation
is what JAX reports of it in the first call. Peak memory is what a run takes above what was held
before it, the weights among it. Turn k decodes with seed k, and the variants' tokens are compared.

    --task=score       the structure score of given ids alone, sketch's attention included
    --task=cost        no measurement: the cost model's tables
    --models=imagenet256,imagenet512 --batch_sizes=1,8,32    a row for each

Writes `benchmark.json` (all figures) and `benchmark.md` (the tables), after each case anew.
docs/performance.md has results and says how to read them.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.app import cli
from experiments.app.files import to_json
from experiments.app.flag_groups import GuidanceFlags, read_guidance
from experiments.benchmarks import tables
from experiments.benchmarks.cost import VARIANTS
from experiments.benchmarks.plain import PlainMaskSketch
from experiments.benchmarks.worker import RATE, TASKS, Job, machine, serve
from maskgit_jax.checkpoints import download
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob
from maskgit_jax.model import model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(GuidanceFlags):
    """What is measured."""

    SEVERAL = ("variants", "models", "batch_sizes")

    task: str = knob("decode", "What is measured.", choices=(*TASKS, "cost"))
    variants: Any = knob(VARIANTS, "The variants measured.", kind=str, choices=VARIANTS)
    models: Any = knob(None, "Several models in place of --model.", kind=Path)
    batch_sizes: Any = knob(None, "Several in place of --batch_size.", kind=int, low=1)
    random_weights: bool = knob(False, "Random weights; fetches nothing.")
    repeats: int = knob(5, "Turns of each variant.", low=1)
    output_dir: str = knob("out", "Folder for the results.", kind=Path)
    num_steps: int = knob(8, "Decoding steps.", low=1, high=10**6)


def main(flags: Flags) -> None:
    """Measures each model with each batch size."""
    if flags.task == "cost":
        print(tables.cost_tables())
        return
    jobs = [
        _job(dataclasses.replace(flags, model=model, batch_size=batch))
        for model in flags.models or [flags.model]
        for batch in flags.batch_sizes or [flags.batch_size]
    ]
    output_dir = cli.output_folder(flags.output_dir)
    if not flags.random_weights:
        for model in {job.flags.model for job in jobs} & set(download.MODELS):
            try:
                download.fetch_model(model)
            except InputError as error:
                raise InputError(f"{error}; --random_weights measures without its files") from None
    # Two variants share an accelerator: none may take all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        measured_on = pool.apply(machine)
    done: list[dict[str, Any]] = []
    for job in jobs:
        measured = _measure(job, one_by_one=measured_on["platform"] == "tpu")
        done.append(tables.summary(job, measured_on, measured))
        each = "\n".join(map(tables.case_table, done))
        found = each if len(done) == 1 else f"{tables.cases_table(done)}\n{each}"
        cli.write_text(output_dir / "benchmark.json", to_json(done, indent=1) + "\n")
        cli.write_text(output_dir / "benchmark.md", found)
    print(found)
    print(f"all figures in {output_dir / 'benchmark.json'}")


def _job(flags: Flags) -> Job:
    config = model_config(flags.model)
    guided = read_guidance(flags, config)
    if guided.options["num_proposals"] != 1:
        raise InputError("--num_proposals: the benchmark knows the published rule, with one")
    if flags.task == "decode" and flags.num_steps < 4:
        raise InputError(f"--num_steps={flags.num_steps}: expected 4 or more, some to warm up")
    if "plain" in flags.variants:
        PlainMaskSketch(config.transformer, guided.settings, guided.options["divergence"])
    return Job(RATE, flags, config, guided)


def _measure(job: Job, one_by_one: bool) -> tables.Measured:
    """Each role's answers; they take turns unless the device serves one process at a time."""
    flags, seeds = job.flags, (0, *range(job.flags.repeats), None)
    roles = RATE, *flags.variants
    measured: tables.Measured = {role: {} for role in roles}
    title = f"{flags.model}, batch {flags.batch_size}"
    with tqdm(total=len(roles) * len(seeds), desc=title, unit="question", mininterval=0) as bar:
        for group in [[role] for role in roles] if one_by_one else [roles]:
            with contextlib.ExitStack() as stack:
                workers = {r: stack.enter_context(_worker(job._replace(role=r))) for r in group}
                for seed, role in itertools.product(seeds, group):
                    bar.set_postfix_str(f"{role}: {'check' if seed is None else 'draw'}")
                    if "error" not in measured[role] and (seed, role) != (None, RATE):
                        measured[role] = _answers(workers[role], seed)
                    bar.update()
    if all("error" in found for found in measured.values()):
        raise InputError(f"nothing could be measured: {measured[RATE]['error']}")
    return measured


def _answers(worker: Connection, seed: int | None) -> dict[str, Any]:
    """A role's answers so far, after one more; raises the process's `InputError`."""
    try:
        worker.send(seed)
        found = worker.recv()
    except (EOFError, OSError):
        return {"error": "its process ended; it may have needed too much memory"}
    if isinstance(found, InputError):
        raise found
    return found


@contextlib.contextmanager
def _worker(job: Job) -> Iterator[Connection]:
    """A `benchmarks.worker` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    cli.run(main, Flags)
