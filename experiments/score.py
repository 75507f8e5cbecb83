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

import dataclasses
from pathlib import Path

from tqdm import tqdm

from experiments.app import cli
from experiments.app.picture_sets import write_adm_npz
from experiments.metrics.inception import load_inception
from experiments.metrics.scoring import open_images, round_trip, score
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob
from maskgit_jax.model import load_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is scored."""

    samples: str | None = knob(None, "Pictures to score: a folder or an .npz file.", kind=Path)
    reference: str | None = knob(None, "Real pictures: a folder or an .npz file.", kind=Path)
    inception: str | None = knob(None, "Weights: path or address, .npz, .safetensors.", kind=Path)
    export: str | None = knob(
        None, "Write the samples to this .npz, for ADM's evaluator.", kind=Path
    )
    round_trip: str | None = knob(
        None, "Score what this model's tokenizer makes of the samples.", kind=Path
    )
    batch_size: int = knob(32, "Pictures at a time.", low=1, high=10**6)


def main(flags: Flags) -> None:
    """Scores and exports samples."""
    if flags.samples is None:
        raise InputError("--samples is missing: give a folder of pictures or an .npz file")
    if flags.inception is None and flags.export is None:
        raise InputError(
            "--inception is missing: give the network's weights "
            "(experiments/metrics/inception.py says where they come from), or --export"
        )
    samples = open_images("samples", flags.samples)
    reference = None
    if flags.reference is not None:
        reference = open_images("reference", flags.reference)
    if flags.round_trip is not None:
        samples = round_trip(samples, load_model(flags.round_trip))
    if flags.export is not None:
        if not flags.export.endswith(".npz"):
            raise InputError(f"--export={flags.export}: expected a name that ends in .npz")
        batches = tqdm(samples.batches(1), "exporting", samples.count, unit="", mininterval=1)
        write_adm_npz(flags.export, batches, samples.count)
        print(f"{samples.count} pictures in {flags.export}")
    if flags.inception is not None:
        score(samples, reference, load_inception(flags.inception), flags.batch_size)


if __name__ == "__main__":
    cli.run(main, Flags)
