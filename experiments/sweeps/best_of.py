"""Best-of-N: how many candidates a picture has, what is measured of them, what is best."""

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Float, Int, UInt8

from experiments.app import digests
from experiments.demo_world import world
from experiments.metrics import classifiers, clip
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError

_MOST = 1000

_KEEP = flags.DEFINE_string("keep", "all", "all, or best_of_N: the best of N candidates.")
_SCORE = flags.DEFINE_enum(
    "score",
    None,
    ["clip", "classifier", "structure"],
    "What is best with --keep=best_of_N: alike in CLIP, a probable class, or (default) a small "
    "structure distance.",
)
_CLIP = flags.DEFINE_string(
    "clip",
    None,
    f"Measure with this CLIP: a folder, or a name on the hub; --score=clip takes {clip.DEFAULT} "
    "when not given.",
)
_CLIP_PROMPT = flags.DEFINE_string(
    "clip_prompt", "a photo of a {}", "Text that CLIP compares with; {} is the class name."
)
_CLIP_SKETCH_WEIGHT = flags.DEFINE_float(
    "clip_sketch_weight", 1.0, "In the CLIP score, weight of the likeness to the sketch."
)
_CLIP_TEXT_WEIGHT = flags.DEFINE_float(
    "clip_text_weight", 1.0, "In the CLIP score, weight of the likeness to the text."
)
_CLASSIFIER = flags.DEFINE_string(
    "classifier",
    None,
    "Network for the class's probability: an .onnx file, or a folder of transformers; the demo "
    "world has its own.",
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


def read(config: ModelConfig) -> BestOf:
    """Reads the flags for a model.

    Raises:
      InputError: a value that does not fit, or no classifier where one should be.
    """
    num_candidates = _num_candidates()
    score = (_SCORE.value or "structure") if num_candidates > 1 else None
    clip_source = _CLIP.value or (clip.DEFAULT if score == "clip" else None)
    for flag, works, needed in (
        (_SCORE, num_candidates > 1, "--keep=best_of_N"),
        (_CLIP_PROMPT, clip_source is not None, "--score=clip or --clip"),
        (_CLIP_SKETCH_WEIGHT, score == "clip", "--score=clip"),
        (_CLIP_TEXT_WEIGHT, score == "clip", "--score=clip"),
    ):
        if flag.present and not works:
            raise InputError(f"--{flag.name} without {needed} changes nothing: give both or none")
    if _CLIP_PROMPT.value.count("{}") != 1:
        raise InputError(
            f"--clip_prompt={_CLIP_PROMPT.value!r}: expected {{}} once, where the class name goes"
        )
    weights = _clip_weights()

    record: dict[str, Any] = {"num_candidates": num_candidates, "score": score}
    record |= {"classifier": _CLASSIFIER.value, "clip": clip_source}
    load_classifier = None
    if _CLASSIFIER.value is not None:
        classifiers.check_source(_CLASSIFIER.value)
        record["classifier_digest"] = digests.of_path(_CLASSIFIER.value)
        load_classifier = functools.partial(
            classifiers.load_classifier, _CLASSIFIER.value, len(config.class_names)
        )
    elif config.class_names == world.CLASS_NAMES:
        record["classifier"], load_classifier = "judge", classifiers.load_demo_judge
    elif score == "classifier":
        raise InputError(
            "--score=classifier needs a classifier of the model's classes: give --classifier=file, "
            "an .onnx file or a folder of transformers"
        )
    if clip_source is not None:
        if Path(clip_source).is_dir():
            record["clip_digest"] = digests.of_path(clip_source)
        record["clip_prompt"] = _CLIP_PROMPT.value
    if score == "clip":
        record["clip_sketch_weight"], record["clip_text_weight"] = weights
    texts = prompts(_CLIP_PROMPT.value, config.class_names)

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


def _num_candidates() -> int:
    if _KEEP.value == "all":
        return 1
    found = re.fullmatch(r"best_of_([0-9]{1,4})", _KEEP.value)
    if found is None or not 2 <= int(found[1]) <= _MOST:
        raise InputError(
            f"--keep={_KEEP.value}: expected all, or best_of_N with N from 2 to {_MOST}"
        )
    return int(found[1])


def _clip_weights() -> tuple[float, float]:
    """The weights of the sketch and of the text."""
    chosen = (_CLIP_SKETCH_WEIGHT, _CLIP_TEXT_WEIGHT)
    for flag in chosen:
        if not (math.isfinite(flag.value) and flag.value >= 0):
            raise InputError(f"--{flag.name}={flag.value}: expected 0 or more")
    if not any(flag.value for flag in chosen):
        raise InputError("--clip_sketch_weight and --clip_text_weight are both 0: give one more")
    return _CLIP_SKETCH_WEIGHT.value, _CLIP_TEXT_WEIGHT.value
