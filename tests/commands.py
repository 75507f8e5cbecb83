"""Running commands as users do, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
ROOT = TESTS.parent

Cases = dict[str, tuple[list[str], str]]
"""By name: flags, and words that the error line must have."""


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
      status: its exit status, None for 0.
      output: what it printed.
      errors: to stderr.
      compiled: names of the programs that the process had not compiled before.
      from_cache: how many of them were kept by an earlier process.
    """

    status: int | None
    output: str
    errors: str
    compiled: list[str]
    from_cache: int


def run_each(
    module: str, cases: dict[str, list[str]], *, cwd: Path, prepare: str = ""
) -> dict[str, Ended]:
    """Runs a command with each case's flags.

    All in one process: starting Python takes longer than most checks. `prepare` is run before each
    case, with its name in `name`.
    """
    program = (
        "import contextlib, functools, io, json, sys\n"
        "import jax\n"
        f"from experiments.app import cli\n"
        f"from experiments import {module}\n"
        "compiled, hits = [], []\n"
        "def note(event, seconds, fun_name='', **_):\n"
        "    if event == '/jax/core/compile/backend_compile_duration':\n"
        "        compiled.append(fun_name)\n"
        "jax.monitoring.register_event_duration_secs_listener(note)\n"
        "def note_hit(event, **_):\n"
        "    if event == '/jax/compilation_cache/cache_hits':\n"
        "        hits.append(event)\n"
        "jax.monitoring.register_event_listener(note_hit)\n"
        "results = {}\n"
        "for name, args in json.load(sys.stdin).items():\n"
        f"    {prepare or 'pass'}\n"
        "    compiled.clear(), hits.clear()\n"
        "    output, errors = io.StringIO(), io.StringIO()\n"
        f"    sys.argv = ['{module}', *args]\n"
        "    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):\n"
        "        status = None\n"
        "        try:\n"
        f"            cli.run({module}.main, {module}.Flags)\n"
        "        except SystemExit as stop:\n"
        "            status = stop.code\n"
        "    texts = output.getvalue(), errors.getvalue()\n"
        "    results[name] = status, *texts, [*compiled], len(hits)\n"
        "print(json.dumps(results))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout)
    assert results.keys() == cases.keys()
    return {name: Ended(*result) for name, result in results.items()}


def assert_refused(module: str, cases: Cases, *, cwd: Path, prepare: str = "") -> None:
    """Asserts that a command ends each case with one line, its name first, and status 2."""
    flags = {name: args for name, (args, _) in cases.items()}
    for name, ended in run_each(module, flags, cwd=cwd, prepare=prepare).items():
        assert ended.status == 2, (name, ended)
        assert ended.output == "", (name, ended)
        assert ended.errors.startswith(f"{module}: "), (name, ended)
        assert ended.errors.count("\n") == 1, (name, ended)
        assert cases[name][1] in ended.errors, (name, ended)
