"""What every command shares: flags, one-line errors, exit status."""

import contextlib
import io
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from absl import logging

from experiments.app.compiled import keep_programs
from experiments.app.files import write_whole
from experiments.app.flags import parse
from maskgit_jax.errors import InputError, Notice, printable
from maskgit_jax.files import os_error


def run(main: Callable[[Any], None], settings: type) -> None:
    """Reads a command's flags and runs it; what it compiles is kept for the next start.

    Bad flags and `InputError` end the command as `one_line_errors` says, Ctrl-C with status 130.

    Args:
      main: the command.
      settings: a dataclass of knobs, its flags; `main` is given an instance.
    """
    _show_notices()
    # Libraries report every checkpoint at the info level.
    logging.set_verbosity(logging.WARNING)
    with one_line_errors():
        argv = [packaged_flagfile(argument) for argument in sys.argv]
        given, keep = parse(settings, argv)
        if keep:
            keep_programs()
        main(given)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line on stderr, and status 2, where a user can mend what failed."""
    try:
        yield
    except (InputError, OSError) as error:
        if isinstance(error, OSError):  # where nobody knows better
            error = os_error(error, printable(error.filename or "a file"), "check it")
        name = os.path.basename(sys.argv[0]).removesuffix(".py")
        print(f"{name}: {printable(str(error), most=10_000)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _show_notices() -> None:
    """Shows notices as lines, and prints whatever names hold that are no text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    show = warnings.showwarning

    def show_plainly(message, category, *place, **options):
        if issubclass(category, Notice):
            print(printable(message, most=10_000), file=sys.stderr)
        else:
            show(message, category, *place, **options)

    warnings.showwarning = show_plainly
    warnings.simplefilter("always", Notice)


def packaged_flagfile(argument: str) -> str:
    """`--flagfile=experiments/flagfiles/…` from any folder; other arguments as they are."""
    name, _, path = argument.partition("=")
    packaged = Path(str(files("experiments"))).parent / path
    if name in ("--flagfile", "-flagfile") and not os.path.exists(path) and packaged.is_file():
        return f"{name}={packaged}"
    return argument


def output_folder(path: str, flag: str = "output_dir") -> Path:
    """Makes the folder that a flag names.

    Raises:
      InputError: it cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = f"--{flag}={folder}: cannot write there"
        raise os_error(error, what, "choose another folder") from None
    return folder


def write_text(path: Path, text: str) -> None:
    """Writes a file of a command's results, all or nothing; InputError if that fails."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise os_error(error, f"{path} cannot be written", "choose another place") from None


@contextlib.contextmanager
def signals_noticed() -> Iterator[list[int]]:
    """Lists the first Ctrl-C or SIGTERM that comes; a second one does what it always did."""
    noticed: list[int] = []

    def notice(number, frame):
        noticed.append(number)
        put_back()

    def put_back():
        for number, handler in handlers.items():
            signal.signal(number, handler)

    handlers = {n: signal.signal(n, notice) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noticed
    finally:
        put_back()
