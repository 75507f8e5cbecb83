import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from experiments.demo_world import world
from experiments.training import datasets
from maskgit_jax.errors import InputError

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (210, 30, 20)}
CORRUPT = ("blue/empty.jpg", "green/cut.jpg", "green/text.png", "red/page.webp")


def fill_folder(folder: Path) -> None:
    """60 pictures of three classes, each about of its class's colour, and 4 damaged files."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(20):
            height, width = rng.integers(17, 40, 2)
            noise = rng.integers(-20, 20, (height, width, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            image = Image.fromarray(pixels)
            suffix = (".jpg", ".PNG", ".webp", ".jpeg")[i % 4]
            if i == 4:
                image = image.convert("CMYK")
            if i == 5:
                image = image.convert("P")
            image.save(folder / name / f"{i:02d}{suffix}")
    whole = (folder / "green" / "00.jpg").read_bytes()
    (folder / "blue" / "empty.jpg").touch()
    (folder / "green" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "green" / "text.png").write_text("no picture")
    (folder / "red" / "page.webp").write_text("<html>")
    (folder / "red" / "notes.txt").write_text("not looked at")
    (folder / ".masked").mkdir()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "all"
    fill_folder(path)
    return path


def open_folder(folder, **options):
    defaults = {"num_held_out": 6, "seed": 0, "batch_size": 7}
    return datasets.FolderDataset(folder, 16, **defaults | options)


def label_by_colour(images):
    distances = [np.abs(images.mean(axis=(1, 2)) - colour).sum(-1) for colour in COLOURS.values()]
    return np.argmin(distances, axis=0)


def test_classes_are_the_sorted_folders_and_labels_belong_to_pictures(folder):
    data = open_folder(folder)
    assert data.class_names == ("blue", "green", "red")
    for step in range(6):
        images, labels = data.batch(step)
        assert images.shape == (7, 16, 16, 3) and images.dtype == np.uint8
        np.testing.assert_array_equal(label_by_colour(images), labels)
    np.testing.assert_array_equal(label_by_colour(data.held_out()[0]), data.held_out()[1])


def test_batches_depend_on_seed_and_step_alone(folder):
    def batches(data, steps):
        with ThreadPoolExecutor(3) as pool:
            return dict(zip(steps, pool.map(data.batch, steps), strict=True))

    forward = batches(open_folder(folder), range(12))
    backward = batches(open_folder(folder), range(11, -1, -1))
    for step in range(12):
        for a, b in zip(forward[step], backward[step], strict=True):
            np.testing.assert_array_equal(a, b)
    other = open_folder(folder, seed=1).batch(0)
    assert np.any(other[0] != forward[0][0])
    assert np.any(forward[0][0] != forward[1][0])


def test_an_epoch_shows_each_training_picture_once(tmp_path):
    """20 pictures of one grey each: 18 to train on, two epochs of three batches."""
    (tmp_path / "a").mkdir()
    for i in range(20):
        Image.new("L", (16, 16), 10 * i).save(tmp_path / "a" / f"{i}.png")
    data = open_folder(tmp_path, batch_size=6)
    greys = [data.batch(step)[0][:, 0, 0, 0] // 10 for step in range(6)]
    first, second = np.concatenate(greys[:3]), np.concatenate(greys[3:])
    held_out = data.held_out()[0][:, 0, 0, 0] // 10
    assert len(held_out) == 2
    assert sorted([*first, *held_out]) == sorted([*second, *held_out]) == list(range(20))
    assert np.any(first != second)


def test_held_out_files_are_fixed_and_not_trained_on(folder, tmp_path):
    data = open_folder(folder)
    again = open_folder(shutil.copytree(folder, tmp_path / "copy"), seed=5, batch_size=2)
    names = [
        [path.relative_to(root) for path, _ in one._held_out_files]
        for one, root in ((data, folder), (again, tmp_path / "copy"))
    ]
    assert names[0] == names[1] and len(names[0]) == 6
    held_out, train = (
        {path for path, _ in files} for files in (data._held_out_files, data.train_files)
    )
    assert not held_out & train and len(held_out | train) == 64
    assert len(open_folder(folder, num_held_out=1000)._held_out_files) == 6


def test_damaged_files_are_named_once_and_passed_over(folder, capsys):
    data = open_folder(folder)
    for step in range(20):
        data.batch(step)
    data.held_out()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for name in CORRUPT:
        (line,) = [line for line in lines if name in line]
        assert line.startswith("skipped: ")


def test_folders_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        open_folder(tmp_path / "none")
    with pytest.raises(InputError, match="has no sub-folders"):
        open_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="a holds no pictures"):
        open_folder(tmp_path)
    (tmp_path / "a" / "1.png").touch()
    with pytest.raises(InputError, match="holds one picture"):
        open_folder(tmp_path)
    (tmp_path / "a" / "2.png").touch()
    data = open_folder(tmp_path)
    with pytest.raises(InputError, match="none of the 1 pictures can be read"):
        data.batch(0)
    with pytest.raises(InputError, match="none of the 1 pictures held out"):
        data.held_out()


@given(
    st.integers(8, 300),
    st.integers(8, 300),
    st.integers(0, 10**6),
    st.floats(0.05, 1),
    st.floats(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_crops_lie_in_the_picture_and_keep_their_bounds(height, width, seed, min_area, max_ratio):
    rng = np.random.default_rng(seed)
    left, top, w, h = datasets.crop_box((height, width, 3), rng, min_area, max_ratio)
    assert left >= 0 and top >= 0 and w >= 1 and h >= 1
    assert left + w <= width and top + h <= height
    # Sides are rounded: by half a pixel each.
    assert (w - 0.5) / (h + 0.5) <= max_ratio and (h - 0.5) / (w + 0.5) <= max_ratio
    if max(height, width) <= min(height, width) * max_ratio:
        assert (w + 0.5) * (h + 0.5) >= min_area * height * width


def test_crops_vary_in_area_ratio_and_place():
    rng = np.random.default_rng(0)
    boxes = np.array([datasets.crop_box((200, 200, 3), rng, 0.25, 2.0) for _ in range(2000)])
    left, top, width, height = boxes.T
    areas, ratios = width * height / 200**2, width / height
    assert areas.min() + 0.01 >= 0.25 and areas.min() < 0.27 and areas.max() > 0.97
    assert ratios.min() < 0.55 and ratios.max() > 1.8
    np.testing.assert_allclose(np.log(ratios).mean(), 0, atol=0.03)
    np.testing.assert_allclose(left.mean(), ((200 - width) / 2).mean(), rtol=0.1)
    np.testing.assert_allclose(top.mean(), ((200 - height) / 2).mean(), rtol=0.1)


def test_a_crop_is_the_rectangle_of_its_box():
    """Of a picture whose colours tell the place."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(64)[:, None] * 3, np.arange(96)
    options = {"min_area": 0.3, "max_ratio": 1.5}
    left, top, width, height = datasets.crop_box(
        pixels.shape, np.random.default_rng(3), *options.values()
    )
    crop = datasets.random_crop(pixels, 16, np.random.default_rng(3), **options)
    middle = (left + (width - 1) / 2, top + (height - 1) / 2)
    mean = crop.reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(mean, [3 * middle[1], middle[0], 0], atol=1.5)


