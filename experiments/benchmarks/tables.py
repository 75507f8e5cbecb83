"""A benchmark's figures from its measurements (medians, ratios), and all tables."""

import itertools
import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from experiments.benchmarks import cost
from experiments.benchmarks.worker import RATE, Job
from maskgit_jax.config import TransformerConfig

Measured = dict[str, dict[str, Any]]
"""By role: the `Draw`s "first" and "draws" and the "check", or an "error"."""


def summary(
    job: Job, config: TransformerConfig, full_steps: int, measured: Measured
) -> dict[str, Any]:
    """All figures of one case: `job` is of any role, a whole sample has `full_steps`."""
    rate = _rate(measured[RATE])
    variants = {
        role: answers
        if "error" in answers
        else _variant(job._replace(role=role), config, full_steps, rate["best"], answers)
        for role, answers in measured.items()
        if role != RATE
    }
    figures = {"matrix_products": rate, "variants": variants}
    if variants.keys() == {"plain", "ours"} and not any("error" in v for v in variants.values()):
        figures["ratios"] = _ratios(**variants)
        draws = zip(measured["plain"]["draws"], measured["ours"]["draws"], strict=True)
        figures["equality"] = _equality(job.task, [(a.values, b.values) for a, b in draws])
    return figures


def _rate(answers: dict[str, Any]) -> dict[str, Any]:
    """Operations per second: each shape's median, and the best of them."""
    if "error" in answers:
        return answers | {"best": None}
    draws = answers["draws"]
    shapes = {shape: statistics.median(draw[shape] for draw in draws) for shape in draws[0]}
    return {"best": max(shapes.values()), "shapes": shapes}


def _variant(
    job: Job, config: TransformerConfig, full_steps: int, rate: float | None, answers: Any
) -> dict[str, Any]:
    steps = [draw.step_seconds for draw in answers["draws"]]
    step = statistics.median(steps)
    operations, check = job.batch * job.operations(config), answers["check"]
    return {
        "compile_seconds": answers["first"].compile_seconds,
        "step_seconds": step,
        "step_seconds_each": steps,
        "step_seconds_per_sample": step / job.batch,
        "sample_seconds": step * full_steps / job.batch,
        "peak_bytes": statistics.median(draw.peak_bytes for draw in answers["draws"]),
        "temporary_bytes": check["temporary_bytes"],
        "operations": operations,
        "operations_per_second": operations / step,
        "share_of_rate": None if rate is None else operations / step / rate,
        "check": check | {"ratio": check["formula"] / check["xla"] if check["xla"] else None},
    }


