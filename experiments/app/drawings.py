"""Drawings that people name after their class: where they lie, what they show."""

import csv
import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, read_image
from maskgit_jax.labels import find_label


class Drawing(NamedTuple):
    """A drawing and what is wanted of it.

    Attributes:
      path: where it was found.
      label: class of the pictures to be made.
      image: fitted to the model's pictures.
    """

    path: str
    label: int
    image: UInt8[np.ndarray, "H W 3"]

    @property
    def digest(self) -> str:
        """Names the fitted picture's content."""
        return hashlib.sha256(self.image.tobytes()).hexdigest()[:16]


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


def read_drawings(
    source: str, class_names: Sequence[str], size: int, *, label: str | None, fit: str
) -> list[Drawing]:
    """Reads the drawings that a pattern finds (dir/*.png), or that a CSV file lists.

    The file has the columns sketch and label; its paths start from its own folder. `label` is the
    class of all drawings found by a pattern; without it, their names say it (`label_of_path`).

    Raises:
      InputError: nothing found, a faulty CSV file, a drawing that cannot be read, one twice.
    """
    if source.lower().endswith(".csv"):
        if label is not None:
            raise InputError(f"{source} says its labels itself: leave --label out")
        found = _read_csv(Path(source), class_names)
    else:
        paths = sorted(Path(path) for path in glob.glob(source, recursive=True))
        known = None if label is None else find_label(label, class_names)
        found = [
            (path, label_of_path(path, class_names) if known is None else known)
            for path in paths
            if path.is_file()
        ]
    if not found:
        raise InputError(
            f"--sketches={source}: no file found; expected a pattern such as 'dir/*.png', quoted, "
            "or a .csv file"
        )
    drawings = [
        Drawing(str(path), each, fit_image(read_image(path), size, mode=fit))
        for path, each in found
    ]
    seen: dict[tuple[str, int], str] = {}
    for drawing in drawings:
        twin = seen.setdefault((drawing.digest, drawing.label), drawing.path)
        if twin is not drawing.path:
            raise InputError(
                f"--sketches={source}: {twin} and {drawing.path} are the same drawing with the "
                "same label: leave one out"
            )
    return drawings


def _read_csv(path: Path, class_names: Sequence[str]) -> list[tuple[Path, int]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            names = rows.fieldnames or []
            if not {"sketch", "label"} <= set(names):
                raise InputError(
                    f"{path}: its first line is {','.join(names)!r}, expected sketch,label"
                )
            lines = [(rows.line_num, row["sketch"], row["label"]) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
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
