"""How few steps a guided picture needs: the study behind `--sampler=proposals`.

    python -m experiments.steps_study --num_sketches=200 --batch_size=25 --output_dir=runs/steps

Samples from held-out scenes of the demo world by the published rule and by others, at several
numbers of steps, and measures each as `evaluate` does. Writes the results
(`experiments/studies/study.py`: a stopped study goes on) and `steps.png` (IoU, class accuracy and
Fréchet distance against the passes through the transformer that a sample needs). Flags of the
guidance hold for all rows, save for what a row is about.
"""

import dataclasses
from pathlib import Path

from experiments.app import cli
from experiments.app.flag_groups import GuidanceFlags, read_guidance
from experiments.demo_world.judge import load_demo_world_model
from experiments.studies.plots import check_matplotlib
from experiments.studies.scenes import Sampling
from experiments.studies.steps import choose_rows, study_steps
from experiments.studies.study import StudyFlags
from maskgit_jax.knobs import knob


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(StudyFlags, GuidanceFlags):
    """What is compared."""

    num_sketches: int = knob(200, "Held-out scenes.", low=5)
    num_reference: int = knob(2000, "Reference photos.", low=5)
    rows: tuple[str, ...] = knob((), "Only rows whose names begin so.")
    output_dir: str = knob("runs/steps", "Folder for the results.", kind=Path)


def main(flags: Flags) -> None:
    """Compares rules that need few steps."""
    check_matplotlib()
    rows = choose_rows(flags.rows)
    model = load_demo_world_model(flags.model, flags.dtype)
    study_steps(
        Sampling(model, read_guidance(flags, model.config), flags.batch_size),
        flags.places(),
        rows,
        num_sketches=flags.num_sketches,
        num_reference=flags.num_reference,
    )


if __name__ == "__main__":
    cli.run(main, Flags)
