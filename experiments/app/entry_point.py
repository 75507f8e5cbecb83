"""The console script: `maskgit sketch --seed=1` is `python -m experiments.sketch --seed=1`."""

import ast
import difflib
import importlib
import sys
from importlib.resources import files

from experiments.app import cli


def commands() -> dict[str, str]:
    """The commands and what they do: the modules of `experiments`, their first lines."""
    found = {}
    for file in sorted(files("experiments").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".py") and not file.name.startswith("_"):
            first = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
            found[file.name.removesuffix(".py")] = (first or "").splitlines()[0]
    return found


def main() -> None:
    """Runs the command that the first word names."""
    known = commands()
    name = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else "help"
    if name in known:
        sys.argv = [name, *sys.argv[2:]]
        command = importlib.import_module(f"experiments.{name}")
        cli.run(command.main, command.Flags)
    elif name.strip("_") in ("help", "h"):
        width = max(map(len, known))
        print("maskgit COMMAND [--flags]; maskgit COMMAND --help shows a command's flags.")
        print("To begin: maskgit sketch, or maskgit sketch --sketch=my.png --label=house\n")
        print("\n".join(f"  {command.ljust(width)}  {what}" for command, what in known.items()))
    else:
        near = difflib.get_close_matches(name, known)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        print(f"maskgit: no command {sys.argv[1]!r}: {hint}", file=sys.stderr)
        sys.exit(2)
