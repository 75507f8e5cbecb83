"""Measures whether guided pictures follow their sketches and look like photos.

    python -m experiments.evaluate --model=demo --num_sketches=100 --output_dir=runs/evaluation

Takes held-out scenes of the demo world, samples from each one's sketch and label, and asks the
judge (`experiments/demo_world/judge.py`) where the object and its parts are and what it is. Prints
one table in Markdown: figures ± standard errors. With --output_dir also writes the results
(`experiments/studies/study.py`: a stopped evaluation goes on) and `grid.png` (rows: what guided,
guided, unguided, photo).

Columns. Like the sketch: overlap of the object with the scene's (IoU) and of its parts (part mIoU),
agreement of edges with the drawing's lines (F-score within 1/24 of the side, mean distance in
sides), share of pictures of the right class, structure distance. Like a photo: Fréchet distance,
precision and recall of the judge's features against photos of other scenes; share of pictures whose
object's largest part has one colour. Like a copy of the sketch: share of white backgrounds and of
the commonest background, share of the ids inside the object that are the sketch's own.

Rows. Ceilings: the scenes' photos and their tokenizer round trips. Floors: "unguided" is plain
MaskGIT sampling of the same classes, "lambda_s = 0" guided sampling without structure, "guided,
other sketches" the guided pictures held against another scene; the sketches themselves, handed back
as answers, show what the columns of likeness alone would miss.

--condition takes another drawing of the scene than its outline sketch. --lambda_s_curve adds a row
for each given λ_s and draws `tradeoff.png`.

--drawings=FOLDER samples from drawings by people instead: files named CLASS_ANYTHING.png, or in a
sub-folder for each class; or a pattern, quoted, or a .csv file, as in `experiments.sweep`. Nobody
knows the picture behind them, so two figures are left: class accuracy, and the share of samples
that are nearer in structure to their own drawing than to another of the folder, of the same class
or of any other.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.app import cli
from experiments.app.flag_groups import GuidanceFlags, read_guidance
from experiments.demo_world.judge import load_demo_world_model
from experiments.studies.plots import check_matplotlib
from experiments.studies.scenes import Sampling
from experiments.studies.sketches import study_drawings, study_scenes
from experiments.studies.study import StudyFlags
from maskgit_jax.errors import InputError
from maskgit_jax.knobs import knob

_FEWEST = 5  # the third neighbour needs four, the jackknife one more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(StudyFlags, GuidanceFlags):
    """What is evaluated."""

    SEVERAL = ("lambda_s_curve",)

    num_sketches: int = knob(100, "Held-out scenes to sample from.", low=_FEWEST)
    num_reference: int = knob(2000, "Photos to compare features with.", low=_FEWEST)
    condition: str = knob(
        "sketch", "The drawing of a scene that guides.", choices=("sketch", "scribble", "edges")
    )
    lambda_s_curve: Sequence[float] = knob(
        (), "More rows, one for each λ_s: 0,0.5,1.", kind=float, low=0.0, high=1.0
    )
    drawings: str | None = knob(
        None, "People's drawings, in place of scenes: folder, pattern or .csv file.", kind=Path
    )
    unguided_steps: int | None = knob(None, "Steps of plain MaskGIT sampling.", kind=int, low=1)


def main(flags: Flags) -> None:
    """Evaluates guidance on scenes or on drawings."""
    if flags.lambda_s_curve and flags.output_dir is not None:
        check_matplotlib()  # before hours of sampling
    if flags.drawings is not None and (flags.lambda_s_curve or flags.condition != "sketch"):
        raise InputError("--drawings takes no --lambda_s_curve and no --condition")
    model = load_demo_world_model(flags.model, flags.dtype)
    sampling = Sampling(model, read_guidance(flags, model.config), flags.batch_size)
    unguided_steps = flags.unguided_steps or model.config.presets["maskgit"]["num_steps"]
    places = flags.places()
    if flags.drawings is not None:
        study_drawings(sampling, places, flags.drawings, unguided_steps)
        return
    study_scenes(
        sampling,
        places,
        num_sketches=flags.num_sketches,
        num_reference=flags.num_reference,
        condition=flags.condition,
        unguided_steps=unguided_steps,
        curve=list(flags.lambda_s_curve),
    )


if __name__ == "__main__":
    cli.run(main, Flags)
