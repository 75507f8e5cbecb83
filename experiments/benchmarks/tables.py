"""A benchmark's figures from its measurements (medians, ratios), and all tables."""

import itertools
import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from experiments.benchmarks.cost import DEVICES, VARIANTS, Step
from experiments.benchmarks.worker import RATE, Job
from maskgit_jax.checkpoints.download import MODELS
from maskgit_jax.config import TransformerConfig
from maskgit_jax.knobs import read_layers
from maskgit_jax.model import model_config

Measured = dict[str, dict[str, Any]]
"""By role: "draws", the first of them to compile, and the "check"; or an "error"."""

_UNITS = {
    "time": ((100, 1, ".0f", " s"), (0.1, 1, ".3g", " s"), (0, 1e-3, ".3g", " ms")),
    "duration": ((3600, 3600, ".1f", " h"), (0, 60, ".1f", " min")),
    "bytes": ((1e8, 1e9, ".3g", " GB"), (0, 1e6, ".3g", " MB")),
    "count": ((1e12, 1e12, ".3g", " T"), (0, 1e9, ".3g", " G")),
    "share": ((0, 0.01, ".1f", " %"),),
    "number": ((0, 1, ".3g", ""),),
}
"""Of each kind of figure, from a least value on: the unit, digits, the unit's name."""

_ROWS = {
    "compile_seconds": ("time", "compilation"),
    "step_seconds": ("time", "time per {one}"),
    "step_seconds_per_sample": ("time", "time per {one} and sample"),
    "sample_seconds": ("time", "time per sample of {full_steps} steps"),
    "peak_bytes": ("bytes", "peak memory"),
    "temporary_bytes": ("bytes", "XLA's temporary memory"),
    "operations": ("count", "operations per {one}, formula"),
    "operations_per_second": ("count", "operations per second"),
    "share_of_rate": ("share", "share of the measured product rate"),
    "ratio": ("number", "formula / XLA's count"),
}


def summary(job: Job, machine: dict[str, Any], measured: Measured) -> dict[str, Any]:
    """All of one case: what was measured, on what, and its figures; `job` is of any role."""
    rate = measured[RATE] | {"best": None}
    if "error" not in rate:
        draws = rate["draws"][1:]
        shapes = {shape: statistics.median(draw[shape] for draw in draws) for shape in draws[0]}
        rate = {"best": max(shapes.values()), "shapes": shapes}
    names = ("task", "model", "random_weights", "dtype", "num_steps")
    case = {name: getattr(job.flags, name) for name in names} | {
        "batch": job.flags.batch_size,
        "full_steps": job.config.presets["masksketch"]["num_steps"],
        "repeats": job.flags.repeats,
        "settings": job.guided.record,
        "machine": machine,
    }
    variants = {
        role: found
        if "error" in found
        else _variant(case, job._replace(role=role).operations(), rate["best"], **found)
        for role, found in measured.items()
        if role != RATE
    }
    figures = {"matrix_products": rate, "variants": variants}
    if variants.keys() == {*VARIANTS} and not any("error" in v for v in variants.values()):
        figures["ratios"] = _ratios(**variants)
        values = [[draw["values"] for draw in measured[role]["draws"][1:]] for role in VARIANTS]
        figures["equality"] = _equality(case["task"], *map(np.stack, values))
    return case | {"figures": figures}


def _variant(
    case: dict[str, Any], operations: int, rate: float | None, draws: list[Any], check: Any
) -> dict[str, Any]:
    first, *draws = draws
    steps = [draw["step_seconds"] for draw in draws]
    step = statistics.median(steps)
    return {
        "compile_seconds": first["compile_seconds"],
        "step_seconds": step,
        "step_seconds_each": steps,
        "step_seconds_per_sample": step / case["batch"],
        "sample_seconds": step * case["full_steps"] / case["batch"],
        "peak_bytes": statistics.median(draw["peak_bytes"] for draw in draws),
        "temporary_bytes": check["temporary_bytes"],
        "operations": operations,
        "operations_per_second": operations / step,
        "share_of_rate": None if rate is None else operations / step / rate,
        "check": check | {"ratio": check["formula"] / check["xla"] if check["xla"] else None},
    }


