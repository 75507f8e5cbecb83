"""Measures how strokes lead: the table of methods and the curve of the confidence knob.

    python -m experiments.evaluate_strokes --num_images=100 --output_dir=runs/strokes

Takes held-out scenes of the demo world, each with a stroke: by turns an automatic one
(guidance/strokes.py) and one of the object's parts, painted in its mean colour (inversion) or a
random one (counterfactual). Prints one table in Markdown: figures ± standard errors. With
--output_dir also writes the results (`experiments/studies/study.py`: a stopped evaluation goes on),
`confidence.png` and `grid.png`.

Columns. Faithful to the stroke: mean absolute difference of the colours inside it (channels in
[0, 1]; all, inversion, counterfactual), the same as CIE Lab ΔE, share of the region's ids that are
the painted picture's. Realistic: share of pictures of the right class by the judge
(experiments/demo_world/judge.py), and the seam, the steps across the stroke's outline against those
of the photo (1: as in the photo; a counterfactual stroke cannot be 1).

Rows. The photo, the stroke as painted, and the methods of `experiments.stroke`, those with a
confidence at several. --energy and --iterative_model, the results of experiments.tune_energy and
experiments.tune_iterative, add their rows.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.app import cli
from experiments.app.flag_groups import EditStudyFlags, read_edit_study
from experiments.demo_world.judge import load_demo_world_model
from experiments.studies.plots import check_matplotlib
from experiments.studies.scenes import Edits
from experiments.studies.strokes import study_strokes
from experiments.studies.study import StudyFlags
from guidance.strokes.energies import read_energy
from maskgit_jax.knobs import knob

_SHARES = {"kind": float, "low": 0.0, "high": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(StudyFlags, EditStudyFlags):
    """What is compared."""

    SEVERAL = ("confidences", "other_confidences")

    confidences: Sequence[float] = knob(
        tuple(c / 10 for c in range(11)), "Of tilt; 0 is the baseline.", **_SHARES
    )
    other_confidences: Sequence[float] = knob(
        (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), "Of the published methods.", **_SHARES
    )
    energy: str | None = knob(None, "For rows of learned: energy.npy of tune_energy.", kind=Path)
    iterative_model: str | None = knob(
        None, "For a row of iterative: model folder of tune_iterative.", kind=Path
    )


def main(flags: Flags) -> None:
    """Measures the methods of stroke guidance."""
    settings, record = read_edit_study(flags, "stroke")
    del record["confidence"]  # each row has its own
    model = load_demo_world_model(flags.model)
    tuned = flags.iterative_model and load_demo_world_model(flags.iterative_model)
    codes = model.config.transformer.codebook_size
    energy = None if flags.energy is None else read_energy(flags.energy, codes)
    if flags.output_dir is not None:
        check_matplotlib()  # before hours of sampling
    study_strokes(
        Edits(model, settings, flags.seed, flags.batch_size),
        flags.num_images,
        sorted(flags.confidences),
        sorted(flags.other_confidences),
        energy,
        tuned,
        flags.places(),
        record | {"energy": flags.energy, "iterative_model": flags.iterative_model},
    )


if __name__ == "__main__":
    cli.run(main, Flags)
