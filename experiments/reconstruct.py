"""How much of a picture its ids tell: reconstruction with a random share of them hidden.

    python -m experiments.reconstruct --num_images=50 --output_dir=runs/reconstruction
    python -m experiments.reconstruct --images=photos --model=imagenet256

MaskGIT (arXiv:2202.04200), appendix A. Of each picture a random share of the ids, the mask ratio,
is hidden and made anew, twice with other masks. Prints a table: PSNR and perceptual distance
(`maskgit_jax/training/perceptual.py`) of picture and reconstruction, and that of the two
reconstructions, their diversity; ratio 0 is the tokenizer's round trip. The masks of a picture grow
with the ratio. With --output_dir also writes `reconstruction.json`, `reconstruction.png` (the
curves) and `grid.png` (for each picture: what is left of it, then what was made of that, ratio by
ratio).

The pictures are held-out photos of the demo world, or those of a folder, named CLASS_ANYTHING.png
or in a sub-folder for each class.
"""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Bool, Int, UInt8
from tqdm import tqdm

from experiments.app import cli, edit_flags
from experiments.app.batches import in_batches
from experiments.app.drawings import label_of_path
from experiments.app.files import to_json
from experiments.app.pictures import picture_files
from experiments.app.tables import Figures, markdown_table
from experiments.demo_world.held_out import EVAL_SEED, load_demo_world_model
from experiments.metrics.measures import mean_and_error, psnr
from experiments.studies.tradeoff import check_matplotlib
from experiments.training.datasets import draw_pictures
from maskgit_jax.editing.inpaint import EditSettings, decode, encode, remake
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, make_grid, read_image, save_png, to_float
from maskgit_jax.model import Model, load_model
from maskgit_jax.training.perceptual import perceptual_distance

# --help lists them too.
flags.adopt_module_key_flags(edit_flags)

