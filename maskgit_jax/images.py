"""Pictures in and out: read any file, fit it to a square, convert, save, lay out a grid.

Inside the project a picture is a NumPy array: uint8 in [0, 255] or float32 in [0, 1], height
first, three colours.
"""

import contextlib
import io
import math
import os
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from maskgit_jax.errors import InputError
from maskgit_jax.files import open_file, os_error

MIN_SIDE = 8  # pixels
MAX_PIXELS = 64_000_000

# Others are rarely pictures that someone draws, and their decoders are more to be attacked; that of
# EPS runs Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
# A phone's JPEG, whose further "frames" are such as a depth map.
_ONE_PICTURE_FORMAT = "MPO"
# The values that can mean white where a mode does not say which: the first that covers the
# picture is taken. 16-bit modes say so.
_WHITE = {"I": (255, 65535), "F": (1, 255, 65535)}
_FRAME_GREY = 200
_CHANNELS = ((), (3,), (4,))


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in a file as a person sees it: upright, RGB, transparency shown on white.

    Reads PNG, JPEG, WebP, BMP, GIF, TIFF, PPM and AVIF. EXIF orientation is applied; palettes, grey
    (1, 8, 16 bits; 32-bit integers up to 255 or 65535; floats up to 1, 255 or 65535) and CMYK
    become RGB in [0, 255].

    Raises InputError when the file cannot be opened or is no regular one, is no picture or a
    damaged one, holds several frames, is smaller than 8 pixels on a side, or has more than 64
    megapixels (judged from the header, before the pixels are decoded).
    """
    return on_paper(_read_file(path))


def _read_file(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w _"]:
    name = repr(os.fspath(path))
    file = open_file(path, "expected a picture file such as a PNG or JPEG")
    with file, warnings.catch_warnings():
        # Pillow warns of oddities that do not keep a picture from being read.
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=_FORMATS) as image:
                return _upright(image, name)
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise InputError(
                f"{name} has more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels; expected "
                f"at most {MAX_PIXELS / 1e6:.0f} megapixels: shrink it first"
            ) from error
        # Pillow's decoders raise whatever damaged bytes lead them to, KeyError included.
        except Exception as error:
            if os.fstat(file.fileno()).st_size == 0:
                found = "is empty"
            elif isinstance(error, UnidentifiedImageError):
                file.seek(0)
                heif = file.read(12)[4:8] == b"ftyp"  # what phones and cameras write
                found = "is a HEIC, HEIF or AVIF file" if heif else "is no readable picture"
            else:
                found = f"cannot be decoded ({' '.join(str(error).split())})"
            raise InputError(
                f"{name} {found}; expected a complete picture file: save it again as PNG or JPEG"
            ) from error


def as_image(
    picture: str | os.PathLike[str] | Image.Image | np.ndarray,
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture from whatever a person has: a file's name, a Pillow picture or an array.

    Args:
      picture: arrays are [h, w, 3], [h, w, 4] or [h, w]: uint8, bool, or floats in [0, 1].

    Raises:
      InputError: as `read_image`, or an array that is no picture.
    """
    return on_paper(as_pixels(picture))


def as_pixels(
    picture: str | os.PathLike[str] | Image.Image | np.ndarray,
) -> UInt8[np.ndarray, "h w _"]:
    """As `as_image`; what has transparency keeps it as a fourth channel, 0 where one sees through.

    Raises:
      InputError: as there.
    """
    if isinstance(picture, str | os.PathLike):
        return _read_file(picture)
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture)
        if array.dtype.kind == "f" and np.all((array >= 0) & (array <= 1)):
            array = to_uint8(array)
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in _CHANNELS:
            raise InputError(
                f"a picture is an array of {array.dtype} {list(array.shape)}: expected uint8, or "
                "floats from 0 to 1, [height, width] or [height, width, 3]"
            )
        picture = Image.fromarray(array)
    return _upright(picture.copy(), "the picture")


def on_paper(pixels: UInt8[np.ndarray, "h w _"], grey: int = 255) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of `as_pixels` as they are seen on white paper, or on grey."""
    if pixels.shape[2] == 3:
        return pixels
    paper = Image.new("RGB", pixels.shape[1::-1], (grey, grey, grey))
    # Not alpha_composite: pasting rounds to the nearest value.
    paper.paste(Image.fromarray(pixels[..., :3]), mask=Image.fromarray(pixels[..., 3]))
    return np.array(paper)


def name_of(picture: str | os.PathLike[str] | Image.Image | np.ndarray, otherwise: str) -> str:
    """What messages call a picture: its file, if it is one."""
    return repr(os.fspath(picture)) if isinstance(picture, str | os.PathLike) else otherwise


def fit_image(
    image: UInt8[np.ndarray, "h w 3"],
    size: int,
    *,
    mode: str = "pad",
    paper: UInt8[np.ndarray, "3"] | None = None,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The picture scaled to `size` x `size` without distortion.

    "pad" keeps all of it, centred; what is left beside it gets the `paper` colour, by default the
    picture's own background. "crop" keeps the largest centred square. Scaling down averages
    (antialiased Lanczos), so that thin pen lines turn grey rather than vanish.

    Raises InputError for another mode, a size below 1 and a picture without pixels.
    """
    height, width, _ = image.shape
    if size < 1 or image.size == 0:
        raise InputError(
            f"cannot fit {width}x{height} pixels to size {size}: each must be at least 1"
        )
    if mode not in ("pad", "crop"):
        raise InputError(f"unknown fit mode {mode!r}: expected 'pad' or 'crop'")
    if mode == "crop":
        # Before scaling: a long strip scaled first would take gigabytes. By whole pixels: half of
        # one would blur a picture that needs no scaling.
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
        height = width = side
    scale = size / max(height, width)
    new_height, new_width = (max(1, round(side * scale)) for side in (height, width))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    fitted = np.empty((size, size, 3), np.uint8)
    fitted[:] = background(image) if paper is None else paper
    fitted[top : top + new_height, left : left + new_width] = Image.fromarray(image).resize(
        (new_width, new_height), Image.Resampling.LANCZOS
    )
    return fitted


