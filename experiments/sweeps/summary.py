"""A sweep's results, setting by setting: means over sketches, their standard errors, as CSV."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from experiments.app.run_folder import Line, read_results
from experiments.app.tables import Figures
from experiments.metrics.measures import mean_and_error
from maskgit_jax.errors import InputError

DISTANCE = "structure_distance"
_REALISM = ("class_probability", "clip_text")
_PLAN = ("model", "divergence", "num_proposals", "dtype", "settings", "sketches", "seeds")
_PLAN += ("rejection", "num_items")
_LINE = ("item", "file", "sketch", "sketch_file", "class_name", "seed", DISTANCE)
# Numbers that measure nothing.
_NAMES = ("item", "label", "seed", "candidate")


class Sweep(NamedTuple):
    """What a sweep's folder holds.

    Attributes:
      plan: its plan.json.
      results: the finished items, at least one, in the plan's order.
    """

    plan: dict[str, Any]
    results: list[Line]


class Row(NamedTuple):
    """A setting of the sweep.

    Attributes:
      setting: its values by name.
      num_items: finished items.
      num_sketches: sketches that these are of.
      measures: mean and standard error by name, the structure distance first.
    """

    setting: dict[str, Any]
    num_items: int
    num_sketches: int
    measures: Figures


def read_sweep(folder: epath.Path) -> Sweep:
    """Reads a sweep, finished or not.

    Raises:
      InputError: no folder of a sweep, a damaged one, or one without a finished item.
    """
    plan, results = _read_plan(folder / "plan.json"), read_results(folder, "item")
    if not results:
        raise InputError(f"{folder}: no item is finished; let experiments.sweep go on first")
    for line in results:
        missing = [name for name in (*_LINE, *plan["settings"]) if name not in line]
        if missing:
            raise InputError(
                f"{folder}: item {line['item']} has no {missing[0]} in the results; expected what "
                "experiments.sweep writes"
            )
        for name, values in plan["settings"].items():
            if line[name] not in values:
                raise InputError(
                    f"{folder}: item {line['item']} has {name} {line[name]}, which plan.json "
                    "lacks: the results are another sweep's"
                )
    return Sweep(plan, results)


def summarise(sweep: Sweep) -> list[Row]:
    """A row for each setting that has finished items, in the plan's order.

    Samples of one sketch are no independent draws: a sketch's items are averaged first, mean and
    error go over sketches. Where there is one sketch alone, they go over its items.
    """
    values = sweep.plan["settings"]
    groups = defaultdict(list)
    for line in sweep.results:
        groups[tuple(line[name] for name in values)].append(line)
    names = _measure_names(sweep)

    def place(setting: tuple[Any, ...]) -> list[int]:
        return [known.index(x) for known, x in zip(values.values(), setting, strict=True)]

    return [
        Row(
            setting=dict(zip(values, setting, strict=True)),
            num_items=len(groups[setting]),
            num_sketches=len({line["sketch_file"] for line in groups[setting]}),
            measures={
                name: _over_sketches(groups[setting], name)
                for name in names
                if any(name in line for line in groups[setting])
            },
        )
        for setting in sorted(groups, key=place)
    ]


def measure(row: Row, name: str) -> tuple[float, float]:
    """Mean and standard error; NaN where the row has none."""
    return row.measures.get(name) or (np.nan, np.nan)


def realism_measure(rows: Sequence[Row]) -> str | None:
    """What says how real pictures look: the classifier's probability, else CLIP, else nothing."""
    known = {name for row in rows for name in row.measures}
    return next((name for name in _REALISM if name in known), None)


def by_layers(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows whose structure distances compare: means over the same layers."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.setting["layers"]].append(row)
    return dict(groups)


def pareto_front(rows: Sequence[Row], realism: str) -> list[Row]:
    """The rows that no other beats in one mean without losing in the other, nearest first."""
    front = []
    known = [
        row
        for row in rows
        if realism in row.measures
        and np.isfinite([row.measures[realism][0], row.measures[DISTANCE][0]]).all()
    ]
    for row in sorted(
        known, key=lambda row: (row.measures[DISTANCE][0], -row.measures[realism][0])
    ):
        if not front or row.measures[realism][0] > front[-1].measures[realism][0]:
            front.append(row)
    return front


def to_csv(rows: Sequence[Row]) -> str:
    """The rows with a header; an error that is not known is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row.measures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [head for name in names for head in (name, f"{name}_error")]
    writer.writerow([*rows[0].setting, "num_items", "num_sketches", *heads])
    for row in rows:
        numbers = [x for name in names for x in measure(row, name)]
        cells = ["" if not np.isfinite(x) else f"{x:.6g}" for x in numbers]
        writer.writerow([*row.setting.values(), row.num_items, row.num_sketches, *cells])
    return text.getvalue()


def _read_plan(path: epath.Path) -> dict[str, Any]:
    expected = "expected the folder of a sweep, its --output_dir"
    try:
        plan = json.loads(path.read_bytes())
        return {name: plan[name] for name in _PLAN}
    # etils raises ImportError for addresses whose file system is not installed.
    except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}): {expected}") from None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is no sweep's plan: {expected}") from None


def _measure_names(sweep: Sweep) -> list[str]:
    others = {*_NAMES, *sweep.plan["settings"]}
    names = [
        name
        for line in sweep.results
        for name, value in line.items()
        if name not in others and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return list(dict.fromkeys([DISTANCE, *names]))


def _over_sketches(lines: Sequence[Line], name: str) -> tuple[float, float]:
    groups = defaultdict(list)
    for line in lines:
        if name in line:
            groups[line["sketch_file"]].append(line[name])
    of_sketches = list(groups.values())
    if len(of_sketches) == 1:
        return mean_and_error(np.array(of_sketches[0]))
    return mean_and_error(np.array([np.mean(values) for values in of_sketches]))
