"""The flags of structure-guided decoding, and the settings that they stand for."""

import itertools
from typing import Any, NamedTuple

from absl import flags

from guidance import classifier_free
from guidance.structure import (
    KERNELS,
    StructureSettings,
    check_divergence,
    check_kernel,
    check_settings,
    layer_weights,
)
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import KNOBS, read_layers
from maskgit_jax.model import DTYPES


class Choices(NamedTuple):
    """What is compiled for: keyword arguments of `masksketch.sample`.

    Attributes:
      divergence: one of `structure.DIVERGENCES`.
      num_proposals: samples drawn in each step.
      kernel: one of `structure.KERNELS`.
    """

    divergence: str
    num_proposals: int
    kernel: str


SETTINGS = tuple(name for name in KNOBS["masksketch"] if name not in Choices._fields)
"""What may differ from sample to sample."""

_MOST = 10**6

flags.DEFINE_string("model", "demo", "demo, imagenet256, imagenet512, or a model folder.")
flags.DEFINE_list("num_steps", None, "Decoding steps.")
flags.DEFINE_string(
    "layers", None, "Layers whose attention is compared: all, early or late (halves), or 1,3,16."
)
flags.DEFINE_list("lambda_s", None, "Share of structure in [0, 1]; the rest is realism.")
flags.DEFINE_list("guidance_scale", None, "Classifier-free guidance, 0 for none.")
flags.DEFINE_enum(
    "guidance_schedule",
    None,
    list(classifier_free.SCHEDULES),
    "The same guidance in all steps, or rising to --guidance_scale in the last one.",
)
flags.DEFINE_list(
    "guidance_power",
    None,
    "Of rising guidance: the greater, the later it sets in; 0 is constant.",
)
flags.DEFINE_list("token_temperature", None, "Ids are sampled from softmax(logits / it).")
flags.DEFINE_list("max_mask_rate", None, "Share of ids hidden at the start.")
flags.DEFINE_list("min_mask_rate", None, "Share that the fall ends at.")
flags.DEFINE_list("structure_temperature", None, "Noise on which ids stray from the sketch.")
flags.DEFINE_list("confidence_temperature", None, "Noise on which ids are unsure.")
flags.DEFINE_list("paper_weight", None, "Weight of the distance where the sketch is blank.")
flags.DEFINE_enum(
    "sampler",
    "published",
    ["published", "fast"],
    "Defaults of the other flags: the paper's rule, or fewer steps with several proposals in each "
    "(measured with the demo model, not with the ImageNet models: docs/steps.md).",
)
flags.DEFINE_integer("num_proposals", None, "Samples drawn in each step; the nearest ids are kept.")
flags.DEFINE_enum(
    "kernel", "jnp", list(KERNELS), "fused: JAX's fused attention on TPU and GPU; experimental."
)
flags.DEFINE_string("divergence", None, "jeffreys, or cross_entropy (the released code's).")
flags.DEFINE_integer("seed", 0, "With a sample's index, all that it depends on.")
flags.DEFINE_integer("batch_size", 8, "Samples decoded together.")
flags.DEFINE_enum("dtype", "float32", list(DTYPES), "What the transformer computes in.")

Setting = dict[str, Any]
"""A value for each name in `SETTINGS`."""


class GuidanceFlags(NamedTuple):
    """What the flags say, defaults filled in and checked.

    Attributes:
      settings: the traced settings.
      num_steps: decoding steps.
      choices: what is compiled for.
      record: every value by its flag's name, for the results file.
    """

    settings: StructureSettings
    num_steps: int
    choices: Choices
    record: dict[str, Any]


class GridFlags(NamedTuple):
    """What the flags say where each setting may have several values.

    Attributes:
      values: each setting's values, in the order of `SETTINGS`.
      choices: what is compiled for.
    """

    values: dict[str, list[Any]]
    choices: Choices


def read(config: ModelConfig) -> GuidanceFlags:
    """Reads the flags for a model; those that are not given take the values of its presets.

    Raises:
      InputError: a value out of its range, or several for a flag.
    """
    grid = read_grid(config)
    for name, values in grid.values.items():
        if len(values) > 1:
            raise InputError(
                f"--{name}={_text(name)}: expected one value; experiments.sweep takes several"
            )
    setting = {name: values[0] for name, values in grid.values.items()}
    record = {
        "model": flags.FLAGS.model,
        **setting,
        **grid.choices._asdict(),
        "dtype": flags.FLAGS.dtype,
        "seed": flags.FLAGS.seed,
    }
    settings = structure_settings(setting, config.transformer.num_layers)
    return GuidanceFlags(settings, setting["num_steps"], grid.choices, record)


def read_grid(config: ModelConfig) -> GridFlags:
    """Reads the flags as `read` does; each setting may have several values.

    Commas stand between them, semicolons between sets of layers.

    Raises:
      InputError: a value out of its range, or one twice.
    """
    given = flags.FLAGS
    preset = config.presets["masksketch"]
    if given.sampler == "fast":
        preset = preset | config.presets["masksketch_fast"]
    values = {
        name: [preset[name]] if given[name].value is None else _parse(name) for name in SETTINGS
    }
    if given.guidance_schedule is not None and given.guidance_power is None:
        rising = preset["guidance_power"] or classifier_free.SCHEDULES["rising"]
        values["guidance_power"] = [rising if given.guidance_schedule == "rising" else 0.0]
    elif given.guidance_schedule != "rising" and given.guidance_power is not None:
        raise InputError(
            f"--guidance_power={_text('guidance_power')}: only --guidance_schedule=rising has one"
        )
    choices = Choices(
        *(
            preset[name] if given[name].value is None else given[name].value
            for name in Choices._fields
        )
    )
    whole = {
        "num_steps": values["num_steps"],
        "num_proposals": [choices.num_proposals],
        "batch_size": [given.batch_size],
    }
    for name, numbers in whole.items():
        for number in numbers:
            if not 1 <= number <= _MOST:
                raise InputError(f"--{name}={number}: expected 1 to {_MOST}")
    if not 0 <= given.seed < 2**32:
        raise InputError(f"--seed={given.seed}: expected 0 to {2**32 - 1}")
    check_divergence(choices.divergence)
    check_kernel(choices.kernel, choices.divergence)
    for setting in combinations(values):
        check_settings(structure_settings(setting, config.transformer.num_layers))
    return GridFlags(values, choices)


def combinations(values: dict[str, list[Any]]) -> list[Setting]:
    """Every combination of the settings' values; the last setting's change fastest."""
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


def structure_settings(setting: Setting, num_layers: int) -> StructureSettings:
    """What a setting means for a model of `num_layers` layers.

    Raises:
      InputError: layers that the model lacks.
    """
    weights = layer_weights(read_layers(setting["layers"], num_layers, "--layers"), num_layers)
    others = {name: setting[name] for name in StructureSettings._fields if name in setting}
    return StructureSettings(layer_weights=weights, **others)


def _text(name: str) -> str:
    value = flags.FLAGS[name].value
    return value if isinstance(value, str) else ",".join(value)


def _parse(name: str) -> list[Any]:
    """The values that a flag was given."""
    text = _text(name)
    if name == "layers":
        values = [part.strip() for part in text.split(";")]
    else:
        number = int if name == "num_steps" else float
        try:
            values = [number(part) for part in text.split(",")]
        except ValueError:
            kind = "whole numbers" if number is int else "numbers"
            raise InputError(f"--{name}={text}: expected {kind}, with commas between") from None
    if len(set(values)) < len(values):
        raise InputError(f"--{name}={text} names a value twice")
    return values
