"""What `generate` will make: the classes and their order, the sampler and its settings."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from maskgit_jax import download
from maskgit_jax.decoding import TOKEN_TEMPERATURES
from maskgit_jax.errors import InputError
from maskgit_jax.halton import Halton
from maskgit_jax.labels import find_label
from maskgit_jax.maskgit import MaskGit
from maskgit_jax.remdm import ReMdm
from maskgit_jax.sampling import Sampler

SAMPLERS = {"maskgit": MaskGit, "halton": Halton, "remdm": ReMdm}

_PUBLISHED = {
    "maskgit": {"num_steps": 12, "schedule": "cosine", "temperature": 4.5},
    "halton": {"num_steps": 32, "schedule": "arccos", "sharpness": 1.0},
    # Of the paper's ImageNet figures. Its 0.015 is for the thousand steps of text.
    "remdm": {
        "num_steps": 32,
        "schedule": "linear",
        "token_temperature": 0.8,
        "remask": "rescale",
        "eta": 0.05,
    },
}
_SMALL = {
    "maskgit": {"num_steps": 24, "schedule": "cosine", "temperature": 30.0},
    "halton": {"num_steps": 32, "schedule": "cosine", "sharpness": 1.0},
    "remdm": {"num_steps": 32, "schedule": "cosine", "remask": "rescale", "eta": 0.05},
}
# ReMDM: ids are masked again at any time; its loop as released for text.
_WINDOWS = {
    "switch": {"window": "switch", "t_on": 1.0, "t_off": 0.0},
    "loop": {"window": "loop", "t_on": 0.55, "t_off": 0.05, "alpha_on": 0.9},
}
_WITHOUT = {"eta": "--remask=conf", "alpha_on": "--window=switch"}
_FEW_STEPS = 8  # MaskGIT's for pictures up to 256 pixels

_RANGES = {
    "num_steps": (1, 10**6),
    "token_temperature": TOKEN_TEMPERATURES,
    "temperature": (0.0, 1e6),
    "sharpness": (0.0, 1e6),
    "eta": (0.0, 1.0),
    "t_on": (0.0, 1.0),
    "t_off": (0.0, 1.0),
    "alpha_on": (0.0, 0.999),
}


class Plan(NamedTuple):
    """What decides the pictures.

    Attributes:
      model: its name.
      labels: classes, each once.
      num_samples: pictures of each class.
      sampler: a name of `SAMPLERS`.
      num_steps: decoding steps.
      settings: of the sampler.
      guidance_scale: of classifier-free guidance.
      seed: of the samples.
      token_temperature: τ of `decoding.tempered`.
      guidance_power: see `classifier_free.guidance_share`.
    """

    model: str
    labels: list[int]
    num_samples: int
    sampler: str
    num_steps: int
    settings: dict[str, Any]
    guidance_scale: float
    seed: int
    token_temperature: float = 1.0
    guidance_power: float = 0.0

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.labels) * self.num_samples

    def label(self, index: int) -> int:
        """A picture's class: each in turn, so that a stopped run has as many of each."""
        return self.labels[index % len(self.labels)]

    def make_sampler(self) -> Sampler:
        """The sampler with its settings."""
        return SAMPLERS[self.sampler](**self.settings)


def preset(sampler: str, model: str, image_size: int) -> dict[str, Any]:
    """The sampler's own settings, `num_steps` and, if it is not 1, `token_temperature`.

    Published ones, or what suits a small model.

    The ImageNet models take the former, every other the latter (docs/demo_model.md).
    """
    if model not in download.MODELS:
        return dict(_SMALL[sampler])
    few = {"num_steps": _FEW_STEPS} if sampler == "maskgit" and image_size <= 256 else {}
    return _PUBLISHED[sampler] | few


def complete(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A preset with what it leaves out; of ReMDM, with what the names given have as settings."""
    names = defaults | given
    if "remask" in defaults:
        defaults = _WINDOWS[names.get("window", "switch")] | defaults
        if names["remask"] == "conf":
            defaults = {name: value for name, value in defaults.items() if name != "eta"}
    return {"token_temperature": 1.0} | defaults


def check_settings(sampler: str, defaults: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises InputError for a setting that the sampler lacks, and a number out of its range."""
    for name, value in given.items():
        if name not in defaults:
            lacking = _WITHOUT.get(name) if sampler == "remdm" else None
            raise InputError(
                f"--{name}={value}: {lacking or f'--sampler={sampler}'} has no such setting"
            )
        low, high = _RANGES.get(name, (value, value))
        if not low <= value <= high:
            raise InputError(f"--{name}={value}: expected {low:g} to {high:g}")
    settings = defaults | given
    if "t_on" in settings and settings["t_off"] > settings["t_on"]:
        raise InputError(
            f"--t_off={settings['t_off']}: time falls from 1 to 0, expected --t_on="
            f"{settings['t_on']} or less"
        )


def read_labels(text: str, class_names: Sequence[str]) -> list[int]:
    """The classes that --labels means: "all", or names, numbers and ranges (3-7) with commas.

    Raises:
      InputError: an unknown class, a range that falls, or a class twice.
    """
    if text.strip().lower() == "all":
        return list(range(len(class_names)))
    labels: list[int] = []
    for part in text.split(","):
        bounds = re.fullmatch(r"\s*(\d{1,9})\s*-\s*(\d{1,9})\s*", part)
        ends = bounds.groups() if bounds else (part, part)
        first, last = (find_label(end, class_names) for end in ends)
        if first > last:
            raise InputError(f"--labels={text}: the range {part.strip()} falls")
        labels += range(first, last + 1)
    if len(set(labels)) < len(labels):
        raise InputError(f"--labels={text} names a class twice")
    return labels
