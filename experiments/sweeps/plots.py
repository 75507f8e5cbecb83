"""The plots of a sweep: means and standard errors of its settings, as matplotlib figures."""

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.sweeps.summary import DISTANCE, Row, measure

# Okabe and Ito's colours, which colour-blind people tell apart; marks and strokes differ as well.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STROKES = ("-", "--", "-.", ":")
_HEAT = ("#F4F8FB", "#0072B2")
_NOTHING = "#DDDDDD"
_LARGE, _SMALL = 13, 12
_PANEL_WIDTHS = {1: 5.2, 2: 4.2, 3: 3.5}  # inches, by columns
_PANEL_HEIGHT = 3.1
_CELL_WIDTH, _CELL_HEIGHT = 0.65, 0.45
_MOST_PANELS = 12
_SAVE = {
    "png": {"dpi": 150},
    "pdf": {"metadata": {"CreationDate": None}},  # equal numbers, equal bytes
}

_NAMES = {
    DISTANCE: "structure distance [nats]",
    "class_probability": "probability of the class",
    "clip_text": "likeness to the class [CLIP cosine]",
    "clip_sketch": "likeness to the sketch [CLIP cosine]",
    "lambda_s": "λ_s",
    "num_steps": "decoding steps",
    "num_candidates": "candidates",
}
_AXES = {
    "lambda_s": "$λ_s$, share of structure",
    "max_mask_rate": "share of ids masked at the start",
    "min_mask_rate": "share of ids masked at the end",
}


class Layout(NamedTuple):
    """What the plots set against what.

    Attributes:
      x: setting along the x axis; None if all settings have one value.
      lines: setting that a panel's lines differ in; None if none is left.
      panels: settings that panels differ in; the last one's values change fastest.
      held: settings that panels do not show, with the value that is shown.
    """

    x: str | None
    lines: str | None
    panels: tuple[str, ...]
    held: dict[str, Any]


def name_of(name: str) -> str:
    """A setting or a measure in words."""
    return _NAMES.get(name, name.replace("_", " "))


def value_of(value: Any) -> str:
    """A setting's value in words."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def distinct(rows: Sequence[Row], name: str) -> list[Any]:
    """A setting's values: numbers ascending, layers in the order of the rows."""
    values = list(dict.fromkeys(row.setting[name] for row in rows))
    return values if name == "layers" else sorted(values)


def choose_layout(rows: Sequence[Row]) -> Layout:
    """λ_s along x and a line for each guidance scale, where they have several values.

    Else the settings with the most values take their places. Layers are panels: a distance over
    other layers is another measure. Where there would be too many panels, settings are held at
    the values of the row of the smallest distance.
    """
    counts = {name: len(distinct(rows, name)) for name in rows[0].setting}
    counts = {name: count for name, count in counts.items() if count > 1}
    free = sorted((name for name in counts if name != "layers"), key=lambda name: -counts[name])

    def take(first_choice: str) -> str | None:
        name = first_choice if first_choice in free else next(iter(free), None)
        if name is not None:
            free.remove(name)
        return name

    x, lines = take("lambda_s"), take("guidance_scale")
    if x is None and "layers" in counts:
        return Layout("layers", None, (), {})
    panels = [name for name in counts if name in free] + [
        name for name in counts if name == "layers"
    ]
    best = min(rows, key=lambda row: row.measures[DISTANCE][0])
    held = {}
    while math.prod(counts[name] for name in panels) > _MOST_PANELS and len(panels) > 1:
        name = panels.pop(0)
        held[name] = best.setting[name]
    return Layout(x, lines, tuple(panels), held)


def draw_curves(rows: Sequence[Row], layout: Layout, name: str) -> Any:
    """A measure against `layout.x`, with error bars; a figure of `layout.panels`."""
    figure, panels = _figure(rows, layout, name)
    names = distinct(rows, "layers")
    for axes, members in panels:
        for style, line in _lines(rows, members, layout):
            points = sorted(line, key=lambda row: _place(row, layout.x, names))
            means, errors = np.array([measure(row, name) for row in points]).reshape(-1, 2).T
            style["ls"] = "none" if layout.x == "layers" else style["ls"]
            places = [_place(row, layout.x, names) for row in points]
            axes.errorbar(places, means, errors, lw=2, ms=7, capsize=4, **style)
        if layout.x == "layers":
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axes.set_xlim(-0.5, len(names) - 0.5)
    figure.supxlabel(_axis(layout.x), fontsize=_LARGE)
    figure.supylabel(_axis(name), fontsize=_LARGE)
    _add_legend(figure, layout)
    return figure


