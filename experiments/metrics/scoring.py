"""How real samples look, by the measures of the field: Inception Score, FID, precision and recall.

No flags are defined here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from experiments.app.batches import fill, make_batches
from experiments.app.picture_sets import ImageSet, open_image_set
from experiments.metrics.inception import NUM_FEATURES, embed
from experiments.metrics.measures import (
    frechet_distance,
    inception_score,
    mean_and_error,
    within_manifold,
)
from maskgit_jax.errors import InputError
from maskgit_jax.images import to_float, to_uint8
from maskgit_jax.model import Model

FEWEST = 5
"""Pictures that can be scored: the third neighbour needs four, the jackknife one more."""


def open_images(flag: str, path: str) -> ImageSet:
    """The pictures that a flag names.

    Raises:
      InputError: they cannot be read, or are too few.
    """
    images = open_image_set(path)
    if images.count < FEWEST:
        raise InputError(f"--{flag}: {images.count} pictures, expected {FEWEST} or more")
    return images


def round_trip(images: ImageSet, model: Model) -> ImageSet:
    """The pictures as a model's tokenizer gives them back.

    Raises:
      InputError: they are of another size than the model's.
    """
    side = model.config.tokenizer.image_size
    if images.size != (side, side):
        height, width = images.size
        raise InputError(f"--samples are {height}x{width}: the model's pictures are {side}x{side}")

    def batches(batch_size: int):
        for batch in images.batches(batch_size):
            rows = jnp.asarray(to_float(batch[fill(len(batch), batch_size)]))
            yield to_uint8(np.asarray(model.decode(model.encode(rows))))[: len(batch)]

    return images._replace(batches=batches)


def score(
    samples: ImageSet, reference: ImageSet | None, variables: Any, batch_size: int = 32
) -> None:
    """Prints the Inception Score, and against a reference FID, precision and recall.

    Args:
      samples: the pictures.
      reference: real ones.
      variables: InceptionV3's, see `inception.load_inception`.
      batch_size: pictures at a time.
    """
    features, probabilities = _features(samples, variables, batch_size, "samples")
    _show("Inception Score", inception_score(probabilities), 2)
    if reference is not None:
        real, _ = _features(reference, variables, batch_size, "reference")
        _show("FID", frechet_distance(features, real), 3)
        _show("precision", mean_and_error(within_manifold(features, real)), 4)
        _show("recall", mean_and_error(within_manifold(real, features)), 4)
    numbers = f"{samples.count} samples"
    print(numbers if reference is None else f"{numbers}, {reference.count} of the reference")
    if samples.count <= NUM_FEATURES:
        print(f"with {NUM_FEATURES} samples or fewer, FID is far above its value at 50,000")


def _features(
    images: ImageSet, variables: Any, batch_size: int, name: str
) -> tuple[Float[np.ndarray, "n 2048"], Float[np.ndarray, "n 1008"]]:
    """Features, and probabilities of the classes."""
    features, probabilities = [], []
    with tqdm(total=images.count, desc=name, unit="", mininterval=1) as bar:
        size = len(make_batches(images.count, batch_size)[0].rows)
        for batch in images.batches(size):
            result = embed(variables, batch[fill(len(batch), size)])
            features.append(np.asarray(result.features)[: len(batch)])
            probabilities.append(np.asarray(jax.nn.softmax(result.logits))[: len(batch)])
            bar.update(len(batch))
    return np.concatenate(features), np.concatenate(probabilities)


def _show(name: str, figure: tuple[float, float], digits: int) -> None:
    value, error = figure
    print(f"{name}: {value:.{digits}f} ± {error:.{digits}f}")
