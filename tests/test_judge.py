"""The judge's figures on hand-made masks and pictures; the shipped judge on held-out scenes."""

import numpy as np
import pytest
from PIL import Image

from experiments import judge as judging
from maskgit_jax import world
from maskgit_jax.errors import InputError
from maskgit_jax.images import to_float

HELD_OUT_SEED = 3  # neither trained on, nor reported by train_judge, nor drawn by evaluate


@pytest.fixture(scope="module")
def judge():
    return judging.load_judge()


def held_out(count: int, size: int = 48):
    """Photos in [0, 1], object masks and labels."""
    scenes = [world.draw_scene(HELD_OUT_SEED, index, size=size) for index in range(count)]
    photos = to_float(np.stack([scene.image for scene in scenes]))
    masks = np.stack([scene.mask for scene in scenes])
    return photos, masks, np.array([scene.label for scene in scenes])


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_silhouette_iou_of_hand_made_masks():
    empty = np.zeros((10, 10), bool)
    pairs = [
        (square(0, 0, 4), square(0, 0, 4), 1.0),
        (square(0, 0, 4), square(5, 5, 4), 0.0),
        (square(0, 0, 4), square(2, 2, 4), 4 / 28),
        (square(0, 0, 4), square(0, 0, 8), 16 / 64),
        (square(0, 0, 4), empty, 0.0),
        (empty, empty, 1.0),
    ]
    a, b, expected = (np.stack(column) for column in zip(*pairs, strict=True))
    np.testing.assert_allclose(judging.silhouette_iou(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(judging.silhouette_iou(b, a), expected, rtol=1e-12)


def test_shipped_judge_reads_held_out_photos(judge):
    photos, masks, labels = held_out(60)
    found_masks, found_labels = judging.predict(*judge, photos)
    assert found_masks.dtype == np.bool_ and found_masks.shape == (60, 48, 48)
    assert np.mean(found_labels == labels) >= 0.9
    assert np.mean(judging.silhouette_iou(found_masks, masks)) >= 0.8


def test_shipped_judge_reads_blurred_photos(judge):
    photos, masks, labels = held_out(60)
    small = photos.reshape(60, 24, 2, 24, 2, 3).mean(axis=(2, 4))
    found_masks, found_labels = judging.predict(*judge, small.repeat(2, axis=1).repeat(2, axis=2))
    assert np.mean(found_labels == labels) >= 0.85
    assert np.mean(judging.silhouette_iou(found_masks, masks)) >= 0.8


def test_shipped_judge_reads_larger_photos(judge):
    photos, masks, labels = held_out(40, size=64)
    found_masks, found_labels = judging.predict(*judge, photos)
    assert found_masks.shape == (40, 64, 64)
    assert np.mean(found_labels == labels) >= 0.8
    assert np.mean(judging.silhouette_iou(found_masks, masks)) >= 0.8


def test_shipped_judge_tells_a_picture_from_another_scene(judge):
    photos, masks, labels = held_out(60)
    found_masks, found_labels = judging.predict(*judge, np.roll(photos, 1, axis=0))
    assert np.mean(found_labels == labels) <= 0.3  # one in ten, by chance
    assert np.mean(judging.silhouette_iou(found_masks, masks)) <= 0.6


def test_shipped_judge_sees_nothing_where_nothing_is(judge):
    greys = np.broadcast_to(
        np.float32([0.0, 0.25, 0.5, 0.75, 1.0])[:, None, None, None], (5, 48, 48, 3)
    )
    patches = np.random.default_rng(0).uniform(size=(20, 6, 6, 3)).astype(np.float32)
    patches = patches.repeat(8, axis=1).repeat(8, axis=2)
    masks, _ = judging.predict(*judge, np.concatenate([greys, patches]))
    assert masks.mean() < 0.05


def test_predict_gives_each_picture_the_same_verdict_in_any_batch(judge):
    photos, _, _ = held_out(judging._BATCH + 3)
    masks, labels = judging.predict(*judge, photos)
    assert masks.shape == photos.shape[:3] and labels.shape == (len(photos),)
    last_masks, last_labels = judging.predict(*judge, photos[-3:])
    np.testing.assert_array_equal(last_labels, labels[-3:])
    assert np.mean(last_masks != masks[-3:]) < 1e-3  # pixels on the edge may round either way


def test_shipped_weights_are_small():
    assert judging.JUDGE_CHECKPOINT.stat().st_size < 1_000_000


def test_load_judge_names_a_missing_or_foreign_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        judging.load_judge(tmp_path / "judge_checkpoint")
    other = tmp_path / "picture"
    Image.new("RGB", (8, 8)).save(other, format="PNG")
    with pytest.raises(InputError, match="Flax checkpoint"):
        judging.load_judge(other)