def draw_heat(rows: Sequence[Row], layout: Layout, name: str) -> Any:
    """A measure's means over `layout.lines` and `layout.x`; the best is in bold type."""
    from matplotlib.colors import LinearSegmentedColormap

    columns, lines = distinct(rows, layout.x), distinct(rows, layout.lines)
    size = (_CELL_WIDTH * len(columns) + 0.6, _CELL_HEIGHT * len(lines) + 0.7)
    figure, panels = _figure(rows, layout, name, size)
    colours = LinearSegmentedColormap.from_list("", _HEAT).with_extremes(bad=_NOTHING)
    digits = num_digits([measure(row, name)[0] for row in rows])
    heats = []
    for _, members in panels:
        heat = np.full((len(lines), len(columns)), np.nan)
        for row in members:
            place = lines.index(row.setting[layout.lines]), columns.index(row.setting[layout.x])
            heat[place] = measure(row, name)[0]
        heats.append(heat)
    for (axes, _), heat in zip(panels, heats, strict=True):
        compared = heat if _differs(layout, name) else np.stack(heats)
        low, high = _range(compared)
        axes.imshow(heat, colours, vmin=low, vmax=high, origin="lower", aspect="auto")
        best = low if name == DISTANCE else high
        for (row, column), value in np.ndenumerate(heat):
            axes.text(
                column,
                row,
                "–" if np.isnan(value) else f"{value:.{digits}f}",
                ha="center",
                va="center",
                fontsize=_SMALL,
                color="white" if value - low > 0.85 * (high - low) else "black",
                weight="bold" if value == best else "normal",
            )
        axes.set_xticks(range(len(columns)), [value_of(value) for value in columns])
        axes.set_yticks(range(len(lines)), [value_of(value) for value in lines])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    figure.supxlabel(_axis(layout.x), fontsize=_LARGE)
    figure.supylabel(_axis(layout.lines), fontsize=_LARGE)
    figure.suptitle(_axis(name), fontsize=_LARGE)
    return figure


def draw_scatter(rows: Sequence[Row], layout: Layout, realism: str, front: Sequence[Row]) -> Any:
    """Realism against structure distance, a mark for each row, larger for larger `layout.x`.

    Lines join neighbours in `layout.x`. The rows of the front are circled and, where there is
    room, numbered from 1.
    """
    figure, panels = _figure(rows, layout, realism, share_x=not _differs(layout, DISTANCE))
    places = distinct(rows, layout.x)
    for axes, members in panels:
        for style, line in _lines(rows, members, layout):
            points = sorted(line, key=lambda row: row.setting[layout.x])
            x, x_errors = np.array([measure(row, DISTANCE) for row in points]).reshape(-1, 2).T
            y, y_errors = np.array([measure(row, realism) for row in points]).reshape(-1, 2).T
            colour, stroke = style["color"], style.pop("ls")
            axes.errorbar(x, y, y_errors, x_errors, fmt="none", ecolor=colour, alpha=0.4)
            axes.plot(x, y, color=colour, ls=stroke, lw=1, alpha=0.6)
            ranks = [places.index(row.setting[layout.x]) / (len(places) - 1) for row in points]
            axes.scatter(x, y, s=25 + 75 * np.array(ranks), zorder=3, **style)
        axes.margins(0.12)
        for number, row in enumerate(front, start=1):
            if row in members:
                _number(axes, number, (measure(row, DISTANCE)[0], measure(row, realism)[0]))
    figure.supxlabel(_axis(DISTANCE), fontsize=_LARGE)
    figure.supylabel(_axis(realism), fontsize=_LARGE)
    _add_legend(figure, layout)
    return figure


def encode(figure: Any, kind: str) -> bytes:
    """The file of a figure, "png" or "pdf"."""
    import matplotlib

    file = io.BytesIO()
    # Type 42: journals refuse the default, type 3.
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(file, format=kind, **_SAVE[kind])
    return file.getvalue()


