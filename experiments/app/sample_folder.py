"""The folder of a command's results: `sample_000.png` and on, `grid.png`, `results.jsonl`.

No flags are defined here.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from experiments.app.files import to_json
from maskgit_jax.errors import InputError
from maskgit_jax.images import save_png

_RESULTS = re.compile(r"sample_\d{3,}\.png|grid\.png|results\.jsonl")


def check_not_replaced(flag: str, file: str, output_dir: Path) -> None:
    """Raises InputError where writing the results would replace the file that a flag names."""
    path = Path(file).resolve()
    if path.parent == output_dir.resolve() and _RESULTS.fullmatch(path.name):
        raise InputError(f"--{flag}={file} would be overwritten: give another --output_dir")


def write_samples(
    output_dir: Path,
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    lines: Sequence[dict[str, Any]],
    grid: UInt8[np.ndarray, "h w 3"],
) -> None:
    """Puts a run's files in place of an earlier run's, once all of them are written.

    Args:
      output_dir: the folder.
      pictures: the samples.
      lines: what is to be known of each; "file" is its name.
      grid: the contact sheet.

    Raises:
      InputError: the folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".") as temporary:
            folder = Path(temporary)
            for line, picture in zip(lines, pictures, strict=True):
                save_png(folder / line["file"], picture)
            save_png(folder / "grid.png", grid)
            text = "".join(to_json(line) + "\n" for line in lines)
            (folder / "results.jsonl").write_text(text, encoding="utf-8")
            # A longer earlier run's pictures would pass for this one's.
            for path in output_dir.iterdir():
                if _RESULTS.fullmatch(path.name):
                    path.unlink()
            for path in folder.iterdir():
                path.replace(output_dir / path.name)
    except OSError as error:
        raise InputError(
            f"--output_dir={output_dir}: cannot write there ({error.strerror or error}); "
            "choose another folder"
        ) from None
