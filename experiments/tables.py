"""Tables of figures in Markdown."""

from experiments.metrics import Figures


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
    """A value ± its standard error; a dash where there is none."""
    return "-" if figure is None else f"{figure[0]:.{digits}f} ± {figure[1]:.{digits}f}"
