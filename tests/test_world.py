"""The demo world: the same scene for the same numbers, and masks and sketches that agree."""

import collections

import numpy as np
import pytest
from PIL import Image, ImageFilter

from maskgit_jax.errors import InputError
from maskgit_jax.world import BACKGROUNDS, CLASS_NAMES, Scene, draw_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(11, index) for index in range(600)]


def grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask widened by `pixels` in all eight directions."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def test_scene_has_the_documented_shapes_and_types():
    scene = draw_scene(0, 0)
    assert scene.image.shape == (48, 48, 3) and scene.image.dtype == np.uint8
    assert scene.mask.shape == (48, 48) and scene.mask.dtype == np.bool_
    assert scene.sketch.shape == (48, 48) and scene.sketch.dtype == np.uint8
    assert scene.background in BACKGROUNDS and 0 <= scene.label < 10
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 10


def test_same_numbers_give_the_same_scene_in_any_order(scenes):
    for index in (599, 3, 250):
        again, before = draw_scene(11, index), scenes[index]
        assert (again.label, again.background) == (before.label, before.background)
        assert again.image.tobytes() == before.image.tobytes()
        assert again.mask.tobytes() == before.mask.tobytes()
        assert again.sketch.tobytes() == before.sketch.tobytes()


def test_drawing_neither_reads_nor_moves_numpys_global_random_state():
    np.random.seed(5)  # noqa: NPY002
    first = draw_scene(2, 9)
    after = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    assert after == np.random.random()  # noqa: NPY002
    assert first.image.tobytes() == draw_scene(2, 9).image.tobytes()


def test_other_numbers_give_other_scenes(scenes):
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    assert len({scene.sketch.tobytes() for scene in scenes}) == len(scenes)
    assert not np.array_equal(draw_scene(12, 0).image, draw_scene(11, 0).image)


def test_asking_for_the_drawn_label_changes_nothing(scenes):
    drawn = scenes[7]
    asked = draw_scene(11, 7, label=drawn.label)
    assert asked.image.tobytes() == drawn.image.tobytes()
    for label in range(10):
        assert draw_scene(11, 7, label=label).label == label


def test_classes_and_backgrounds_come_in_their_shares(scenes):
    labels = np.bincount([scene.label for scene in scenes], minlength=10)
    assert labels.min() >= 40 and labels.max() <= 80  # 60 expected, standard deviation 7.3
    counts = collections.Counter(scene.background for scene in scenes)
    assert set(counts) == set(BACKGROUNDS)
    assert abs(counts["white"] / 600 - 0.25) < 0.04
    assert min(counts.values()) >= 0.08 * 600


def test_white_backgrounds_are_pure_white_and_others_are_not(scenes):
    for scene in scenes:
        outside = scene.image[~grow(scene.mask, 2)]
        assert (outside == 255).all() == (scene.background == "white")


def test_a_third_of_the_white_pictures_are_flat(scenes):
    # Flat parts have one colour each: few distinct colours well inside the object.
    white = [scene for scene in scenes if scene.background == "white"]
    inner = [scene.image[~grow(~scene.mask, 1)] for scene in white]
    shares = np.array([len(np.unique(x, axis=0)) / len(x) for x in inner])
    tops = [np.unique(x, axis=0, return_counts=True)[1].max() / len(x) for x in inner]
    flat = np.array(tops) > 0.2
    assert abs(flat.mean() - 1 / 3) < 0.12
    assert shares[flat].mean() < 0.4 < shares[~flat].mean()


def test_objects_are_big_and_whole(scenes):
    for scene in scenes:
        assert 0.05 < scene.mask.mean() < 0.65
        rows, cols = np.flatnonzero(scene.mask.any(axis=1)), np.flatnonzero(scene.mask.any(axis=0))
        span = max(np.ptp(rows), np.ptp(cols)) + 1
        assert 0.52 * 48 <= span <= 0.9 * 48
        assert min(rows[0], cols[0]) >= 1 and max(rows[-1], cols[-1]) <= 46
    spans = [scene.mask.any(axis=0).sum() for scene in scenes]
    assert np.ptp(spans) > 20  # sizes vary


def test_objects_vary_in_place(scenes):
    centres = np.array([np.argwhere(scene.mask).mean(axis=0) for scene in scenes])
    assert (centres.std(axis=0) > 2).all()
    assert (np.abs(centres.mean(axis=0) - 23.5) < 5).all()


def test_sketch_is_white_paper_away_from_the_object(scenes):
    for scene in scenes:
        assert (scene.sketch[~grow(scene.mask, 3)] == 255).all()
        dark = (scene.sketch < 128).mean()
        assert 0.02 < dark < 0.3


def test_sketch_follows_the_contour(scenes):
    shares = []
    for scene in scenes:
        contour = scene.mask & grow(~scene.mask, 1)
        shares.append(grow(scene.sketch < 128, 2)[contour].mean())
    assert min(shares) > 0.9 and np.mean(shares) > 0.99


def test_sketch_has_inner_lines_for_things_made_of_parts():
    for name in ("box", "house", "cup", "flower"):
        for index in range(5):
            scene = draw_scene(4, index, label=CLASS_NAMES.index(name))
            deep = ~grow(~scene.mask, 3)
            assert (scene.sketch[deep] < 128).sum() >= 5, (name, index)


def test_object_stands_off_from_its_background(scenes):
    # The background right around the object against the object's rim.
    gaps = []
    for scene in scenes:
        image = scene.image.astype(float)
        around = grow(scene.mask, 4) & ~grow(scene.mask, 1)
        gap = np.linalg.norm(image[scene.mask] - np.median(image[around], axis=0), axis=-1)
        gaps.append(np.median(gap))
        if scene.background == "white":
            assert (gap > 25).mean() > 0.8
    assert np.quantile(gaps, 0.01) > 35 and np.median(gaps) > 90


@pytest.mark.parametrize("size", [64, 96])
def test_size_changes_only_the_resolution(size):
    for index in range(12):
        small, large = draw_scene(3, index), draw_scene(3, index, size=size)
        assert large.image.shape == (size, size, 3)
        assert (small.label, small.background) == (large.label, large.background)
        shrunk = Image.fromarray(large.mask.astype(np.uint8) * 255).resize((48, 48), Image.BOX)
        mask = np.asarray(shrunk) >= 128
        assert (mask & small.mask).sum() / (mask | small.mask).sum() > 0.9
        photo = np.asarray(Image.fromarray(large.image).resize((48, 48), Image.BOX))
        assert np.abs(photo.astype(int) - small.image).mean() < 6


def test_the_smallest_size_works():
    scene = draw_scene(0, 1, size=16)
    assert scene.image.shape == (16, 16, 3) and scene.mask.any() and (scene.sketch < 128).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 15}, "size is 15: a scene needs at least 16 pixels a side"),
        ({"label": 10}, "label is 10: expected 0 to 9"),
        ({"label": -1}, "label is -1: expected 0 to 9"),
        ({"index": -3}, "seed and index are 0 and -3: expected 0 or more"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError) as caught:
        draw_scene(0, **{"index": 0, **arguments})
    assert str(caught.value) == message
