import subprocess
import sys

import pytest

from tests.commands import ROOT

FLAGS = "import dataclasses\n@dataclasses.dataclass\nclass Flags:\n    pass\n"


def run(program: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize(
    ("main", "status", "message"),
    [
        ("pass", 0, ""),
        ("raise InputError('found a,\\nexpected b')", 2, "-c: found a, expected b\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_status_and_message(main, status, message):
    program = (
        "from experiments.app import cli\n"
        "from maskgit_jax.errors import InputError\n"
        f"def main(flags):\n    {main}\n"
        f"{FLAGS}cli.run(main, Flags)\n"
    )
    result = run(program)
    assert (result.returncode, result.stderr) == (status, message)


def test_unknown_flags_and_words_end_with_status_2():
    program = f"from experiments.app import cli\n{FLAGS}cli.run(print, Flags)"
    for argument in ("--colour=red", "red"):
        result = run(program, argument)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1 and argument.strip("-")[:6] in result.stderr


def test_ci_calls_the_readme_s_test_command():
    commands = [
        line
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("python3 -m venv")
    ]
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()
