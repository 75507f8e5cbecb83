"""Files: opened safely, read within limits, written whole, compared with their checksums."""

import errno
import functools
import glob
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from maskgit_jax.errors import InputError, notice, printable

CHECKSUMS = "checksums.json"
"""Beside a model's files: the SHA-256 of each when it was written."""

FETCH_AGAIN = "fetch or copy the file again"
_BLOCK = 1 << 20
_MOST_JSON = 4 << 20

# What mends these is the same whatever was tried.
_MEND = {
    errno.ENOSPC: "free some space there, or choose another place",
    errno.EDQUOT: "free some space there, or choose another place",
    errno.EROFS: "choose a place that you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "check the disk",
}
_KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def os_error(error: OSError, what: str, otherwise: str) -> InputError:
    """The one line for what the system refused: its own words, and how to mend that.

    Args:
      error: the refusal.
      what: what was tried, such as "cannot write 'a.png'".
      otherwise: how to mend it, where the cause does not say it by itself.
    """
    mend = _MEND.get(error.errno, otherwise)
    return InputError(f"{what}: {printable(error.strerror or error)}; {mend}")


def open_file(path: str | os.PathLike[str], expected: str = "expected a file") -> BinaryIO:
    """Opens a regular file to read its bytes; a pipe would block, a device may never end.

    Raises:
      InputError: it is none or cannot be opened; the line ends with what was `expected`.
    """
    name = os.fspath(path)
    name = name if name.isprintable() else repr(name)

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # else a pipe waits here

    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; {expected}; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{name} is a folder; {expected}; check the path") from None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise InputError(f"{name} is a socket; {expected}; check the path") from None
        otherwise = f"{expected}; check the path and its permissions"
        raise os_error(error, f"{name} cannot be read", otherwise) from None
    except ValueError as error:  # a null byte
        raise InputError(f"{name} cannot be read: {error}; {expected}") from None
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind in _KINDS:
        file.close()
        raise InputError(f"{name} is {_KINDS[kind]}; {expected}; check the path")
    return file


def read_file(path: str | os.PathLike[str], most: int = _MOST_JSON) -> bytes:
    """The bytes of a file; InputError as for `open_file`, or if it has more than `most`."""
    with open_file(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise InputError(f"{path} has more than {most} bytes; {FETCH_AGAIN}")
    return data


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file and records its checksum.

    It appears under its name complete or not at all: it is written beside it, flushed to disk and
    renamed.

    Raises:
      OSError: that cannot be done; what was there is unchanged.
    """
    temporary = _beside(path)
    digest = hashlib.sha256()
    try:
        with temporary.open("xb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        # In this order: without a line, whoever reads in between has nothing to compare.
        note_checksum(path, None)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    note_checksum(path, digest.hexdigest())


def _beside(path: Path) -> Path:
    """A name for what is to be renamed; what killed writers of the file left is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def sha256(path: Path) -> str:
    """A file's SHA-256; InputError as for `open_file`."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def note_checksum(path: Path, found: str | None) -> None:
    """Replaces a file's line in the `CHECKSUMS` of its folder; None removes it.

    Raises:
      OSError: that cannot be written.
    """
    try:
        noted = read_checksums(path.parent) or {}
    except InputError:
        noted = {}  # a damaged list says nothing
    if noted.get(path.name) == found:
        return
    noted = {name: value for name, value in noted.items() if name != path.name}
    if found is not None:
        noted[path.name] = found
    temporary = _beside(path.with_name(f"{CHECKSUMS}.{path.name}"))
    try:
        temporary.write_text(json.dumps(noted, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, path.with_name(CHECKSUMS))
    finally:
        temporary.unlink(missing_ok=True)


def read_checksums(folder: Path) -> dict[str, str] | None:
    """SHA-256 by file name, None where nothing is recorded; InputError if the list is damaged."""
    path = folder / CHECKSUMS
    if not os.path.lexists(path):
        return None
    try:
        noted = json.loads(read_file(path))
    except (InputError, ValueError, RecursionError):
        noted = None
    if not isinstance(noted, dict) or not all(isinstance(x, str) for x in noted.values()):
        raise InputError(f"{path} is damaged: {FETCH_AGAIN}, or remove it to go without checksums")
    return noted


def check_checksum(path: Path, found: str | None = None) -> None:
    """Compares a file of numbers with the SHA-256 noted when it was written.

    Gives a notice, once a process, where none was noted.

    Args:
      path: the file.
      found: its SHA-256, where it is known.

    Raises:
      InputError: they differ.
    """
    noted = read_checksums(path.parent)
    if noted is None or path.name not in noted:
        what = f"{path.parent} has no" if noted is None else f"{path} has no line in"
        _tell_once(f"{what} {CHECKSUMS}: damage to the numbers would not be noticed")
        return
    found = found or sha256(path)
    if noted[path.name] != found:
        raise InputError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, {CHECKSUMS} says "
            f"{printable(noted[path.name][:12])}…; {FETCH_AGAIN}, or remove its line there if you "
            "changed it"
        )


@functools.cache
def _tell_once(text: str) -> None:
    notice(text)
