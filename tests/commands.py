"""Running commands as users do, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

Cases = dict[str, tuple[list[str], str]]
"""By name: flags, and words that the error line must have."""


def assert_refused(module: str, cases: Cases, *, cwd: Path, prepare: str = "") -> None:
    """Asserts that a command ends each case with one line and status 2.

    All in one process: starting Python takes longer than the checks. `prepare` is run before each
    case, with its name in `name`.
    """
    program = (
        "import contextlib, io, json, sys\n"
        "from absl import flags\n"
        f"from experiments import cli, {module}\n"
        "results = {}\n"
        "for name, (args, _) in json.load(sys.stdin).items():\n"
        "    flags.FLAGS.unparse_flags()\n"
        "    for flag in flags.FLAGS._flags().values():\n"
        "        flag.unparse()\n"
        f"    {prepare or 'pass'}\n"
        "    out = io.StringIO()\n"
        f"    sys.argv = ['{module}', *args]\n"
        "    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):\n"
        "        try:\n"
        f"            cli.run({module}.main)\n"
        "        except SystemExit as stop:\n"
        "            results[name] = stop.code, out.getvalue()\n"
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
    for name, (_, words) in cases.items():
        status, message = results[name]
        assert status == 2, (name, message)
        assert message.count("\n") == 1, (name, message)
        assert words in message, (name, message)
