"""Presets: the settings of each method that suit a model, as they stand in its `config.json`.

    "presets": {"maskgit": {"num_steps": 8, "schedule": "cosine", "temperature": 4.5}, …}

What a command's flags leave open takes its value from there. What a `config.json` leaves out is
filled in from a packaged model: of the released transformer's size from the ImageNet model's, of
any other from the demo model's.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from maskgit_jax.errors import InputError
from maskgit_jax.sampling.schedules import SCHEDULE_NAMES


class Numbers(NamedTuple):
    """The numbers from `low` to `high`, or the whole ones among them."""

    low: float
    high: float
    whole: bool = False


LAYERS = "layers"
"""Kind of a knob that names layers, see `read_layers`."""

Kind = Numbers | tuple[str, ...] | str
"""What a knob may be: a number, one of several names, or `LAYERS`."""

_STEPS = Numbers(1, 10**6, whole=True)
_SHARE = Numbers(0.0, 1.0)
_FACTOR = Numbers(0.0, 1e6)
_TOKEN_TEMPERATURE = Numbers(1e-6, 100.0)  # below, logits over it could overflow
_EDIT: dict[str, Kind] = {
    "num_steps": _STEPS,
    "temperature": _FACTOR,
    "token_temperature": _TOKEN_TEMPERATURE,
}
_SAMPLER: dict[str, Kind] = {
    "num_steps": _STEPS,
    "schedule": SCHEDULE_NAMES,
    "token_temperature": _TOKEN_TEMPERATURE,
}

KNOBS: dict[str, dict[str, Kind]] = {
    "masksketch": {
        "num_steps": _STEPS,
        "layers": LAYERS,
        "lambda_s": _SHARE,
        "guidance_scale": _FACTOR,
        "max_mask_rate": _SHARE,
        "min_mask_rate": _SHARE,
        "structure_temperature": _FACTOR,
        "confidence_temperature": _FACTOR,
        "paper_weight": _SHARE,
        "token_temperature": _TOKEN_TEMPERATURE,
        "guidance_power": Numbers(0.0, 100.0),
        "divergence": ("jeffreys", "cross_entropy"),
        "num_proposals": _STEPS,
    },
    # What the fast sampler has in place of "masksketch"'s.
    "masksketch_fast": {
        "num_steps": _STEPS,
        "max_mask_rate": _SHARE,
        "min_mask_rate": _SHARE,
        "num_proposals": _STEPS,
    },
    "maskgit": _SAMPLER | {"temperature": _FACTOR},
    "halton": _SAMPLER | {"sharpness": _FACTOR},
    "remdm": _SAMPLER
    | {
        "remask": ("rescale", "cap", "confidence", "conf"),
        "eta": _SHARE,
        "window": ("switch", "loop"),
        "t_on": _SHARE,
        "t_off": _SHARE,
        "alpha_on": Numbers(0.0, 0.999),
    },
    "edit": _EDIT,
    "stroke": _EDIT | {"confidence": _SHARE},
}
"""The knobs of each method and what they may be."""

Presets = dict[str, dict[str, Any]]
"""By method, a value for each of its `KNOBS`."""

_PACKAGE = files("maskgit_jax")
_RELEASED_SIZE = (24, 768)  # layers, width


def check_value(name: str, value: Any, kind: Numbers | tuple[str, ...]) -> None:
    """Raises InputError, which begins with the `name`, for a value that is none of its kind."""
    if not isinstance(kind, Numbers):
        if value not in kind:
            raise InputError(f"{name}={value}: expected one of {', '.join(kind)}")
        return
    fits = type(value) is int or (type(value) is float and not kind.whole)
    if not fits or not kind.low <= value <= kind.high:  # a NaN is in no range
        whole = "a whole number from " if kind.whole else ""
        raise InputError(f"{name}={value}: expected {whole}{kind.low:g} to {kind.high:g}")


def read_layers(text: str, num_layers: int, name: str = LAYERS) -> list[int]:
    """The layers that a text means: all, early or late (halves), or numbers with commas.

    Raises:
      InputError: it names none, one twice, or one that the model lacks; begins with the `name`.
    """
    half = num_layers // 2
    named = {"all": range(num_layers), "early": range(half), "late": range(half, num_layers)}
    word = text.strip().lower()
    try:
        layers = list(named[word] if word in named else map(int, text.split(",")))
    except ValueError:
        raise InputError(
            f"{name}={text}: expected numbers with commas, such as 1,3,16, or all, early or late"
        ) from None
    try:
        check_layers(layers, num_layers)
    except InputError as error:
        raise InputError(f"{name}={text}: {error}") from None
    return layers


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Raises InputError for no layer, one twice, or one that the model lacks."""
    if not layers:
        raise InputError(f"no layers: choose some of 0 to {num_layers - 1}")
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise InputError(f"layer {layer} is out of range: the model has 0 to {num_layers - 1}")
    if len(set(layers)) < len(layers):
        raise InputError(f"layers {list(layers)} name one twice")


def complete_presets(
    given: Mapping[str, Mapping[str, Any]], num_layers: int, hidden_size: int, image_size: int
) -> Presets:
    """All presets of a model of a size: the given ones, the others filled in.

    Raises:
      InputError: a method or knob that does not exist, or a value that it cannot take.
    """
    for method, knobs in given.items():
        if method not in KNOBS:
            raise InputError(f"presets has no method {method!r}: expected {', '.join(KNOBS)}")
        for knob, value in knobs.items():
            name = f"presets.{method}.{knob}"
            if knob not in KNOBS[method]:
                raise InputError(f"no knob {name}: expected {', '.join(KNOBS[method])}")
            if KNOBS[method][knob] != LAYERS:
                check_value(name, value, KNOBS[method][knob])
            elif isinstance(value, str):
                read_layers(value, num_layers, name)
            else:
                raise InputError(f"{name}={value}: expected text, such as 'all' or '1,3,16'")
    packaged = _packaged("models/demo/config.json")
    if (num_layers, hidden_size) == _RELEASED_SIZE:
        packaged = _packaged(f"data/imagenet{256 if image_size <= 256 else 512}.json")
    presets = {method: {**packaged[method], **given.get(method, {})} for method in KNOBS}
    for method in ("masksketch", "masksketch_fast"):
        rates = presets["masksketch"] | presets[method]
        if not rates["min_mask_rate"] <= rates["max_mask_rate"] > 0:
            raise InputError(
                f"presets.{method}: mask rates fall from {rates['max_mask_rate']} to "
                f"{rates['min_mask_rate']}: expected max_mask_rate above 0 and not below "
                "min_mask_rate"
            )
    return presets


@functools.cache
def _packaged(file: str) -> Presets:
    return json.loads((_PACKAGE / file).read_text(encoding="utf-8"))["presets"]