def test_the_world_s_held_out_pictures_are_of_another_seed():
    options = {"num_images": 5, "num_held_out": 3, "seed": 2, "batch_size": 4}
    data = datasets.demo_world(16, **options)
    images, labels = data.batch(9)
    rows = datasets.batch_indices(2, 9, 4, 5)
    scenes = [world.draw_scene(datasets.TRAIN_SEED, int(row), size=16) for row in rows]
    np.testing.assert_array_equal(images, [scene.image for scene in scenes])
    np.testing.assert_array_equal(labels, [scene.label for scene in scenes])
    first = world.draw_scene(datasets.VALIDATION_SEED, 0, size=16)
    np.testing.assert_array_equal(data.held_out()[0][0], first.image)
    assert len(data.held_out()[1]) == 3 and datasets.VALIDATION_SEED != datasets.TRAIN_SEED


def test_the_world_s_encoded_pictures_are_kept(tmp_path):
    options = {"num_images": 103, "num_held_out": 3, "seed": 2, "batch_size": 4}
    parts = []

    def encode(pictures):
        parts.append(len(pictures))
        return pictures.reshape(len(pictures), -1) // 2

    plain = datasets.demo_world(16, **options)
    for encoder, calls in (("a", 3), ("a", 0), ("b", 3)):
        parts.clear()
        flat = datasets.demo_world(
            16, **options, encode=encode, kept=tmp_path / "new" / "ids.npz", encoder=encoder
        )
        assert len(parts) == calls and set(parts) <= {100, 3}
        for step in (0, 9):
            expected = plain.batch(step)
            np.testing.assert_array_equal(flat.batch(step)[0], expected[0].reshape(4, -1) // 2)
            np.testing.assert_array_equal(flat.batch(step)[1], expected[1])
        np.testing.assert_array_equal(flat.held_out()[0], plain.held_out()[0].reshape(3, -1) // 2)
    kept = tmp_path / "new" / "ids.npz"
    kept.write_bytes(kept.read_bytes()[:-50])
    datasets.demo_world(16, **options, encode=encode, kept=kept, encoder="b")
    assert len(parts) == 6


def test_rows_in_batches():
    rows = np.arange(10), np.arange(10, 20)
    assert [list(batch[1]) for batch in datasets.batches_of(rows, 4)] == [
        [10, 11, 12, 13],
        [14, 15, 16, 17],
    ]
    assert [len(batch[0]) for batch in datasets.batches_of(rows, 32)] == [10]


def test_detail_crops_are_squares_of_the_picture_around_what_changes():
    rng = np.random.default_rng(0)
    images = np.full((200, 24, 32, 3), 200, np.uint8)
    # All that changes is one dot at row 6, column 20.
    images[:, 6, 20] = 0
    crops = datasets.detail_crops(images, 8, rng)
    assert crops.shape == (200, 8, 8, 3)
    shown = np.any(crops == 0, axis=(1, 2, 3))
    assert shown.mean() > 0.9
    # The dot is at the crop's middle or beside it.
    rows, columns = np.argwhere(np.all(crops == 0, axis=-1))[:, 1:].T
    assert set(rows) <= {3, 4, 5} and set(columns) <= {3, 4, 5}
    # A flat picture has crops everywhere, of its own pixels.
    flat = np.arange(24 * 32).reshape(1, 24, 32, 1) // 4 * np.ones(3, int)
    flat = np.repeat(flat.astype(np.uint8), 50, axis=0)
    for crop in datasets.detail_crops(flat, 8, rng):
        windows = np.lib.stride_tricks.sliding_window_view(flat[0, ..., 0], (8, 8))
        assert np.any(np.all(windows == crop[..., 0], axis=(2, 3)))
