"""The folder of one `generate` run: what is finished there stays, whatever stops the run.

Batches of pictures are kept in `parts/`, each named after its first picture, until the last is made
and the results are put together; `grid.png` comes last.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from experiments.app.files import to_json, write_whole
from experiments.app.pictures import write_adm_npz
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, png_bytes

FORMATS = ("grid", "png", "npz")

_MOST_IN_GRID = 100
_GRID_SIDE = 96  # pixels, at least


class GenerateFolder:
    """The folder of one run."""

    def __init__(self, path: Path):
        self.path = path
        self._parts = path / "parts"
        self._grid = path / "grid.png"

    def check(self, record: dict[str, Any]) -> None:
        """Makes the folder, or looks whether it is one to go on with.

        Args:
          record: what decides the pictures, as far as it is known.

        Raises:
          InputError: the folder belongs to another run, holds other files or cannot be written.
        """
        plan = self.path / "plan.json"
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            if plan.exists():
                _check_plan(plan, record)
            elif any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise InputError(
                    f"--output_dir={self.path} holds other files: choose an empty folder"
                )

    def open(self, record: dict[str, Any]) -> None:
        """Makes the folder of a run, or goes on with one.

        Args:
          record: what decides the pictures, all of it.

        Raises:
          InputError: as for `check`.
        """
        self.check(record)
        plan = self.path / "plan.json"
        with self._writing():
            if not plan.exists():
                write_whole(plan, (to_json(record, indent=1) + "\n").encode())
            if self.finished():
                shutil.rmtree(self._parts, ignore_errors=True)
            else:
                self._parts.mkdir(exist_ok=True)

    def finished(self) -> bool:
        """Whether all results are there."""
        return self._grid.exists()

    def count(self) -> int:
        """How many pictures are kept."""
        return sum(map(len, self.parts()))

    def add(self, first: int, pictures: UInt8[np.ndarray, "b H W 3"]) -> None:
        """Keeps a batch whose first picture has this number."""
        file = io.BytesIO()
        np.save(file, pictures)
        with self._writing():
            write_whole(self._part(first), file.getvalue())

    def parts(self) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
        """The pictures kept, from the first up to the first that is missing."""
        first = 0
        while self._part(first).exists():
            try:
                pictures = np.load(self._part(first))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{self._part(first)} cannot be read ({error}); delete it and start again"
                ) from None
            yield pictures
            first += len(pictures)

    def finish(self, form: str, lines: list[dict[str, Any]], columns: int | None) -> None:
        """Puts the results together.

        Args:
          form: one of `FORMATS`.
          lines: of `results.jsonl`, with a `file` and a `label` each.
          columns: of the grid; square when None.
        """
        parts = tqdm(self.parts(), "writing", unit=" parts", mininterval=1, disable=form == "grid")
        if form == "npz":
            labels = np.array([line["label"] for line in lines], np.int64)
            write_adm_npz(self.path / "samples.npz", parts, len(lines), labels)
        shown: list[UInt8[np.ndarray, "H W 3"]] = []
        with self._writing():
            if form == "png":
                each = iter(lines)
                for pictures in parts:
                    for picture in pictures:
                        write_whole(self.path / next(each)["file"], png_bytes(picture))
                text = "".join(to_json(line) + "\n" for line in lines)
                write_whole(self.path / "results.jsonl", text.encode())
            for pictures in self.parts():
                shown.extend(pictures[: _MOST_IN_GRID - len(shown)])
                if len(shown) == _MOST_IN_GRID:
                    break
            scale = max(1, _GRID_SIDE // len(shown[0]))
            write_whole(self._grid, png_bytes(make_grid(shown, columns=columns, scale=scale)))
            shutil.rmtree(self._parts)

    def _part(self, first: int) -> Path:
        return self._parts / f"{first:08d}.npy"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"--output_dir={self.path}: cannot write there ({error.strerror or error}); what "
                "is finished is kept: mend that and give the same command again, or choose another "
                "folder"
            ) from None


def _check_plan(path: Path, expected: dict[str, Any]) -> None:
    try:
        found = json.loads(path.read_text())
        names = [name for name in expected if found.get(name) != expected[name]]
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged: choose another --output_dir") from None
    if names:
        there, here = (_short(record.get(names[0])) for record in (found, expected))
        raise InputError(
            f"--output_dir={path.parent} holds another run: {names[0]} is {there} there, {here} by "
            "these flags; choose another folder, or the flags of that run"
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
