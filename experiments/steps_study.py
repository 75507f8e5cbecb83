"""How few steps a guided picture needs: the study behind `--sampler=fast`.

    python -m experiments.steps_study --num_sketches=200 --batch_size=25 --output_dir=runs/steps

Decodes held-out scenes of the demo world by the published rule and by others, at several numbers of
steps, and measures each as `evaluate` does. Writes `steps.jsonl` (one line for each row, added when
it is done: a stopped study goes on), `steps.md` (the table) and `steps.png` (IoU, class accuracy
and Fréchet distance against the passes through the transformer that a sample needs). Flags of the
guidance hold for all rows, save for what a row is about.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import UInt8
from tqdm import tqdm

from experiments.app import cli, digests, files, guidance_flags
from experiments.app.batches import make_batches
from experiments.app.tables import cell, read_figures, read_finished
from experiments.demo_world.held_out import load_demo_world_model
from experiments.demo_world.judge import load_judge
from experiments.studies import tradeoff
from experiments.studies.samples import decode
from experiments.studies.scenes import Scenes, draw_scenes, measure_pictures, reference_features
from experiments.studies.step_rules import (
    POPULATION,
    Batch,
    Rule,
    best_seen,
    evolve,
    schedule_lambda,
    settled,
    stop_early,
)
from maskgit_jax.errors import InputError
from maskgit_jax.images import save_png
from maskgit_jax.model import Model, with_class_token

flags.adopt_module_key_flags(guidance_flags)

_NUM_SKETCHES = flags.DEFINE_integer("num_sketches", 200, "Held-out scenes.", lower_bound=5)
_NUM_REFERENCE = flags.DEFINE_integer("num_reference", 2000, "Reference photos.", lower_bound=5)
_ROWS = flags.DEFINE_list("rows", [], "Only rows whose names begin so.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "runs/steps", "Folder for the results.")

_PUBLISHED = {"max_mask_rate": 0.95, "min_mask_rate": 0.35}
_COLUMNS = {
    "silhouette_iou": ("IoU", 3),
    "class_accuracy": ("class", 3),
    "structure_distance": ("structure", 3),
    "frechet_distance": ("Fréchet", 1),
    "white_background": ("white", 2),
    "sketch_tokens": ("sketch ids", 3),
}


class Row(NamedTuple):
    """What is decoded and measured.

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


def _rows() -> list[Row]:
    plain = settled()
    entropy = settled(divergence="cross_entropy")
    four, four_entropy = (
        settled(num_proposals=4, divergence=name) for name in ("jeffreys", "cross_entropy")
    )
    return [
        *(Row("published", steps, plain, changes=_PUBLISHED) for steps in (8, 16, 32)),
        *(Row("open end", steps, plain) for steps in (8, 16, 32)),
        *(Row("4 proposals", steps, four, 7) for steps in (4, 8, 16)),
        Row("published", 128, plain, changes=_PUBLISHED),
        Row("2 proposals", 8, settled(num_proposals=2), 5),
        Row("4 proposals, λ_s 0.5", 8, four, 7, {"lambda_s": 0.5}),
        Row("published, cross-entropy", 16, entropy, changes=_PUBLISHED),
        Row("open end, cross-entropy", 16, entropy),
        Row("4 proposals, cross-entropy", 8, four_entropy, 7),
        Row("cosine", 16, settled(schedule="cosine")),
        Row("λ_s 1 → 0.5", 16, schedule_lambda(1.0, 0.5)),
        Row("best step", 16, best_seen),
        Row(f"evolution of {POPULATION}", 4, evolve, 3 * POPULATION),
        Row("stop when stable", 16, stop_early),
        Row("λ_s 0.5 → 1", 16, schedule_lambda(0.5, 1.0)),
    ]


