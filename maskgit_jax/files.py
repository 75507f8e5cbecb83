"""Files from outside: opened without blocking, and failures told by their true cause."""

import errno
import os
import stat
from typing import BinaryIO

from maskgit_jax.errors import InputError, printable

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
    stat.S_IFSOCK: "a socket",
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


def open_file(path: str | os.PathLike[str], expected: str) -> BinaryIO:
    """Opens a regular file to be read; a pipe would block, a device may never end.

    Raises:
      InputError: it is none or cannot be opened; the line ends with what was `expected`.
    """
    what = f"cannot open {os.fspath(path)!r}"  # repr keeps it on one line whatever the name holds
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind in _KINDS:
            raise InputError(f"{what}: it is {_KINDS[kind]}; {expected}")
        return open(path, "rb")
    except OSError as error:
        raise os_error(error, what, expected) from error
    except InputError:
        raise
    except ValueError as error:  # a null byte
        raise InputError(f"{what}: {error}; {expected}") from error
