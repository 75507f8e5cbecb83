"""Groups of flags that commands share, and the settings that they stand for.

A command's `Flags` inherits the groups that it needs. A knob of None takes its value from the
model's presets.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

from guidance import classifier_free
from guidance.masksketch import MaskSketch, SketchPlan
from guidance.stroke_methods import StrokeSettings
from guidance.structure import StructureSettings, check_kernel, check_settings, layer_weights
from maskgit_jax.config import ModelConfig
from maskgit_jax.editing.inpaint import EditSettings
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import SEEDS, knob, knobs_of, optional, read_layers, resolve
from maskgit_jax.model import DTYPES, model_config

Setting = dict[str, Any]
"""A value for each name in `SETTINGS`."""

SETTINGS = tuple(knobs_of(SketchPlan, StructureSettings))
"""What may differ from sample to sample."""

MODEL_HELP = "demo, imagenet256, imagenet512, or a model folder."


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

    guidance_schedule: str | None = knob(
        None,
        "The same guidance in all steps, or rising to --guidance_scale in the last one.",
        choices=tuple(classifier_free.SCHEDULES),
    )
    sampler: str | None = knob(
        None,
        "Defaults of the other flags: the paper's rule, or fewer steps with several proposals in "
        "each (measured with the demo model, not with the ImageNet models: docs/steps.md).",
        choices=("published", "fast"),
    )


class StaticOptions(NamedTuple):
    """What is compiled for: keyword arguments of `masksketch.sample`.

    Attributes:
      divergence: one of `structure.DIVERGENCES`.
      num_proposals: samples drawn in each step.
      kernel: one of `structure.KERNELS`.
    """

    divergence: str
    num_proposals: int
    kernel: str


class Guided(NamedTuple):
    """The settings of structure-guided sampling, filled in and checked.

    Attributes:
      settings: the traced settings.
      num_steps: decoding steps.
      options: what is compiled for.
      record: every value by its flag's name, for the results file.
    """

    settings: StructureSettings
    num_steps: int
    options: StaticOptions
    record: dict[str, Any]


class Grid(NamedTuple):
    """The same where each setting may have several values.

    Attributes:
      values: each setting's values, in the order of `SETTINGS`.
      options: what is compiled for.
    """

    values: dict[str, list[Any]]
    options: StaticOptions


def read_guidance(flags: GuidanceFlags, config: ModelConfig) -> Guided:
    """The guidance that flags ask of a model.

    Raises:
      InputError: a value out of its range, or values that do not go together.
    """
    grid = read_grid(flags, config)
    setting = {name: values[0] for name, values in grid.values.items()}
    record = {
        "model": flags.model,
        **setting,
        **grid.options._asdict(),
        "dtype": flags.dtype,
        "seed": flags.seed,
    }
    settings = structure_settings(setting, config.transformer.num_layers)
    return Guided(settings, setting["num_steps"], grid.options, record)


def read_grid(flags: GuidanceFlags, config: ModelConfig) -> Grid:
    """As `read_guidance`, where settings may be lists of values.

    Raises:
      InputError: as there.
    """
    method = ("masksketch", "masksketch_fast") if flags.sampler == "fast" else ("masksketch",)
    presets = resolve(config, method, SketchPlan, StructureSettings, MaskSketch)
    values = {}
    for name in SETTINGS:
        given = getattr(flags, name)
        values[name] = given if isinstance(given, list) else [given]
        if given is None:
            values[name] = [presets[name]]
    schedule, power = flags.guidance_schedule, flags.guidance_power
    if schedule is not None and power is None:
        rising = presets["guidance_power"] or classifier_free.SCHEDULES["rising"]
        values["guidance_power"] = [rising if schedule == "rising" else 0.0]
    elif schedule != "rising" and power is not None:
        shown = ",".join(map(str, values["guidance_power"]))
        raise InputError(f"--guidance_power={shown}: only --guidance_schedule=rising has one")
    options = StaticOptions(
        *(
            presets[name] if getattr(flags, name) is None else getattr(flags, name)
            for name in StaticOptions._fields
        )
    )
    check_kernel(options.kernel, options.divergence)
    for setting in combinations(values):
        check_settings(structure_settings(setting, config.transformer.num_layers))
    return Grid(values, options)


def combinations(values: dict[str, list[Any]]) -> list[Setting]:
    """Every combination of the settings' values; the last setting's change fastest."""
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


def structure_settings(setting: Setting, num_layers: int) -> StructureSettings:
    """What a setting means for a model of `num_layers` layers.

    Raises:
      InputError: layers that the model lacks.
    """
    weights = layer_weights(read_layers(setting["layers"], num_layers, "--layers"), num_layers)
    knobs = {name: setting[name] for name in knobs_of(StructureSettings)}
    return StructureSettings(layer_weights=weights, **knobs)


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
    given = {name: getattr(flags, name) for name in knobs_of(EditSettings)}
    return classes[method](**resolve(config, method, classes[method], given=given))
