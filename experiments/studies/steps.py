"""The study behind `steps_study`: rules that need few steps, at several numbers of steps."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from experiments.app import digests
from experiments.app.tables import Figures
from experiments.studies import plots
from experiments.studies.scenes import (
    Measure,
    Pictures,
    Sampling,
    Scenes,
    class_tokens,
    draw_scenes,
    map_rows_shown,
)
from experiments.studies.step_rules import (
    POPULATION,
    Batch,
    Made,
    Rule,
    best_seen,
    evolve,
    schedule_lambda,
    settled,
    stop_early,
)
from experiments.studies.study import Row, Study, save_pictures
from maskgit_jax.errors import InputError

_PUBLISHED = {"max_mask_rate": 0.95, "min_mask_rate": 0.35}
COLUMNS = {
    "num_steps": ("steps", 0),
    "passes": ("passes", 0),
    "silhouette_iou": ("IoU", 3),
    "class_accuracy": ("class", 3),
    "structure_distance": ("structure", 3),
    "frechet_distance": ("Fréchet", 1),
    "white_background": ("white", 2),
    "sketch_tokens": ("sketch ids", 3),
}
_PLOTTED = ("silhouette_iou", "class_accuracy", "frechet_distance")


class StepRule(NamedTuple):
    """A row of the table.

    Attributes:
      name: of the rule.
      num_steps: T.
      rule: how the samples are made.
      step_passes: passes through the transformer in one step, the guidance's other class among
        them.
      changes: settings that differ from the flags'.
    """

    name: str
    num_steps: int
    rule: Rule
    step_passes: int = 3
    changes: dict[str, float] = {}  # noqa: RUF012 (never changed)


def step_rules() -> dict[str, StepRule]:
    """All rules, by name and number of steps."""
    plain = settled()
    entropy = settled(divergence="cross_entropy")
    four, four_entropy = (
        settled(num_proposals=4, divergence=name) for name in ("jeffreys", "cross_entropy")
    )
    rules = [
        *(StepRule("published", steps, plain, changes=_PUBLISHED) for steps in (8, 16, 32)),
        *(StepRule("open end", steps, plain) for steps in (8, 16, 32)),
        *(StepRule("4 proposals", steps, four, 7) for steps in (4, 8, 16)),
        StepRule("published", 128, plain, changes=_PUBLISHED),
        StepRule("2 proposals", 8, settled(num_proposals=2), 5),
        StepRule("4 proposals, λ_s 0.5", 8, four, 7, {"lambda_s": 0.5}),
        StepRule("published, cross-entropy", 16, entropy, changes=_PUBLISHED),
        StepRule("open end, cross-entropy", 16, entropy),
        StepRule("4 proposals, cross-entropy", 8, four_entropy, 7),
        StepRule("cosine", 16, settled(schedule="cosine")),
        StepRule("λ_s 1 → 0.5", 16, schedule_lambda(1.0, 0.5)),
        StepRule("best step", 16, best_seen),
        StepRule(f"evolution of {POPULATION}", 4, evolve, 3 * POPULATION),
        StepRule("stop when stable", 16, stop_early),
        StepRule("λ_s 0.5 → 1", 16, schedule_lambda(0.5, 1.0)),
    ]
    return {f"{rule.name}, {rule.num_steps} steps": rule for rule in rules}


def choose_rows(beginnings: Sequence[str]) -> list[str]:
    """The rows whose names begin so; all where nothing is given.

    Raises:
      InputError: none does.
    """
    rows = [name for name in step_rules() if not beginnings or name.startswith(tuple(beginnings))]
    if not rows:
        raise InputError(f"--rows={','.join(beginnings)}: no row's name begins so")
    return rows


def study_steps(
    sampling: Sampling,
    places: dict[str, Path | None],
    rows: list[str],
    *,
    num_sketches: int,
    num_reference: int,
) -> None:
    """Makes the chosen rows; prints, writes and plots all that are finished."""
    rules = step_rules()
    scenes = functools.cache(lambda: draw_scenes(sampling, num_sketches))
    measure = functools.cache(lambda: Measure(sampling, num_reference))

    def row(rule: StepRule) -> Row:
        start = time.perf_counter()
        ids, steps = _sample(sampling, rule, scenes())
        seconds = time.perf_counter() - start
        pictures = Pictures(sampling.model.images_of(ids), ids)
        figures = measure()(pictures, scenes())
        figures |= {
            "num_steps": rule.num_steps,
            "passes": float(np.mean(steps)) * rule.step_passes,
        }
        shown = {name: figures[name] for name in COLUMNS}
        return Row(shown | {"seconds": round(seconds, 1)})

    study = Study(
        "steps",
        COLUMNS,
        {name: functools.partial(row, rule) for name, rule in rules.items()},
        sampling.guided.record
        | {
            "num_sketches": num_sketches,
            "num_reference": num_reference,
            "weights": digests.of_weights(sampling.model),
        },
        heading="rule",
        label=lambda name: rules[name].name,
        **places,
    )
    finished = study.run(rows)
    if study.folder is not None:
        figures = [(rules[name].name, each.figures) for name, each in finished.items()]
        save_pictures(study.folder, {"steps.png": plot_passes(figures)})


def _sample(sampling: Sampling, rule: StepRule, scenes: Scenes) -> Made:
    """Ids of all scenes and the steps that each took."""
    tokens = class_tokens(sampling.model, scenes.labels, scenes.drawing_ids)
    settings = dataclasses.replace(sampling.guided.settings, **rule.changes)
    seed = sampling.guided.record["seed"]

    def sample(tokens, rows):
        model, steps = sampling.model, rule.num_steps
        return rule.rule(
            Batch(model, jnp.asarray(tokens), settings, steps, seed, jnp.asarray(rows))
        )

    title = f"{rule.name}, {rule.num_steps} steps"
    rows = tokens, np.arange(len(tokens))
    return map_rows_shown(title, sample, *rows, batch_size=sampling.batch_size)


def plot_passes(rows: Sequence[tuple[str, Figures]]) -> UInt8[np.ndarray, "h w 3"]:
    """Figures against passes: a line for each rule at several numbers of steps, else a point.

    Args:
      rows: the rule's name, and its figures.
    """
    figure = plots.new_figure(17, 6.5, 110)
    panels = figure.subplots(1, 3)
    for place, name in enumerate(dict.fromkeys(name for name, _ in rows)):
        lines = sorted((line for each, line in rows if each == name), key=lambda x: x["passes"])
        # Beside each other where they cost the same.
        aside = 1 if len(lines) > 1 else 0.9 + 0.02 * place
        passes = [line["passes"] * aside for line in lines]
        style = {"color": f"C{place % 10}", "marker": "osDv^<>P*Xhd8p"[place % 14], "ms": 9}
        style |= {"mfc": None if place < 10 else "white", "label": name}
        for axes, measure in zip(panels, _PLOTTED, strict=True):
            plots.error_bars(axes, passes, [line[measure] for line in lines], **style)
    for axes, measure in zip(panels, _PLOTTED, strict=True):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        plots.label_axes(axes, "passes through the transformer", COLUMNS[measure][0])
    plots.legend_outside(figure, "lower", 5, 13)
    return plots.pixels(figure)
