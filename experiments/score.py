"""FID, Inception Score, precision and recall of pictures of a real model.

    python -m experiments.score --samples=out --reference=imagenet.npz --inception=inception.npz

Sets of pictures are folders or `.npz` files as ADM's evaluator takes them. Without --reference,
the Inception Score alone. `experiments/metrics/inception.py` says where the network's weights come
from and whose published figures these are; --export writes the samples for ADM's own evaluator:

    python -m experiments.score --samples=out --export=samples.npz

With --round_trip=MODEL, photos are scored after a trip through that model's tokenizer. Each figure
comes with its standard error. FID falls as the number of samples grows, and precision
and recall change with it: figures compare at equal numbers alone. Published ones take 50,000.
"""

from absl import flags
from tqdm import tqdm

from experiments.app import cli
from experiments.app.pictures import write_adm_npz
from experiments.metrics.inception import load_inception
from experiments.metrics.scoring import open_images, round_trip, score
from maskgit_jax.errors import InputError
from maskgit_jax.model import load_model

_SAMPLES = flags.DEFINE_string("samples", None, "Pictures to score: a folder or an .npz file.")
_REFERENCE = flags.DEFINE_string("reference", None, "Real pictures: a folder or an .npz file.")
_INCEPTION = flags.DEFINE_string("inception", None, "Weights: path or address, .npz, .safetensors.")
_EXPORT = flags.DEFINE_string(
    "export", None, "Write the samples to this .npz, for ADM's evaluator."
)
_ROUND_TRIP = flags.DEFINE_string(
    "round_trip", None, "Score what this model's tokenizer makes of the samples."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures at a time.", lower_bound=1)


def main() -> None:
    """Scores and exports as the flags say."""
    if _SAMPLES.value is None:
        raise InputError("--samples is missing: give a folder of pictures or an .npz file")
    if _INCEPTION.value is None and _EXPORT.value is None:
        raise InputError(
            "--inception is missing: give the network's weights "
            "(experiments/metrics/inception.py says where they come from), or --export"
        )
    samples = open_images("samples", _SAMPLES.value)
    reference = None
    if _REFERENCE.value is not None:
        reference = open_images("reference", _REFERENCE.value)
    if _ROUND_TRIP.value is not None:
        samples = round_trip(samples, load_model(_ROUND_TRIP.value))
    if _EXPORT.value is not None:
        if not _EXPORT.value.endswith(".npz"):
            raise InputError(f"--export={_EXPORT.value}: expected a name that ends in .npz")
        batches = tqdm(samples.batches(1), "exporting", samples.count, unit="", mininterval=1)
        write_adm_npz(_EXPORT.value, batches, samples.count)
        print(f"{samples.count} pictures in {_EXPORT.value}")
    if _INCEPTION.value is not None:
        score(samples, reference, load_inception(_INCEPTION.value), _BATCH_SIZE.value)


if __name__ == "__main__":
    cli.run(main)
