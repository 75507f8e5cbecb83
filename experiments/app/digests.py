"""Digests of what a run is given: a resumed run tells by them that a file became another one."""

import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maskgit_jax.files import os_error
from maskgit_jax.model import Model


def of_path(path: str | Path) -> str:
    """Names the content of a file, or of all files in a folder and their names in it.

    Raises:
      InputError: something there cannot be read.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in filter(Path.is_file, inside):
            digest.update(os.fsencode(file.relative_to(path)) + b"\0")
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        raise os_error(error, f"{error.filename} cannot be read", "check the path") from None
    return digest.hexdigest()[:16]


def of_weights(model: Model) -> str:
    """Tells models with other weights apart."""
    return of_tree((model.transformer_params, model.tokenizer_params))


def of_tree(tree: Any) -> str:
    """Tells trees of arrays of one structure apart."""
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    return f"{checksum:08x}"