_IMAGES = flags.DEFINE_string("images", None, "Folder of pictures, in place of the demo world's.")
_RATIOS = flags.DEFINE_list(
    "ratios", "0.25,0.5,0.6,0.7,0.8,0.85,0.9,0.95,1", "Shares of the ids to hide."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder for the results.")

_MASKS = 2
_COLUMNS = {
    "psnr": ("PSNR in dB", 2),
    "perceptual": ("perceptual distance", 4),
    "diversity": ("diversity", 4),
}
_GRID_ROWS = 4
_HIDDEN_GREY = 200
_BLUE, _ORANGE = "#0072B2", "#D55E00"

Pictures = UInt8[np.ndarray, "n S S 3"]


def main() -> None:
    """Reconstructs as the flags say."""
    settings, record = edit_flags.read()
    ratios = read_ratios()
    if _OUTPUT_DIR.value is not None:
        check_matplotlib()  # before minutes of sampling
    if _IMAGES.value is None:
        model = load_demo_world_model(flags.FLAGS.model)
        size = model.config.tokenizer.image_size
        photos, labels = draw_pictures(EVAL_SEED, flags.FLAGS.num_images, size)
    else:
        model = load_model(flags.FLAGS.model)
        photos, labels = read_pictures(Path(_IMAGES.value), model)
    folder = None if _OUTPUT_DIR.value is None else cli.output_folder(_OUTPUT_DIR)

    round_trips = decode(model, encode(model, photos))
    made = {0.0: [round_trips] * _MASKS}
    with tqdm(total=len(ratios) * _MASKS, desc="reconstructing", unit="round") as bar:
        for ratio in ratios:
            made[ratio] = []
            for number in range(_MASKS):
                made[ratio].append(reconstruct(model, photos, labels, ratio, number, settings))
                bar.update()
    rows = {f"{ratio:g} hidden": measure(photos, pair) for ratio, pair in made.items()}
    print(markdown_table(rows, _COLUMNS))
    print(f"n = {len(photos)} pictures; {settings.num_steps} steps, {settings.temperature:g}")
    if folder is None:
        return
    record |= {"images": _IMAGES.value, "num_images": len(photos)}
    text = to_json({"settings": record, "rows": rows}, indent=1)
    cli.write_text(folder / "reconstruction.json", text + "\n")
    save_png(folder / "reconstruction.png", plot(dict(zip(made, rows.values(), strict=True))))
    save_png(folder / "grid.png", draw_grid(photos, made, model.config.tokenizer.latent_size))
    print(f"look at {folder / 'reconstruction.png'} and {folder / 'grid.png'}")


def read_ratios() -> list[float]:
    """The values of --ratios, ascending."""
    try:
        ratios = sorted({float(text) for text in _RATIOS.value})
    except ValueError:
        ratios = []
    if not ratios or not 0 < ratios[0] <= ratios[-1] <= 1:
        text = ",".join(_RATIOS.value)
        raise InputError(f"--ratios={text}: expected numbers above 0 and up to 1, such as 0.5,0.9")
    return ratios


def read_pictures(folder: Path, model: Model) -> tuple[Pictures, Int[np.ndarray, "n"]]:
    """The first --num_images pictures of a folder, cropped to the model's size, and classes.

    Raises:
      InputError: fewer than two, or one that cannot be read or has no class.
    """
    files = picture_files(folder)[: flags.FLAGS.num_images]
    if len(files) < 2:
        raise InputError(f"--images={folder}: found {len(files)} pictures, expected 2 or more")
    labels = [label_of_path(path, model.config.class_names) for path in files]
    size = model.config.tokenizer.image_size
    images = [fit_image(read_image(path), size, mode="crop") for path in files]
    return np.stack(images), np.array(labels)


def reconstruct(
    model: Model,
    photos: Pictures,
    labels: Int[np.ndarray, "n"],
    ratio: float,
    number: int,
    settings: EditSettings,
) -> Pictures:
    """The photos with a random share of the ids made anew; `number` counts the masks."""
    num_tokens = model.config.transformer.sequence_length - 1
    seed = flags.FLAGS.seed

    def make(photos, labels, rows):
        return remake(
            model,
            photos,
            np.stack([random_mask(ratio, num_tokens, [seed, row, number]) for row in rows]),
            labels,
            settings,
            seed=seed,
            indices=rows * _MASKS + number,
        )

    rows = np.arange(len(photos))
    return in_batches(make, photos, labels, rows, size=flags.FLAGS.batch_size)


def random_mask(
    ratio: int | float, num_tokens: int, seed: Sequence[int | np.integer]
) -> Bool[np.ndarray, "N"]:
    """A random share of the ids; with the same seed, that of a larger ratio contains it."""
    return np.random.default_rng(seed).permutation(num_tokens) < round(ratio * num_tokens)


def measure(photos: Pictures, pair: list[Pictures]) -> Figures:
    """Figures of the reconstructions of each photo: their mean counts, they are no own draws."""

    def distance(images: Pictures, others: Pictures) -> np.ndarray:
        return np.asarray(perceptual_distance(*map(jnp.asarray, map(to_float, (images, others)))))

    return {
        "psnr": mean_and_error(
            np.mean([psnr(to_float(made), to_float(photos)) for made in pair], axis=0)
        ),
        "perceptual": mean_and_error(np.mean([distance(made, photos) for made in pair], axis=0)),
        "diversity": mean_and_error(distance(*pair)),
    }


def plot(figures: dict[float, Figures]) -> UInt8[np.ndarray, "h w 3"]:
    """PSNR, and perceptual distance with diversity, against the mask ratio."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    quality, distance = figure.subplots(1, 2)
    ratios = list(figures)

    def draw(axes, name, colour, label):
        values, errors = np.array([figures[ratio][name] for ratio in ratios]).T
        axes.errorbar(
            ratios, values, errors, color=colour, marker="o", capsize=4, lw=2, label=label
        )

    draw(quality, "psnr", _BLUE, None)
    draw(distance, "perceptual", _BLUE, "picture and reconstruction")
    draw(distance, "diversity", _ORANGE, "two reconstructions")
    quality.set_ylabel("PSNR in dB", fontsize=14)
    distance.set_ylabel("perceptual distance", fontsize=14)
    distance.set_ylim(bottom=0)
    distance.legend(fontsize=12)
    for axes in (quality, distance):
        axes.set_xlabel("mask ratio", fontsize=14)
        axes.tick_params(labelsize=12)
        axes.grid(alpha=0.3)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_grid(
    photos: Pictures, made: dict[float, list[Pictures]], latent_size: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Two rows for each photo: what is left of it, and what was made of that."""
    side = photos.shape[1] // latent_size
    images = []
    for row in range(min(_GRID_ROWS, len(photos))):
        for ratio in made:
            hidden = random_mask(ratio, latent_size**2, [flags.FLAGS.seed, row, 0])
            pixels = hidden.reshape(latent_size, latent_size).repeat(side, 0).repeat(side, 1)
            images.append(np.where(pixels[..., None], np.uint8(_HIDDEN_GREY), photos[row]))
        images += [pair[0][row] for pair in made.values()]
    return make_grid(images, columns=len(made), scale=max(1, 96 // photos.shape[1]))


if __name__ == "__main__":
    cli.run(main)
