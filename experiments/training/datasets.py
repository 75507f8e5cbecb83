"""What is trained on: the demo world, or any folder of pictures with one sub-folder per class.

Both are a `Dataset`: the batch of a training step is a function of seed and step alone, so a
killed run goes on with the same data; held-out pictures are fixed and never trained on.
"""

import dataclasses
import hashlib
import io
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image
from tqdm import tqdm

from experiments.app.files import write_whole
from experiments.demo_world import world
from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, read_image

TRAIN_SEED = 0
"""The world's pictures of this seed are trained on; every other seed is held out."""

VALIDATION_SEED = 4
"""The held-out pictures that a training run looks at."""

Batch = tuple[Shaped[np.ndarray, "_ ..."], Int[np.ndarray, "_"]]
"""Pictures (uint8), or what stands for them, and labels."""

Encode = Callable[[UInt8[np.ndarray, "n H W 3"]], Shaped[np.ndarray, "n ..."]]
"""What stands for pictures."""

_PART = 100  # pictures drawn and encoded together


@runtime_checkable
class Dataset(Protocol):
    """Pictures to train on and pictures held out.

    Attributes:
      class_names: of the labels.
    """

    class_names: tuple[str, ...]

    def batch(self, step: int) -> Batch:
        """The batch of a training step."""

    def held_out(self) -> Batch:
        """All pictures held out."""


@dataclasses.dataclass(frozen=True)
class ArrayDataset:
    """Rows in memory, sampled with replacement."""

    train: Batch
    validation: Batch
    class_names: tuple[str, ...]
    seed: int
    batch_size: int

    def batch(self, step: int) -> Batch:
        rows = batch_indices(self.seed, step, self.batch_size, len(self.train[1]))
        return tuple(array[rows] for array in self.train)

    def held_out(self) -> Batch:
        return self.validation


def batches_of(rows: tuple[np.ndarray, ...], batch_size: int) -> list[tuple[np.ndarray, ...]]:
    """Rows in batches of one size, what is left over dropped; fewer rows than that are one."""
    size = min(batch_size, len(rows[0]))
    return [
        tuple(array[i : i + size] for array in rows)
        for i in range(0, len(rows[0]) - size + 1, size)
    ]


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> Int[np.ndarray, "b"]:
    """The pictures of one step's batch: a function of seed and step, so a run can resume."""
    return np.random.default_rng([seed, step]).integers(num_images, size=batch_size)


def draw_pictures(
    seed: int, num_images: int, size: int, encode: Encode = lambda pictures: pictures
) -> Batch:
    """The first pictures of a seed of the demo world, or what stands for them, and their labels.

    Photos only: masks and sketches are never trained on. A part at a time is drawn and encoded:
    the pictures of a long training fill gigabytes.
    """
    rows: np.ndarray | None = None
    labels = np.empty(num_images, np.int32)
    with tqdm(total=num_images, desc="drawing pictures", unit="", mininterval=1) as bar:
        for first in range(0, num_images, _PART):
            scenes = [
                # The last part is filled up, so that `encode` meets one size alone.
                world.draw_scene(seed, min(i, num_images - 1), size=size)
                for i in range(first, first + min(_PART, num_images))
            ]
            part = encode(np.stack([scene.image for scene in scenes]))
            if rows is None:
                rows = np.empty((num_images, *part.shape[1:]), part.dtype)
            last = min(first + _PART, num_images)
            rows[first:last] = part[: last - first]
            labels[first:last] = [scene.label for scene in scenes[: last - first]]
            bar.update(last - first)
    return rows, labels


