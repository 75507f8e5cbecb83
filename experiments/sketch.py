"""From a sketch to pictures.

    python -m experiments.sketch --sketch=my.png --label=house --num_samples=8 --output_dir=out

Without arguments: a sample sketch and the demo model. Writes the pictures, `grid.png` (the sketch
first) and `results.jsonl` (one line per picture); an earlier run's in the same folder are replaced.
"""

import json
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import cli, guidance_flags
from guidance import masksketch
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, make_grid, read_image, save_png, to_float, to_uint8
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, load_model, with_class_token

_SAMPLE_SKETCH = Path(__file__).parent / "sketches" / "house.png"
_SAMPLE_LABEL = "house"

# --help lists them too.
flags.adopt_module_key_flags(guidance_flags)

_SKETCH = flags.DEFINE_string("sketch", None, "Picture file; a sample sketch when not given.")
_LABEL = flags.DEFINE_string("label", None, "Class of the pictures: a name or a number.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 8, "Pictures to make.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "out", "Folder for the results.")
_FIT = flags.DEFINE_enum("fit", "pad", ["pad", "crop"], "How a sketch that is not square fits.")


def main() -> None:
    """Makes pictures as the flags say."""
    if _NUM_SAMPLES.value < 1:
        raise InputError(f"--num_samples={_NUM_SAMPLES.value}: expected 1 or more")
    sketch_path, label_text = _SKETCH.value, _LABEL.value
    if sketch_path is None:
        sketch_path, label_text = str(_SAMPLE_SKETCH), label_text or _SAMPLE_LABEL
    elif label_text is None:
        raise InputError("--sketch without --label: say what it shows, such as --label=house")
    image = read_image(sketch_path)
    model = load_model(flags.FLAGS.model)
    label = find_label(label_text, model.config.class_names)
    guided = guidance_flags.read(model.config.transformer.num_layers)
    output_dir = cli.output_folder(_OUTPUT_DIR)

    sketch = fit_image(image, model.config.tokenizer.image_size, mode=_FIT.value)
    pictures, lines = [], []
    for batch in guidance_flags.batches(_NUM_SAMPLES.value):
        start = time.perf_counter()
        drawn, distances = _sample(model, sketch, label, guided, batch)
        seconds = (time.perf_counter() - start) / len(batch)
        pictures.extend(drawn)
        for index, distance in zip(batch, distances, strict=True):
            lines.append(
                {
                    "file": f"sample_{index:03d}.png",
                    "index": index,
                    "structure_distance": round(float(distance), 6),
                    "seconds_per_sample": round(seconds, 3),
                    "sketch": str(sketch_path),
                    "label": label,
                    "class_name": model.config.class_names[label],
                    "fit": _FIT.value,
                    **guided.record,
                }
            )

    # An earlier run's pictures would pass for this one's.
    for path in output_dir.glob("sample_*.png"):
        path.unlink()
    for line, picture in zip(lines, pictures, strict=True):
        save_png(output_dir / line["file"], picture)
    scale = max(1, 192 // model.config.tokenizer.image_size)
    save_png(output_dir / "grid.png", make_grid([sketch, *pictures], scale=scale))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (output_dir / "results.jsonl").write_text(text, encoding="utf-8")
    mean = np.mean([line["structure_distance"] for line in lines])
    print(f"{len(lines)} pictures in {output_dir}, mean structure distance {mean:.4f}")
    print(f"look at {output_dir / 'grid.png'}")


def _sample(model: Model, sketch, label: int, guided, batch: range):
    """Pictures (uint8) and structure distances of one batch, with progress on stderr."""
    ids = model.encode(jnp.asarray(to_float(sketch))[None])
    tokens = with_class_token(model.config, jnp.array([label]), ids)
    with tqdm(total=guided.num_steps, desc="compiling", unit="step") as bar:

        def progress(done: int) -> None:
            if done:
                bar.set_description(f"samples {batch.start}-{batch.stop - 1}", refresh=False)
            bar.update(done - bar.n)

        samples = masksketch.sample(
            model,
            jnp.tile(tokens, (len(batch), 1)),
            guided.settings,
            num_steps=guided.num_steps,
            seed=guided.record["seed"],
            indices=jnp.arange(batch.start, batch.stop),
            divergence=guided.divergence,
            progress=progress,
        )
    pictures = to_uint8(np.asarray(model.decode(samples.ids)))
    return list(pictures), np.asarray(samples.structure_distance)


if __name__ == "__main__":
    cli.run(main)
