"""The flags of structure-guided decoding, and the settings that they stand for."""

import math
from typing import Any, NamedTuple

from absl import flags

from guidance.structure import (
    StructureSettings,
    check_divergence,
    check_settings,
    layer_weights,
)
from maskgit_jax import download
from maskgit_jax.errors import InputError

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
}
"""The settings released with MaskSketch, for the 24-layer ImageNet models.

Except the divergence: Jeffreys is the paper's, the released code has the cross-entropy form.
"""

DEMO = RELEASED | {
    "num_steps": 32,
    "layers": "all",
    "guidance_scale": 0.3,
    # Nothing of the sketch is seen at the start: its paper would become the background.
    "max_mask_rate": 1.0,
    "min_mask_rate": 0.05,
}
"""What suits the small demo model (docs/demo_model.md)."""

_MOST = 10**6

flags.DEFINE_string("model", "demo", "demo, imagenet256, imagenet512, or a model folder.")
flags.DEFINE_integer("num_steps", None, "Decoding steps.")
flags.DEFINE_string("layers", None, "Layers whose attention is compared: 1,3,16 or all.")
flags.DEFINE_float("lambda_s", None, "Share of structure in [0, 1]; the rest is realism.")
flags.DEFINE_float("guidance_scale", None, "Classifier-free guidance, 0 for none.")
flags.DEFINE_float("max_mask_rate", None, "Share of ids hidden at the start.")
flags.DEFINE_float("min_mask_rate", None, "Share of ids hidden after the last step.")
flags.DEFINE_float("structure_temperature", None, "Noise on which ids stray from the sketch.")
flags.DEFINE_float("confidence_temperature", None, "Noise on which ids are unsure.")
flags.DEFINE_float("paper_weight", None, "Weight of the distance where the sketch is blank.")
flags.DEFINE_string("divergence", None, "jeffreys, or cross_entropy (the released code's).")
flags.DEFINE_integer("seed", 0, "With a sample's index, all that it depends on.")
flags.DEFINE_integer("batch_size", 8, "Samples decoded together.")


class GuidanceFlags(NamedTuple):
    """What the flags say, defaults filled in and checked.

    Attributes:
      settings: the traced settings.
      num_steps: decoding steps.
      divergence: name of the divergence.
      record: every value by its flag's name, for the results file.
    """

    settings: StructureSettings
    num_steps: int
    divergence: str
    record: dict[str, Any]


def read(num_layers: int) -> GuidanceFlags:
    """Reads the flags for a model of `num_layers` layers.

    Flags that are not given take the released values for the ImageNet models and the demo's for
    every other.

    Raises:
      InputError: a value out of its range.
    """
    values = flags.FLAGS
    preset = RELEASED if values.model in download.MODELS else DEMO
    record = {
        name: default if values[name].value is None else values[name].value
        for name, default in preset.items()
    }
    for name in ("num_steps", "batch_size"):
        number = record.get(name, values[name].value)
        if not 1 <= number <= _MOST:
            raise InputError(f"--{name}={number}: expected 1 to {_MOST}")
    if values.seed < 0 or values.seed >= 2**32:
        raise InputError(f"--seed={values.seed}: expected 0 to {2**32 - 1}")
    check_divergence(record["divergence"])
    settings = StructureSettings(
        layer_weights=layer_weights(_parse_layers(record["layers"]), num_layers),
        **{name: record[name] for name in StructureSettings._fields if name in record},
    )
    check_settings(settings)
    record = {"model": values.model, **record, "seed": values.seed}
    return GuidanceFlags(settings, record["num_steps"], record["divergence"], record)


def _parse_layers(text: str) -> list[int] | None:
    if text.strip().lower() == "all":
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--layers={text}: expected numbers with commas, such as 1,3,16, or all"
        ) from None


def batches(num_samples: int) -> list[range]:
    """Sample indices in batches of nearly equal size, none above --batch_size."""
    count = math.ceil(num_samples / flags.FLAGS.batch_size)
    size = math.ceil(num_samples / count)
    return [range(i, min(i + size, num_samples)) for i in range(0, num_samples, size)]