def demo_world(
    size: int,
    *,
    num_images: int,
    num_held_out: int,
    seed: int,
    batch_size: int,
    encode: Encode = lambda pictures: pictures,
    kept: Path | None = None,
    encoder: str = "",
) -> ArrayDataset:
    """The demo world's pictures, or what `encode` makes of them, drawn now and kept in memory.

    Args:
      size: side of the pictures in pixels.
      num_images: to train on.
      num_held_out: for validation.
      seed: of the batches.
      batch_size: pictures per step.
      encode: called with parts of the pictures.
      kept: a file that holds what an earlier call made, or will.
      encoder: tells `encode` from others in that file.
    """
    counts = {TRAIN_SEED: num_images, VALIDATION_SEED: num_held_out}
    record, batches = "", None
    if kept is not None:
        # Other pictures, from a world that has changed since, are told by a few of them.
        few = [draw_pictures(one, min(count, 4), size)[0] for one, count in counts.items()]
        digest = hashlib.sha256(b"".join(pictures.tobytes() for pictures in few)).hexdigest()
        record = f"{digest} {size} {num_images} {num_held_out} {encoder}"
        batches = _read_kept(kept, record)
    if batches is None:
        batches = [draw_pictures(one, count, size, encode) for one, count in counts.items()]
        if kept is not None:
            _keep(kept, record, batches)
    return ArrayDataset(*batches, world.CLASS_NAMES, seed=seed, batch_size=batch_size)


_KEPT = ("train_rows", "train_labels", "held_out_rows", "held_out_labels")


def _read_kept(path: Path, record: str) -> list[Batch] | None:
    """The rows in a file that `_keep` wrote; None where it is missing, damaged or of others."""
    try:
        # Opened here: of a damaged file, np.load leaves its own handle open.
        with path.open("rb") as file, np.load(file) as arrays:
            if str(arrays["record"]) != record:
                return None
            found = [arrays[name] for name in _KEPT]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return [(found[0], found[1]), (found[2], found[3])]


