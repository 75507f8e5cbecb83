"""A study: rows that are made and measured one by one, and shown as one table.

    study = Study("strokes", COLUMNS, {"baseline": make_baseline, …}, record, folder, docs)
    finished = study.run()

In its folder a row that is finished is one line of `NAME.jsonl`, with the record of the settings
that made it, and its pictures are `columns/NAME/ROW.png`: a killed study goes on with the next
row. `NAME.md` is the table, `NAME.json` the record with every figure.
"""

import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from experiments.app import cli, files
from experiments.app.captions import named_grid
from experiments.app.tables import Columns, Figures, markdown_table, named_figures, read_figures
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, read_image, save_png
from maskgit_jax.knobs import knob

Pictures = UInt8[np.ndarray, "n S S 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """Where a study's results go."""

    output_dir: str | None = knob(None, "Folder for the results.", kind=Path)
    docs: str | None = knob(
        None, "Markdown file: the table between the study's marks is written anew.", kind=Path
    )

    def places(self) -> dict[str, Path | None]:
        """The arguments `folder` and `docs` of a study; the folder is made."""
        folder = None if self.output_dir is None else cli.output_folder(self.output_dir)
        return {"folder": folder, "docs": None if self.docs is None else Path(self.docs)}


class Row(NamedTuple):
    """A row that is finished: its figures, and the pictures of it that a grid shows."""

    figures: Figures
    shown: Pictures | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """What is measured, and where the results are kept.

    Attributes:
      name: of the files, and of the marks in a Markdown file.
      columns: the figures that the table shows.
      rows: by name, what makes and measures a row; or the name of another one that is the same by
        construction.
      record: the settings that a row's figures depend on.
      folder: for the results; None keeps none.
      docs: a Markdown file whose table between the study's marks is written anew.
      heading: above the names of the rows.
      label: how the table calls a row.

    Raises:
      InputError: the folder has rows of other settings, or the Markdown file no such marks.
    """

    name: str
    columns: Columns
    rows: dict[str, Callable[[], Row] | str]
    record: dict[str, Any]
    folder: Path | None = None
    docs: Path | None = None
    heading: str = "pictures"
    label: Callable[[str], str] = str

    def __post_init__(self):
        if self.docs is not None:
            write_table(self.docs, self.name, None)
        self._finished()

    def run(self, only: Collection[str] | None = None) -> dict[str, Row]:
        """Makes the rows (or some) that are not finished, and prints the table of all that are."""
        finished = self._finished()
        for name, make in self.rows.items():
            if name in finished or isinstance(make, str) or not (only is None or name in only):
                continue
            finished[name] = make()
            if self.folder is not None:
                self._keep(name, finished[name])
                self._write(self._in_order(finished))
        rows = self._in_order(finished)
        if self.folder is not None:
            self._write(rows)
        if self.docs is not None:
            write_table(self.docs, self.name, self._table(rows, padded=False))
        print(self._table(rows))
        return rows

    def _in_order(self, finished: dict[str, Row]) -> dict[str, Row]:
        rows = {}
        for name, make in self.rows.items():
            source = make if isinstance(make, str) else name
            if source in finished:
                rows[name] = finished[source]
        return rows

    def _table(self, rows: dict[str, Row], *, padded: bool = True) -> str:
        labelled = [(self.label(name), row.figures) for name, row in rows.items()]
        return markdown_table(labelled, self.columns, self.heading, padded=padded)

    def _finished(self) -> dict[str, Row]:
        """The rows that the folder has; a last line that a kill has cut is dropped."""
        if self.folder is None or not self._lines.exists():
            return {}
        text = self._lines.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            cli.write_text(self._lines, whole)
        rows = {}
        for each in whole.splitlines():
            try:
                line = json.loads(each)
                record = dict(line["record"])
                name, figures = line["name"], read_figures(line["figures"])
            except (ValueError, TypeError, KeyError, AttributeError):
                raise InputError(f"{self._lines} is damaged: give another --output_dir") from None
            self._check_record(record)
            rows[name] = Row(figures, self._read_shown(line.get("column")))
        return rows

    def _check_record(self, found: dict[str, Any]) -> None:
        expected = json.loads(files.to_json(self.record))
        for name in {**expected, **found}:
            old, new = (record.get(name, "not known") for record in (found, expected))
            if old != new:
                raise InputError(
                    f"{self._lines} was made by other flags: {name} was {old}, is {new}; "
                    "give another --output_dir"
                )

    def _read_shown(self, column: str | None) -> Pictures | None:
        if column is None:
            return None
        image = read_image(self.folder / column)
        side = image.shape[1]
        return image.reshape(-1, side, side, 3)

    def _keep(self, name: str, row: Row) -> None:
        """Adds a row to the folder: its pictures, then its line."""
        line: dict[str, Any] = {"name": name}
        if row.shown is not None:
            column = Path("columns", self.name, re.sub(r"\W+", "_", name) + ".png")
            (self.folder / column).parent.mkdir(parents=True, exist_ok=True)
            save_png(self.folder / column, np.concatenate(row.shown))
            line["column"] = column.as_posix()
        line |= {"figures": row.figures, "record": self.record}
        files.append(self._lines, (files.to_json(line) + "\n").encode())

    def _write(self, rows: dict[str, Row]) -> None:
        results = {name: named_figures(row.figures) for name, row in rows.items()}
        text = files.to_json({"settings": self.record, "rows": results}, indent=1)
        cli.write_text(self.folder / f"{self.name}.json", text + "\n")
        cli.write_text(self.folder / f"{self.name}.md", self._table(rows, padded=False) + "\n")

    @property
    def _lines(self) -> Path:
        return self.folder / f"{self.name}.jsonl"


def write_table(path: Path, name: str, table: str | None) -> None:
    """Puts a table, and the command that made it, between a study's marks in a Markdown file.

    The marks are the lines `<!-- NAME: begin (COMMAND) -->` and `<!-- NAME: end -->`. Without a
    table, only looks whether they are there.

    Raises:
      InputError: they are not, or the file cannot be read or written.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--docs={path} cannot be read ({error}); expected a Markdown file"
        ) from None
    marks = re.compile(rf"(<!-- {name}: begin) .*?(<!-- {name}: end -->)", re.DOTALL)
    if len(marks.findall(text)) != 1:
        raise InputError(
            f"--docs={path}: expected the lines <!-- {name}: begin () --> and <!-- {name}: end --> "
            "once, around the table"
        )
    if table is not None:
        begin, end = marks.search(text).groups()
        new = f"{begin} ({_command()}) -->\n\n{table}\n\n{end}"
        cli.write_text(path, marks.sub(lambda found: new, text))


def _command() -> str:
    """The command that runs, without where its results go."""
    given = [x for x in sys.argv[1:] if not x.startswith(("--docs=", "--output_dir="))]
    return shlex.join(["python", "-m", f"experiments.{Path(sys.argv[0]).stem}", *given])


def grid(
    rows: Sequence[Any], labels: Iterable[Any] = (), class_names: Sequence[str] = ()
) -> UInt8[np.ndarray, "h w 3"]:
    """Rows of equally many pictures [H, W, 3], small ones enlarged; `labels` are the columns'."""
    images = [image for row in rows for image in row]
    options = {"columns": len(rows[0]), "scale": max(1, 96 // len(images[0]))}
    names = [class_names[label] for label in labels]
    return (
        named_grid(images, names * len(rows), **options) if names else make_grid(images, **options)
    )


def save_pictures(folder: Path, pictures: dict[str, UInt8[np.ndarray, "_ _ 3"]]) -> None:
    """Saves pictures under their names, and says where."""
    for name, picture in pictures.items():
        save_png(folder / name, picture)
    print(f"look at {' and '.join(str(folder / name) for name in pictures)}")
