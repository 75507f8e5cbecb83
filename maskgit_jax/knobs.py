"""Knobs: the settings of methods and commands, each declared once, in a frozen dataclass.

    @dataclasses.dataclass(frozen=True)
    class MaskGit:
        temperature: Any = knob(4.5, "Noise of the confidence ranking.", low=0, high=1e6)

From the declaration follow the command's flag, its line of --help and its range
(`experiments/app/flags.py`), the check of values given in Python (`check`), and what a model's
presets may say of it (`resolve`):

    "presets": {"maskgit": {"num_steps": 8, "schedule": "cosine", "temperature": 4.5}, …}

Presets stand in a model's `config.json` and are what a command's flags mean that are not given.
What a `config.json` leaves out is filled in from a packaged model: of the released transformer's
size from the ImageNet model's, of any other from the demo model's.
"""

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskgit_jax.errors import InputError, printable

SEEDS = {"low": 0, "high": 2**32 - 1}
"""Range of random seeds."""

_MOST = {int: 2**31 - 1, float: 1e30}
"""Greatest numbers of knobs that declare none: what arrays hold, and what is finite in float32."""
_EXPECTED = {bool: "true or false", tuple: "words with commas between", Path: "a path"}


class Knob(NamedTuple):
    """What a setting may be, and what it does.

    Attributes:
      help: a sentence.
      kind: int, float, str or bool; `tuple` for several texts; `Path` for the name of a file or
        folder.
      low: least number.
      high: greatest number.
      choices: the names that it may be.
    """

    help: str
    kind: type
    low: int | float | None = None
    high: int | float | None = None
    choices: tuple[str, ...] | None = None

    @property
    def expected(self) -> str:
        """Words for what is allowed."""
        if self.choices is not None:
            return f"one of {', '.join(self.choices)}"
        if self.kind not in (int, float):
            return _EXPECTED.get(self.kind, "text")
        whole = "a whole number" if self.kind is int else "a number"
        if self.low is None or self.high is None:
            return whole if self.low is None else f"{whole}, {self.low:g} or more"
        return f"{whole} from {self.low:g} to {self.high:.10g}"

    def allows(self, value: Any) -> bool:
        """Whether a value, or all of an array, is allowed."""
        if self.kind not in (int, float):
            if isinstance(value, list):
                value = tuple(value)
            fits = bool(value) if self.kind is Path else isinstance(value, self.kind)
            return fits and (self.choices is None or value in self.choices)
        try:
            numbers = np.asarray(value)
        except ValueError:  # rows of several lengths
            return False
        if numbers.dtype.kind not in ("iu" if self.kind is int else "iuf"):
            return False
        low = -np.inf if self.low is None else self.low
        high = _MOST[self.kind] if self.high is None else self.high
        return bool(np.all((numbers >= low) & (numbers <= high)))  # a NaN is in no range

    def check(self, name: str, value: Any) -> None:
        """Raises InputError, which begins with the `name`, for a value that is not allowed."""
        if not self.allows(value):
            raise InputError(f"{name}={printable(value)}: {self.refusal(value)}")

    def refusal(self, value: Any) -> str:
        """Words for what is wrong with a value that is not allowed."""
        most = _MOST.get(self.kind) if self.high is None else None
        if most is not None and isinstance(value, int | float) and value > most:
            return f"expected {most:.10g} at most"
        return f"expected {self.expected}"


def knob(
    default: Any,
    help: str,
    *,
    low: int | float | None = None,
    high: int | float | None = None,
    choices: Collection[str] | None = None,
    kind: type | None = None,
    static: bool = False,
) -> Any:
    """A field of a frozen dataclass that is a knob.

    Args:
      default: its value; None where something else decides it, such as a model's presets.
      help: a sentence.
      low: least number.
      high: greatest number.
      choices: the names that it may be.
      kind: as in `Knob`; the default's where that is not None.
      static: of a dataclass that JAX traces: what is compiled for.
    """
    if kind is None:
        kind = str if default is None else type(default)
    declared = Knob(help, kind, low, high, None if choices is None else tuple(choices))
    return dataclasses.field(default=default, metadata={"knob": declared, "static": static})


def knobs_of(*classes: type) -> dict[str, Knob]:
    """The knobs that dataclasses declare, by name."""
    return {
        field.name: field.metadata["knob"]
        for cls in classes
        for field in dataclasses.fields(cls)
        if "knob" in field.metadata
    }


def optional(*classes: type, leave: Sequence[str] = ()) -> list[tuple[str, Any, Any]]:
    """The classes' knobs with None in place of their defaults, for `dataclasses.make_dataclass`."""
    return [
        (name, Any, dataclasses.field(default=None, metadata={"knob": declared}))
        for name, declared in knobs_of(*classes).items()
        if name not in leave
    ]


def check(settings: Any, prefix: str = "") -> None:
    """Raises InputError unless all knobs of a dataclass's instance have values they may have."""
    for name, declared in knobs_of(type(settings)).items():
        declared.check(f"{prefix}{name}", getattr(settings, name))


def check_static(settings: Any) -> None:
    """As `check`, of the knobs that are names: the others may be traced values."""
    for name, declared in knobs_of(type(settings)).items():
        if declared.choices is not None:
            declared.check(name, getattr(settings, name))


def resolve(
    config: Any,
    methods: str | Sequence[str],
    *classes: type,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A method's settings for a model: given ones, else the model's presets, else the defaults.

    Args:
      config: the model's `ModelConfig`.
      methods: whose presets count, the last of several most.
      classes: declare the method's knobs.
      given: by name; None counts as not given.

    Raises:
      InputError: a preset that is no knob of the method, or a value that is not allowed.
    """
    declared = knobs_of(*classes)
    fields = {field.name: field for cls in classes for field in dataclasses.fields(cls)}
    settings = {name: fields[name].default for name in declared}
    methods = [methods] if isinstance(methods, str) else methods
    sources = [(f"presets.{method}.", config.presets.get(method, {})) for method in methods]
    for prefix, values in (*sources, ("", given or {})):
        for name, value in values.items():
            if value is None:
                continue
            if name not in declared:
                raise InputError(
                    f"no knob {prefix}{printable(name, 60)}: expected {', '.join(declared)}"
                )
            declared[name].check(f"{prefix}{name}", value)
            settings[name] = value
    return settings


def read_layers(text: str, num_layers: int, name: str = "layers") -> list[int]:
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


Presets = dict[str, dict[str, Any]]
"""By method, values of knobs."""

_RELEASED_SIZE = (24, 768)  # layers, width


def complete_presets(
    given: Mapping[str, Mapping[str, Any]], num_layers: int, hidden_size: int, image_size: int
) -> Presets:
    """All presets of a model of a size: the given ones, the others filled in.

    Values are checked where a method takes them (`resolve`).

    Raises:
      InputError: a method that does not exist.
    """
    packaged = _packaged("models/demo/config.json")
    if (num_layers, hidden_size) == _RELEASED_SIZE:
        packaged = _packaged(f"data/imagenet{256 if image_size <= 256 else 512}.json")
    for method in given:
        if method not in packaged:
            found = printable(method, 60)
            raise InputError(f"presets has no method {found!r}: expected {', '.join(packaged)}")
    return {method: {**knobs, **given.get(method, {})} for method, knobs in packaged.items()}


@functools.cache
def _packaged(file: str) -> Presets:
    return json.loads((files("maskgit_jax") / file).read_text(encoding="utf-8"))["presets"]
