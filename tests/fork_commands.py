"""Runs commands one after the other, each in a fork of a process that has imported JAX.

    python -m tests.fork_commands < commands.json

`commands.json` is a list of: a folder to run in, a number of virtual devices, a name, a module of
`experiments`, its flags. What is printed goes to NAME.out and NAME.err in the folder; printed here
is a list of exit statuses and seconds of processor time. A process for each would spend most of its
time on importing. Shapes in annotations are checked, as in the tests' own process.
"""

import importlib
import json
import os
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

install_import_hook(["maskgit_jax", "guidance", "experiments"], "beartype.beartype")

from experiments.app import cli  # noqa: E402
from experiments.demo_world import world  # noqa: E402, F401
from guidance import masksketch  # noqa: E402, F401
from guidance.strokes import automatic  # noqa: E402, F401
from maskgit_jax import model  # noqa: E402, F401
from maskgit_jax.training import train_state  # noqa: E402, F401


def _run(folder: str, devices: int, name: str, module: str, *arguments: str) -> None:
    os.chdir(folder)
    for stream, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{end}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    sys.argv = [module, *arguments]
    command = importlib.import_module(f"experiments.{module}")
    cli.run(command.main, command.Flags)


def main() -> None:
    """Runs what standard input names."""
    ended = []
    for command in json.load(sys.stdin):
        child = os.fork()
        if child == 0:
            _run(*command)
            sys.exit(0)
        _, status, usage = os.wait4(child, 0)
        ended.append((os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime))
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
