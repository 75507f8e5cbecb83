"""How much of a picture its ids tell: reconstruction with a random share of them masked.

    python -m experiments.reconstruct --num_images=50 --output_dir=runs/reconstruction
    python -m experiments.reconstruct --images=photos --model=imagenet256

MaskGIT (arXiv:2202.04200), appendix A. Of each picture a random share of the ids, the mask ratio,
is masked and sampled anew, twice with other masks. Prints a table: PSNR and perceptual distance
(`maskgit_jax/training/perceptual.py`) of picture and reconstruction, and that of the two
reconstructions, their diversity; ratio 0 is the tokenizer's round trip. The masks of a picture grow
with the ratio. With --output_dir also writes the results (`experiments/studies/study.py`: a stopped
study goes on), `reconstruction.png` (the curves) and `grid.png` (for each picture: its
unmasked part, then what was made of that, ratio by ratio).

The pictures are held-out photos of the demo world, or those of a folder, named CLASS_ANYTHING.png
or in a sub-folder for each class.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.app import cli
from experiments.app.flag_groups import EditStudyFlags, read_edit_study
from experiments.app.picture_sets import read_labelled
from experiments.demo_world.judge import load_demo_world_model
from experiments.studies.plots import check_matplotlib
from experiments.studies.reconstruction import study_reconstruction
from experiments.studies.scenes import Edits, draw_photos
from experiments.studies.study import StudyFlags
from maskgit_jax.images import fit_image, read_image
from maskgit_jax.knobs import knob
from maskgit_jax.model import load_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(StudyFlags, EditStudyFlags):
    """What is reconstructed."""

    SEVERAL = ("ratios",)

    images: str | None = knob(None, "Folder of pictures, in place of the demo world's.", kind=Path)
    ratios: Sequence[float] = knob(
        (0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0),
        "Shares of the ids to mask, above 0.",
        kind=float,
        low=1e-6,
        high=1.0,
    )


def main(flags: Flags) -> None:
    """Reconstructs pictures and measures them."""
    settings, record = read_edit_study(flags)
    if flags.output_dir is not None:
        check_matplotlib()  # before minutes of sampling
    if flags.images is None:
        model = load_demo_world_model(flags.model)
        photos, labels = draw_photos(flags.num_images, model.config.tokenizer.image_size)
    else:
        model = load_model(flags.model)
        photos, labels = read_labelled(
            flags.images,
            model.config,
            lambda path, size: fit_image(read_image(path), size, mode="crop"),
            flag="images",
            most=flags.num_images,
        )
    edits = Edits(model, settings, flags.seed, flags.batch_size)
    record |= {"images": flags.images}
    study_reconstruction(edits, photos, labels, sorted(flags.ratios), flags.places(), record)


if __name__ == "__main__":
    cli.run(main, Flags)
