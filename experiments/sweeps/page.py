"""A sweep's report: `summary.csv`, `plots` and `report.html`, one file that needs no other."""

import base64
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from experiments.app.files import write_whole
from experiments.sweeps import plots
from experiments.sweeps.plots import distinct, name_of, num_digits, value_of
from experiments.sweeps.summary import (
    DISTANCE,
    Line,
    Row,
    Sweep,
    by_layers,
    measure,
    pareto_front,
    read_sweep,
    realism_measure,
    summarise,
    to_csv,
)
from maskgit_jax.errors import InputError, need

_MOST_ROWS = 50
_NUM_EXTREMES, _NUM_EXTREMES_OF_MANY_LAYERS, _MANY_LAYERS = 6, 3, 5
_MOST_SHEETS, _MOST_CELLS = 12, 12
_LARGEST_SIDE = 128
_PIXELS_OF_SHEETS = 6_000_000  # about 3 MB
_PIXELS_PER_INCH = 90


class Sheet(NamedTuple):
    """A sketch's pictures as a table.

    Attributes:
      line: an item of the sketch.
      sketch: data URI; None where it cannot be read, as for all pictures.
      heads: lines of column heads: a setting, its values with the number of columns they span.
      x: the setting that rows differ in.
      rows: its value, and data URIs; None also where there is no item.
    """

    line: Line
    sketch: str | None
    heads: list[tuple[str, list[tuple[Any, int]]]]
    x: str | None
    rows: list[tuple[Any, list[str | None]]]


class Extreme(NamedTuple):
    """An item to be shown: its line, and data URIs of its sketch and of its picture."""

    line: Line
    sketch: str | None
    picture: str | None


class Plot(NamedTuple):
    """A figure of the report.

    Attributes:
      name: of its files.
      caption: what it shows.
      figure: matplotlib's.
    """

    name: str
    caption: str
    figure: Any


def check_packages() -> None:
    """Raises InputError, with the command that mends it, where a package is not installed."""
    need("a sweep's report", "sweep", "jinja2", "matplotlib")


def write_report(folder: epath.Path) -> None:
    """Writes `summary.csv`, `plots` and `report.html` into a sweep's folder.

    Raises:
      InputError: no folder of a sweep, a damaged one, one without a finished item, or one that
        cannot be written.
    """
    sweep = read_sweep(folder)
    rows = summarise(sweep)
    pictures = [(plot, plots.encode(plot.figure, "png")) for plot in draw_plots(rows)]
    page = _page(folder, sweep, rows, pictures)
    try:
        (folder / "plots").mkdir(exist_ok=True)
        write_whole(folder / "summary.csv", to_csv(rows).encode())
        for plot, data in pictures:
            write_whole(folder / "plots" / f"{plot.name}.png", data)
            pdf = plots.encode(plot.figure, "pdf")
            write_whole(folder / "plots" / f"{plot.name}.pdf", pdf)
        write_whole(folder / "report.html", page.encode(errors="backslashreplace"))
    except OSError as error:
        raise InputError(
            f"{folder}: the report cannot be written ({error.strerror or error}); mend that and "
            f"give python -m experiments.report --sweep_dir={folder}"
        ) from None


def draw_plots(rows: Sequence[Row]) -> list[Plot]:
    """The plots that the settings allow; none of a single one."""
    layout, realism = plots.choose_layout(rows), realism_measure(rows)
    if layout.x is None:
        return []
    names = [DISTANCE] if realism is None else [DISTANCE, realism]
    note = "".join(
        f" Shown at {name_of(name)} {value_of(value)}." for name, value in layout.held.items()
    )
    drawn = [
        Plot(
            f"curves_{name}",
            f"{_sentence(name)} against {name_of(layout.x)}; bars are standard errors.{note}",
            plots.draw_curves(rows, layout, name),
        )
        for name in names
    ]
    if layout.x == "layers":
        return drawn
    if layout.lines is not None:
        drawn += [
            Plot(
                f"heat_{name}",
                f"{_sentence(name)} by {name_of(layout.x)} and {name_of(layout.lines)}; "
                f"the {'smallest' if name == DISTANCE else 'largest'} is in bold type.{note}",
                plots.draw_heat(rows, layout, name),
            )
            for name in names
        ]
    if realism is not None:
        drawn.append(
            Plot(
                "scatter",
                f"Up and to the left is better; marks grow with {name_of(layout.x)}. Circled: "
                "the Pareto front, settings that no other beats in both, numbered where there "
                f"is room and listed below.{note}",
                plots.draw_scatter(rows, layout, realism, _front(rows)),
            )
        )
    return drawn


