"""What `sketch`, `edit` and `stroke` share: numbered samples of one input, and their grid."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool

from experiments.app import digests
from experiments.app.batches import Batch, make_batches
from experiments.app.flag_groups import SampleFlags
from experiments.app.run_folder import (
    RESULTS,
    Finished,
    Line,
    Picture,
    Progress,
    RunFolder,
    read_picture,
)
from maskgit_jax.config import ModelConfig
from maskgit_jax.editing.canvas import outlined, resize
from maskgit_jax.editing.masks import fit_mask
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, png_bytes, read_image
from maskgit_jax.knobs import knob
from maskgit_jax.labels import find_label
from maskgit_jax.model import Model, load_model

GRID = "grid.png"
_GRID_SIDE = 384

Sample = Callable[[Batch, Progress], tuple[Sequence[Picture], Sequence[Line]]]
"""`sample(batch, progress)`: the batch's pictures, and what is measured of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureFlags(SampleFlags):
    """How many samples, and where they go."""

    num_samples: int = knob(4, "Pictures to make.", low=1, high=10_000)
    output_dir: str = knob("out", "Folder for the results.", kind=Path)


def make_pictures(
    command: str,
    flags: PictureFlags,
    record: dict[str, Any],
    *,
    parts: Sequence[dict[str, Any]] | None = None,
    inputs: Mapping[str, str | Sequence[str] | None],
    sampler: Callable[[Model], Sample],
    num_steps: int,
    sheet: Callable[[list[Picture]], Picture],
    shown: Mapping[str, Picture] | None = None,
) -> tuple[epath.Path, list[Line]]:
    """Makes the samples that the folder lacks, then its grid.

    What an earlier run of the command with other settings has left there is replaced.

    Args:
      command: module of `experiments` that runs.
      flags: its own.
      record: what decides the samples but the weights and the content of `inputs`.
      parts: what the lines have in its place; --num_samples are made of each.
      inputs: files that are read, by the flag that names them; the record says what is in several.
      sampler: gives what makes samples with the model; called once all else is checked.
      num_steps: of a batch.
      sheet: the grid of the samples.
      shown: pictures to be written beside the samples, by file.

    Returns:
      The folder, and the lines of its `results.jsonl`.

    Raises:
      InputError: a result would replace an input, and what `RunFolder.claim` raises.
    """
    folder, shown, parts = RunFolder(flags.output_dir, command), shown or {}, parts or [record]
    count = len(parts) * flags.num_samples
    names = [f"sample_{index:03d}.png" for index in range(count)]
    files = [RESULTS, GRID, *shown, *names]
    results = {Path(folder.path / name).resolve() for name in files}
    plan = record | {"num_samples": flags.num_samples, "files": files}
    for flag, given in inputs.items():
        if isinstance(given, str):
            plan[f"{flag}_digest"] = digests.of_path(given)
        for path in [given] if isinstance(given, str) else given or ():
            if Path(path).resolve() in results:
                raise InputError(f"--{flag}={path} would be overwritten: give another --output_dir")
    with folder.claim(plan):  # before anything large is loaded
        model = load_model(flags.model, dtype=flags.dtype)
        folder.open(plan | {"weights": digests.of_weights(model)}, shown)
        get_sample = functools.cache(lambda: sampler(model))

        def make(batch: Batch, first: bool, progress: Progress):
            start = time.perf_counter()
            pictures, measures = get_sample()(batch, progress)
            seconds = (time.perf_counter() - start) / batch.count
            lines = [
                {
                    "file": names[index],
                    "index": index,
                    **measured,
                    "seconds_per_sample": round(seconds, 3),
                    "includes_compilation": first,
                    **parts[index // flags.num_samples],
                }
                for index, measured in enumerate(measures, batch.first)
            ]
            return [Finished(*each) for each in zip(pictures, lines, strict=True)], None

        folder.make_missing(
            make_batches(count, flags.batch_size),
            make,
            items=lambda batch: batch.rows.tolist(),
            num_steps=lambda _: num_steps,
        )
        folder.merge()
        lines = list(folder.finished().values())
        if not (folder.path / GRID).exists():
            pictures = [read_picture(folder.path / line["file"]) for line in lines]
            folder.write(GRID, png_bytes(sheet(pictures)))
    return folder.path, lines


def find_wanted(image: str | None, label: str | None, config: ModelConfig) -> tuple[Picture, int]:
    """The picture and the class that --image and --label name; InputError if one is missing."""
    if image is None:
        raise InputError("no --image: give the picture to edit, such as --image=photo.png")
    if label is None:
        raise InputError("--image without --label: say what is to be seen, such as --label=house")
    return read_image(image), find_label(label, config.class_names)


def repeat_rows(batch: Batch, *arrays: np.ndarray) -> list[np.ndarray]:
    """Each array once for every row of a batch."""
    return [np.repeat(array[None], len(batch.rows), axis=0) for array in arrays]


def contact_sheet(
    image: Picture,
    mask: Bool[np.ndarray, "H W"],
    pictures: Sequence[Picture],
    *,
    side: int,
    columns: int | None = None,
) -> Picture:
    """The picture with its mask outlined, then others of its size; shrunk where `side` is large."""
    scale = min(1.0, _GRID_SIDE / side)
    height, width = (max(1, round(length * scale)) for length in mask.shape)
    small = [outlined(resize(image, height, width), fit_mask(mask, height, width))]
    small += [resize(picture, height, width) for picture in pictures]
    return make_grid(small, columns=columns, scale=max(1, _GRID_SIDE // 2 // side))
