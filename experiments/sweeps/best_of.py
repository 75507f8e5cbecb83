"""Best-of-N: how many candidates a picture has, what is measured of them, what is best."""

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from experiments.app import digests
from experiments.demo_world import world
from experiments.metrics import classifiers, clip
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob

_MOST = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfFlags:
    """How many candidates, what is measured of each, and which is best."""

    keep: str = knob("all", "all, or best_of_N: the best of N candidates.")
    score: str | None = knob(
        None,
        "What is best with --keep=best_of_N: alike in CLIP, a probable class, or (default) a small "
        "structure distance.",
        choices=("clip", "classifier", "structure"),
    )
    clip: str | None = knob(
        None,
        "Measure with this CLIP: a folder, or a name on the hub; --score=clip takes "
        f"{clip.DEFAULT} when not given.",
        kind=Path,
    )
    clip_prompt: str = knob(
        "a photo of a {}", "Text that CLIP compares with; {} is the class name."
    )
    clip_sketch_weight: float = knob(
        1.0, "In the CLIP score, weight of the likeness to the sketch.", low=0.0, high=1e6
    )
    clip_text_weight: float = knob(
        1.0, "In the CLIP score, weight of the likeness to the text.", low=0.0, high=1e6
    )
    classifier: str | None = knob(
        None,
        "Network for the class's probability: an .onnx file, or a folder of transformers; the demo "
        "world has its own.",
        kind=Path,
    )


Measure = Callable[
    [
        UInt8[np.ndarray, "n H W 3"],
        UInt8[np.ndarray, "n H W 3"],
        Int[np.ndarray, "n"],
        Float[np.ndarray, "n"],
    ],
    dict[str, Float[np.ndarray, "n"]],
]
"""Of pictures and sketches in [0, 255], labels and structure distances, what is known of each:
`structure_distance`; `class_probability`, with a classifier, of the label; `clip_sketch` and
`clip_text`, with CLIP, the cosines; `score`, with several candidates, of which the highest wins."""


class BestOf(NamedTuple):
    """The candidates of a sweep.

    Attributes:
      num_candidates: candidates for each picture; 1 keeps all.
      record: the settings in force, for the results file, with digests of the files given.
      load: loads the networks, InputError if one cannot be had; what it gives compiles once if
        the number of pictures stays the same.
    """

    num_candidates: int
    record: dict[str, Any]
    load: Callable[[], Measure]


def read(flags: BestOfFlags, config: ModelConfig) -> BestOf:
    """What the flags ask of a model.

    Raises:
      InputError: values that do not go together, or no classifier where one should be.
    """
    num_candidates = _num_candidates(flags.keep)
    score = (flags.score or "structure") if num_candidates > 1 else None
    clip_source = flags.clip or (clip.DEFAULT if score == "clip" else None)
    for name, works, needed in (
        ("score", num_candidates > 1, "--keep=best_of_N"),
        ("clip_prompt", clip_source is not None, "--score=clip or --clip"),
        ("clip_sketch_weight", score == "clip", "--score=clip"),
        ("clip_text_weight", score == "clip", "--score=clip"),
    ):
        if getattr(flags, name) != getattr(BestOfFlags, name) and not works:
            raise InputError(f"--{name} without {needed} changes nothing: give both or none")
    if flags.clip_prompt.count("{}") != 1:
        raise InputError(
            f"--clip_prompt={flags.clip_prompt!r}: expected {{}} once, where the class name goes"
        )
    weights = flags.clip_sketch_weight, flags.clip_text_weight
    if not any(weights):
        raise InputError("--clip_sketch_weight and --clip_text_weight are both 0: give one more")

    record: dict[str, Any] = {"num_candidates": num_candidates, "score": score}
    record |= {"classifier": flags.classifier, "clip": clip_source}
    load_classifier = None
    if flags.classifier is not None:
        classifiers.check_source(flags.classifier)
        record["classifier_digest"] = digests.of_path(flags.classifier)
        load_classifier = functools.partial(
            classifiers.load_classifier, flags.classifier, len(config.class_names)
        )
    elif config.class_names == world.CLASS_NAMES:
        record["classifier"], load_classifier = "judge", classifiers.load_demo_judge
    elif score == "classifier":
        raise InputError(
            "--score=classifier needs a classifier of the model's classes: give --classifier=file, "
            "an .onnx file or a folder of transformers"
        )
    if clip_source is not None:
        clip.check_source(clip_source)
        if Path(clip_source).is_dir():
            record["clip_digest"] = digests.of_path(clip_source)
        record["clip_prompt"] = flags.clip_prompt
    if score == "clip":
        record["clip_sketch_weight"], record["clip_text_weight"] = weights
    texts = prompts(flags.clip_prompt, config.class_names)

    def load() -> Measure:
        classify = None if load_classifier is None else load_classifier()
        likeness = None if clip_source is None else clip.load_clip(clip_source)

        def measure(pictures, sketches, labels, structure_distance):
            measured = {"structure_distance": structure_distance}
            if classify is not None:
                probabilities = classify(pictures)
                measured["class_probability"] = probabilities[np.arange(len(labels)), labels]
            if likeness is not None:
                measured["clip_sketch"], measured["clip_text"] = clip.similarities(
                    likeness, pictures, sketches, [texts[label] for label in labels]
                )
            if score == "structure":
                measured["score"] = -structure_distance
            elif score == "classifier":
                measured["score"] = measured["class_probability"]
            elif score == "clip":
                sketch_weight, text_weight = weights
                measured["score"] = (
                    sketch_weight * measured["clip_sketch"] + text_weight * measured["clip_text"]
                )
            return measured

        return measure

    return BestOf(num_candidates, record, load)


def prompts(prompt: str, class_names: tuple[str, ...]) -> list[str]:
    """The prompt with each class's first name ("tench, Tinca tinca" is a tench) in place of {}."""
    return [prompt.replace("{}", names.split(",")[0].strip()) for names in class_names]


def _num_candidates(keep: str) -> int:
    if keep == "all":
        return 1
    found = re.fullmatch(r"best_of_([0-9]{1,4})", keep)
    if found is None or not 2 <= int(found[1]) <= _MOST:
        raise InputError(f"--keep={keep}: expected all, or best_of_N with N from 2 to {_MOST}")
    return int(found[1])


def best(scores: Float[np.ndarray, "items candidates"]) -> Int[np.ndarray, "items"]:
    """Each item's candidate with the highest score, the first of equal ones; NaN never wins.

    Raises:
      InputError: all scores of an item are NaN.
    """
    unknown = np.isnan(scores)
    if unknown.all(axis=1).any():
        raise InputError(
            "every candidate of an item has the score NaN: check the network that scores"
        )
    highest = np.max(scores, axis=1, keepdims=True, where=~unknown, initial=-np.inf)
    return np.argmax(scores == highest, axis=1)