def _page(
    folder: epath.Path, sweep: Sweep, rows: Sequence[Row], pictures: Sequence[tuple[Plot, bytes]]
) -> str:
    import jinja2
    from markupsafe import Markup, escape

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.sweeps"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def typeset(text: str) -> Markup:
        return Markup(str(escape(text)).replace("λ_s", "λ<sub>s</sub>"))

    environment.filters |= {"typeset": typeset, "words": lambda name: typeset(name_of(name))}
    swept = [name for name, values in sweep.plan["settings"].items() if len(values) > 1]
    ranked = [sorted(group, key=_distance) for group in by_layers(rows).values()]
    digits = {
        name: num_digits([measure(row, name)[0] for row in rows])
        for name in dict.fromkeys(name for row in rows for name in row.measures)
    }
    realism = realism_measure(rows)
    sheets = _sheets(folder, sweep, rows)
    has_front = any(plot.name == "scatter" for plot, _ in pictures)
    return environment.get_template("report.html.jinja").render(
        plan=sweep.plan,
        settings={
            name: [value_of(value) for value in values]
            for name, values in sweep.plan["settings"].items()
        },
        swept=swept,
        digits=digits,
        realism=realism,
        measures=[DISTANCE] if realism is None else [DISTANCE, realism],
        num_finished=len(sweep.results),
        rows=rows,
        best=[group[0] for group in ranked],
        front=_front(rows) if has_front else [],
        shown=[row for group in ranked for row in group[: max(1, _MOST_ROWS // len(ranked))]],
        plots=[
            (
                plot,
                _uri("png", _with_palette(data)),
                round(_PIXELS_PER_INCH * plot.figure.get_figwidth()),
            )
            for plot, data in pictures
        ],
        extremes=_extremes(folder, sweep),
        sheets=sheets,
        num_shown=sum(
            uri is not None for sheet in sheets for _, uris in sheet.rows for uri in uris
        ),
        value_of=value_of,
        measure=measure,
    )


def _extremes(folder: epath.Path, sweep: Sweep) -> list[tuple[str, list[Extreme]]]:
    """Items of the smallest and of the largest structure distances, for each choice of layers."""
    all_layers = sweep.plan["settings"]["layers"]
    most = _NUM_EXTREMES if len(all_layers) < _MANY_LAYERS else _NUM_EXTREMES_OF_MANY_LAYERS
    groups = []
    for layers in all_layers:
        lines = [line for line in sweep.results if line["layers"] == layers]
        lines.sort(key=lambda line: line[DISTANCE])
        half = math.ceil(len(lines) / 2)
        ends = {"Nearest to the sketch": lines[:half], "Farthest": lines[half:][::-1]}
        for title, chosen in ends.items():
            pictures = [
                Extreme(
                    line, *(_thumbnail(folder / line[name]) for name in ("sketch_file", "file"))
                )
                for line in chosen[:most]
            ]
            groups.append((f"{title}, layers {layers}" if len(all_layers) > 1 else title, pictures))
    return [group for group in groups if group[1]]


def _sheets(folder: epath.Path, sweep: Sweep, rows: Sequence[Row]) -> list[Sheet]:
    """Sketches, evenly chosen, with their pictures: rows as the x axis, columns by all else."""
    x = plots.choose_layout(rows).x
    others = {name: distinct(rows, name) for name in rows[0].setting if name != x}
    others = {name: values for name, values in others.items() if len(values) > 1}
    shown = _fewer(others, _MOST_CELLS)
    num_settings = math.prod(map(len, shown.values()))
    seeds = sorted({line["seed"] for line in sweep.results})[: _MOST_CELLS // num_settings]
    columns = list(itertools.product(*shown.values(), seeds))
    levels = [*others, "seed"] if len(seeds) > 1 or not others else others
    down = [None] if x is None else _evenly(distinct(rows, x), _MOST_CELLS)
    chosen = _evenly(
        list(dict.fromkeys(line["sketch_file"] for line in sweep.results)), _MOST_SHEETS
    )

    num_pictures = len(chosen) * len(down) * len(columns)
    side = min(_LARGEST_SIDE, math.isqrt(_PIXELS_OF_SHEETS // num_pictures))
    sheets = []
    for sketch in chosen:
        lines = [line for line in sweep.results if line["sketch_file"] == sketch]
        files = {
            (line.get(x), *(line[name] for name in others), line["seed"]): folder / line["file"]
            for line in lines
        }
        cells = [[files.get((value, *column)) for column in columns] for value in down]
        sheets.append(
            Sheet(
                line=lines[0],
                sketch=_thumbnail(folder / sketch),
                heads=[(name, _spans(columns, depth)) for depth, name in enumerate(levels, 1)],
                x=x,
                rows=[
                    (value, [file and _thumbnail(file, side) for file in row])
                    for value, row in zip(down, cells, strict=True)
                ],
            )
        )
    return sheets


def _evenly(values: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the values, the first and the last among them."""
    count = min(len(values), most)
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, count)]


def _fewer(values: dict[str, list[Any]], most: int) -> dict[str, list[Any]]:
    """Values, evenly chosen, of which there are at most so many combinations."""
    counts = {name: len(each) for name, each in values.items()}
    while math.prod(counts.values()) > most:
        counts[max(counts, key=counts.get)] -= 1
    return {name: _evenly(each, counts[name]) for name, each in values.items()}


def _spans(columns: Sequence[tuple[Any, ...]], depth: int) -> list[tuple[Any, int]]:
    """The columns' values at a depth, with the number of columns that share it and all before."""
    runs = itertools.groupby(columns, key=lambda column: column[:depth])
    return [(start[-1], len(list(run))) for start, run in runs]


def _thumbnail(path: epath.Path, side: int = _LARGEST_SIDE) -> str | None:
    """A picture, made smaller, as data URI; None where it cannot be read."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as file:
            image = file.convert("RGB")
    except OSError:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85, optimize=True)
    return _uri("jpeg", data.getvalue())


def _with_palette(data: bytes) -> bytes:
    """A PNG file of 256 colours, a third as large."""
    smaller = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(smaller, "PNG")
    return smaller.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _front(rows: Sequence[Row]) -> list[Row]:
    """The front of each choice of layers."""
    realism = realism_measure(rows)
    return [row for group in by_layers(rows).values() for row in pareto_front(group, realism)]


def _distance(row: Row) -> float:
    return row.measures[DISTANCE][0]


def _sentence(name: str) -> str:
    """A measure's name, as a sentence begins."""
    words = name_of(name).split(" [")[0]
    return words[0].upper() + words[1:]
