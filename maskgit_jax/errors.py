"""The error that a user can mend, and words from outside made fit for it."""

import importlib
import warnings


class InputError(ValueError):
    """Bad input from outside: a flag, a file, a setting.

    The message is one line that says what was found, what was expected and how to mend it.
    Commands print it alone and exit with status 2; library users catch it as a `ValueError`.
    """


class Notice(UserWarning):
    """What was done to an input, or is odd about it: one line. Commands print it alone."""


def notice(text: str) -> None:
    """Tells of what is no error, as a warning of Python's."""
    warnings.warn(Notice(text), stacklevel=3)


def need(what: str, extra: str, *packages: str) -> None:
    """Raises InputError where a package of an extra, needed for `what`, is not installed."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(
                f"{what} needs the package {package}: pip install 'maskgit_jax[{extra}]'"
            ) from None


def printable(found: object, most: int = 200) -> str:
    """What a file, a server or a library said, as a piece of one line.

    White space becomes single spaces, other control characters are left out, and what is longer
    than `most` characters is cut.
    """
    text = " ".join(str(found).split())
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= most else text[: most - 1] + "…"
