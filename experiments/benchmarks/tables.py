"""A benchmark's figures from its measurements: medians, ratios, tables."""

import statistics
from typing import Any

import numpy as np

from experiments.benchmarks.cost import task_operations
from experiments.benchmarks.worker import RATE, Job
from maskgit_jax.config import TransformerConfig

Measured = dict[str, dict[str, Any]]
"""By role: the `Draw`s "first" and "draws" and the "check", or an "error"."""


def summary(
    job: Job, config: TransformerConfig, full_steps: int, measured: Measured
) -> dict[str, Any]:
    """All figures of one case.

    Args:
      job: of any role.
      config: the transformer's.
      full_steps: steps of a whole sample.
      measured: answers of the processes.
    """
    measured = dict(measured)
    rate = _rate(measured.pop(RATE))
    variants = {
        role: answers
        if "error" in answers
        else _variant(job._replace(role=role), config, full_steps, rate["best"], answers)
        for role, answers in measured.items()
    }
    good = {role: answers for role, answers in measured.items() if "error" not in answers}
    figures = {"matrix_products": rate, "variants": variants}
    if good.keys() == {"plain", "ours"}:
        figures["ratios"] = _ratios(variants)
        pairs = zip(good["plain"]["draws"], good["ours"]["draws"], strict=True)
        figures["equality"] = _equality(job.task, [(a.values, b.values) for a, b in pairs])
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
    draws = answers["draws"]
    steps = [draw.step_seconds for draw in draws]
    step = statistics.median(steps)
    layers = np.flatnonzero(job.settings.layer_weights).tolist()
    guided = bool(np.any(job.settings.guidance_scale))
    operations = job.batch * task_operations(config, layers, job.role, job.task, guided=guided)
    check = answers["check"]
    return {
        "compile_seconds": answers["first"].compile_seconds,
        "step_seconds": step,
        "step_seconds_each": steps,
        "step_seconds_per_sample": step / job.batch,
        "sample_seconds": step * full_steps / job.batch,
        "peak_bytes": statistics.median(draw.peak_bytes for draw in draws),
        "temporary_bytes": check["temporary_bytes"],
        "operations": operations,
        "operations_per_second": operations / step,
        "share_of_rate": None if rate is None else operations / step / rate,
        "check": check | {"ratio": check["formula"] / check["xla"] if check["xla"] else None},
    }


def _ratios(variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ours divided by plain; of steps, of each turn's two neighbours."""
    plain, ours = variants["plain"], variants["ours"]
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
    variants, ratios = figures["variants"], figures.get("ratios")
    lines = [
        f"**{case['model']}{', random weights' if case['random_weights'] else ''}, "
        f"{case['task']}, batch {case['batch']}, layers {case['settings']['layers']}, plain in "
        f"float32, ours in {case['dtype']}.** {machine['device']}, {machine['cores']} cores, "
        f"JAX {machine['jax']}.",
        "",
        "| | " + " | ".join(variants) + (" | ours / plain |" if ratios else " |"),
        "| --- " * (len(variants) + 1 + bool(ratios)) + "|",
    ]

    def row(name: str, show, ratio: str | None = None) -> None:
        cells = ["–" if "error" in v else show(v) for v in variants.values()]
        cells += [ratio or ""] if ratios else []
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    def plain_ratio(name: str) -> str:
        return _number(ratios[name]) if ratios else ""

    one = "step" if case["task"] == "decode" else "score"
    row(
        "compilation",
        lambda v: _seconds(v["compile_seconds"]),
        plain_ratio("compile_seconds"),
    )
    spread = (
        f"{_number(ratios['step_seconds'])} ({_number(ratios['step_seconds_least'])} to "
        f"{_number(ratios['step_seconds_most'])})"
        if ratios
        else None
    )
    row(f"time per {one}", lambda v: _seconds(v["step_seconds"]), spread)
    row(f"time per {one} and sample", lambda v: _seconds(v["step_seconds_per_sample"]))
    if case["task"] == "decode":
        steps = case["full_steps"]
        row(f"time per sample of {steps} steps", lambda v: _seconds(v["sample_seconds"]))
    row("peak memory", lambda v: _bytes(v["peak_bytes"]), plain_ratio("peak_bytes"))
    row(
        "XLA's temporary memory",
        lambda v: _bytes(v["temporary_bytes"]),
        plain_ratio("temporary_bytes"),
    )
    row(f"operations per {one}, formula", lambda v: _count(v["operations"]))
    row("operations per second", lambda v: _count(v["operations_per_second"]))
    row("share of the measured product rate", lambda v: _percent(v["share_of_rate"]))
    row("formula / XLA's count", lambda v: _number(v["check"]["ratio"]))
    lines += ["", _rate_line(figures["matrix_products"]), *_agreement(case)]
    lines += [f"{role} failed: {v['error']}" for role, v in variants.items() if "error" in v]
    return "\n".join(lines) + "\n"


def cases_table(cases: list[dict[str, Any]]) -> str:
    """Markdown: a row for each case, plain against ours."""
    lines = [
        "| model | batch | step, plain | ours | ours / plain | of the ceiling, plain | ours | "
        "peak memory, plain | ours |",
        "| --- " * 9 + "|",
    ]
    for case in cases:
        variants = case["figures"]["variants"]

        def cells(show, variants=variants) -> list[str]:
            each = (variants.get(role, {"error": ""}) for role in ("plain", "ours"))
            return ["–" if "error" in v else show(v) for v in each]

        ratios = case["figures"].get("ratios")
        row = [
            case["model"],
            str(case["batch"]),
            *cells(lambda v: _seconds(v["step_seconds"])),
            _number(ratios["step_seconds"]) if ratios else "–",
            *cells(lambda v: _percent(v["share_of_rate"])),
            *cells(lambda v: _bytes(v["peak_bytes"])),
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _rate_line(rate: dict[str, Any]) -> str:
    if rate["best"] is None:
        return f"The machine's product rate was not measured: {rate['error']}."
    shape = max(rate["shapes"], key=rate["shapes"].get)
    return f"Best measured matrix product: {shape}, {_count(rate['best'])} operations a second."


def _agreement(case: dict[str, Any]) -> list[str]:
    found = case["figures"].get("equality")
    if found is None:
        return []
    if case["task"] == "decode":
        return [
            f"Equal tokens after {case['num_steps']} steps, {found['seeds']} seeds: "
            f"{found['equal_tokens']} of {found['tokens']}."
        ]
    return [
        f"Largest difference of a token's distance: {found['largest_difference']:.2g} "
        f"(distances up to {found['largest_distance']:.2g})."
    ]


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
