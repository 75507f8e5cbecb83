"""The demo world: the same scene for the same numbers, and views of it that agree."""

import collections

import numpy as np
import pytest
from PIL import Image, ImageFilter

from experiments.demo_world.world import BACKGROUNDS, CLASS_NAMES, PART_NAMES, Scene, draw_scene
from maskgit_jax.errors import InputError

VIEWS = ("image", "mask", "sketch", "parts", "scribble", "edges", "painting")


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
    for view in ("sketch", "parts", "scribble", "edges"):
        assert getattr(scene, view).shape == (48, 48) and getattr(scene, view).dtype == np.uint8
    assert scene.painting.shape == (48, 48, 3) and scene.painting.dtype == np.uint8
    assert scene.background in BACKGROUNDS and 0 <= scene.label < 10
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 10


def test_same_numbers_give_the_same_scene_in_any_order(scenes):
    for index in (599, 3, 250):
        again, before = draw_scene(11, index), scenes[index]
        assert (again.label, again.background) == (before.label, before.background)
        for view in reversed(VIEWS) if index == 3 else VIEWS:
            assert getattr(again, view).tobytes() == getattr(before, view).tobytes(), view


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
    assert abs(counts["white"] / 600 - 0.2) < 0.04
    assert min(counts.values()) >= 0.06 * 600


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


def test_objects_are_whole_and_of_the_documented_sizes(scenes):
    for scene in scenes:
        assert 0.05 < scene.mask.mean() < 0.45
        rows, cols = np.flatnonzero(scene.mask.any(axis=1)), np.flatnonzero(scene.mask.any(axis=0))
        span = max(np.ptp(rows), np.ptp(cols)) + 1
        assert 0.4 * 48 <= span <= 0.74 * 48
        assert min(rows[0], cols[0]) >= 1 and max(rows[-1], cols[-1]) <= 46
    spans = [scene.mask.any(axis=0).sum() for scene in scenes]
    assert np.ptp(spans) > 15  # sizes vary


def test_objects_are_anywhere_in_the_picture(scenes):
    centres = np.array([np.argwhere(scene.mask).mean(axis=0) for scene in scenes])
    assert (centres.std(axis=0) > 5).all()
    assert (np.abs(centres.mean(axis=0) - 23.5) < 1).all()


def test_places_say_little_about_each_other(scenes):
    """Two objects of one class overlap little, so that following a sketch is no accident."""
    overlaps = []
    for label in range(10):
        masks = np.array([scene.mask for scene in scenes if scene.label == label]).reshape(
            -1, 48**2
        )
        both = masks.astype(int) @ masks.T
        area = masks.sum(axis=1)
        iou = both / (area[:, None] + area - both)
        overlaps.append(iou[np.triu_indices(len(iou), 1)].mean())
    assert 0.2 < np.mean(overlaps) < 0.3


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


def test_parts_agree_with_the_mask_and_all_occur(scenes):
    seen = set()
    for scene in scenes[:300]:
        np.testing.assert_array_equal(scene.parts > 0, scene.mask)
        seen |= set(np.unique(scene.parts).tolist())
        names = {PART_NAMES[part].split()[0] for part in np.unique(scene.parts) if part}
        assert names == {CLASS_NAMES[scene.label]}
    assert seen == set(range(len(PART_NAMES)))


def test_scribbles_are_shaky_and_incomplete_but_near_the_outline(scenes):
    exact, near = [], []
    for scene in scenes[:150]:
        outline, ink = scene.sketch < 128, scene.scribble < 128
        assert grow(outline, 4)[ink].mean() > 0.98
        exact.append(ink[outline].mean())
        near.append(grow(ink, 2)[outline].mean())
    assert 0.6 < np.mean(exact) < 0.8  # lines move by about a pixel
    assert (
        min(near) > 0.75 and 0.05 < np.mean(np.array(near) < 0.99) < 0.6
    )  # some lines are missing


def test_edges_are_thin_and_on_the_objects_contour(scenes):
    for scene in scenes[:150]:
        edges = scene.edges < 128
        contour = scene.mask & grow(~scene.mask, 1)
        assert grow(edges, 2)[contour].mean() > 0.9
        assert 0.02 < edges.mean() < 0.16
        assert set(np.unique(scene.edges).tolist()) <= {20, 255}


def test_paintings_are_like_the_photo_from_far_and_coarse_from_near(scenes):
    def decibel(a, b):
        return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))

    def blurred(image):
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(4)), float)

    near = []
    for scene in scenes[:150]:
        assert decibel(blurred(scene.image), blurred(scene.painting)) > 30
        near.append(decibel(scene.image, scene.painting))
        # Eight colours, mixed where strokes meet.
        counts = np.unique(scene.painting.reshape(-1, 3), axis=0, return_counts=True)[1]
        assert np.sort(counts)[-8:].sum() > 0.6 * 48**2
    assert 20 < np.median(near) < 27


def test_a_companion_stands_beside_the_same_object(scenes):
    hidden, beside = [], []
    for index in range(40):
        alone, both = scenes[index], draw_scene(11, index, companion=True)
        assert (both.label, both.background) == (alone.label, alone.background)
        assert not (both.mask & ~alone.mask).any()
        hidden.append((alone.mask & ~both.mask).sum() / alone.mask.sum())
        others = (both.parts > 0) & ~both.mask
        beside.append(others.mean())
        own = [
            PART_NAMES[part].split()[0] == CLASS_NAMES[alone.label] for part in both.parts[others]
        ]
        assert np.mean(own) < 0.1  # pixels at the rim that both share
        changed = (both.image != alone.image).any(axis=-1)
        assert changed[others].mean() > 0.9
    assert min(beside) > 0.01 and 0.25 < np.mean(np.array(hidden) > 0) < 0.75
    assert max(hidden) < 0.4


@pytest.mark.parametrize("size", [64, 96])
def test_size_changes_only_the_resolution(size):
    for index in range(12):
        small, large = draw_scene(3, index), draw_scene(3, index, size=size)
        assert large.image.shape == (size, size, 3)
        assert (small.label, small.background) == (large.label, large.background)
        shrunk = Image.fromarray(large.mask.astype(np.uint8) * 255).resize((48, 48), Image.BOX)
        mask = np.asarray(shrunk) >= 128
        assert (mask & small.mask).sum() / (mask | small.mask).sum() > 0.85
        photo = np.asarray(Image.fromarray(large.image).resize((48, 48), Image.BOX))
        assert np.abs(photo.astype(int) - small.image).mean() < 6
        for view in ("sketch", "scribble", "painting"):
            shrunk = Image.fromarray(getattr(large, view)).resize((48, 48), Image.BOX)
            assert np.abs(np.asarray(shrunk, int) - getattr(small, view)).mean() < 9, view
        parts = Image.fromarray(large.parts).resize((48, 48), Image.NEAREST)
        assert (np.asarray(parts) == small.parts).mean() > 0.95


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
