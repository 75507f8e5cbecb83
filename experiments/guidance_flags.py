"""The flags of structure-guided decoding, and the settings that they stand for."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from guidance.structure import (
    KERNELS,
    StructureSettings,
    check_divergence,
    check_kernel,
    check_settings,
    layer_weights,
)
from maskgit_jax import download
from maskgit_jax.errors import InputError
from maskgit_jax.model import DTYPES

RELEASED = {
    "num_steps": 500,
    "layers": "1,3,16,20,21,22",
    "lambda_s": 0.9,
    "guidance_scale": 0.6,
    "max_mask_rate": 0.95,
    "min_mask_rate": 0.35,
    "structure_temperature": 0.0,
    "confidence_temperature": 0.0,
    "paper_weight": 1.0,
    "divergence": "jeffreys",
    "num_proposals": 1,
    "kernel": "jnp",
}
"""The settings released with MaskSketch, for the 24-layer ImageNet models.

Except the divergence: Jeffreys is the paper's, the released code has the cross-entropy form.
"""

DEMO = RELEASED | {
    "num_steps": 32,
    "layers": "all",
    # Above, pictures follow the sketch further, and more backgrounds are its paper.
    "lambda_s": 0.8,
    "guidance_scale": 0.3,
    # Nothing of the sketch is seen at the start: its paper would become the background.
    "max_mask_rate": 1.0,
    "min_mask_rate": 0.05,
}
"""What suits the small demo model (docs/demo_model.md)."""

FAST = {"num_steps": 16, "num_proposals": 4, "max_mask_rate": 1.0, "min_mask_rate": 0.05}
"""What `--sampler=fast` sets: fewer steps that look at the structure more often (docs/steps.md)."""


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


SETTINGS = tuple(name for name in RELEASED if name not in Choices._fields)
"""What may differ from sample to sample."""

_MOST = 10**6

flags.DEFINE_string("model", "demo", "demo, imagenet256, imagenet512, or a model folder.")
flags.DEFINE_list("num_steps", None, "Decoding steps.")
flags.DEFINE_string(
    "layers", None, "Layers whose attention is compared: all, early or late (halves), or 1,3,16."
)
flags.DEFINE_list("lambda_s", None, "Share of structure in [0, 1]; the rest is realism.")
flags.DEFINE_list("guidance_scale", None, "Classifier-free guidance, 0 for none.")
flags.DEFINE_list("max_mask_rate", None, "Share of ids hidden at the start.")
flags.DEFINE_list("min_mask_rate", None, "Share that the fall ends at.")
flags.DEFINE_list("structure_temperature", None, "Noise on which ids stray from the sketch.")
flags.DEFINE_list("confidence_temperature", None, "Noise on which ids are unsure.")
flags.DEFINE_list("paper_weight", None, "Weight of the distance where the sketch is blank.")
flags.DEFINE_enum(
    "sampler",
    "published",
    ["published", "fast"],
    "Defaults of the other flags: the paper's rule, or fewer steps with several proposals in each.",
)
flags.DEFINE_integer("num_proposals", None, "Samples drawn in each step; the nearest ids are kept.")
flags.DEFINE_enum(
    "kernel", None, list(KERNELS), "fused: JAX's fused attention on TPU and GPU; experimental."
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


def read(num_layers: int) -> GuidanceFlags:
    """Reads the flags for a model of `num_layers` layers.

    Flags that are not given take the released values for the ImageNet models and the demo's for
    every other.

    Raises:
      InputError: a value out of its range, or several for a flag.
    """
    grid = read_grid(num_layers)
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
    settings = structure_settings(setting, num_layers)
    return GuidanceFlags(settings, setting["num_steps"], grid.choices, record)


def read_grid(num_layers: int) -> GridFlags:
    """Reads the flags as `read` does; each setting may have several values.

    Commas stand between them, semicolons between sets of layers.

    Raises:
      InputError: a value out of its range, or one twice.
    """
    given = flags.FLAGS
    preset = RELEASED if given.model in download.MODELS else DEMO
    if given.sampler == "fast":
        preset = preset | FAST
    values = {
        name: [preset[name]] if given[name].value is None else _parse(name) for name in SETTINGS
    }
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
        check_settings(structure_settings(setting, num_layers))
    return GridFlags(values, choices)


def combinations(values: dict[str, list[Any]]) -> list[Setting]:
    """Every combination of the settings' values; the last setting's change fastest."""
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


def structure_settings(setting: Setting, num_layers: int) -> StructureSettings:
    """What a setting means for a model of `num_layers` layers.

    Raises:
      InputError: layers that the model lacks.
    """
    weights = layer_weights(_parse_layers(setting["layers"], num_layers), num_layers)
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


def _parse_layers(text: str, num_layers: int) -> Sequence[int] | None:
    half = num_layers // 2
    named = {"all": None, "early": range(half), "late": range(half, num_layers)}
    name = text.strip().lower()
    if name in named:
        return named[name]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--layers={text}: expected numbers with commas, such as 1,3,16, or all, early or late"
        ) from None


def batches(num_samples: int) -> list[range]:
    """Sample indices in batches of nearly equal size, none above --batch_size."""
    count = math.ceil(num_samples / flags.FLAGS.batch_size)
    size = math.ceil(num_samples / count)
    return [range(i, min(i + size, num_samples)) for i in range(0, num_samples, size)]
