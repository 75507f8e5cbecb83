"""From a sketch to pictures.

    python -m experiments.sketch --sketch=my.png --label=house --num_samples=8 --output_dir=out

Without arguments: a sample sketch and the demo model. Writes the pictures as they are made,
`results.jsonl` (one line per picture) and in the end `grid.png` (the sketch first). A stopped run
goes on when the same command is given again; those of other settings are replaced.
"""

import dataclasses
from importlib.resources import files
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.app import cli
from experiments.app.batches import Batch
from experiments.app.flag_groups import GuidanceFlags, read_guidance
from experiments.app.picture_job import GRID, PictureFlags, make_pictures
from experiments.app.run_folder import Progress
from guidance import masksketch
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, make_grid, read_image
from maskgit_jax.knobs import knob
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, model_config, with_class_token

_SAMPLE_LABEL = "house"
_SAMPLE_SKETCH = str(files("experiments") / "sketches" / "house.png")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(GuidanceFlags, PictureFlags):
    """What is sketched, and how it becomes a square."""

    sketch: str | None = knob(None, "Picture file; a sample sketch when not given.", kind=Path)
    label: str | None = knob(None, "Class of the pictures: a name or a number.")
    num_samples: int = knob(8, "Pictures to make.", low=1, high=10_000)
    fit: str = knob("pad", "How a sketch that is not square fits.", choices=("pad", "crop"))


def main(flags: Flags) -> None:
    """Samples pictures that follow a sketch."""
    path, label_text = flags.sketch, flags.label
    if path is None:
        path = _SAMPLE_SKETCH
        label_text = _SAMPLE_LABEL if label_text is None else label_text
    elif label_text is None:
        raise InputError("--sketch without --label: say what it shows, such as --label=house")
    config = model_config(flags.model)
    sketch = fit_image(read_image(path), config.tokenizer.image_size, mode=flags.fit)
    label = find_label(label_text, config.class_names)
    guided = read_guidance(flags, config)

    def sampler(model: Model):
        tokens = with_class_token(config, jnp.array([label]), model.ids_of(sketch[None]))

        def sample(batch: Batch, progress: Progress):
            samples = masksketch.sample(
                model,
                jnp.tile(tokens, (len(batch.rows), 1)),
                guided.settings,
                num_steps=guided.num_steps,
                seed=flags.seed,
                indices=jnp.asarray(batch.rows),
                **guided.options,
                progress=progress,
            )
            distances = samples.structure_distance[: batch.count]
            measures = [{"structure_distance": round(float(each), 6)} for each in distances]
            return model.images_of(samples.ids)[: batch.count], measures

        return sample

    folder, lines = make_pictures(
        "sketch",
        flags,
        {
            "sketch": path,
            "label": label,
            "class_name": config.class_names[label],
            "fit": flags.fit,
            **guided.record,
        },
        inputs={"sketch": path},
        sampler=sampler,
        num_steps=guided.num_steps,
        sheet=lambda pictures: make_grid([sketch, *pictures], scale=max(1, 192 // len(sketch))),
    )
    mean = np.mean([line["structure_distance"] for line in lines])
    print(f"{len(lines)} pictures in {folder}, mean structure distance {mean:.4f}")
    print(f"look at {folder / GRID}")


if __name__ == "__main__":
    cli.run(main, Flags)
