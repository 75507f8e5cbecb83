"""What every command shares: flags, one-line errors, exit status."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from experiments.app.compiled import keep_programs
from experiments.app.files import write_whole
from maskgit_jax.errors import InputError, printable

_COMPILATION_CACHE = flags.DEFINE_bool(
    "compilation_cache", True, "Keep compiled programs for the next start, in MASKGIT_CACHE."
)


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; what it compiles is kept for the next start.

    Bad flags and `InputError` end the command with one line on stderr and status 2; Ctrl-C ends
    it with status 130.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS([packaged_flagfile(argument) for argument in argv])
        except flags.Error as error:
            _fail(str(error))
        if len(rest) > 1:
            _fail(f"unexpected argument {rest[1]!r}: every setting is a flag, --name=value")
        return rest

    def guarded(argv: list[str]) -> None:
        del argv
        # Libraries report every checkpoint at the info level.
        logging.set_verbosity(logging.WARNING)
        if _COMPILATION_CACHE.value:
            keep_programs()
        try:
            main()
        except InputError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    # --help lists it with the command's own.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[_COMPILATION_CACHE.name])
    app.run(guarded, flags_parser=parse)


def packaged_flagfile(argument: str) -> str:
    """`--flagfile=experiments/flagfiles/…` from any folder; other arguments as they are."""
    name, _, path = argument.partition("=")
    packaged = Path(str(files("experiments"))).parent / path
    if name in ("--flagfile", "-flagfile") and not os.path.exists(path) and packaged.is_file():
        return f"{name}={packaged}"
    return argument


def output_folder(flag: flags.FlagHolder[str]) -> Path:
    """Makes the folder that a flag names.

    Raises:
      InputError: it cannot be made or written.
    """
    folder = Path(flag.value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"--{flag.name}={folder}: cannot write there ({error.strerror or error}); "
            "choose another folder"
        ) from None
    return folder


def write_text(path: Path, text: str) -> None:
    """Writes a file of a command's results, all or nothing; InputError if that fails."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error})") from None


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


def _fail(message: str) -> NoReturn:
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    print(f"{name}: {printable(message, most=10_000)}", file=sys.stderr)
    sys.exit(2)