def background(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "3"]:
    """The median colour of the border pixels."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    # The middle of the sorted values: np.median would mix black and white to a grey that is
    # nowhere in the picture.
    return np.sort(border, axis=0)[len(border) // 2]


def to_float(image: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """uint8 in [0, 255] as float32 in [0, 1]."""
    return image.astype(np.float32) / 255


def to_uint8(image: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Floats in [0, 1] as uint8 in [0, 255]: values beyond are clipped, then rounded.

    Raises InputError for NaN, which has no colour.
    """
    if np.isnan(image).any():
        raise InputError("the picture holds NaN; expected values in [0, 1]: check what made it")
    return np.rint(np.clip(image.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def save_png(path: str | os.PathLike[str], image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write the picture as PNG, all or nothing: a reader never finds half a file at `path`.

    Raises InputError when the file cannot be written; what was at `path` is then unchanged.
    """
    path = Path(path)
    # Not tempfile: its files are private to the user, and the picture would stay so.
    part = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        part.write_bytes(png_bytes(image))
        os.replace(part, path)
    except OSError as error:
        expected = "expected a file name in an existing folder that you may write to"
        raise os_error(error, f"cannot write {str(path)!r}", expected) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def png_bytes(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The picture as a PNG file holds it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def make_grid(
    images: UInt8[np.ndarray, "B h w 3"] | Sequence[UInt8[np.ndarray, "_ _ 3"]],
    *,
    columns: int | None = None,
    scale: int = 1,
    gap: int = 8,
) -> UInt8[np.ndarray, "H W 3"]:
    """A contact sheet of equally large pictures on white, row by row from the top left.

    Each picture is enlarged `scale` times (bicubic) and framed by a grey line of one pixel, which
    tells a white picture from the paper; `gap` pixels lie around each. Without `columns` the sheet
    is as wide as high in pictures, or one wider; cells left over stay white.

    Raises InputError for no pictures, pictures of several sizes, and settings below their minimum
    (1 column, scale 1, gap 0).
    """
    if len(images) == 0:
        raise InputError("a grid needs at least one picture: found none")
    sizes = sorted({image.shape[1::-1] for image in images})
    if len(sizes) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes)
        raise InputError(f"a grid needs pictures of one size, found {listed}: fit them first")
    columns = math.isqrt(len(images) - 1) + 1 if columns is None else columns
    for name, value, least in (("columns", columns, 1), ("scale", scale, 1), ("gap", gap, 0)):
        if value < least:
            raise InputError(f"grid {name} is {value}, expected at least {least}")

    rows = math.ceil(len(images) / columns)
    width, height = (side * scale for side in sizes[0])
    step_x, step_y = width + 2 + gap, height + 2 + gap
    grid = np.full((rows * step_y + gap, columns * step_x + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = gap + row * step_y, gap + column * step_x
        grid[top : top + height + 2, left : left + width + 2] = _FRAME_GREY
        large = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        grid[top + 1 : top + 1 + height, left + 1 : left + 1 + width] = large
    return grid


def _upright(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w _"]:
    """A picture's pixels as a person sees them; changes `image`."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} is {width}x{height} pixels; expected at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels: shrink it first"
        )
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{name} is {width}x{height} pixels; expected at least {MIN_SIDE} on each side: "
            "give a larger picture"
        )
    frames = 1 if image.format == _ONE_PICTURE_FORMAT else getattr(image, "n_frames", 1)
    if frames > 1:
        raise InputError(
            f"{name} holds {frames} frames; expected one picture: save one frame as PNG"
        )
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        # Pillow's own conversion clips these to [0, 255].
        image = Image.fromarray(_grey_to_uint8(image, name))
    return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _grey_to_uint8(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w"]:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    white = next((w for w in _WHITE.get(image.mode, (65535,)) if low >= 0 and high <= w), None)
    if white is None:
        raise InputError(
            f"{name} holds grey values from {low:g} to {high:g}; expected 0 to 255: save it as an "
            "8-bit PNG"
        )
    grey = np.rint(values * np.float32(255 / white)).astype(np.uint8)
    # A PNG can declare one grey value transparent; the paper under it is white.
    grey[values == image.info.get("transparency", -1)] = 255
    return grey