def num_digits(values: Sequence[float]) -> int:
    """Digits after the point that leave three that count, in a middling one of the values."""
    known = np.abs([value for value in values if np.isfinite(value)])
    size = np.median(known) if len(known) else 0
    return 3 if size == 0 else int(np.clip(2 - np.floor(np.log10(size)), 0, 9))


def _figure(
    rows: Sequence[Row],
    layout: Layout,
    name: str,
    size: tuple[float, float] | None = None,
    *,
    share_x: bool = False,
) -> tuple[Any, list[tuple[Any, list[Row]]]]:
    """A figure with axes for each panel that has rows, and these rows."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if all(row.setting[k] == v for k, v in layout.held.items())]
    values = itertools.product(*(distinct(rows, setting) for setting in layout.panels))
    groups = {
        each: [row for row in rows if tuple(row.setting[k] for k in layout.panels) == each]
        for each in values
    }
    groups = {each: members for each, members in groups.items() if members}
    last = len(distinct(rows, layout.panels[-1])) if layout.panels else 1
    columns = min(len(groups), {1: 3, 2: 2, 3: 3, 4: 2}.get(last, 3))
    if size is not None:
        columns = max(1, min(columns, int(10.5 / size[0])))
    width, height = size or (_PANEL_WIDTHS[columns], _PANEL_HEIGHT)
    num_rows = math.ceil(len(groups) / columns)
    figure = Figure((columns * width + 0.5, num_rows * height + 0.9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    grid = figure.subplots(
        num_rows, columns, squeeze=False, sharex=share_x, sharey=not _differs(layout, name)
    ).ravel()
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(groups) - columns) : len(groups)]:
        axes.tick_params(labelbottom=True)  # also above an axes that is not seen
    for axes, each in zip(grid, groups, strict=False):
        parts = (f"{name_of(k)} {value_of(v)}" for k, v in zip(layout.panels, each, strict=True))
        axes.set_title("\n".join(parts), fontsize=_SMALL)
        axes.tick_params(labelsize=_SMALL)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(zip(grid, groups.values(), strict=False))


def _differs(layout: Layout, name: str) -> bool:
    """Whether a measure of one panel cannot be compared with another's."""
    return name == DISTANCE and "layers" in layout.panels


def _lines(
    rows: Sequence[Row], members: Sequence[Row], layout: Layout
) -> list[tuple[dict[str, Any], list[Row]]]:
    """Style and rows of each line of a panel; the same style for a value in all panels."""
    values = [None] if layout.lines is None else distinct(rows, layout.lines)
    lines = []
    for index, value in enumerate(values):
        style = {
            "color": _COLOURS[index % len(_COLOURS)],
            "marker": _MARKS[index % len(_MARKS)],
            "ls": _STROKES[index % len(_STROKES)],
            "label": value_of(value),
        }
        lines.append((style, [row for row in members if row.setting.get(layout.lines) == value]))
    return lines


def _add_legend(figure: Any, layout: Layout) -> None:
    if layout.lines is None:
        return
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        title=_axis(layout.lines),
        ncols=math.ceil(len(labels) / math.ceil(len(labels) / figure.get_figwidth())),
        columnspacing=1.5,
        handletextpad=0.5,
        fontsize=_SMALL,
        title_fontsize=_SMALL,
        frameon=False,
    )


def _number(axes: Any, number: int, point: tuple[float, float]) -> None:
    """A circle, and a number if none is near."""
    from matplotlib.patheffects import withStroke

    axes.scatter(*point, s=190, c="none", edgecolors="black", linewidths=1.2, zorder=4)
    reach = 0.06 * np.ptp(axes.get_xlim()), 0.1 * np.ptp(axes.get_ylim())
    if any(np.all(np.abs(np.subtract(point, text.xy)) < reach) for text in axes.texts):
        return
    axes.annotate(
        str(number),
        point,
        xytext=(-7, 6),
        textcoords="offset points",
        ha="right",
        fontsize=_SMALL,
        path_effects=[withStroke(linewidth=3, foreground="white")],
    )


def _axis(name: str) -> str:
    return _AXES.get(name, name_of(name))


def _place(row: Row, name: str, names: Sequence[str]) -> int | float:
    """Where a row lies along the x axis."""
    value = row.setting[name]
    return names.index(value) if name == "layers" else value


def _range(values: np.ndarray) -> tuple[float, float]:
    return (0.0, 1.0) if np.isnan(values).all() else (np.nanmin(values), np.nanmax(values))
