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
import multiprocessing
from typing import Any

from absl import flags
from tqdm import tqdm

from experiments.app import cli, guidance_flags
from experiments.app.files import to_json
from experiments.benchmarks.cost import VARIANTS
from experiments.benchmarks.plain import PlainMaskSketch
from experiments.benchmarks.tables import (
    Measured,
    case_table,
    cases_table,
    sketches_table,
    step_table,
    summary,
)
from experiments.benchmarks.worker import RATE, TASKS, Job, serve
from maskgit_jax.checkpoints import download
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import read_layers
from maskgit_jax.model import model_config

flags.adopt_module_key_flags(guidance_flags)
flags.FLAGS.set_default("num_steps", ["8"])

_TASK = flags.DEFINE_enum("task", "decode", [*TASKS, "cost"], "What is measured.")
_VARIANTS = flags.DEFINE_list("variants", list(VARIANTS), "plain, ours, or both.")
_MODELS = flags.DEFINE_list("models", None, "Several models in place of --model.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", None, "Several in place of --batch_size.")
_RANDOM_WEIGHTS = flags.DEFINE_bool("random_weights", False, "Draw weights; fetches nothing.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Turns of each variant.", lower_bound=1)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "out", "Folder for the results.")


def main() -> None:
    """Measures what the flags say."""
    if _TASK.value == "cost":
        print(_cost_tables())
        return
    unknown = [name for name in _VARIANTS.value if name not in VARIANTS]
    if unknown or not _VARIANTS.value:
        raise InputError(f"--variants={','.join(_VARIANTS.value)}: expected some of plain, ours")
    cases = [
        _case(model, batch)
        for model in _MODELS.value or [flags.FLAGS.model]
        for batch in _batch_sizes()
    ]
    output_dir = cli.output_folder(_OUTPUT_DIR)
    if not _RANDOM_WEIGHTS.value:
        for model in {case["model"] for case, _ in cases} & set(download.MODELS):
            try:
                download.fetch_model(model)
            except InputError as error:
                raise InputError(f"{error}; --random_weights measures without its files") from None
    done: list[dict[str, Any]] = []
    for case, job in cases:
        done.append(_measured_case(case, job))
        cli.write_text(output_dir / "benchmark.json", to_json(done, indent=1) + "\n")
        cli.write_text(output_dir / "benchmark.md", _tables(done))
    print(_tables(done))
    print(f"all figures in {output_dir / 'benchmark.json'}")


def _batch_sizes() -> list[int]:
    if _BATCH_SIZES.value is None:
        return [flags.FLAGS.batch_size]
    try:
        sizes = [int(text) for text in _BATCH_SIZES.value]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InputError(f"--batch_sizes={','.join(_BATCH_SIZES.value)}: expected numbers above 0")
    return sizes


def _case(model: str, batch: int) -> tuple[dict[str, Any], Job]:
    """What is measured, for the results and for the processes; its figures are yet to come."""
    flags.FLAGS.model = model  # the flags' defaults depend on it
    config = model_config(model)
    guided = guidance_flags.read(config)
    if guided.choices.num_proposals != 1:
        raise InputError("--num_proposals: the benchmark knows the published rule, with one")
    if _TASK.value == "decode" and guided.num_steps < 4:
        raise InputError(f"--num_steps={guided.num_steps}: expected 4 or more, some to warm up")
    if "plain" in _VARIANTS.value:
        PlainMaskSketch(config.transformer, guided.settings, guided.choices.divergence)
    described = {
        "task": _TASK.value,
        "model": model,
        "random_weights": _RANDOM_WEIGHTS.value,
        "dtype": flags.FLAGS.dtype,
        "batch": batch,
        "num_steps": guided.num_steps,
    }
    job = Job(RATE, settings=guided.settings, choices=guided.choices._asdict(), **described)
    full_steps = config.presets["masksketch"]["num_steps"]
    more = {"full_steps": full_steps, "repeats": _REPEATS.value, "settings": guided.record}
    return described | more, job


def _measured_case(case: dict[str, Any], job: Job) -> dict[str, Any]:
    jobs = [job._replace(role=role) for role in (RATE, *_VARIANTS.value)]
    title = f"{case['model']}, batch {case['batch']}"
    # Each process: machine, first draw, check.
    total = (_REPEATS.value + 3) * len(jobs)
    with tqdm(total=total, desc=title, unit="question", mininterval=0) as bar:
        machine, measured = _measure(jobs, bar)
    config = model_config(job.model).transformer
    figures = summary(job, config, case["full_steps"], measured)
    return case | {"machine": machine, "figures": figures}


def _measure(jobs: list[Job], bar: tqdm) -> tuple[dict[str, Any], Measured]:
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
                for process in group[1:]:
                    process.ask("machine")
            measured |= _take_turns(group)
    if machine is None:
        raise InputError(f"nothing could be measured: {measured[RATE]['error']}")
    return machine, measured


def _take_turns(group: list["_Process"]) -> Measured:
    answers = {process: {"first": process.ask("draw", 0), "draws": []} for process in group}
    for turn in range(_REPEATS.value):
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


def _tables(cases: list[dict[str, Any]]) -> str:
    each = "\n".join(map(case_table, cases))
    return each if len(cases) == 1 else f"{cases_table(cases)}\n{each}"


def _cost_tables() -> str:
    """The cost model of the released models with the released settings."""
    configs = {name: model_config(name).transformer for name in download.MODELS}
    preset = model_config(download.MODELS[0]).presets["masksketch"]
    layers = read_layers(preset["layers"], configs[download.MODELS[0]].num_layers)
    return f"{step_table(configs, layers, (1, 8, 32))}\n{sketches_table(configs, layers)}"


if __name__ == "__main__":
    cli.run(main)
