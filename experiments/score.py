"""FID, Inception Score, precision and recall of pictures of a real model.

    python -m experiments.score --samples=out --reference=imagenet.npz --inception=inception.npz

Sets of pictures are folders or `.npz` files as ADM's evaluator takes them. Without --reference,
the Inception Score alone. `experiments/inception.py` says where the network's weights come from
and whose published figures these are; --export writes the samples for ADM's own evaluator:

    python -m experiments.score --samples=out --export=samples.npz

Each figure comes with its standard error. FID falls as the number of samples grows, and precision
and recall change with it: figures compare at equal numbers alone. Published ones take 50,000.
"""

import jax
import numpy as np
from absl import flags
from jaxtyping import Float
from tqdm import tqdm

from experiments import cli
from experiments.batches import fill, make_batches
from experiments.image_sets import ImageSet, open_image_set, write_adm_npz
from experiments.inception import NUM_FEATURES, embed, load_inception
from experiments.metrics import (
    frechet_distance,
    inception_score,
    mean_and_error,
    within_manifold,
)
from maskgit_jax.errors import InputError

_SAMPLES = flags.DEFINE_string("samples", None, "Pictures to score: a folder or an .npz file.")
_REFERENCE = flags.DEFINE_string("reference", None, "Real pictures: a folder or an .npz file.")
_INCEPTION = flags.DEFINE_string("inception", None, "Weights: path or address, .npz, .safetensors.")
_EXPORT = flags.DEFINE_string(
    "export", None, "Write the samples to this .npz, for ADM's evaluator."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures at a time.", lower_bound=1)

_FEWEST = 5  # the third neighbour needs four, the jackknife one more


def main() -> None:
    """Scores and exports as the flags say."""
    if _SAMPLES.value is None:
        raise InputError("--samples is missing: give a folder of pictures or an .npz file")
    if _INCEPTION.value is None and _EXPORT.value is None:
        raise InputError(
            "--inception is missing: give the network's weights (experiments/inception.py says "
            "where they come from), or --export"
        )
    samples = _open(_SAMPLES)
    reference = None if _REFERENCE.value is None else _open(_REFERENCE)
    if _EXPORT.value is not None:
        if not _EXPORT.value.endswith(".npz"):
            raise InputError(f"--export={_EXPORT.value}: expected a name that ends in .npz")
        batches = tqdm(samples.batches(1), "exporting", samples.count, unit="", mininterval=1)
        write_adm_npz(_EXPORT.value, batches, samples.count)
        print(f"{samples.count} pictures in {_EXPORT.value}")
    if _INCEPTION.value is not None:
        score(samples, reference, load_inception(_INCEPTION.value))


def score(samples: ImageSet, reference: ImageSet | None, variables) -> None:
    """Prints the figures."""
    features, probabilities = _features(samples, variables, "samples")
    _show("Inception Score", inception_score(probabilities), 2)
    if reference is not None:
        real, _ = _features(reference, variables, "reference")
        _show("FID", frechet_distance(features, real), 3)
        _show("precision", mean_and_error(within_manifold(features, real)), 4)
        _show("recall", mean_and_error(within_manifold(real, features)), 4)
    numbers = f"{samples.count} samples"
    print(numbers if reference is None else f"{numbers}, {reference.count} of the reference")
    if samples.count <= NUM_FEATURES:
        print(f"with {NUM_FEATURES} samples or fewer, FID is far above its value at 50,000")


def _open(flag: flags.FlagHolder[str]) -> ImageSet:
    images = open_image_set(flag.value)
    if images.count < _FEWEST:
        raise InputError(f"--{flag.name}: {images.count} pictures, expected {_FEWEST} or more")
    return images


def _features(
    images: ImageSet, variables, name: str
) -> tuple[Float[np.ndarray, "n 2048"], Float[np.ndarray, "n 1008"]]:
    """Features, and probabilities of the classes."""
    features, probabilities = [], []
    with tqdm(total=images.count, desc=name, unit="", mininterval=1) as bar:
        size = len(make_batches(images.count, _BATCH_SIZE.value)[0].rows)
        for batch in images.batches(size):
            result = embed(variables, batch[fill(len(batch), size)])
            features.append(np.asarray(result.features)[: len(batch)])
            probabilities.append(np.asarray(jax.nn.softmax(result.logits))[: len(batch)])
            bar.update(len(batch))
    return np.concatenate(features), np.concatenate(probabilities)


def _show(name: str, figure: tuple[float, float], digits: int) -> None:
    value, error = figure
    print(f"{name}: {value:.{digits}f} ± {error:.{digits}f}")


if __name__ == "__main__":
    cli.run(main)
