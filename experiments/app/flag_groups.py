"""Groups of flags that commands share, and the settings that they stand for.

A command's `Flags` inherits the groups that it needs. A knob of None takes its value from the
model's presets.
"""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

from experiments.app.presets import PRESETS
from experiments.app.ranges import MOST
from guidance import classifier_free
from guidance.masksketch import MaskSketch, SketchPlan
from guidance.settings import STATIC, SWEPT, GuidanceSettings, guidance_settings, structure_settings
from guidance.sketches import FITS, INVERTS
from guidance.strokes.methods import StrokeSettings
from guidance.structure import StructureSettings
from maskgit_jax.config import ModelConfig
from maskgit_jax.editing.inpaint import EditSettings
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import SEEDS, knob, knobs_of, optional, resolve
from maskgit_jax.model import DTYPES, model_config

Setting = dict[str, Any]
"""A value for each name in `settings.SWEPT`."""

MODEL_HELP = (
    "demo, which knows ball, box, cone, star, tree, house, fish, mushroom, cup and flower; "
    "imagenet256 or imagenet512, which know the 1000 classes of ImageNet and are fetched once; or "
    "a model folder."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleFlags:
    """What is sampled from, and how."""

    model: str = knob("demo", MODEL_HELP, kind=Path)
    seed: int = knob(0, "Random seed; sample i uses fold_in(key(seed), i).", **SEEDS)
    batch_size: int = knob(8, "Samples decoded together.", low=1, high=10**6)
    dtype: str = knob("float32", "What the transformer computes in.", choices=DTYPES)


_GuidanceKnobs = dataclasses.make_dataclass(
    "_GuidanceKnobs",
    optional(SketchPlan, StructureSettings, MaskSketch),
    frozen=True,
    kw_only=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceFlags(SampleFlags, _GuidanceKnobs):
    """Structure-guided sampling."""

    preset: str | None = knob(
        None,
        "Values of the flags that are not given, by name: a quick look, the sweep of the demo "
        "model, the paper's settings. Where a preset has several values, only a sweep takes them.",
        choices=PRESETS,
    )
    guidance_schedule: str | None = knob(
        None,
        "The same guidance in all steps, or rising to --guidance_scale in the last one.",
        choices=tuple(classifier_free.SCHEDULES),
    )
    sampler: str | None = knob(
        None,
        "Defaults of the other flags: the paper's rule, or 16 steps with four proposals in each, "
        "which costs about as much as 37 of the paper's steps and follows the sketch as 128 of "
        "them do (the demo model; docs/steps.md). fast is the name that proposals had.",
        choices=("published", "proposals", "fast"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToneFlags:
    """What is done to a sketch's tones."""

    invert: str = knob(
        "auto",
        "Whether a sketch's tones are inverted; auto does so with light ink on dark, and makes "
        "grey paper white; no leaves tones as they are.",
        choices=INVERTS,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SketchFlags(ToneFlags):
    """How a sketch becomes what guides."""

    fit: str = knob(
        "auto",
        "How a sketch becomes a square: padded, cropped, or fitted to its ink; auto pads, but fits "
        "a drawing that fills less than 12 % of the paper to its ink.",
        choices=FITS,
    )


class Grid(NamedTuple):
    """The settings of guidance where each may have several values.

    Attributes:
      values: each setting's values, in the order of `SWEPT`.
      options: what is compiled for: keyword arguments of `masksketch.sample`.
    """

    values: dict[str, list[Any]]
    options: dict[str, Any]


def read_guidance(flags: GuidanceFlags, config: ModelConfig) -> GuidanceSettings:
    """The guidance that flags ask of a model; its record has the model, dtype and seed too.

    Raises:
      InputError: a value out of its range, or values that do not go together.
    """
    given = {name: getattr(flags, name) for name in (*SWEPT, *STATIC, "guidance_schedule")}
    found = guidance_settings(config, given, fast=flags.sampler in ("proposals", "fast"))
    record = {"model": flags.model, **found.record, "dtype": flags.dtype, "seed": flags.seed}
    return found._replace(record=record)


def read_grid(flags: GuidanceFlags, config: ModelConfig) -> Grid:
    """As `read_guidance`, where settings may be lists of values.

    Raises:
      InputError: as there.
    """
    lists = {name: getattr(flags, name) for name in SWEPT}
    lists = {name: value for name, value in lists.items() if isinstance(value, list)}
    first = {name: values[0] for name, values in lists.items()}
    found = read_guidance(dataclasses.replace(flags, **first), config)
    values = {name: lists.get(name, [found.record[name]]) for name in SWEPT}
    count = math.prod(map(len, values.values()))
    if count > MOST:
        raise InputError(f"{count} settings: expected {MOST} at most; give fewer values")
    for setting in combinations(values):
        structure_settings(setting, config.transformer.num_layers)
    return Grid(values, found.options)


def combinations(values: dict[str, list[Any]]) -> list[Setting]:
    """Every combination of the settings' values; the last setting's change fastest."""
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


_EditKnobs = dataclasses.make_dataclass(
    "_EditKnobs", optional(EditSettings), frozen=True, kw_only=True
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditStudyFlags(_EditKnobs):
    """What the measurements of editing share."""

    model: str = knob("demo", "demo, or the folder of a model of the demo world.", kind=Path)
    num_images: int = knob(200, "Held-out pictures.", low=2, high=10**6)
    seed: int = knob(0, "Random seed; sample i uses fold_in(key(seed), i).", **SEEDS)
    batch_size: int = knob(25, "Samples decoded together.", low=1, high=10**6)


def read_edit_study(
    flags: EditStudyFlags, method: str = "edit"
) -> tuple[EditSettings, dict[str, Any]]:
    """The settings of "edit" or "stroke", and every value by its flag's name.

    Raises:
      InputError: a faulty preset, or no such model.
    """
    settings = edit_settings(model_config(flags.model), flags, method)
    record = {name: getattr(flags, name) for name in ("model", "num_images", "seed")}
    return settings, record | dataclasses.asdict(settings)


def edit_settings(config: ModelConfig, flags: Any, method: str = "edit") -> EditSettings:
    """The settings of "edit" or "stroke": flags of these names, else the model's presets."""
    classes = {"edit": EditSettings, "stroke": StrokeSettings}
    given = {name: getattr(flags, name, None) for name in knobs_of(classes[method])}
    return classes[method](**resolve(config, method, classes[method], given=given))
