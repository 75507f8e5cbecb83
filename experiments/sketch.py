"""From a sketch to pictures.

    python -m experiments.sketch --sketch=my.png --label=house --num_samples=8 --output_dir=out

Without arguments: a sample sketch and the demo model. Writes the pictures as they are made,
`results.jsonl` (one line per picture) and in the end `grid.png` (the sketch first). A stopped run
goes on when the same command is given again; those of other settings are replaced.
"""

from importlib.resources import files
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.app import cli, guidance_flags
from experiments.app.batches import Batch
from experiments.app.picture_job import GRID, Progress, make_pictures
from experiments.app.run_folder import RunFolder
from guidance import masksketch
from maskgit_jax.editing.inpaint import decode, encode
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, make_grid, read_image
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, load_model, model_config, with_class_token

_SAMPLE_SKETCH = Path(str(files("experiments"))) / "sketches" / "house.png"
_SAMPLE_LABEL = "house"
_MOST_SAMPLES = 10_000

# --help lists them too.
flags.adopt_module_key_flags(guidance_flags)

_SKETCH = flags.DEFINE_string("sketch", None, "Picture file; a sample sketch when not given.")
_LABEL = flags.DEFINE_string("label", None, "Class of the pictures: a name or a number.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 8, "Pictures to make.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "out", "Folder for the results.")
_FIT = flags.DEFINE_enum("fit", "pad", ["pad", "crop"], "How a sketch that is not square fits.")


def main() -> None:
    """Makes pictures as the flags say."""
    if not 1 <= _NUM_SAMPLES.value <= _MOST_SAMPLES:
        raise InputError(f"--num_samples={_NUM_SAMPLES.value}: expected 1 to {_MOST_SAMPLES}")
    sketch_path, label_text = _SKETCH.value, _LABEL.value
    if sketch_path is None:
        sketch_path, label_text = str(_SAMPLE_SKETCH), label_text or _SAMPLE_LABEL
    elif label_text is None:
        raise InputError("--sketch without --label: say what it shows, such as --label=house")
    config = model_config(flags.FLAGS.model)
    sketch = fit_image(read_image(sketch_path), config.tokenizer.image_size, mode=_FIT.value)
    label = find_label(label_text, config.class_names)
    guided = guidance_flags.read(config)

    def sampler(model: Model):
        ids = jnp.asarray(encode(model, sketch[None]))
        tokens = with_class_token(config, jnp.array([label]), ids)

        def sample(batch: Batch, progress: Progress):
            samples = masksketch.sample(
                model,
                jnp.tile(tokens, (len(batch.rows), 1)),
                guided.settings,
                num_steps=guided.num_steps,
                seed=guided.record["seed"],
                indices=jnp.asarray(batch.rows),
                **guided.choices._asdict(),
                progress=progress,
            )
            ids, distances = (np.asarray(each)[: batch.count] for each in samples)
            measures = [{"structure_distance": round(float(each), 6)} for each in distances]
            return decode(model, ids), measures

        return sample

    folder = RunFolder(_OUTPUT_DIR.value, "sketch")
    lines = make_pictures(
        folder,
        {
            "sketch": str(sketch_path),
            "label": label,
            "class_name": config.class_names[label],
            "fit": _FIT.value,
            **guided.record,
        },
        inputs={"sketch": sketch_path},
        load=lambda: load_model(flags.FLAGS.model, dtype=flags.FLAGS.dtype),
        sampler=sampler,
        num_samples=_NUM_SAMPLES.value,
        batch_size=flags.FLAGS.batch_size,
        num_steps=guided.num_steps,
        sheet=lambda pictures: make_grid([sketch, *pictures], scale=max(1, 192 // len(sketch))),
    )
    mean = np.mean([line["structure_distance"] for line in lines])
    print(f"{len(lines)} pictures in {folder.path}, mean structure distance {mean:.4f}")
    print(f"look at {folder.path / GRID}")


if __name__ == "__main__":
    cli.run(main)
