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
import multiprocessing
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from experiments.app import cli
from experiments.app.files import to_json
from experiments.app.flag_groups import GuidanceFlags, read_guidance
from experiments.benchmarks import tables
from experiments.benchmarks.cost import VARIANTS
from experiments.benchmarks.plain import PlainMaskSketch
from experiments.benchmarks.worker import RATE, TASKS, Job, serve
from maskgit_jax.checkpoints import download
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob, read_layers
from maskgit_jax.model import model_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(GuidanceFlags):
    """What is measured."""

    SEVERAL = ("variants", "models", "batch_sizes")

    task: str = knob("decode", "What is measured.", choices=(*TASKS, "cost"))
    variants: Any = knob(VARIANTS, "The variants measured.", kind=str, choices=VARIANTS)
    models: Any = knob(None, "Several models in place of --model.")
    batch_sizes: Any = knob(None, "Several in place of --batch_size.", kind=int, low=1)
    random_weights: bool = knob(False, "Random weights; fetches nothing.")
    repeats: int = knob(5, "Turns of each variant.", low=1)
    output_dir: str = knob("out", "Folder for the results.")
    num_steps: int = knob(8, "Decoding steps.", low=1, high=10**6)


def main(flags: Flags) -> None:
    """Measures each model with each batch size."""
    if flags.task == "cost":
        print(_cost_tables())
        return
    cases = [
        _case(dataclasses.replace(flags, model=model, batch_size=batch))
        for model in flags.models or [flags.model]
        for batch in flags.batch_sizes or [flags.batch_size]
    ]
    output_dir = cli.output_folder(flags.output_dir)
    if not flags.random_weights:
        for model in {case["model"] for case, _ in cases} & set(download.MODELS):
            try:
                download.fetch_model(model)
            except InputError as error:
                raise InputError(f"{error}; --random_weights measures without its files") from None
    done: list[dict[str, Any]] = []
    for case, job in cases:
        done.append(_measured_case(case, job, flags.variants))
        each = "\n".join(map(tables.case_table, done))
        found = each if len(done) == 1 else f"{tables.cases_table(done)}\n{each}"
        cli.write_text(output_dir / "benchmark.json", to_json(done, indent=1) + "\n")
        cli.write_text(output_dir / "benchmark.md", found)
    print(found)
    print(f"all figures in {output_dir / 'benchmark.json'}")


def _case(flags: Flags) -> tuple[dict[str, Any], Job]:
    """What is measured, for the results and for the processes; its figures are yet to come."""
    config = model_config(flags.model)
    guided = read_guidance(flags, config)
    if guided.options["num_proposals"] != 1:
        raise InputError("--num_proposals: the benchmark knows the published rule, with one")
    if flags.task == "decode" and guided.num_steps < 4:
        raise InputError(f"--num_steps={guided.num_steps}: expected 4 or more, some to warm up")
    if "plain" in flags.variants:
        PlainMaskSketch(config.transformer, guided.settings, guided.options["divergence"])
    names = ("task", "model", "random_weights", "dtype", "num_steps")
    described = {name: getattr(flags, name) for name in names} | {"batch": flags.batch_size}
    job = Job(RATE, settings=guided.settings, options=guided.options, **described)
    full_steps = config.presets["masksketch"]["num_steps"]
    more = {"full_steps": full_steps, "repeats": flags.repeats, "settings": guided.record}
    return described | more, job


def _measured_case(case: dict[str, Any], job: Job, variants: Sequence[str]) -> dict[str, Any]:
    jobs = [job._replace(role=role) for role in (RATE, *variants)]
    title = f"{case['model']}, batch {case['batch']}"
    # Each process: first draw, check; one: the machine.
    total = (case["repeats"] + 2) * len(jobs) + 1
    with tqdm(total=total, desc=title, unit="question", mininterval=0) as bar:
        machine, measured = _measure(jobs, case["repeats"], bar)
    config = model_config(job.model).transformer
    figures = tables.summary(job, config, case["full_steps"], measured)
    return case | {"machine": machine, "figures": figures}


def _measure(jobs: list[Job], repeats: int, bar: tqdm) -> tuple[dict[str, Any], tables.Measured]:
    """The machine, and each role's answers."""
    measured, machine = {}, None
    while jobs:
        with contextlib.ExitStack() as stack:
            group = [stack.enter_context(_Process(jobs.pop(0), bar))]
            found = group[0].ask("machine")
            machine = machine or found
            # A TPU serves one process at a time: no turns there.
            if found is not None and found["platform"] != "tpu":
                group += [stack.enter_context(_Process(job, bar)) for job in jobs]
                jobs = []
            measured |= _take_turns(group, repeats)
    if machine is None:
        raise InputError(f"nothing could be measured: {measured[RATE]['error']}")
    return machine, measured


def _take_turns(group: list["_Process"], repeats: int) -> tables.Measured:
    answers = {process: {"first": process.ask("draw", 0), "draws": []} for process in group}
    for turn in range(repeats):
        for process in group:
            answers[process]["draws"].append(process.ask("draw", turn))
    for process in group:
        answers[process]["check"] = process.ask("check")
    return {
        process.role: found if process.error is None else {"error": process.error}
        for process, found in answers.items()
    }


class _Process(contextlib.AbstractContextManager):
    """A `benchmarks.worker` in a fresh process; after an error it answers None."""

    def __init__(self, job: Job, bar: tqdm):
        context = multiprocessing.get_context("spawn")
        self.role, self.error, self._bar = job.role, None, bar
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, *question: Any) -> Any:
        """The answer to a question; raises the process's `InputError`."""
        if self.error is not None:
            return None
        self._bar.set_postfix_str(f"{self.role}: {question[0]}")
        try:
            self._connection.send(question)
            answer, error = self._connection.recv()
        except (EOFError, OSError):
            answer, error = None, "its process ended; it may have needed too much memory"
        self._bar.update()
        if isinstance(error, InputError):
            raise error
        self.error = error
        return answer

    def __exit__(self, *error) -> None:
        self._process.terminate()
        self._process.join()


def _cost_tables() -> str:
    """The cost model of the released models with the released settings."""
    configs = {name: model_config(name).transformer for name in download.MODELS}
    preset = model_config(download.MODELS[0]).presets["masksketch"]
    layers = read_layers(preset["layers"], configs[download.MODELS[0]].num_layers)
    sketches = tables.sketches_table(configs, layers)
    return f"{tables.step_table(configs, layers, (1, 8, 32))}\n{sketches}"


if __name__ == "__main__":
    cli.run(main, Flags)
