"""Figures with their standard errors, as tables in Markdown and as JSON."""

import math
from collections.abc import Iterable
from typing import Any

Figure = tuple[float, float] | float | int
"""A value and its standard error, or a number that has none."""
Figures = dict[str, Figure | None]
"""By name; None for a figure that a row does not have."""
Columns = dict[str, tuple[str, int]]
"""Of each figure that a table shows, its title and its digits after the point."""


def markdown_table(
    rows: Iterable[tuple[str, Figures]], columns: Columns, heading: str, *, padded: bool
) -> str:
    """The rows, each with its label; `heading` stands above the labels.

    `padded`: columns are of equal width, for the eye; else lines change only where figures do.
    """
    lines = [[heading, *(title for title, _ in columns.values())]]
    for name, figures in rows:
        cells = [cell(figures[column], digits) for column, (_, digits) in columns.items()]
        lines.append([name, *cells])
    widths = [max(map(len, column)) if padded else 3 for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    if not padded:
        widths = [0] * len(widths)
    return "\n".join(
        f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def cell(figure: Figure | None, digits: int) -> str:
    """A value ± its standard error; a dash for what is not known."""
    if figure is None:
        return "-"
    values = figure if isinstance(figure, tuple) else (figure,)
    texts = ["-" if math.isnan(x) else f"{x:.{digits}f}" for x in values]
    return "-" if texts[0] == "-" else " ± ".join(texts)


def named_figures(figures: Figures) -> dict[str, Any]:
    """A row for a file of results: each error and each value under its name."""
    return {
        name: dict(zip(("value", "standard_error"), figure, strict=True))
        if isinstance(figure, tuple)
        else figure
        for name, figure in figures.items()
    }


def read_figures(row: dict[str, Any]) -> Figures:
    """A row of figures as `files.to_json` wrote it."""
    return {
        name: tuple(math.nan if x is None else x for x in figure)
        if isinstance(figure, list)
        else figure
        for name, figure in row.items()
    }
