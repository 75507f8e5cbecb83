"""Tables of figures in Markdown, and the rows of one that a stopped command has finished."""

import json
import math
from pathlib import Path
from typing import Any

from experiments.app import cli
from maskgit_jax.errors import InputError

Figures = dict[str, tuple[float, float] | None]
"""Values and standard errors by name; None for a figure that a row does not have."""


def markdown_table(rows: dict[str, Figures], columns: dict[str, tuple[str, int]]) -> str:
    """The rows, with columns of equal width; `columns` gives each figure's title and digits."""
    lines = [["pictures", *(title for title, _ in columns.values())]]
    for name, figures in rows.items():
        cells = [cell(figures[column], digits) for column, (_, digits) in columns.items()]
        lines.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def cell(figure: tuple[float, float] | None, digits: int) -> str:
    """A value ± its standard error; a dash for what is not known."""
    if figure is None or math.isnan(figure[0]):
        return "-"
    return " ± ".join("-" if math.isnan(x) else f"{x:.{digits}f}" for x in figure)


def read_figures(row: dict[str, list[float | None] | None]) -> Figures:
    """A row of figures as `files.to_json` wrote it."""
    return {
        name: None if figure is None else tuple(math.nan if x is None else x for x in figure)
        for name, figure in row.items()
    }


def read_finished(path: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of finished rows, each with the `record` of the flags that made it.

    A last line that a kill has cut is dropped from the file.

    Raises:
      InputError: they were made by other flags, or are no such lines.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        cli.write_text(path, whole)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        others = [line for line in lines if line["record"] != record]
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is damaged: give another --output_dir") from None
    if others:
        raise InputError(f"{path} was made by other flags: give another --output_dir")
    return lines
