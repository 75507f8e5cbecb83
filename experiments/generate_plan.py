"""What `generate` will make: the classes and their order, the sampler and its settings."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from maskgit_jax import download
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
    # A choice for tens of steps: the released scripts' 0.015 is for a thousand.
    "remdm": {"num_steps": 32, "schedule": "cosine", "remask": "rescale", "eta": 0.05},
}
_SMALL = _PUBLISHED | {
    "maskgit": {"num_steps": 24, "schedule": "cosine", "temperature": 30.0},
    "halton": {"num_steps": 32, "schedule": "cosine", "sharpness": 1.0},
}
_FEW_STEPS = 8  # MaskGIT's for pictures up to 256 pixels

_RANGES = {
    "num_steps": (1, 10**6),
    "temperature": (0.0, 1e6),
    "sharpness": (0.0, 1e6),
    "eta": (0.0, 1.0),
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
    """

    model: str
    labels: list[int]
    num_samples: int
    sampler: str
    num_steps: int
    settings: dict[str, Any]
    guidance_scale: float
    seed: int

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
    """The sampler's own settings and `num_steps`: published ones, or what suits a small model.

    The ImageNet models take the former, every other the latter (docs/demo_model.md).
    """
    if model not in download.MODELS:
        return dict(_SMALL[sampler])
    few = {"num_steps": _FEW_STEPS} if sampler == "maskgit" and image_size <= 256 else {}
    return _PUBLISHED[sampler] | few


def check_settings(sampler: str, defaults: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises InputError for a setting that the sampler lacks, and a number out of its range."""
    for name, value in given.items():
        if name not in defaults:
            raise InputError(f"--{name}={value}: --sampler={sampler} has no such setting")
        low, high = _RANGES.get(name, (value, value))
        if not low <= value <= high:
            raise InputError(f"--{name}={value}: expected {low:g} to {high:g}")


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
