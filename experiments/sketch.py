"""From a sketch to pictures.

    python -m experiments.sketch --sketch=my.png --label=house --num_samples=8 --output_dir=out

Without arguments: a sample sketch and the demo model. Writes the pictures, `grid.png` (the sketch
first) and `results.jsonl` (one line per picture); an earlier run's in the same folder are replaced.
"""

import dataclasses
import time
from importlib.resources import files
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from experiments.app import cli
from experiments.app.batches import Batch, make_batches
from experiments.app.flag_groups import GuidanceFlags, Guided, read_guidance
from experiments.app.sample_folder import check_not_replaced, write_samples
from guidance import masksketch
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, make_grid, read_image, to_float, to_uint8
from maskgit_jax.knobs import knob
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, load_model, model_config, with_class_token

_SAMPLE_SKETCH = Path(str(files("experiments"))) / "sketches" / "house.png"
_SAMPLE_LABEL = "house"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(GuidanceFlags):
    """What is sketched, and where the pictures go."""

    sketch: str | None = knob(None, "Picture file; a sample sketch when not given.", kind=Path)
    label: str | None = knob(None, "Class of the pictures: a name or a number.")
    num_samples: int = knob(8, "Pictures to make.", low=1, high=10_000)
    output_dir: str = knob("out", "Folder for the results.", kind=Path)
    fit: str = knob("pad", "How a sketch that is not square fits.", choices=("pad", "crop"))


def main(flags: Flags) -> None:
    """Samples pictures that follow a sketch."""
    sketch_path, label_text = flags.sketch, flags.label
    if sketch_path is None:
        sketch_path, label_text = str(_SAMPLE_SKETCH), label_text or _SAMPLE_LABEL
    elif label_text is None:
        raise InputError("--sketch without --label: say what it shows, such as --label=house")
    image = read_image(sketch_path)
    # All that can be wrong is looked at before anything large is fetched or made.
    config = model_config(flags.model)
    label = find_label(label_text, config.class_names)
    guided = read_guidance(flags, config)
    model = load_model(flags.model, dtype=flags.dtype)
    output_dir = cli.output_folder(flags.output_dir)
    check_not_replaced("sketch", sketch_path, output_dir)

    sketch = fit_image(image, config.tokenizer.image_size, mode=flags.fit)
    ids = model.encode(jnp.asarray(to_float(sketch))[None])
    tokens = with_class_token(config, jnp.array([label]), ids)
    pictures, lines = [], []
    batches = make_batches(flags.num_samples, flags.batch_size)
    with tqdm(total=len(batches) * guided.num_steps, desc="compiling", unit="step") as bar:
        for batch in batches:
            start = time.perf_counter()
            drawn, distances = _sample(model, tokens, guided, batch, bar)
            seconds = (time.perf_counter() - start) / batch.count
            pictures.extend(drawn)
            for index, distance in enumerate(distances, batch.first):
                lines.append(
                    {
                        "file": f"sample_{index:03d}.png",
                        "index": index,
                        "structure_distance": round(float(distance), 6),
                        "seconds_per_sample": round(seconds, 3),
                        "includes_compilation": batch is batches[0],
                        "sketch": str(sketch_path),
                        "label": label,
                        "class_name": config.class_names[label],
                        "fit": flags.fit,
                        **guided.record,
                    }
                )
    grid = make_grid([sketch, *pictures], scale=max(1, 192 // len(sketch)))
    write_samples(output_dir, pictures, lines, grid)
    mean = np.mean([line["structure_distance"] for line in lines])
    print(f"{len(lines)} pictures in {output_dir}, mean structure distance {mean:.4f}")
    print(f"look at {output_dir / 'grid.png'}")


def _sample(
    model: Model,
    tokens: Int[Array, "1 S"],
    guided: Guided,
    batch: Batch,
    bar: tqdm,
) -> tuple[list[UInt8[np.ndarray, "H W 3"]], Float[np.ndarray, "b"]]:
    """Pictures and structure distances of one batch; moves the bar with each step."""
    first = bar.n

    def progress(done: int) -> None:
        if done:
            bar.set_description("sampling", refresh=False)
        bar.update(first + done - bar.n)

    samples = masksketch.sample(
        model,
        jnp.tile(tokens, (len(batch.rows), 1)),
        guided.settings,
        num_steps=guided.num_steps,
        seed=guided.record["seed"],
        indices=jnp.asarray(batch.rows),
        **guided.options._asdict(),
        progress=progress,
    )
    # One at a time: in a batch, a pixel's rounding could depend on the batch's size.
    ids, distances = (np.asarray(each)[: batch.count] for each in samples)
    return [to_uint8(np.asarray(model.decode(row[None])[0])) for row in ids], distances


if __name__ == "__main__":
    cli.run(main, Flags)
