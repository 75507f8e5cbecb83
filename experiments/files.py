"""Writing results so that nothing is half-written, on local disks and on object stores."""

import os
import secrets

from etils import epath

PART = ".part"
"""How the names of files end that are being written."""


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is on a file system, not an address such as gs://bucket/file."""
    return "://" not in os.fspath(path)


def write_whole(path: epath.PathLike, data: bytes) -> None:
    """Writes a file that appears under its name complete or not at all, also if power fails.

    Raises:
      OSError: it cannot be written; what was there is unchanged.
    """
    path = epath.Path(path)
    if not is_local(path):
        # Object stores show a file when it is complete.
        path.write_bytes(data)
        return
    part = f"{os.fspath(path.parent)}/.{secrets.token_hex(8)}{PART}"
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise


def append(path: epath.PathLike, data: bytes) -> None:
    """Adds to the end of a local file, which need not exist; a kill may leave a part of `data`.

    Object stores do not append: there, write objects of their own and read them together.

    Raises:
      OSError: it cannot be written.
    """
    with open(path, "ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
