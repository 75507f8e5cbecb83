"""Measures whether what was sampled again in a picture is of its class, and shows no seam.

    python -m experiments.evaluate_editing --output_dir=runs/editing

Takes held-out photos of the demo world. Inpainting: a centred box of half the height and half the
width is sampled again. Outpainting: the right half is cut off and sampled from the left one. Beside
the photos themselves and photos whose hole has the mean colour of the rest, each row tells:

- class: the share of pictures that the judge (`experiments/demo_world/judge.py`) takes for the
  wanted class;
- edge: the colour's step across the hole's outline, as a multiple of that in the photos;
- seam: the largest such multiple from there to where the blend ends (`seams.seam`);
- kept: the share of pictures that are the photo, bit by bit, beyond the blend.

"as the next class" asks for another class than the photo's (class-conditional editing). Prints two
tables in Markdown; with --output_dir also writes the results (`experiments/studies/study.py`: a
stopped evaluation goes on) and `grid.png` (rows: photo, holes, sampled again, as the next class;
photo, sampled again).
"""

import dataclasses

from experiments.app import cli
from experiments.app.flag_groups import EditStudyFlags, read_edit_study
from experiments.demo_world.judge import load_demo_world_model
from experiments.studies.editing import study_editing
from experiments.studies.scenes import Edits
from experiments.studies.study import StudyFlags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(StudyFlags, EditStudyFlags):
    """What is edited, and where the results go."""


def main(flags: Flags) -> None:
    """Measures edits of held-out photos."""
    settings, record = read_edit_study(flags)
    model = load_demo_world_model(flags.model)
    edits = Edits(model, settings, flags.seed, flags.batch_size)
    study_editing(edits, flags.places(), record, flags.num_images)


if __name__ == "__main__":
    cli.run(main, Flags)