def main() -> None:
    """Studies as the flags say."""
    tradeoff.check_matplotlib()
    rows = [row for row in _rows() if not _ROWS.value or row.name.startswith(tuple(_ROWS.value))]
    if not rows:
        raise InputError(f"--rows={','.join(_ROWS.value)}: no row's name begins so")
    model = load_demo_world_model(flags.FLAGS.model, flags.FLAGS.dtype)
    guided = guidance_flags.read(model.config)
    folder = cli.output_folder(_OUTPUT_DIR)
    path = folder / "steps.jsonl"
    record = guided.record | {
        "num_sketches": _NUM_SKETCHES.value,
        "num_reference": _NUM_REFERENCE.value,
        "weights": digests.of_weights(model),
    }
    done = _read_done(path, record)
    scenes = draw_scenes(model, _NUM_SKETCHES.value, "sketch")
    judge = load_judge()
    reference = reference_features(model, judge, _NUM_REFERENCE.value)
    for row in rows:
        if (row.name, row.num_steps) in done:
            continue
        settings = dataclasses.replace(guided.settings, **row.changes)
        start = time.perf_counter()
        ids, steps = _make(model, row, scenes, settings, record["seed"])
        seconds = time.perf_counter() - start
        figures = measure_pictures(model, judge, reference, guided, decode(model, ids), scenes)
        line = {
            "name": row.name,
            "num_steps": row.num_steps,
            "passes": float(np.mean(steps)) * row.step_passes,
            "seconds": round(seconds, 1),
            "figures": {name: figures[name] for name in _COLUMNS},
            "record": record,
        }
        files.append(path, (files.to_json(line) + "\n").encode())
        done = _read_done(path, record)
        cli.write_text(folder / "steps.md", _table(done))
        save_png(folder / "steps.png", _plot(done))
    print(_table(done))
    print(f"look at {folder / 'steps.png'}")


def _read_done(path: Path, record: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """Finished rows by name and number of steps."""
    lines = read_finished(path, record)
    return {
        (line["name"], line["num_steps"]): line | {"figures": read_figures(line["figures"])}
        for line in lines
    }


def _make(model: Model, row: Row, scenes: Scenes, settings: Any, seed: int):
    """Ids of all scenes and the steps that each took; the last batch is filled up."""
    tokens = with_class_token(
        model.config, jnp.asarray(scenes.labels), jnp.asarray(scenes.drawing_ids)
    )
    batches = make_batches(len(tokens), flags.FLAGS.batch_size)
    ids, steps = [], []
    for batch in tqdm(batches, desc=f"{row.name}, {row.num_steps} steps"):
        places = batch.rows
        made = row.rule(
            Batch(model, tokens[places], settings, row.num_steps, seed, jnp.asarray(places))
        )
        ids.append(made.ids[: batch.count])
        steps.append(made.steps[: batch.count])
    return np.concatenate(ids), np.concatenate(steps)


def _table(done: dict[tuple[str, int], dict[str, Any]]) -> str:
    titles = ["rule", "steps", "passes", *(title for title, _ in _COLUMNS.values())]
    lines = [titles, ["---"] * len(titles)]
    for line in done.values():
        cells = [line["name"], str(line["num_steps"]), f"{line['passes']:.0f}"]
        for name, (_, digits) in _COLUMNS.items():
            cells.append(cell(line["figures"][name], digits))
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _plot(done: dict[tuple[str, int], dict[str, Any]]) -> UInt8[np.ndarray, "h w 3"]:
    """Figures against passes: a line for each rule at several numbers of steps, else a point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 6.5), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    names = list(dict.fromkeys(name for name, _ in done))
    for place, name in enumerate(names):
        lines = sorted(
            (line for key, line in done.items() if key[0] == name), key=lambda x: x["passes"]
        )
        # Beside each other where they cost the same.
        aside = 1 if len(lines) > 1 else 0.9 + 0.02 * place
        passes = [line["passes"] * aside for line in lines]
        style = {"color": f"C{place % 10}", "marker": "osDv^<>P*Xhd8p"[place % 14], "lw": 2}
        style |= {"ms": 9, "capsize": 4, "mfc": None if place < 10 else "white"}
        for axes, measure in zip(panels, [*list(_COLUMNS)[:2], "frechet_distance"], strict=True):
            values, errors = np.array([line["figures"][measure] for line in lines]).T
            axes.errorbar(passes, values, errors, label=name, **style)
            axes.set_ylabel(_COLUMNS[measure][0], fontsize=16)
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("passes through the transformer", fontsize=16)
        axes.tick_params(labelsize=13)
        axes.grid(alpha=0.3)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, fontsize=13)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


if __name__ == "__main__":
    cli.run(main)
