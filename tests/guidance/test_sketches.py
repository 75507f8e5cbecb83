"""Sketches as people have them."""

import contextlib
import warnings

import numpy as np
import pytest
from PIL import Image

from experiments.demo_world import world
from guidance.sketches import clean_sketch, read_sketch
from maskgit_jax.errors import InputError, Notice
from maskgit_jax.images import fit_image, read_image
from tests.commands import ROOT

SKETCHES = ROOT / "experiments" / "sketches"
HOUSE = read_image(SKETCHES / "house.png")
INK = 255 - HOUSE[..., :1]


@contextlib.contextmanager
def notices(*expected: str):
    """Exactly these, in order, by their beginnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert {each.category for each in caught} <= {Notice}
    found = [str(each.message) for each in caught]
    assert len(found) == len(expected), found
    for text, words in zip(found, expected, strict=True):
        assert words in text and "\n" not in text


def test_ordinary_drawings_pass_unchanged():
    drawings = [read_image(path) for path in sorted(SKETCHES.glob("*.png"))]
    for index in range(20):
        scene = world.draw_scene(1, index, size=48)
        each = (scene.sketch, scene.scribble, scene.edges)
        drawings += [np.repeat(drawing[..., None], 3, axis=-1) for drawing in each]
    assert len(drawings) == 70
    for drawing in drawings:
        sketch = read_sketch(drawing, 48)
        assert (sketch.fit, sketch.changes) == ("pad", ())
        np.testing.assert_array_equal(sketch.image, fit_image(drawing, 48))
        np.testing.assert_array_equal(clean_sketch(drawing)[0], drawing)


@pytest.mark.parametrize(("grey", "words"), [(0, []), (255, ["light on dark: inverted"])])
def test_ink_on_transparency_shows_whatever_its_colour(tmp_path, grey, words):
    pixels = np.concatenate([np.full_like(HOUSE, grey), INK], axis=-1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with notices(*words):
        sketch = read_sketch(tmp_path / "a.png", 192)
    np.testing.assert_array_equal(sketch.image, HOUSE)
    with notices():
        kept = read_sketch(pixels, 192, invert="no")
    np.testing.assert_array_equal(kept.image, HOUSE if grey == 0 else 255 - HOUSE)


def test_a_white_shape_with_a_black_outline_stays_on_white():
    pixels = np.full((32, 32, 4), 255, np.uint8)
    pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = (np.uint8([255] * 3 + [0]),) * 4
    pixels[8:24, 8:24, :3] = 0
    pixels[10:22, 10:22, :3] = 255
    with notices():
        image = read_sketch(pixels, 32).image
    assert image[16, 16].tolist() == image[0, 0].tolist() == [255] * 3
    assert image[8, 16].tolist() == [0] * 3


def test_light_on_dark_is_inverted():
    with notices("the sketch: light on dark: inverted (--invert=no keeps it)"):
        sketch = read_sketch(255 - HOUSE, 192)
    np.testing.assert_array_equal(sketch.image, HOUSE)
    assert sketch.changes == ("inverted",)
    with notices():
        np.testing.assert_array_equal(read_sketch(255 - HOUSE, 192, invert="no").image, 255 - HOUSE)
        np.testing.assert_array_equal(clean_sketch(HOUSE, invert="yes")[0], 255 - HOUSE)
    # Chalk: grey board, not quite white lines.
    board = (90 + INK * 0.6).astype(np.uint8).repeat(3, axis=-1)
    with notices("light on dark: inverted", "grey paper: levelled"):
        image, changes = clean_sketch(board)
    assert changes == ("inverted", "levelled") and (image[0, 0] == 255).all() and image.min() < 40


def test_grey_paper_becomes_white():
    grey = np.rint(HOUSE * (150 / 255)).astype(np.uint8)
    with notices("the sketch: grey paper: levelled to white (--invert=no keeps it)"):
        sketch = read_sketch(grey, 192)
    np.testing.assert_allclose(sketch.image.astype(int), HOUSE, atol=1)
    warm = np.rint(HOUSE * (np.array([200, 190, 170]) / 255)).astype(np.uint8)
    with notices("grey paper"):
        assert (read_sketch(warm, 192).image[0, 0] == 255).all()
    with notices():
        np.testing.assert_array_equal(clean_sketch(grey, invert="no")[0], grey)


def test_a_scene_is_no_paper():
    """Sky above and meadow below: no tone is the paper's."""
    scene = np.zeros((48, 48, 3), np.uint8)
    scene[:24], scene[24:], scene[16:32, 16:32] = (120, 120, 140), (60, 80, 60), (230, 220, 210)
    with notices():
        np.testing.assert_array_equal(clean_sketch(scene)[0], scene)


@pytest.mark.parametrize("height, width", [(1200, 1200), (900, 1600), (1600, 900)])
def test_a_small_drawing_is_fitted_to_its_ink(height, width):
    paper = np.full((height, width, 3), 255, np.uint8)
    paper[40:232, 500:692] = HOUSE
    percent = 2 if width == height else 1
    words = f"fills {percent} % of the paper: fitted to its ink (--fit=pad keeps its place)"
    with notices(words):
        sketch = read_sketch(paper, 96)
    assert sketch.fit == "ink"
    rows, columns = np.nonzero(sketch.image[..., 0] < 128)
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    assert 0.6 * 96 < side <= 0.72 * 96
    assert abs((rows.min() + rows.max()) / 2 - 47.5) <= 2
    assert abs((columns.min() + columns.max()) / 2 - 47.5) <= 2
    with notices():
        np.testing.assert_array_equal(read_sketch(paper, 96, fit="ink").image, sketch.image)
        kept = read_sketch(paper, 96, fit="pad")
    assert kept.fit == "pad"
    np.testing.assert_array_equal(kept.image, fit_image(paper, 96))


def test_a_wide_drawing_is_not_small():
    paper = np.full((400, 400, 3), 255, np.uint8)
    paper[200:204, 50:350] = 0
    with notices():
        assert read_sketch(paper, 48).fit == "pad"
        assert read_sketch(paper, 48, fit="ink").image.min() < 200
    strip = np.full((8, 200_000, 3), 255, np.uint8)
    strip[2:6, 100:-100] = 0
    with notices():
        assert read_sketch(strip, 48, fit="ink").image.shape == (48, 48, 3)


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("noise", [0, 8])
def test_nothing_drawn_is_refused(grey, noise):
    values = grey + np.random.default_rng(0).normal(0, noise, (400, 300, 1)).repeat(3, axis=-1)
    with pytest.raises(InputError, match="the sketch is blank: nothing is drawn on it; expected"):
        read_sketch(np.clip(values, 0, 255).astype(np.uint8), 48)
    with pytest.raises(InputError, match="is blank"):
        clean_sketch(np.full((32, 32, 4), (grey, grey, grey, 0), np.uint8))


def test_faint_pencil_is_no_blank():
    paper = np.full((1000, 1000, 3), 250, np.uint8)
    paper[200:203, 100:900] = paper[200:800, 100:103] = 190
    with notices():
        assert read_sketch(paper, 48).fit == "pad"


def test_unknown_words_are_refused():
    with pytest.raises(InputError, match="fit=stretch: expected one of auto, pad, crop, ink"):
        read_sketch(HOUSE, 48, fit="stretch")
    with pytest.raises(InputError, match="invert=maybe: expected one of auto, yes, no"):
        read_sketch(HOUSE, 48, invert="maybe")
