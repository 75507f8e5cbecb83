"""What `generate` will make: the classes and their order, the sampler and its settings."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.app.ranges import read_ranges
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knobs_of, resolve
from maskgit_jax.labels import find_label
from maskgit_jax.sampling.batched import Sampler
from maskgit_jax.sampling.loop import LoopSettings
from maskgit_jax.sampling.samplers import SAMPLERS

# ReMDM's loop as it was released for text. Under "switch", ids are masked again at any time.
_LOOP = {"t_on": 0.55, "t_off": 0.05, "alpha_on": 0.9}


class Plan(NamedTuple):
    """What decides the pictures: `num_samples` of each of the labels, by one sampler."""

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


def choose_settings(config: ModelConfig, sampler: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's settings: the given ones, in place of a model's presets.

    Raises:
      InputError: a setting that the sampler lacks, or a value that it cannot take.
    """
    classes = LoopSettings, SAMPLERS[sampler]
    for name, value in given.items():
        if name not in knobs_of(*classes):
            raise InputError(f"--{name}={value}: --sampler={sampler} has no such setting")
    loop = _LOOP if given.get("window") == "loop" else {}
    settings = resolve(config, sampler, *classes, given={**loop, **given})
    if sampler != "remdm":
        return settings
    for name, choice, without in (("eta", "remask", "conf"), ("alpha_on", "window", "switch")):
        if settings[choice] == without:
            if name in given:
                raise InputError(
                    f"--{name}={given[name]}: --{choice}={without} has no such setting"
                )
            del settings[name]
    if settings["t_off"] > settings["t_on"]:
        raise InputError(
            f"--t_off={settings['t_off']}: time falls from 1 to 0, expected --t_on="
            f"{settings['t_on']} or less"
        )
    return settings


def read_labels(text: str, class_names: Sequence[str]) -> list[int]:
    """The classes that --labels means: "all", or names, numbers and ranges (3-7) with commas.

    Raises:
      InputError: an unknown class, a range that falls, or a class twice.
    """
    if text.strip().lower() == "all":
        return list(range(len(class_names)))
    return read_ranges("labels", text, "class", lambda name: find_label(name, class_names))