def _keep(path: Path, record: str, batches: list[Batch]) -> None:
    data = io.BytesIO()
    arrays = [array for batch in batches for array in batch]
    np.savez(data, record=np.array(record), **dict(zip(_KEPT, arrays, strict=True)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data.getvalue())


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class FolderDataset:
    """A folder of pictures, one sub-folder per class; the classes are its sorted names.

    Each epoch shows every picture once, in another order, cropped at random. A file that cannot
    be read is named once on stderr; the next readable one stands in for it.
    """

    def __init__(
        self,
        folder: Path,
        size: int,
        *,
        num_held_out: int,
        seed: int,
        batch_size: int,
        min_area: float = 0.5,
        max_ratio: float = 4 / 3,
        flip: bool = True,
    ):
        """Lists the files; reads none.

        Args:
          folder: the classes' folders, which hold JPEG, PNG or WebP files.
          size: side of the pictures made, in pixels.
          num_held_out: files held out, a tenth of all at most: those whose paths' hashes are
            lowest, so the same ones in every run.
          seed: of order and crops.
          batch_size: pictures per step.
          min_area: see `random_crop`.
          max_ratio: see `random_crop`.
          flip: mirrors half the training pictures.

        Raises:
          InputError: no such folder, no classes, a class without pictures, or one picture only.
        """
        self.class_names, files = _list_files(folder)
        files = sorted(files, key=lambda file: _digest(file[0].relative_to(folder)))
        count = min(num_held_out, max(1, len(files) // 10))
        self._held_out_files, self.train_files = files[:count], files[count:]
        self._folder, self._size = folder, size
        self._unreadable: set[Path] = set()
        self._lock = threading.Lock()

        def crop(index: int, rng: np.random.Generator):
            image, label = self._first_readable(self.train_files, index)
            image = random_crop(image, size, rng, min_area=min_area, max_ratio=max_ratio)
            return image[:, ::-1] if flip and rng.random() < 0.5 else image, np.int32(label)

        indices = grain.MapDataset.range(len(self.train_files)).seed(seed).shuffle().repeat()
        self._batches = indices.random_map(crop).batch(batch_size)

    def batch(self, step: int) -> Batch:
        return self._batches[step]

    def held_out(self) -> Batch:
        """All pictures held out, their largest centred squares; unreadable ones are left out."""
        found = [(self._read(path), label) for path, label in self._held_out_files]
        found = [
            (fit_image(image, self._size, mode="crop"), label)
            for image, label in found
            if image is not None
        ]
        if not found:
            raise InputError(
                f"{self._folder}: none of the {len(self._held_out_files)} pictures held out for "
                "validation can be read: remove damaged files"
            )
        images, labels = zip(*found, strict=True)
        return np.stack(images), np.array(labels, np.int32)

    def _first_readable(self, files: Sequence[tuple[Path, int]], index: int):
        for offset in range(len(files)):
            path, label = files[(index + offset) % len(files)]
            image = self._read(path)
            if image is not None:
                return image, label
        raise InputError(f"{self._folder}: none of the {len(files)} pictures can be read")

    def _read(self, path: Path) -> UInt8[np.ndarray, "h w 3"] | None:
        """The picture, or None for a damaged file, which is named the first time."""
        if path in self._unreadable:
            return None
        try:
            return read_image(path)
        except InputError as error:
            with self._lock:
                if path not in self._unreadable:
                    self._unreadable.add(path)
                    tqdm.write(f"skipped: {error}", file=sys.stderr)
            return None


def _list_files(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Class names, and every picture file with its label."""
    try:
        classes = sorted(
            entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
        )
    except OSError as error:
        raise InputError(
            f"{folder}: {error.strerror}; expected a folder with one sub-folder of pictures per "
            "class, or 'world'"
        ) from None
    if not classes:
        raise InputError(
            f"{folder} has no sub-folders; expected one per class, with its pictures in it"
        )
    files = []
    for label, entry in enumerate(classes):
        paths = sorted(path for path in entry.iterdir() if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise InputError(
                f"{entry} holds no pictures ({', '.join(SUFFIXES)}); every sub-folder is a class: "
                "fill or remove it"
            )
        files += [(path, label) for path in paths]
    if len(files) < 2:
        raise InputError(f"{folder} holds one picture; expected at least 2: one is held out")
    return tuple(entry.name for entry in classes), files


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode("utf-8", "surrogateescape")).digest()


def random_crop(
    image: UInt8[np.ndarray, "h w 3"],
    size: int,
    rng: np.random.Generator,
    *,
    min_area: float,
    max_ratio: float,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """A random rectangle of the picture, scaled to `size` x `size` (Inception's augmentation).

    Args:
      image: the picture.
      size: side of the result, in pixels.
      rng: draws shape and place.
      min_area: least share of the picture's area that is kept, above 0 and up to 1; a picture
        longer than the ratio allows for keeps less.
      max_ratio: the rectangle's longer side is at most so many times its shorter one.
    """
    left, top, width, height = crop_box(image.shape, rng, min_area, max_ratio)
    box = (left, top, left + width, top + height)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized)


def crop_box(
    shape: tuple[int, ...], rng: np.random.Generator, min_area: float, max_ratio: float
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random rectangle of a picture of `shape`; see `random_crop`.

    Area uniform, logarithm of the aspect ratio uniform among those at which it fits. Of a picture
    too long for any, the ratio is the largest and the area what remains.
    """
    height, width, _ = shape
    area = rng.uniform(min_area, 1) * height * width
    low, high = max(1 / max_ratio, area / height**2), min(max_ratio, width**2 / area)
    if low <= high:
        ratio = np.exp(rng.uniform(np.log(low), np.log(high)))
    else:
        ratio = max_ratio if width > height else 1 / max_ratio
    crop_height = min(height, (area / ratio) ** 0.5, width / ratio)
    crop_width, crop_height = (max(1, round(side)) for side in (crop_height * ratio, crop_height))
    left = int(rng.integers(width - crop_width + 1))
    top = int(rng.integers(height - crop_height + 1))
    return left, top, crop_width, crop_height


def detail_crops(
    images: UInt8[np.ndarray, "n H W 3"], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "n {size} {size} 3"]:
    """A square of each picture, around a pixel drawn by how much its brightness changes there.

    Flat backgrounds teach a tokenizer little: crops around detail train it as well as whole
    pictures at a quarter of the cost.
    """
    crops = np.empty((len(images), size, size, 3), np.uint8)
    for image, crop in zip(images, crops, strict=True):
        slopes = np.hypot(*np.gradient(image.mean(axis=-1))).ravel() + 1e-3
        centre = np.searchsorted(np.cumsum(slopes), rng.random() * slopes.sum())
        corner = [
            min(max(at - size // 2, 0), side - size)
            for at, side in zip(divmod(int(centre), image.shape[1]), image.shape, strict=False)
        ]
        crop[:] = image[corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    return crops
