"""What `sketch`, `edit` and `stroke` share: numbered samples of one input, and their grid."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from experiments.app import digests
from experiments.app.batches import Batch, make_batches
from experiments.app.run_folder import RESULTS, Finished, Line, Picture, RunFolder, read_picture
from maskgit_jax.editing.canvas import outlined, resize
from maskgit_jax.editing.masks import fit_mask
from maskgit_jax.errors import InputError
from maskgit_jax.images import make_grid, png_bytes
from maskgit_jax.model import Model

GRID = "grid.png"
_GRID_SIDE = 384

Progress = Callable[[int], None]
Sample = Callable[[Batch, Progress], tuple[Sequence[Picture], Sequence[Line]]]
"""`sample(batch, progress)`: the batch's pictures, and what is measured of each.

`progress` is to be called with the number of steps done."""


def make_pictures(
    folder: RunFolder,
    record: dict[str, Any],
    *,
    inputs: Mapping[str, str | None],
    load: Callable[[], Model],
    sampler: Callable[[Model], Sample],
    num_samples: int,
    batch_size: int,
    num_steps: int,
    sheet: Callable[[list[Picture]], Picture],
    shown: Mapping[str, Picture] | None = None,
) -> list[Line]:
    """Makes the samples that the folder lacks, then its grid.

    Args:
      folder: an earlier run's results there are replaced, those of the same run are kept.
      record: what decides the samples but the weights and the content of `inputs`; each line has
        it.
      inputs: files that are read, by the flag that names them.
      load: gives the model, once all else is checked.
      sampler: gives what makes samples with the model.
      num_samples: how many.
      batch_size: samples made together at most.
      num_steps: of a batch.
      sheet: the grid of the samples.
      shown: pictures to be written beside the samples, by file.

    Returns:
      The lines of `results.jsonl`.

    Raises:
      InputError: a result would replace an input, and what `RunFolder.claim` raises.
    """
    shown = shown or {}
    names = [f"sample_{index:03d}.png" for index in range(num_samples)]
    files = [RESULTS, GRID, *shown, *names]
    inputs = {flag: path for flag, path in inputs.items() if path is not None}
    for flag, path in inputs.items():
        if Path(path).resolve() in {Path(folder.path / name).resolve() for name in files}:
            raise InputError(f"--{flag}={path} would be overwritten: give another --output_dir")
    plan = record | {"num_samples": num_samples, "files": files}
    plan |= {f"{flag}_digest": digests.of_path(path) for flag, path in inputs.items()}
    with folder.claim(plan):
        model = load()
        plan["weights"] = digests.of_weights(model)
        folder.open(plan, shown)
        get_sample = functools.cache(lambda: sampler(model))

        def make(batch: Batch, first: bool, progress: Progress):
            start = time.perf_counter()
            pictures, measures = get_sample()(batch, progress)
            seconds = (time.perf_counter() - start) / batch.count
            lines = [
                {
                    "file": names[index],
                    "index": index,
                    **measure,
                    "seconds_per_sample": round(seconds, 3),
                    "includes_compilation": first,
                    **record,
                }
                for index, measure in enumerate(measures, batch.first)
            ]
            return [Finished(*each) for each in zip(pictures, lines, strict=True)], None

        folder.make_missing(
            make_batches(num_samples, batch_size),
            make,
            items=lambda batch: batch.rows.tolist(),
            num_steps=lambda _: num_steps,
        )
        folder.merge()
        lines = list(folder.finished().values())
        if not (folder.path / GRID).exists():
            pictures = [read_picture(folder.path / line["file"]) for line in lines]
            folder.write(GRID, png_bytes(sheet(pictures)))
    return lines


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
