import subprocess
import sys

from experiments.app.entry_point import commands
from tests.commands import ROOT

RUN = [sys.executable, "-c", "from experiments.app.entry_point import main; main()"]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([*RUN, *words], capture_output=True, text=True, cwd=ROOT)


def test_every_command_is_listed_with_what_it_does():
    listed = run("--help").stdout
    names = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
    assert set(commands()) == names and "sketch" in names
    for name, what in commands().items():
        assert f"  {name} " in listed and what and what in listed


def test_a_command_is_run_with_its_flags():
    ended = run("train-tokenizer", "--num_steps=none")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("train_tokenizer: --num_steps=none: expected a whole number")


def test_an_unknown_command_is_one_line_with_the_nearest():
    ended = run("scetch")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "maskgit: no command 'scetch': did you mean sketch?\n"
