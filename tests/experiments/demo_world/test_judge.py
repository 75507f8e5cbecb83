"""The shipped judge on held-out scenes, and what it was trained with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from experiments.demo_world import judge as judging
from experiments.demo_world import world
from experiments.metrics.measures import frechet_distance, part_miou, silhouette_iou
from experiments.training import judge as judge_training
from maskgit_jax.errors import InputError
from maskgit_jax.images import to_float

HELD_OUT_SEED = 3  # neither trained on, nor reported by train_judge, nor drawn by evaluate


@pytest.fixture(scope="module")
def judge():
    return judging.load_judge()


def held_out(count: int, size: int = 96):
    """Photos in [0, 1], parts and labels."""
    scenes = [world.draw_scene(HELD_OUT_SEED, index, size=size) for index in range(count)]
    photos = to_float(np.stack([scene.image for scene in scenes]))
    parts = np.stack([scene.parts for scene in scenes]).astype(np.int32)
    return photos, parts, np.array([scene.label for scene in scenes])


@pytest.fixture(scope="module")
def scenes():
    return held_out(judging._BATCH)


def halved(photos):
    """Photos of half the resolution, enlarged again."""
    count, size = photos.shape[:2]
    small = photos.reshape(count, size // 2, 2, size // 2, 2, 3).mean(axis=(2, 4))
    return small.repeat(2, axis=1).repeat(2, axis=2)


def test_shipped_judge_reads_held_out_photos(judge, scenes):
    photos, parts, labels = scenes
    verdict = judging.predict(*judge, photos)
    assert np.mean(verdict.labels == labels) >= 0.95
    assert np.mean(silhouette_iou(verdict.parts > 0, parts > 0)) >= 0.88
    assert np.mean(part_miou(verdict.parts, parts)) >= 0.6


def test_shipped_judge_reads_blurred_photos(judge, scenes):
    photos, parts, labels = scenes
    verdict = judging.predict(*judge, halved(photos))
    assert np.mean(verdict.labels == labels) >= 0.9
    assert np.mean(silhouette_iou(verdict.parts > 0, parts > 0)) >= 0.85
    assert np.mean(part_miou(verdict.parts, parts)) >= 0.5


@pytest.mark.slow
def test_shipped_judge_reads_larger_photos(judge):
    photos, parts, labels = held_out(40, size=64)
    verdict = judging.predict(*judge, photos)
    assert verdict.parts.shape == (40, 64, 64)
    assert np.mean(verdict.labels == labels) >= 0.8
    assert np.mean(silhouette_iou(verdict.parts > 0, parts > 0)) >= 0.8


def test_shipped_judge_tells_a_picture_from_another_scene(judge, scenes):
    photos, parts, labels = scenes
    verdict = judging.predict(*judge, np.roll(photos, 1, axis=0))
    assert np.mean(verdict.labels == labels) <= 0.3  # one in ten, by chance
    assert np.mean(silhouette_iou(verdict.parts > 0, parts > 0)) <= 0.5
    assert np.mean(part_miou(verdict.parts, parts)) <= 0.15


def test_shipped_judge_sees_nothing_where_nothing_is(judge):
    greys = np.broadcast_to(
        np.float32([0.0, 0.25, 0.5, 0.75, 1.0])[:, None, None, None], (5, 96, 96, 3)
    )
    patches = np.random.default_rng(0).uniform(size=(20, 6, 6, 3)).astype(np.float32)
    patches = patches.repeat(16, axis=1).repeat(16, axis=2)
    verdict = judging.predict(*judge, np.concatenate([greys, patches]))
    assert np.mean(verdict.parts > 0) < 0.05


@pytest.mark.slow
def test_features_tell_photos_from_worse_pictures(judge, scenes):
    """The Fréchet distance to photos grows from photos over coarse ones to drawings."""
    photos, _, _ = scenes
    reference = judging.predict(*judge, held_out(3 * judging._BATCH)[0][judging._BATCH :]).features
    coarse = photos.reshape(-1, 12, 8, 12, 8, 3).mean(axis=(2, 4))
    coarse = coarse.repeat(8, axis=1).repeat(8, axis=2)
    drawn = [world.draw_scene(HELD_OUT_SEED, index, size=96).sketch for index in range(len(photos))]
    drawings = to_float(np.stack(drawn))[..., None].repeat(3, axis=-1)
    real, blurred, sketched = (
        frechet_distance(judging.predict(*judge, images).features, reference)[0]
        for images in (photos, coarse, drawings)
    )
    assert reference.shape == (2 * judging._BATCH, 128)
    assert 1.3 * real < blurred and 1.3 * blurred < sketched


def test_predict_gives_each_picture_the_same_verdict_in_any_batch(judge, scenes):
    photos = np.concatenate([scenes[0], scenes[0][:3]])
    verdict = judging.predict(*judge, photos)
    assert verdict.parts.shape == photos.shape[:3] and verdict.labels.shape == (len(photos),)
    last = judging.predict(*judge, photos[-3:])
    np.testing.assert_array_equal(last.labels, verdict.labels[-3:])
    np.testing.assert_allclose(last.features, verdict.features[-3:], rtol=1e-4, atol=1e-4)
    assert np.mean(last.parts != verdict.parts[-3:]) < 1e-3  # an edge may round either way


def test_parts_of_an_unsure_pixel_are_part_of_the_object():
    """Two parts of 0.3 each outweigh a background of 0.4."""

    class Fixed(judging.Judge):
        def apply(self, variables, images):
            shape = images.shape[:3]
            unsure, clear = ([0.4, 0.3, 0.25, 0.05], [0.6, 0.3, 0.05, 0.05])
            shares = jnp.where(images[..., :1] > 0.5, jnp.array(unsure), jnp.array(clear))
            label = jnp.zeros((len(images), 2))
            return judging.Logits(jnp.log(shares).reshape(*shape, 4), label, label)

    images = np.zeros((1, 4, 4, 3), np.float32)
    images[:, :2] = 1
    verdict = judging.predict(Fixed(), {}, images)
    np.testing.assert_array_equal(verdict.parts[0], [[1] * 4] * 2 + [[0] * 4] * 2)


@pytest.mark.slow
def test_roughened_pictures_stay_pictures_of_the_same(scenes):
    photos = jnp.asarray(scenes[0])
    rough = np.asarray(judge_training.roughen(jax.random.key(0), photos))
    assert rough.min() >= 0 and rough.max() <= 1
    changes = np.abs(rough - photos).mean(axis=(1, 2, 3))
    assert changes.min() > 0.001 and 0.02 < changes.mean() < 0.15
    coarse = [x.reshape(-1, 8, 6, 8, 6, 3).mean(axis=(2, 4)).ravel() for x in (rough, scenes[0])]
    assert np.corrcoef(*coarse)[0, 1] > 0.95


@pytest.mark.slow
def test_judge_loss_is_the_cross_entropy_of_parts_and_class(monkeypatch, scenes):
    photos, parts, labels = (array[:3] for array in scenes)
    monkeypatch.setattr(judge_training, "roughen", lambda key, images: images)
    monkeypatch.setattr(judge_training, "_EMPTY_SHARE", 0.0)
    num_parts, num_classes = len(world.PART_NAMES), len(world.CLASS_NAMES)
    rng = np.random.default_rng(0)
    part_logits = rng.normal(size=(*parts.shape, num_parts)).astype(np.float32)
    label_logits = rng.normal(size=(3, num_classes)).astype(np.float32)

    class Fixed(judging.Judge):
        def apply(self, variables, images):
            np.testing.assert_array_equal(images, photos)
            return judging.Logits(jnp.asarray(part_logits), jnp.asarray(label_logits), None)

    loss, metrics = judge_training.judge_loss(
        Fixed(), {}, tuple(map(jnp.asarray, (photos, parts, labels))), jax.random.key(0)
    )

    def cross_entropy(logits, target):
        shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        return -np.log(np.take_along_axis(shares, target[..., None], axis=-1)).mean()

    expected = 2 * cross_entropy(part_logits, parts) + cross_entropy(label_logits, labels)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    right = np.mean(label_logits.argmax(axis=-1) == labels)
    assert float(metrics["accuracy"]) == pytest.approx(right)


@pytest.mark.slow
def test_empty_pictures_have_neither_parts_nor_class(monkeypatch, scenes):
    photos, parts, labels = (array[:3] for array in scenes)
    monkeypatch.setattr(judge_training, "_EMPTY_SHARE", 1.0)
    logits = jnp.zeros((*parts.shape, 4)).at[..., 0].set(5.0)

    class Fixed(judging.Judge):
        def apply(self, variables, images):
            assert float(jnp.abs(images - photos).mean()) > 0.05
            return judging.Logits(logits, jnp.zeros((3, 10)), None)

    loss, metrics = judge_training.judge_loss(
        Fixed(), {}, tuple(map(jnp.asarray, (photos, parts, labels))), jax.random.key(0)
    )
    background = optax.softmax_cross_entropy_with_integer_labels(logits[0, 0, 0], 0)
    assert float(metrics["label_loss"]) == 0
    assert float(loss) == pytest.approx(2 * float(background), rel=1e-5)


def test_shipped_weights_are_small():
    assert judging.JUDGE_CHECKPOINT.stat().st_size < 1_000_000


def test_load_judge_names_a_missing_or_foreign_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        judging.load_judge(tmp_path / "judge_checkpoint")
    other = tmp_path / "picture"
    Image.new("RGB", (8, 8)).save(other, format="PNG")
    with pytest.raises(InputError, match="Flax checkpoint"):
        judging.load_judge(other)
