"""Runs commands one after the other, each in a fork of a process that has imported JAX.

    python -m tests.fork_commands < commands.jsonl

Each line is a command: a folder to run in, a number of virtual devices, a name, rules, a module of
`experiments`, its flags. What is printed goes to NAME.out and NAME.err in the folder; printed here
is a line for each: exit status, seconds of processor time, most memory in bytes. A process for each
would spend most of its time on importing. Shapes in annotations are checked, as in the tests' own
process, unless the first argument is `unchecked`.

Rules are `limit`, seconds after which a command is ended (SIGALRM), and `kill`: a folder's name, a
number n and seconds s; the command ends without a chance to clean up s seconds after it has begun
the n-th change to a file in such a folder, or just before that change where s is 0.
"""

import importlib
import json
import os
import signal
import sys

# What commands import. None of these starts JAX: each fork does, for itself.
import grain  # noqa: F401
import jax  # noqa: F401
import matplotlib.figure  # noqa: F401
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import scipy.cluster.vq  # noqa: F401
import skimage.segmentation  # noqa: F401
import tensorboardX  # noqa: F401
from jaxtyping import install_import_hook

if "unchecked" not in sys.argv:
    install_import_hook(["maskgit_jax", "guidance", "experiments"], "beartype.beartype")

from experiments.app import cli
from experiments.demo_world import world  # noqa: F401
from guidance import masksketch  # noqa: F401
from guidance.strokes import automatic  # noqa: F401
from maskgit_jax import model  # noqa: F401
from maskgit_jax.training import train_state  # noqa: F401

_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.truncate", "os.rmdir")


def _kill(folder: str, number: int, seconds: float) -> None:
    seen = 0

    def note(event: str, arguments: tuple) -> None:
        nonlocal seen
        # A file is opened with (path, mode, flags).
        changes = event in _CHANGES or (event == "open" and arguments[2] & 3)
        if not changes or folder not in os.fsdecode(str(arguments[0])):
            return
        seen += 1
        if seen == number and seconds:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        elif seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def _run(folder: str, devices: int, name: str, rules: dict, module: str, *arguments: str) -> None:
    os.chdir(folder)
    signal.setitimer(signal.ITIMER_REAL, rules.get("limit", 0))
    if "kill" in rules:
        _kill(*rules["kill"])
    for stream, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{end}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    sys.argv = [module, *arguments]
    command = importlib.import_module(f"experiments.{module}")
    status = None
    try:
        cli.run(command.main, command.Flags)
    except SystemExit as stop:
        status = stop.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)  # taking so large a process apart takes half a second


def main() -> None:
    """Runs what standard input names."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(*json.loads(line))
        _, status, usage = os.wait4(child, 0)
        seconds = usage.ru_utime + usage.ru_stime
        peak = usage.ru_maxrss * 1024
        print(json.dumps([os.waitstatus_to_exitcode(status), seconds, peak]), flush=True)


if __name__ == "__main__":
    main()
