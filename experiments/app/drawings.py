"""Drawings that people name after their class: where they lie, what they show."""

import csv
import glob
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from guidance.sketches import read_sketch
from maskgit_jax.errors import InputError
from maskgit_jax.files import open_file
from maskgit_jax.labels import find_label

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")
_GRID = "grid.png"  # what commands write beside their samples


class Drawing(NamedTuple):
    """A drawing and what is wanted of it.

    Attributes:
      path: where it was found.
      label: class of the pictures to be made.
      image: fitted to the model's pictures.
      fit: see `Sketch`; as the next.
      changes: likewise.
    """

    path: str
    label: int
    image: UInt8[np.ndarray, "H W 3"]
    fit: str = "pad"
    changes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Names the fitted picture's content."""
        return hashlib.sha256(self.image.tobytes()).hexdigest()[:16]

    def record(self, class_names: Sequence[str]) -> dict[str, Any]:
        """What the record of a run with several drawings says of it."""
        record = {"path": self.path, "label": self.label}
        return record | {"class_name": class_names[self.label], "digest": self.digest}


def label_of_path(path: Path, class_names: Sequence[str]) -> int:
    """The class that a file's folder is named after, else what its name begins with.

    Such as mud_turtle/1.png, and mud_turtle_2.png elsewhere.

    Raises:
      InputError: neither is a class.
    """
    words = path.stem.split("_")
    names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    for name in (path.absolute().parent.name, *names):
        try:
            if not name.isdigit():  # 0001.png is numbered, not of class 1
                return find_label(name, class_names)
        except InputError:
            continue
    example = class_names[0].split(",")[0].replace(" ", "_")
    raise InputError(
        f"{path}: neither its name nor its folder's says a class: expected a name such as "
        f"{example}_1.png, or a folder {example}"
    )


def find_labelled(
    source: str, class_names: Sequence[str], label: str | None = None
) -> list[tuple[Path, int]]:
    """The pictures that a text names, and their classes: a folder, a pattern, a CSV file or one.

    Of a folder, all in it and in its sub-folders but what runs have written there. A CSV file has
    the columns sketch and label; its paths start from its own folder. `label` is the class of all
    others; without it, their names say it (`label_of_path`).

    Raises:
      InputError: a faulty CSV file, or no class.
    """
    path = Path(source)
    if source.lower().endswith(".csv"):
        if label is not None:
            raise InputError(f"{source} says its labels itself: leave --label out")
        return _read_csv(path, class_names)
    if path.is_dir():
        runs = {file.parent for file in path.rglob("plan.json")} - {path}
        paths = [file for file in picture_files(path) if runs.isdisjoint(file.parents)]
    elif os.path.lexists(source):
        paths = [path]
    else:
        paths = sorted(Path(found) for found in glob.glob(source, recursive=True))
        paths = [found for found in paths if found.is_file()]
    known = None if label is None else find_label(label, class_names)
    return [(each, label_of_path(each, class_names) if known is None else known) for each in paths]


def picture_files(folder: Path) -> list[Path]:
    """The picture files in a folder and its sub-folders, sorted, without any `grid.png`."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and path.name != _GRID and path.is_file()
    )


def read_drawings(
    flag: str,
    source: str,
    class_names: Sequence[str],
    size: int,
    *,
    label: str | None,
    fit: str = "auto",
    invert: str = "auto",
) -> list[Drawing]:
    """Reads the drawings that a flag names, see `find_labelled`.

    Raises:
      InputError: nothing found, a drawing that cannot be read or is blank, one twice, and what
        `find_labelled` raises.
    """
    found = find_labelled(source, class_names, label)
    if not found:
        raise InputError(
            f"--{flag}={source}: no file found; expected a folder of pictures, a pattern such as "
            "'dir/*.png', quoted, or a .csv file"
        )
    drawings = [
        Drawing(str(path), each, *read_sketch(path, size, fit=fit, invert=invert))
        for path, each in found
    ]
    seen: dict[tuple[str, int], str] = {}
    for drawing in drawings:
        twin = seen.setdefault((drawing.digest, drawing.label), drawing.path)
        if twin is not drawing.path:
            raise InputError(
                f"--{flag}={source}: {twin} and {drawing.path} are the same drawing with the "
                "same label: leave one out"
            )
    return drawings


def _read_csv(path: Path, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    try:
        opened = open_file(path, "expected a CSV file")
        with io.TextIOWrapper(opened, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            names = rows.fieldnames or []
            if not {"sketch", "label"} <= set(names):
                raise InputError(
                    f"{path}: its first line is {','.join(names)!r}, expected sketch,label"
                )
            lines = [(rows.line_num, row["sketch"], row["label"]) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a CSV file") from None
    found = []
    for number, sketch, label in lines:
        if not sketch or not label:
            missing = "label" if sketch else "sketch"
            raise InputError(f"{path}, line {number}: no {missing}; expected sketch,label")
        try:
            found.append((path.parent / sketch, find_label(label, class_names)))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    return found
