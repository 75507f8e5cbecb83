"""From a sketch to pictures.

    python -m experiments.sketch --sketch=my.png --label=house --num_samples=8 --output_dir=out
    python -m experiments.sketch --sketch=drawings --num_samples=2

Without arguments: a sample sketch and the demo model. Of a folder, all pictures in it are sketches;
their names say their classes (house_1.png, house/1.png), or --label does. Writes the pictures as
they are made, `results.jsonl` (one line per picture) and in the end `grid.png` (the sketch first;
of several, a row for each). A stopped run goes on when the same command is given again; those of
other settings are replaced.
"""

import dataclasses
from importlib.resources import files
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.app import cli
from experiments.app.batches import Batch
from experiments.app.drawings import read_drawings
from experiments.app.flag_groups import GuidanceFlags, SketchFlags, read_guidance
from experiments.app.picture_job import GRID, PictureFlags, make_pictures
from experiments.app.run_folder import Picture, Progress
from guidance import masksketch
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid
from maskgit_jax.knobs import knob
from maskgit_jax.model import Model, model_config, with_class_token

_MOST_ENLARGED = 200  # pictures in a grid
_SAMPLE_LABEL = "house"
_SAMPLE_SKETCH = str(files("experiments") / "sketches" / "house.png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(GuidanceFlags, PictureFlags, SketchFlags):
    """What is sketched."""

    sketch: str | None = knob(
        None,
        "Picture file, or several: a folder, a pattern or a .csv file of sketch,label; a sample "
        "sketch when not given.",
        kind=Path,
    )
    label: str | None = knob(
        None, "Class of the pictures: a name or a number; the names of several sketches say theirs."
    )
    num_samples: int = knob(8, "Pictures to make of each sketch.", low=1, high=10_000)


def main(flags: Flags) -> None:
    """Samples pictures that follow a sketch."""
    source, label = flags.sketch, flags.label
    if source is None:
        source, label = _SAMPLE_SKETCH, _SAMPLE_LABEL if label is None else label
    elif label is None and Path(source).is_file() and not source.lower().endswith(".csv"):
        raise InputError("--sketch without --label: say what it shows, such as --label=house")
    config = model_config(flags.model)
    guided = read_guidance(flags, config)
    names, size = config.class_names, config.tokenizer.image_size
    drawings = read_drawings(
        "sketch", source, names, size, label=label, fit=flags.fit, invert=flags.invert
    )
    images = np.stack([drawing.image for drawing in drawings])

    def sampler(model: Model):
        labels = jnp.array([drawing.label for drawing in drawings])
        tokens = with_class_token(config, labels, model.ids_of(images))

        def sample(batch: Batch, progress: Progress):
            samples = masksketch.sample(
                model,
                tokens[batch.rows // flags.num_samples],
                guided.settings,
                num_steps=guided.num_steps,
                seed=flags.seed,
                indices=jnp.asarray(batch.rows % flags.num_samples),
                **guided.options,
                progress=progress,
            )
            distances = samples.structure_distance[: batch.count]
            measures = [{"structure_distance": round(float(each), 6)} for each in distances]
            return model.images_of(samples.ids)[: batch.count], measures

        return sample

    def sheet(pictures: list[Picture]) -> Picture:
        """A row for each of several sketches, the sketch first."""
        scale = max(1, 192 // size)
        if len(drawings) == 1:
            return make_grid([*images, *pictures], scale=scale)
        rows = np.stack(pictures).reshape(len(drawings), flags.num_samples, *images.shape[1:])
        rows = np.concatenate([images[:, None], rows], axis=1)
        scale = scale if rows.shape[0] * rows.shape[1] <= _MOST_ENLARGED else 1
        return make_grid(rows.reshape(-1, *images.shape[1:]), columns=rows.shape[1], scale=scale)

    parts = [
        {
            "sketch": drawing.path,
            "label": drawing.label,
            "class_name": names[drawing.label],
            "fit": drawing.fit,
            **({"changes": list(drawing.changes)} if drawing.changes else {}),
            **guided.record,
        }
        for drawing in drawings
    ]
    several = {"sketches": [each.record(names) for each in drawings], **guided.record}
    paths = [drawing.path for drawing in drawings]
    folder, lines = make_pictures(
        "sketch",
        flags,
        parts[0] if len(parts) == 1 else several,
        parts=parts,
        inputs={"sketch": paths[0] if len(paths) == 1 else paths},
        sampler=sampler,
        num_steps=guided.num_steps,
        sheet=sheet,
    )
    mean = np.mean([line["structure_distance"] for line in lines])
    print(f"{len(lines)} pictures in {folder}, mean structure distance {mean:.4f}")
    print(f"look at {folder / GRID}")


if __name__ == "__main__":
    cli.run(main, Flags)
