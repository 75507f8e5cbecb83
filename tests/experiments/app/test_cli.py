import json
import subprocess
import sys

from tests.commands import ROOT

FLAGS = "import dataclasses\n@dataclasses.dataclass\nclass Flags:\n    pass\n"


def run(program: str, *args: str, given: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        input=given,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_status_and_message():
    space = "free some space there, or choose another place"
    cases = {
        "pass": (0, "", ""),
        "raise InputError('found a,\nexpected b')": (2, "", "-c: found a, expected b\n"),
        "raise KeyboardInterrupt": (130, "", "interrupted\n"),
        "notice('found\na')": (0, "", "found a\n"),
        "open('/none')": (2, "", "-c: /none: No such file or directory; check it\n"),
        "raise OSError(28, 'No space', 'a')": (2, "", f"-c: a: No space; {space}\n"),
        # A name that is no text.
        r"print('a\udcff')": (0, "a\\udcff\n", ""),
    }
    program = (
        "import contextlib, io, json, sys\n"
        "from experiments.app import cli\n"
        "from maskgit_jax.errors import InputError, notice\n"
        f"{FLAGS}"
        "ended = []\n"
        "for main in json.load(sys.stdin):\n"
        "    output, errors = io.TextIOWrapper(io.BytesIO(), 'utf-8'), io.StringIO()\n"
        "    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):\n"
        "        status = 0\n"
        "        try:\n"
        "            cli.run(lambda flags: exec(main), Flags)\n"
        "        except SystemExit as stop:\n"
        "            status = stop.code\n"
        "    output.flush()\n"
        "    ended.append([status, output.buffer.getvalue().decode(), errors.getvalue()])\n"
        "print(json.dumps(ended))\n"
    )
    given = json.dumps([main.replace("\n", "\\n") for main in cases])
    result = run(program, given=given)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [list(case) for case in cases.values()]


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
