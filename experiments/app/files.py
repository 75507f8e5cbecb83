"""Writing results so that nothing is half-written, on local disks and on object stores."""

import json
import math
import os
import secrets
from typing import Any

from etils import epath

PART = ".part"
"""How the names of files end that are being written."""


def to_json(value: Any, **options: Any) -> str:
    """The JSON text of a value, with null for numbers that are not finite: JSON has none.

    `options` are those of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_local(path: epath.PathLike) -> bool:
    """Whether a path is on a file system, not an address such as gs://bucket/file."""
    return "://" not in os.fspath(path)


def reason(error: OSError) -> str:
    """Words for why a file or folder cannot be written."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a file is where a folder should be"
    return error.strerror or str(error)


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
