import contextlib
import os
import re
import socket
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskgit_jax.errors import InputError
from maskgit_jax.images import fit_image, make_grid, read_image, save_png, to_float, to_uint8

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def _constant(color, height=12, width=16):
    return np.broadcast_to(np.array(color, np.uint8), (height, width, 3)).copy()


def _png_bytes(width, height, *, bits=8, color_type=0, rows=b"", chunks=b"") -> bytes:
    """A PNG written by hand: for headers that lie and for what Pillow does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(*chunks) if chunks else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# --- read_image: what is read -----------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "webp", "ppm"])
def test_reads_rgb_exactly_in_lossless_formats(tmp_path, suffix):
    picture = Image.new("RGB", (16, 12), BLUE)
    picture.putpixel((3, 2), RED)
    path = tmp_path / f"a.{suffix}"
    picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    expected = _constant(BLUE)
    expected[2, 3] = RED
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_image(str(path)), expected)


def test_reads_jpeg(tmp_path):
    Image.new("RGB", (16, 12), (200, 100, 50)).save(tmp_path / "a.jpg", quality=95)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (12, 16, 3)
    assert np.abs(image.astype(int) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("orientation", "shape", "row", "column"),
    [
        (1, (12, 16, 3), 2, 3),
        (2, (12, 16, 3), 2, 12),
        (3, (12, 16, 3), 9, 12),
        (4, (12, 16, 3), 9, 3),
        (5, (16, 12, 3), 3, 2),
        (6, (16, 12, 3), 3, 9),
        (7, (16, 12, 3), 12, 9),
        (8, (16, 12, 3), 12, 2),
    ],
)
def test_exif_orientation_is_applied(tmp_path, suffix, orientation, shape, row, column):
    picture = Image.new("RGB", (16, 12), WHITE)
    picture.putpixel((3, 2), RED)
    exif = Image.Exif()
    exif[274] = orientation
    picture.save(tmp_path / f"a.{suffix}", exif=exif)
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == shape
    assert np.argwhere((image != WHITE).any(axis=-1)).tolist() == [[row, column]]


def test_exif_orientation_of_a_jpeg(tmp_path):
    picture = Image.new("RGB", (32, 16), WHITE)
    picture.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[274] = 6  # the left of the file is the top of the picture
    picture.save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg").astype(int)
    assert image.shape == (32, 16, 3)
    assert np.abs(image[4, 8] - RED).max() <= 3
    assert np.abs(image[28, 8] - WHITE).max() <= 3


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0, (255, 255, 255)), (255, (200, 100, 0)), (128, (227, 177, 127)), (1, (255, 254, 254))],
)
def test_alpha_is_composited_on_white(tmp_path, alpha, expected):
    # Rounded to the nearest: (c a + 255 (255 - a)) / 255.
    Image.new("RGBA", (16, 12), (200, 100, 0, alpha)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), _constant(expected))


def test_grey_with_alpha(tmp_path):
    Image.new("LA", (16, 12), (0, 64)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), _constant((191, 191, 191)))


def test_palette(tmp_path):
    picture = Image.new("P", (16, 12), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30, 255, 0, 0])
    picture.putpixel((0, 0), 2)
    expected = _constant((10, 20, 30))
    expected[0, 0] = RED
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    picture.save(tmp_path / "b.png", transparency=bytes([255, 0, 255]))
    expected[expected[..., 0] == 10] = WHITE
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), expected)
    picture.save(tmp_path / "c.gif", transparency=1)
    np.testing.assert_array_equal(read_image(tmp_path / "c.gif"), expected)


def test_a_transparent_colour_without_alpha(tmp_path):
    picture = Image.new("RGB", (16, 12), GREEN)
    picture.putpixel((0, 0), RED)
    picture.save(tmp_path / "a.png", transparency=GREEN)
    expected = _constant(WHITE)
    expected[0, 0] = RED
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.full((8, 8), 255, np.uint16)
    values[0, :5] = [0, 257, 32768, 65534, 65535]
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image[0, :5, 0].tolist() == [0, 1, 128, 255, 255]
    assert image[1, 0].tolist() == [1, 1, 1]


def test_every_16_bit_value_rounds_to_the_nearest(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = (values.astype(int) + 128) // 257
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 1], expected)


def test_16_bit_grey_with_a_transparent_value(tmp_path):
    rows = (b"\0" + b"\x40\x00" * 4 + b"\x80\x00" * 4) * 8
    data = _png_bytes(8, 8, bits=16, rows=rows, chunks=(b"tRNS", b"\x40\x00"))
    (tmp_path / "a.png").write_bytes(data)
    assert read_image(tmp_path / "a.png")[3, :, 0].tolist() == [255] * 4 + [128] * 4


def test_16_bit_pgm(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + b"\x80\x00" * 64)
    np.testing.assert_array_equal(read_image(tmp_path / "a.pgm"), _constant((128,) * 3, 8, 8))


@pytest.mark.parametrize(
    ("dtype", "white", "middle"),
    [
        (np.int32, 255, 128),
        (np.int32, 65535, 32768),
        (np.float32, 1, 0.5),
        (np.float32, 255, 128),
        (np.float32, 65535, 32768),
    ],
)
def test_wide_grey_is_scaled_by_its_range(tmp_path, dtype, white, middle):
    values = np.zeros((8, 8), dtype)
    values[0, :2] = [middle, white]
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :3, 0].tolist() == [128, 255, 0]


def test_cmyk(tmp_path):
    Image.new("CMYK", (16, 12), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), _constant(RED))
    Image.new("CMYK", (16, 12), (0, 0, 0, 255)).save(tmp_path / "a.jpg", quality=95)
    assert read_image(tmp_path / "a.jpg").max() <= 3


def test_one_bit(tmp_path):
    picture = Image.new("1", (16, 12), 1)
    picture.putpixel((5, 4), 0)
    picture.save(tmp_path / "a.png")
    expected = _constant(WHITE)
    expected[4, 5] = 0
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_a_phone_picture_with_a_second_frame_is_one_picture(tmp_path):
    second = Image.new("RGB", (16, 12), BLUE)
    Image.new("RGB", (16, 12), RED).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second]
    )
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - RED).max() <= 3


def test_a_broken_exif_block_does_not_hide_the_picture(tmp_path):
    Image.new("RGB", (16, 12), WHITE).save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), _constant(WHITE))


def test_the_array_is_the_callers_own(tmp_path):
    Image.new("RGB", (16, 12), WHITE).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    image[0, 0] = 0  # read-only would raise


# --- read_image: what is refused --------------------------------------------------------------


def _error(path) -> str:
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert "\n" not in message
    assert Path(os.fspath(path)).name in message or "\\" in message
    return message


def test_missing_file(tmp_path):
    assert "does not exist; expected a picture file" in _error(tmp_path / "no.png")


def test_directory(tmp_path):
    assert "is a folder; expected a picture file" in _error(tmp_path)


@pytest.mark.parametrize("name", ["two\nlines.png", "null\0byte.png", "x" * 300 + ".png"])
def test_odd_names_stay_on_one_line(tmp_path, name):
    assert re.search("does not exist|cannot be read", _error(tmp_path / name))


def test_no_permission(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (16, 12)).save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "Permission denied; expected a picture file" in _error(path)


def test_no_permission_as_any_user(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").touch()
    monkeypatch.setattr("builtins.open", refuse)
    assert "Permission denied; expected a picture file" in _error(tmp_path / "a.png")


def test_what_is_no_regular_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "is a pipe (FIFO); expected a picture file" in _error(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert "is a device; expected a picture file" in _error(tmp_path / "zero.png")
    with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(tmp_path):
        opened.bind("socket.png")
        assert "is a socket; expected a picture file" in _error("socket.png")


@pytest.mark.parametrize("suffix", ["eps", "ico", "tga", "pcx", "jp2", "pdf"])
def test_formats_that_few_need_are_not_decoded(tmp_path, suffix):
    Image.new("RGB", (16, 16), RED).save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "a.png")
    assert "is no readable picture; expected a complete picture file" in _error(tmp_path / "a.png")


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"avif"])
def test_what_phones_write_is_named(tmp_path, brand):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 40)
    message = _error(tmp_path / "a.heic")
    assert "is a HEIC, HEIF or AVIF file" in message and "save it again as PNG or JPEG" in message


def test_text_named_png(tmp_path):
    (tmp_path / "a.png").write_text("hello\nworld\n")
    assert "is no readable picture; expected" in _error(tmp_path / "a.png")


def test_empty_file(tmp_path):
    (tmp_path / "a.png").touch()
    assert "is empty; expected a complete picture file" in _error(tmp_path / "a.png")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
def test_truncated_file(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "expected a complete picture file: save it again" in _error(path)


def test_png_without_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(_png_bytes(0, 0))
    _error(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_too_small(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert f"is {size[0]}x{size[1]} pixels; expected at least 8 on each" in _error(
        tmp_path / "a.png"
    )


def test_the_smallest_picture(tmp_path):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), _constant(RED, 8, 8))


@pytest.mark.parametrize(
    ("width", "height", "found"),
    [
        (8001, 8000, "is 8001x8000 pixels"),
        (10_000, 10_000, "is 10000x10000 pixels"),  # Pillow warns
        (20_000, 20_000, "has more than 179 megapixels"),  # Pillow raises
    ],
)
def test_too_large_is_judged_from_the_header(tmp_path, width, height, found):
    rows = (b"\0" + b"\xff" * ((width + 7) // 8)) * height
    (tmp_path / "a.png").write_bytes(_png_bytes(width, height, bits=1, rows=rows))
    tracemalloc.start()
    try:
        message = _error(tmp_path / "a.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"{found}; expected at most 64 megapixels: shrink it first" in message
    assert peak < 1_000_000


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_several_frames(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 12), color) for color in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert "holds 3 frames; expected one picture: save one frame as PNG" in _error(
        tmp_path / f"a.{suffix}"
    )


@pytest.mark.parametrize(
    "values", [np.full((8, 8), 70_000, np.int32), np.full((8, 8), -1, np.float32)]
)
def test_grey_without_a_known_range(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert f"grey values from {values[0, 0]:g} to {values[0, 0]:g}; expected 0 to 255" in _error(
        tmp_path / "a.tif"
    )


def test_grey_with_nan(tmp_path):
    values = np.zeros((8, 8), np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert "grey values from nan to nan" in _error(tmp_path / "a.tif")


# --- fit_image --------------------------------------------------------------------------------


def _dark_extent(image):
    """Height and width of the part that is darker than mid grey, and its centre."""
    rows, columns = np.nonzero(image[..., 0] < 128)
    return (
        np.ptp(rows) + 1,
        np.ptp(columns) + 1,
        (rows.min() + rows.max()) / 2,
        (columns.min() + columns.max()) / 2,
    )


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (301, 299), (90, 40)])
def test_a_circle_stays_a_circle(mode, width, height):
    radius = 0.3 * min(width, height)
    rows, columns = np.mgrid[:height, :width]
    inside = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) <= radius
    image = np.where(inside[..., None], 0, _constant(WHITE, height, width)).astype(np.uint8)
    tall, wide, row, column = _dark_extent(fit_image(image, 256, mode=mode))
    scale = 256 / (max(width, height) if mode == "pad" else min(width, height))
    pixel = max(1, scale)  # of the result or of the source, whichever is larger
    assert abs(tall - wide) <= pixel
    assert abs(wide - 2 * radius * scale) <= 2 * pixel
    assert abs(row - 127.5) <= pixel
    assert abs(column - 127.5) <= pixel


def test_pad_fills_with_the_background():
    image = _constant((250, 240, 230), 20, 40)
    image[5:15, 10:30] = 0
    image[0, :3] = RED  # a stain on the border
    fitted = fit_image(image, 80)
    np.testing.assert_array_equal(fitted[:20], _constant((250, 240, 230), 20, 80))
    np.testing.assert_array_equal(fitted[60:], _constant((250, 240, 230), 20, 80))
    assert fitted[40, 40].tolist() == [0, 0, 0]
    turned = fit_image(np.ascontiguousarray(image.transpose(1, 0, 2)), 80)
    np.testing.assert_array_equal(turned[:, :20], _constant((250, 240, 230), 80, 20))
    np.testing.assert_array_equal(turned[:, 60:], _constant((250, 240, 230), 80, 20))


def test_pad_takes_a_colour_that_is_there():
    image = _constant((0, 0, 0), 10, 20)
    image[:, 10:] = 255
    assert fit_image(image, 20)[0, 0].tolist() == [255, 255, 255]


def test_crop_takes_the_middle():
    image = _constant(RED, 10, 30)
    image[:, 10:20] = BLUE
    np.testing.assert_array_equal(fit_image(image, 10, mode="crop"), _constant(BLUE, 10, 10))
    fitted = fit_image(image, 40, mode="crop")
    np.testing.assert_array_equal(fitted, _constant(BLUE, 40, 40))


def test_without_scaling_no_pixel_changes():
    image = np.random.default_rng(0).integers(0, 256, (32, 35, 3), np.uint8)
    np.testing.assert_array_equal(fit_image(image, 32, mode="crop"), image[:, 1:33])
    padded = fit_image(image, 35)
    np.testing.assert_array_equal(padded[1:33], image)
    assert len(np.unique(padded[[0, 33, 34]].reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize("row", range(1000, 1010))
def test_a_thin_line_survives_a_big_shrink(row):
    image = _constant(WHITE, 2560, 64)
    image[row] = 0  # a tenth of a pixel of the result
    darkness = 255 - fit_image(image, 256)[:, 128, 0].astype(int)
    assert darkness.max() >= 15
    assert abs(darkness.argmax() - 100) <= 1
    assert 25 <= darkness.sum() <= 35  # 25.5, and the ringing that white cuts off


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize(("height", "width"), [(8, 4000), (4000, 8), (8, 400_000)])
def test_extreme_aspect_ratios(mode, height, width):
    image = _constant((10, 20, 30), height, width)
    np.testing.assert_array_equal(fit_image(image, 64, mode=mode), _constant((10, 20, 30), 64, 64))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 200),
    width=st.integers(8, 200),
    size=st.integers(1, 96),
    mode=st.sampled_from(["pad", "crop"]),
    color=st.tuples(*[st.integers(0, 255)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_fit_image_properties(height, width, size, mode, color, seed):
    constant = fit_image(_constant(color, height, width), size, mode=mode)
    np.testing.assert_array_equal(constant, _constant(color, size, size))

    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    fitted = fit_image(noise, size, mode=mode)
    assert fitted.shape == (size, size, 3)
    assert fitted.dtype == np.uint8
    # What is beside the picture is one colour of the picture.
    if mode == "pad" and height != width:
        corner = fitted[-1, -1]
        side = max(1, round(min(height, width) * size / max(height, width)))
        beside = (size - side) // 2
        edge = fitted[:beside] if height < width else fitted[:, :beside]
        assert (edge == corner).all()


def test_fit_image_refuses():
    image = _constant(RED)
    with pytest.raises(InputError, match="unknown fit mode 'stretch': expected 'pad' or 'crop'"):
        fit_image(image, 32, mode="stretch")
    with pytest.raises(InputError, match="16x12 pixels to size 0"):
        fit_image(image, 0)
    with pytest.raises(InputError, match="5x0 pixels to size 32"):
        fit_image(np.zeros((0, 5, 3), np.uint8), 32)


# --- to_float, to_uint8 -----------------------------------------------------------------------


def test_floats_and_back():
    values = np.arange(256, dtype=np.uint8)
    floats = to_float(values)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, np.arange(256) / 255, atol=1e-7)
    assert (floats[0], floats[255]) == (0, 1)
    np.testing.assert_array_equal(to_uint8(floats), values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_to_uint8_rounds_and_clips(dtype):
    values = np.array([-np.inf, -0.1, 0, 0.4 / 255, 0.6 / 255, 0.25, 1, 1.5, np.inf], dtype)
    assert to_uint8(values).tolist() == [0, 0, 0, 0, 1, 64, 255, 255, 255]


def test_to_uint8_refuses_nan():
    with pytest.raises(InputError, match="NaN"):
        to_uint8(np.array([0.5, np.nan]))


# --- save_png ---------------------------------------------------------------------------------


def test_save_png_is_read_back(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    save_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    save_png(str(tmp_path / "a.png"), 255 - image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), 255 - image)
    assert os.listdir(tmp_path) == ["a.png"]


def test_save_png_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    save_png(tmp_path / "a.png", _constant(RED))
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", _constant(RED))

    def fail(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        save_png(tmp_path / "a.png", _constant(BLUE))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), _constant(RED))
    assert os.listdir(tmp_path) == ["a.png"]


def test_save_png_refuses_places_where_nothing_can_be(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "a.png", tmp_path / "file" / "a.png", tmp_path):
        with pytest.raises(InputError, match=r"cannot write .*expected a file name"):
            save_png(path, _constant(RED))
    assert os.listdir(tmp_path) == ["file"]


# --- make_grid --------------------------------------------------------------------------------


def test_grid_places_each_picture():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (5, 7, 3), np.uint8) for _ in range(5)]
    grid = make_grid(images, gap=3)
    # 3 columns and 2 rows of cells of 7 + 2 by 5 + 2, with 3 around each.
    assert grid.shape == (2 * 7 + 3 * 3, 3 * 9 + 4 * 3, 3)
    expected = np.full_like(grid, 255)
    for index, image in enumerate(images):
        top, left = 3 + 10 * (index // 3), 3 + 12 * (index % 3)
        expected[top : top + 7, left : left + 9] = 200
        expected[top + 1 : top + 6, left + 1 : left + 8] = image
    np.testing.assert_array_equal(grid, expected)
    assert (grid[13:20, 27:36] == 255).all()  # the sixth cell
    np.testing.assert_array_equal(make_grid(np.stack(images), gap=3), grid)


@pytest.mark.parametrize(
    ("count", "columns", "rows"),
    [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 2, 2), (5, 3, 2), (9, 3, 3), (10, 4, 3), (16, 4, 4)],
)
def test_grid_is_nearly_square(count, columns, rows):
    grid = make_grid([_constant(RED, 4, 4)] * count, gap=0)
    assert grid.shape == (rows * 6, columns * 6, 3)


def test_grid_columns():
    images = [_constant(RED, 4, 4)] * 3
    assert make_grid(images, columns=1, gap=1).shape == (3 * 7 + 1, 7 + 1, 3)
    assert make_grid(images, columns=4, gap=1).shape == (7 + 1, 4 * 7 + 1, 3)


def test_grid_enlarges_smoothly():
    image = _constant((0, 0, 0), 8, 8)
    image[:, 4:] = 255
    grid = make_grid([image], scale=4, gap=0)
    assert grid.shape == (34, 34, 3)
    line = grid[17, 1:-1, 0].astype(int)
    assert (line[0], line[31]) == (0, 255)
    assert (np.diff(line) >= 0).all()
    assert len(set(line.tolist())) > 2  # nearest would know two values
    np.testing.assert_array_equal(line + line[::-1], np.full(32, 255))


def test_grid_refuses():
    image = _constant(RED, 4, 4)
    with pytest.raises(InputError, match="at least one picture"):
        make_grid([])
    with pytest.raises(InputError, match="pictures of one size, found 4x4, 5x4"):
        make_grid([image, _constant(RED, 4, 5)])
    for setting in ({"columns": 0}, {"scale": 0}, {"gap": -1}):
        (name,) = setting
        with pytest.raises(InputError, match=f"grid {name} is {setting[name]}, expected at least"):
            make_grid([image], **setting)