def _ratios(plain: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Ours divided by plain; of steps, of each turn's two neighbours."""
    names = ("compile_seconds", "peak_bytes", "temporary_bytes")
    ratios = {name: ours[name] / plain[name] if plain[name] else None for name in names}
    pairs = zip(ours["step_seconds_each"], plain["step_seconds_each"], strict=True)
    turns = [a / b for a, b in pairs]
    return ratios | {
        "step_seconds": statistics.median(turns),
        "step_seconds_least": min(turns),
        "step_seconds_most": max(turns),
    }


def _equality(task: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Whether the variants agree, over all draws (one seed each)."""
    if task == "decode":
        return {
            "seeds": len(pairs),
            "tokens": sum(a.size for a, _ in pairs),
            "equal_tokens": sum(int(np.sum(a == b)) for a, b in pairs),
        }
    return {
        "seeds": len(pairs),
        "largest_distance": max(float(np.max(a)) for a, _ in pairs),
        "largest_difference": max(float(np.max(np.abs(a - b))) for a, b in pairs),
    }


def case_table(case: dict[str, Any]) -> str:
    """Markdown: one case, a column for each variant."""
    machine, figures = case["machine"], case["figures"]
    variants, ratios = figures["variants"], figures.get("ratios", {})
    one = "step" if case["task"] == "decode" else "score"
    rows = [["", *variants] + ["ours / plain"] * bool(ratios)]
    for title, show, name in (
        ("compilation", _seconds, "compile_seconds"),
        (f"time per {one}", _seconds, "step_seconds"),
        (f"time per {one} and sample", _seconds, "step_seconds_per_sample"),
        (f"time per sample of {case['full_steps']} steps", _seconds, "sample_seconds"),
        ("peak memory", _bytes, "peak_bytes"),
        ("XLA's temporary memory", _bytes, "temporary_bytes"),
        (f"operations per {one}, formula", _count, "operations"),
        ("operations per second", _count, "operations_per_second"),
        ("share of the measured product rate", _percent, "share_of_rate"),
        ("formula / XLA's count", lambda check: _number(check["ratio"]), "check"),
    ):
        if name == "sample_seconds" and case["task"] != "decode":
            continue
        row = [title, *("–" if "error" in v else show(v[name]) for v in variants.values())]
        if ratios:
            row.append(_number(ratios[name]) if name in ratios else "")
        if ratios and name == "step_seconds":
            least, most = (_number(ratios[f"{name}_{which}"]) for which in ("least", "most"))
            row[-1] += f" ({least} to {most})"
        rows.append(row)
    lines = [
        f"**{case['model']}{', random weights' if case['random_weights'] else ''}, "
        f"{case['task']}, batch {case['batch']}, layers {case['settings']['layers']}, plain in "
        f"float32, ours in {case['dtype']}.** {machine['device']}, {machine['cores']} cores, "
        f"JAX {machine['jax']}.",
        "",
        markdown(rows).replace("|  |", "| |", 1),
        _rate_line(figures["matrix_products"]),
    ]
    if "equality" in figures:
        lines.append(_agreement(case, **figures["equality"]))
    lines += [f"{role} failed: {v['error']}" for role, v in variants.items() if "error" in v]
    return "\n".join(lines) + "\n"


def cases_table(cases: list[dict[str, Any]]) -> str:
    """Markdown: a row for each case, plain against ours."""
    rows = [
        ["model", "batch", "step, plain", "ours", "ours / plain", "of the ceiling, plain", "ours"]
    ]
    rows[0] += ["peak memory, plain", "ours"]
    for case in cases:
        variants, ratios = case["figures"]["variants"], case["figures"].get("ratios")
        both = [variants.get(role, {"error": ""}) for role in cost.VARIANTS]
        step, share, peak = (
            ["–" if "error" in v else show(v[name]) for v in both]
            for show, name in (
                (_seconds, "step_seconds"),
                (_percent, "share_of_rate"),
                (_bytes, "peak_bytes"),
            )
        )
        ratio = _number(ratios["step_seconds"] if ratios else None)
        rows.append([case["model"], str(case["batch"]), *step, ratio, *share, *peak])
    return markdown(rows)


def step_table(
    configs: Mapping[str, TransformerConfig], layers: Collection[int], batches: Collection[int]
) -> str:
    """Markdown: operations and bytes of a step, plain in float32 against ours in bfloat16."""
    rows = [["model", "batch", "operations, plain", "ours", "bytes, plain, float32"]]
    rows[0] += ["ours, bfloat16", "ours, maps on the chip"]
    for (name, config), batch in itertools.product(configs.items(), batches):
        row = [name, str(batch)]
        for variant in cost.VARIANTS:
            operations = batch * sum(cost.step_operations(config, layers, variant).values())
            row.append(f"{operations / 1e12:.2f} T")
        for variant, *options in (("plain", 4, True), ("ours", 2, True), ("ours", 2, False)):
            moved = cost.step_bytes(config, layers, variant, batch, *options)
            row.append(f"{sum(moved.values()) / 1e9:.1f} GB")
        rows.append(row)
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
    for (name, config), count in itertools.product(configs.items(), steps):
        for device_name, device in cost.DEVICES.items():
            in_memory, on_chip = (
                cost.step_seconds(config, layers, device, batch, maps_in_memory=where)
                for where in (True, False)
            )
            batches = count * sketches / (batch * device.chips)
            totals = (in_memory * batches, 2 * in_memory * batches, on_chip * batches)
            row = [name, str(count), device_name, f"{in_memory * 1e3:.1f} ms"]
            rows.append(row + [_duration(seconds) for seconds in totals])
    return markdown(rows)


def markdown(rows: Iterable[list[str]]) -> str:
    """A table of rows, the first of which is its head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "| --- " * (head.count("|") - 1) + "|", *body, ""])


def _rate_line(rate: dict[str, Any]) -> str:
    if rate["best"] is None:
        return f"The machine's product rate was not measured: {rate['error']}."
    shape = max(rate["shapes"], key=rate["shapes"].get)
    return f"Best measured matrix product: {shape}, {_count(rate['best'])} operations a second."


def _agreement(case: dict[str, Any], seeds: int, **found: Any) -> str:
    if case["task"] == "decode":
        return (
            f"Equal tokens after {case['num_steps']} steps, {seeds} seeds: "
            f"{found['equal_tokens']} of {found['tokens']}."
        )
    return (
        f"Largest difference of a token's distance: {found['largest_difference']:.2g} "
        f"(distances up to {found['largest_distance']:.2g})."
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _seconds(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f} s"
    return f"{value:.3g} s" if abs(value) >= 0.1 else f"{1e3 * value:.3g} ms"


def _bytes(value: int | float) -> str:
    return f"{value / 1e9:.3g} GB" if value >= 1e8 else f"{value / 1e6:.3g} MB"


def _count(value: int | float) -> str:
    return f"{value / 1e12:.3g} T" if value >= 1e12 else f"{value / 1e9:.3g} G"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
