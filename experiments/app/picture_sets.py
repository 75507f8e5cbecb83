"""Sets of pictures too large for memory: a folder of picture files, or an `.npz` as ADM has it.

An ADM `.npz` (the format of the evaluator of Dhariwal & Nichol 2021, github.com/openai/
guided-diffusion) holds one array `arr_0`, uint8 [N, H, W, 3], and where classes are known their
labels, `arr_1`, int64 [N].
"""

import io
import math
import os
import secrets
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int64, UInt8

from experiments.app.drawings import PICTURES, find_labelled, picture_files
from maskgit_jax.config import ModelConfig
from maskgit_jax.errors import InputError
from maskgit_jax.files import open_file, os_error
from maskgit_jax.images import read_image

_EXPECTED = "expected a folder of pictures or an .npz file"
_ARRAY = "arr_0.npy"
_LABELS = "arr_1.npy"


class ImageSet(NamedTuple):
    """Pictures of one size.

    Attributes:
      count: how many.
      size: height and width.
      batches: given a number, iterates over all of them in so large batches; the last may be
        smaller. Raises InputError for a picture that cannot be read or has another size.
    """

    count: int
    size: tuple[int, int]
    batches: Callable[[int], Iterator[UInt8[np.ndarray, "b h w 3"]]]


def open_image_set(path: str | os.PathLike[str]) -> ImageSet:
    """The pictures in a folder and its sub-folders, sorted by path, or in an ADM `.npz`.

    A folder's `grid.png` is left out. Raises InputError for a path that is neither, a folder
    without pictures, and an `.npz` of other content.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".npz":
        return _open_npz(path)
    raise InputError(f"{str(path)!r}: {_EXPECTED}")


def write_adm_npz(
    path: str | os.PathLike[str],
    batches: Iterable[Any],
    count: int,
    labels: Int64[np.ndarray, "{count}"] | None = None,
) -> None:
    """Writes pictures as an ADM `.npz`, one batch in memory at a time; all or nothing.

    `batches` are uint8 [b, H, W, 3] and hold `count` ≥ 1 pictures in all. Raises InputError where
    the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        written = 0
        with zipfile.ZipFile(part, "w") as archive:
            # Larger than 4 GiB: 50,000 pictures of 256 pixels are 9.8 GB.
            with archive.open(_ARRAY, "w", force_zip64=True) as file:
                for batch in batches:
                    if not written:
                        header = np.lib.format.header_data_from_array_1_0(batch)
                        header["shape"] = (count, *batch.shape[1:])
                        np.lib.format.write_array_header_1_0(file, header)
                    file.write(batch.tobytes())
                    written += len(batch)
            if labels is not None:
                with archive.open(_LABELS, "w") as file:
                    np.lib.format.write_array(file, labels)
        if written != count:
            raise ValueError(f"{written} pictures were given, {count} announced")
        os.replace(part, path)
    except OSError as error:
        raise os_error(error, f"{path} cannot be written", "choose another place") from None
    finally:
        part.unlink(missing_ok=True)


def read_labelled(
    source: str,
    config: ModelConfig,
    read: Callable[[Path, int], UInt8[np.ndarray, "S S 3"]],
    *,
    flag: str,
    most: int | None = None,
) -> tuple[UInt8[np.ndarray, "n S S 3"], Int[np.ndarray, "n"]]:
    """The first pictures that a flag names (`find_labelled`), read at a model's size, and classes.

    Raises:
      InputError: fewer than two, and what `read` and `find_labelled` raise.
    """
    found = find_labelled(source, config.class_names)[:most]
    if len(found) < 2:
        raise InputError(
            f"--{flag}={source}: found {len(found)} pictures, expected 2 or more, named "
            "CLASS_ANYTHING.png or in a sub-folder for each class"
        )
    images = np.stack([read(path, config.tokenizer.image_size) for path, _ in found])
    return images, np.array([label for _, label in found], np.int32)


def _open_folder(folder: Path) -> ImageSet:
    files = picture_files(folder)
    if not files:
        raise InputError(f"{str(folder)!r} holds no pictures: expected {', '.join(PICTURES)}")
    size = read_image(files[0]).shape[:2]

    def read(path: Path) -> UInt8[np.ndarray, "h w 3"]:
        image = read_image(path)
        if image.shape[:2] != size:
            found, expected = (f"{width}x{height}" for height, width in (image.shape[:2], size))
            raise InputError(
                f"{path} is {found} pixels, {files[0].name} is {expected}: expected one size"
            )
        return image

    def batches(batch_size: int):
        for first in range(0, len(files), batch_size):
            yield np.stack([read(path) for path in files[first : first + batch_size]])

    return ImageSet(len(files), size, batches)


def _open_npz(path: Path) -> ImageSet:
    def damaged(error: Exception) -> InputError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return InputError(f"{path} cannot be read ({reason}); copy or make it again")

    def read_header(file: io.BufferedIOBase) -> tuple[int, ...]:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8 or fortran or 0 in shape:
            raise InputError(
                f"{path}: arr_0 is {dtype} {list(shape)}, expected uint8 [N, H, W, 3] in C order"
            )
        return shape

    open_file(path, _EXPECTED).close()
    try:
        with zipfile.ZipFile(path) as archive:
            if _ARRAY not in archive.namelist():
                raise InputError(f"{path} holds no array arr_0: expected an .npz as ADM has it")
            with archive.open(_ARRAY) as file:
                count, *picture = read_header(file)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise damaged(error) from None

    def batches(batch_size: int):
        try:
            with zipfile.ZipFile(path) as archive, archive.open(_ARRAY) as file:
                read_header(file)
                for first in range(0, count, batch_size):
                    shape = (min(batch_size, count - first), *picture)
                    yield np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(shape)
        except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, EOFError) as error:
            raise damaged(error) from None

    return ImageSet(count, tuple(picture[:2]), batches)
