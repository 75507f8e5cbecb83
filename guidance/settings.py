"""From what a person sets to what structure-guided sampling takes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from guidance import classifier_free
from guidance.masksketch import MaskSketch, SketchPlan
from guidance.structure import StructureSettings, check_kernel, check_settings, layer_weights
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knobs_of, read_layers, resolve

SWEPT = tuple(knobs_of(SketchPlan, StructureSettings))
"""The knobs that a sweep varies: the number of steps from batch to batch, the others from sample to
sample."""
STATIC = tuple(knobs_of(MaskSketch))
"""Those that are compiled for."""


class GuidanceSettings(NamedTuple):
    """The settings of structure-guided sampling, filled in and checked.

    Attributes:
      settings: checked, not yet traced.
      num_steps: T.
      options: what is compiled for: keyword arguments of `masksketch.sample`.
      record: all of them by name.
    """

    settings: StructureSettings
    num_steps: int
    options: dict[str, Any]
    record: dict[str, Any]


def guidance_settings(
    config: ModelConfig, given: Mapping[str, Any], *, fast: bool = False
) -> GuidanceSettings:
    """The settings for a model: given ones, the others from the model's presets.

    Args:
      config: of the model.
      given: by name; None counts as not given. Beside the knobs of `SketchPlan`,
        `StructureSettings` and `MaskSketch`: `guidance_schedule`, constant or rising.
      fast: by the presets of `--sampler=proposals`: few steps with several proposals in each
        (docs/steps.md).

    Raises:
      InputError: no such setting, a value out of its range, or values that do not go together.
    """
    given = dict(given)
    schedule = given.pop("guidance_schedule", None)
    method = ("masksketch", "masksketch_fast") if fast else "masksketch"
    record = resolve(config, method, SketchPlan, StructureSettings, MaskSketch, given=given)
    power = given.get("guidance_power")
    if schedule is None and power is None:
        pass
    elif power is None:
        rising = record["guidance_power"] or classifier_free.SCHEDULES["rising"]
        record["guidance_power"] = rising if schedule == "rising" else 0.0
    elif schedule != "rising":
        raise InputError(f"guidance_power={power}: only guidance_schedule=rising has one")
    check_kernel(record["kernel"], record["divergence"])
    settings = structure_settings(record, config.transformer.num_layers)
    options = {name: record[name] for name in STATIC}
    return GuidanceSettings(settings, record["num_steps"], options, record)


def structure_settings(setting: Mapping[str, Any], num_layers: int) -> StructureSettings:
    """What values of the knobs `SWEPT` mean for a model of `num_layers` layers.

    Raises:
      InputError: layers that the model lacks, or mask rates that rise.
    """
    weights = layer_weights(read_layers(setting["layers"], num_layers), num_layers)
    knobs = {name: setting[name] for name in knobs_of(StructureSettings)}
    settings = StructureSettings(layer_weights=weights, **knobs)
    check_settings(settings)
    return settings
