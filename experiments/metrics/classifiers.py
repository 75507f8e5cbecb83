"""Classifiers: how probable the wanted class is to a network that looks at a picture."""

import textwrap
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from experiments.demo_world import judge
from experiments.metrics.pretrained import (
    check_network,
    in_pieces,
    load_network,
    to_pixels,
    transformers_library,
)
from maskgit_jax.errors import InputError, need
from maskgit_jax.images import to_float

Classifier = Callable[[UInt8[np.ndarray, "n H W 3"]], Float[np.ndarray, "n K"]]
"""Pictures in [0, 255] to probabilities of the K classes."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_USUAL_SIZE = 224
_EXPECTED = "expected an .onnx file, or a folder with a Flax image classifier of transformers"
_ONNX_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def load_demo_judge() -> Classifier:
    """The demo world's judge, for pictures whose sides are multiples of 8."""
    network, params = judge.load_judge()
    return lambda pictures: judge.predict(network, params, to_float(pictures)).probabilities


def load_classifier(source: str, num_classes: int) -> Classifier:
    """A classifier of `num_classes` classes, in the model's order, from a file or folder.

    An `.onnx` file takes pictures [N, 3, H, W] or [N, H, W, 3], N fixed or not, and gives logits or
    probabilities [N, classes] first. Pictures are resized to its H and W (224 where it leaves them
    open; bilinear, antialiased), scaled to [0, 1] and normalised with ImageNet's mean and standard
    deviation: a network that wants other pixels has to turn these into them. With one class more
    than expected the first is the background, as in TensorFlow's ImageNet models, and is dropped.
    It runs on the CPU: JAX keeps an accelerator's memory for itself.

    A folder is a Flax image classifier of `transformers` with its `preprocessor_config.json`.

    Raises:
      InputError: a package is missing, `source` cannot be read, or is for other classes.
    """
    check_source(source)
    load = _load_flax if Path(source).is_dir() else _load_onnx
    return load(source, num_classes)


def check_source(source: str) -> None:
    """Raises InputError for neither an .onnx file nor a folder, or where its package is missing."""
    path = Path(source)
    if path.is_dir():
        check_network(source, _EXPECTED)
    elif path.suffix == ".onnx" and path.is_file():
        need(source, "onnx", "onnxruntime")
    else:
        raise InputError(f"no classifier at {source!r}: {_EXPECTED}")


def class_probabilities(
    outputs: Float[np.ndarray, "n c"], num_classes: int
) -> Float[np.ndarray, "n K"]:
    """Probabilities of the last `num_classes` classes, from logits or probabilities.

    Rows that are positive and sum to 1 are taken as they are, others through a softmax.
    """
    outputs = outputs.astype(np.float64)
    if outputs.min() < 0 or np.abs(outputs.sum(axis=1) - 1).max() > 1e-3:
        weights = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        outputs = weights / weights.sum(axis=1, keepdims=True)
    return outputs[:, -num_classes:]


def _load_onnx(source: str, num_classes: int) -> Classifier:
    import onnxruntime

    def run_and_explain(function, *arguments, **settings):
        # The runtime has a type of its own for each kind of failure.
        try:
            return function(*arguments, **settings)
        except Exception as error:
            reason = textwrap.shorten(str(error), 200, placeholder=" …")
            raise InputError(
                f"{source} cannot be run ({reason}); expected an ONNX classifier"
            ) from None

    session = run_and_explain(
        onnxruntime.InferenceSession, source, providers=["CPUExecutionProvider"]
    )
    inputs, output = session.get_inputs(), session.get_outputs()[0]
    if (
        len(inputs) != 1
        or not {inputs[0].type, output.type} <= _ONNX_TYPES.keys()
        or not _takes_pictures(inputs[0].shape)
    ):
        listed = "; ".join(f"{found.type} {found.shape}" for found in inputs)
        raise InputError(
            f"{source} takes {listed} and gives {output.type}; expected one input [N, 3, H, W] or "
            "[N, H, W, 3] of floats, and floats"
        )
    name, kind, shape = inputs[0].name, _ONNX_TYPES[inputs[0].type], inputs[0].shape
    channels_last = shape[1] != 3 and shape[3] == 3
    height, width = (
        side if isinstance(side, int) else _USUAL_SIZE
        for side in (shape[1:3] if channels_last else shape[2:])
    )

    def run(pictures: UInt8[np.ndarray, "n H W 3"]) -> np.ndarray:
        resized = np.stack([_resize(picture, width, height) for picture in pictures])
        pixels = (to_float(resized) - _IMAGENET_MEAN) / _IMAGENET_STD
        pixels = (pixels if channels_last else pixels.transpose(0, 3, 1, 2)).astype(kind)
        return run_and_explain(session.run, [output.name], {name: pixels})[0]

    def outputs(pictures: UInt8[np.ndarray, "n H W 3"]) -> np.ndarray:
        return in_pieces(run, pictures, shape[0] if isinstance(shape[0], int) else None)

    # Two pictures tell now what would else end a long run.
    found = np.shape(outputs(np.zeros((2, 8, 8, 3), np.uint8)))
    if found not in ((2, num_classes), (2, num_classes + 1)):
        raise InputError(
            f"{source} gives {list(found)} for two pictures; expected [2, {num_classes}], the "
            f"model's classes, or [2, {num_classes + 1}], a background class first"
        )
    return lambda pictures: class_probabilities(outputs(pictures), num_classes)


def _load_flax(source: str, num_classes: int) -> Classifier:
    with transformers_library(source, _EXPECTED) as library:
        config = library.AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.num_labels != num_classes:
            raise InputError(
                f"{source} is for {config.num_labels} classes; expected the model's {num_classes}"
            )
        networks = library.FLAX_MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
        if type(config) not in networks:
            raise InputError(f"{source} is a {config.model_type}; {_EXPECTED}")
        network = load_network(networks[type(config)], source)
        prepare = library.AutoImageProcessor.from_pretrained(
            source, use_fast=False, trust_remote_code=False
        )

    @jax.jit
    def logits(params, pixels):
        with jax.default_matmul_precision("highest"):
            return network(pixels, params=params).logits

    def outputs(pictures: UInt8[np.ndarray, "n H W 3"]) -> Float[Array, "n outputs"]:
        return logits(network.params, to_pixels(prepare, pictures))

    return lambda pictures: class_probabilities(in_pieces(outputs, pictures), num_classes)


def _takes_pictures(shape: list[int | str | None]) -> bool:
    """Whether an input is [N, 3, H, W], [N, H, W, 3] or open; what is no number is open."""
    return len(shape) == 4 and (3 in (shape[1], shape[3]) or not isinstance(shape[1], int))


def _resize(
    picture: UInt8[np.ndarray, "H W 3"], width: int, height: int
) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