def _ratios(plain: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Ours divided by plain; of steps, of each turn's two neighbours."""
    names = ("compile_seconds", "peak_bytes", "temporary_bytes")
    turns = np.divide(ours["step_seconds_each"], plain["step_seconds_each"]).tolist()
    return {name: ours[name] / plain[name] if plain[name] else None for name in names} | {
        "step_seconds": statistics.median(turns),
        "step_seconds_least": min(turns),
        "step_seconds_most": max(turns),
    }


def _equality(task: str, plain: np.ndarray, ours: np.ndarray) -> dict[str, Any]:
    """Whether the variants agree, over all draws (one seed each)."""
    if task == "decode":
        equal = int(np.sum(plain == ours))
        return {"seeds": len(plain), "tokens": plain.size, "equal_tokens": equal}
    difference, largest = float(np.max(np.abs(plain - ours))), float(np.max(plain))
    return {"seeds": len(plain), "largest_distance": largest, "largest_difference": difference}


def case_table(case: dict[str, Any]) -> str:
    """Markdown: one case, a column for each variant."""
    machine, figures, decoded = case["machine"], case["figures"], case["task"] == "decode"
    variants, ratios = figures["variants"], figures.get("ratios", {})
    rows = [["", *variants] + ["ours / plain"] * bool(ratios)]
    for name, (_, title) in _ROWS.items():
        if name == "sample_seconds" and not decoded:
            continue
        title = title.format(one="step" if decoded else "score", full_steps=case["full_steps"])
        row = [title, *(_figure(variant, name) for variant in variants.values())]
        if ratios:
            row.append(show(ratios[name]) if name in ratios else "")
        if ratios and name == "step_seconds":
            row[-1] += f" ({show(ratios[f'{name}_least'])} to {show(ratios[f'{name}_most'])})"
        rows.append(row)
    rate = figures["matrix_products"]
    if "error" in rate:
        best = f"The machine's product rate was not measured: {rate['error']}."
    else:
        shape, best = max(rate["shapes"], key=rate["shapes"].get), show(rate["best"], "count")
        best = f"Best measured matrix product: {shape}, {best} operations a second."
    lines = [
        f"**{case['model']}{', random weights' if case['random_weights'] else ''}, "
        f"{case['task']}, batch {case['batch']}, layers {case['settings']['layers']}, plain in "
        f"float32, ours in {case['dtype']}.** {machine['device']}, {machine['cores']} cores, "
        f"JAX {machine['jax']}.",
        "",
        markdown(rows).replace("|  |", "| |", 1),
        best,
    ]
    if "equality" in figures:
        sentence = (
            "Equal tokens after {num_steps} steps, {seeds} seeds: {equal_tokens} of {tokens}."
            if decoded
            else "Largest difference of a token's distance: {largest_difference:.2g} "
            "(distances up to {largest_distance:.2g})."
        )
        lines.append(sentence.format(num_steps=case["num_steps"], **figures["equality"]))
    lines += [f"{role} failed: {v['error']}" for role, v in variants.items() if "error" in v]
    return "\n".join(lines) + "\n"


def cases_table(cases: list[dict[str, Any]]) -> str:
    """Markdown: a row for each case, plain against ours."""
    rows = [["model", "batch", "step, plain", "ours", "ours / plain"]]
    rows[0] += ["of the ceiling, plain", "ours", "peak memory, plain", "ours"]
    for case in cases:
        figures = case["figures"]
        step, share, peak = (
            [_figure(figures["variants"].get(role, {}), name) for role in VARIANTS]
            for name in ("step_seconds", "share_of_rate", "peak_bytes")
        )
        ratio = show(figures.get("ratios", {}).get("step_seconds"))
        rows.append([case["model"], str(case["batch"]), *step, ratio, *share, *peak])
    return markdown(rows)


def cost_tables() -> str:
    """The cost model of the released models with the released settings."""
    configs = {name: model_config(name).transformer for name in MODELS}
    preset = model_config(MODELS[0]).presets["masksketch"]
    layers = read_layers(preset["layers"], configs[MODELS[0]].num_layers)
    return f"{step_table(configs, layers, (1, 8, 32))}\n{sketches_table(configs, layers)}"


def step_table(
    configs: Mapping[str, TransformerConfig], layers: Collection[int], batches: Collection[int]
) -> str:
    """Markdown: operations and bytes of a step, plain in float32 against ours in bfloat16."""
    rows = [["model", "batch", "operations, plain", "ours", "bytes, plain, float32"]]
    rows[0] += ["ours, bfloat16", "ours, maps on the chip"]
    for (name, config), batch in itertools.product(configs.items(), batches):
        plain, ours = (Step(config, layers, variant, batch) for variant in VARIANTS)
        operations = [sum(step.operations().values()) for step in (plain, ours)]
        moved = plain.moved(4), ours.moved(2), ours.moved(2, maps_in_memory=False)
        row = [name, str(batch), *(f"{count / 1e12:.2f} T" for count in operations)]
        rows.append(row + [f"{sum(parts.values()) / 1e9:.1f} GB" for parts in moved])
    return markdown(rows)


def sketches_table(
    configs: Mapping[str, TransformerConfig],
    layers: Collection[int],
    *,
    batch: int = 32,
    sketches: int = 50_000,
    steps: Collection[int] = (500, 16),
) -> str:
    """Markdown: hours that many sketches take at least, and at half of what the device can do."""
    rows = [["model", "steps", "device", f"a step of {batch} samples on a chip"]]
    rows[0] += [f"{sketches:,} sketches", "at half the ceiling", "with maps on the chip"]
    for model, count, device_name in itertools.product(configs, steps, DEVICES):
        step, device = Step(configs[model], layers, "ours", batch), DEVICES[device_name]
        in_memory, on_chip = (step.least_seconds(device, 2, where) for where in (True, False))
        batches = count * sketches / (batch * device.chips)
        totals = (in_memory * batches, 2 * in_memory * batches, on_chip * batches)
        row = [model, str(count), device_name, f"{in_memory * 1e3:.1f} ms"]
        rows.append(row + [show(seconds, "duration") for seconds in totals])
    return markdown(rows)


def markdown(rows: Iterable[list[str]]) -> str:
    """A table of rows, the first of which is its head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "| --- " * (head.count("|") - 1) + "|", *body, ""])


def _figure(variant: dict[str, Any], name: str) -> str:
    """A figure of a variant or of its check; a dash for one that failed."""
    return show((variant.get("check", {}) | variant).get(name), _ROWS[name][0])


def show(value: int | float | None, kind: str = "number") -> str:
    """A figure with its unit; a dash for None."""
    if value is None:
        return "–"
    units = _UNITS[kind]
    _, unit, digits, name = next((u for u in units if value >= u[0]), units[-1])
    return f"{value / unit:{digits}}{name}"
