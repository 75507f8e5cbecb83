"""Edits of pictures of any size, and the command."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.demo_world import world
from maskgit_jax.editing import outpaint
from maskgit_jax.editing.canvas import box_mask, finish, prepare, read_mask
from maskgit_jax.editing.inpaint import EditSettings, remake
from maskgit_jax.editing.outpaint import Growth, count_windows, extend, grow
from maskgit_jax.errors import InputError, Notice
from maskgit_jax.images import read_image
from tests.commands import ROOT, assert_refused

SETTINGS = EditSettings(num_steps=6, temperature=4.5)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("height, width", [(8, 8), (37, 53), (31, 9)])
def test_pixels_beyond_the_blend_come_back_bit_by_bit(tiny, height, width):
    image = noise(0, height, width)
    mask = box_mask(height // 3, width // 3, height // 4, width // 4, height, width)
    picture = prepare(image, mask, tiny.config.tokenizer)
    assert picture.square.shape == (8, 8, 3) and picture.masked.shape == (16,)
    radius = round(2 * max(height, width) / 8)
    assert picture.blend_radius == radius
    result = finish(picture, np.zeros((8, 8, 3), np.uint8))
    rows, columns = (
        np.maximum(side // 3 - np.arange(side), np.arange(side) - (side // 3 + side // 4 - 1))
        for side in (height, width)
    )
    distance = np.maximum(rows[:, None], columns[None])
    np.testing.assert_array_equal(result[distance > radius], image[distance > radius])
    assert (result[mask] == 0).all()


def test_a_mask_is_stretched_to_the_picture(tmp_path):
    Image.fromarray(np.uint8([[0, 255], [0, 0]]).repeat(8, 0).repeat(8, 1)).save(tmp_path / "m.png")
    mask, stretched = read_mask(tmp_path / "m.png", 10, 30)
    assert stretched
    np.testing.assert_array_equal(mask, box_mask(0, 15, 5, 15, 10, 30))
    assert not read_mask(tmp_path / "m.png", 16, 16)[1]


def test_a_mask_s_hole_may_be_transparent(tmp_path):
    """As image editors cut it: the rest is the photo, which may be white."""
    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[4:12, 4:8, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "m.png")
    with pytest.warns(Notice, match=r"m\.png': what is transparent is sampled again, 12 % of"):
        mask, _ = read_mask(tmp_path / "m.png", 16, 16)
    np.testing.assert_array_equal(mask, box_mask(4, 4, 8, 4, 16, 16))
    pixels[..., :3] = noise(3, 16, 16)
    with pytest.warns(Notice, match="the mask: what is transparent"):
        np.testing.assert_array_equal(read_mask(pixels, 16, 16)[0], mask)
    # Without a hole, white counts as ever.
    pixels[..., 3] = 200
    pixels[..., :3] = 255 * mask[..., None]
    np.testing.assert_array_equal(read_mask(pixels, 16, 16)[0], mask)
    pixels[..., 3] = 0
    with pytest.raises(InputError, match="the mask is transparent all over"):
        read_mask(pixels, 16, 16)


def test_a_mask_of_nearly_all_is_told():
    mask = np.ones((10, 10), bool)
    mask[0, :7] = False
    with pytest.warns(Notice, match="the mask remakes 93 % of the picture"):
        read_mask(mask, 10, 10)
    mask[:1] = False
    read_mask(mask, 10, 10)


@pytest.mark.slow
def test_given_ids_stay_and_samples_do_not_depend_on_the_batch(tiny):
    squares = noise(1, 2, 8, 8)
    hidden = np.zeros((2, 16), bool)
    hidden[:, 5:12] = True
    labels, indices = np.array([1, 2]), np.array([7, 8])
    made = remake(tiny, squares, hidden, labels, SETTINGS, seed=2, indices=indices)
    alone = remake(
        tiny, squares[1:2], hidden[:1], labels[1:2], SETTINGS, seed=2, indices=indices[1:]
    )
    np.testing.assert_array_equal(alone[0], made[1])
    # With nothing but the given ids shown, the picture is their round trip.
    nothing = np.zeros_like(hidden)
    kept = remake(tiny, squares, nothing, labels, SETTINGS, seed=2, indices=indices)
    np.testing.assert_array_equal(kept, tiny.images_of(tiny.ids_of(squares)))
    assert (made != kept).any(axis=(1, 2, 3)).all()
    # In one step, the likeliest ids are the same for equal pictures.
    one = EditSettings(num_steps=1, temperature=4.5)
    for settings, equal in ((one, False), (dataclasses.replace(one, token_temperature=1e-6), True)):
        first, other = remake(
            tiny, squares[[0, 0]], hidden, labels[[0, 0]], settings, seed=2, indices=indices
        )
        assert np.array_equal(first, other) == equal


def paint(windows: list):
    """Fills what is hidden with the window's number; remembers what it was shown."""

    def make(squares, hidden):
        pixels = hidden.reshape(4, 4).repeat(2, 0).repeat(2, 1)
        windows.append(hidden.reshape(4, 4))
        return np.where(pixels[..., None], np.uint8(100 * len(windows)), squares)

    return make


def test_a_picture_grows_window_by_window(tiny):
    image, windows = noise(2, 1, 8, 8), []
    grown = extend(image, "right", 8, tiny.config.tokenizer, paint(windows))[0]
    assert grown.shape == (8, 16, 3)
    np.testing.assert_array_equal(grown[:, :6], image[0, :, :6])  # a token is 2 pixels
    # Each window keeps its left half.
    np.testing.assert_array_equal(windows, np.tile(np.arange(4) >= 2, (2, 4, 1)))
    assert (grown[:, 8:10] == 100).all() and (grown[:, 12:] == 200).all()


@pytest.mark.parametrize("side, turns", [("left", 2), ("up", 1), ("down", 3)])
def test_all_sides_are_alike(tiny, side, turns):
    image = noise(3, 13, 10)
    expected = extend(image[None], "right", 9, tiny.config.tokenizer, paint([]))[0]
    turned = np.rot90(image, turns)
    grown = extend(turned[None], side, 9, tiny.config.tokenizer, paint([]))[0]
    # Resampling a mirrored picture may round otherwise.
    difference = np.rot90(grown, -turns).astype(int) - expected
    assert np.abs(difference).max() <= 1


def test_growing_tells_each_step_of_each_window(tiny, monkeypatch):
    def remake(model, squares, masked, labels, settings, *, progress, **_):
        for step in (3, settings.num_steps):
            progress(step)
        return squares

    monkeypatch.setattr(outpaint, "remake", remake)
    growths = [Growth("left", 8), Growth("down", 3), Growth("right", 20)]
    steps, images = [], noise(4, 1, 8, 8)
    labels, options = np.array([1]), {"seed": 1, "indices": np.arange(1)}
    grow(tiny, images, growths, labels, SETTINGS, **options, progress=steps.append)
    # 8 of 16 columns are new, then 3 of 11 rows as high as wide, then 20 of 36 columns.
    assert steps == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42]
    assert steps[-1] == count_windows(growths, 8, 8, 8) * SETTINGS.num_steps


@pytest.mark.slow
def test_growing_depends_on_seed_and_index_alone(tiny):
    images = np.repeat(noise(4, 1, 8, 8), 2, axis=0)
    growths = [Growth("left", 8), Growth("down", 3)]
    grown = grow(tiny, images, growths, np.array([1, 1]), SETTINGS, seed=1, indices=np.arange(2))
    assert grown.shape == (2, 11, 16, 3)
    # Downwards the model sees 16 columns, half as large: a token is 4 pixels.
    np.testing.assert_array_equal(grown[:, :4, 10:], images[:, :4, 2:])
    assert (grown[0] != grown[1]).any()
    alone = grow(
        tiny, images[:1], growths, np.array([1]), SETTINGS, seed=1, indices=np.arange(1, 2)
    )
    np.testing.assert_array_equal(alone[0], grown[1])


@pytest.mark.parametrize(
    "box, words",
    [
        ((0, 0, 0, 4), "1 or more"),
        ((5, 5, -2, 4), "1 or more"),
        ((-1, 0, 4, 4), "leaves the picture"),
        ((0, 6, 4, 5), "leaves the picture of 10x20"),
        ((0, 0, 20, 10), "all of the picture"),
    ],
)
def test_bad_boxes_are_refused(box, words):
    with pytest.raises(InputError, match=words):
        box_mask(*box, 20, 10)


def run(*args, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.edit", *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(world.draw_scene(77, 0, size=48).image[:, :41]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.slow
def test_a_part_is_made_anew(photo, tmp_path):
    flags = f"--image={photo}", "--label=ball", "--num_steps=4", "--num_samples=2"
    result = run(*flags, "--box=10,8,20,20", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [line["class_name"] for line in lines] == ["ball"] * 2
    assert all("structure_distance" not in line for line in lines)
    before = read_image(photo)
    pictures = [read_image(tmp_path / "out" / line["file"]) for line in lines]
    changed = np.any([picture != before for picture in pictures], axis=(0, 3))
    assert changed[10:30, 8:28].mean() > 0.9
    changed[6:34, 4:32] = False
    assert not changed.any()

    # With a sketch, of another size; the mask is stretched too.
    Image.fromarray(np.uint8(255 * np.eye(8))).save(tmp_path / "mask.png")
    sketch = ROOT / "experiments/sketches/ball.png"
    flags = *flags, "--num_samples=1", f"--mask={tmp_path}/mask.png", f"--sketch={sketch}"
    result = run(*flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "mask.png stretched to the picture's 41x48" in result.stderr
    (line,) = map(json.loads, (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert line["structure_distance"] > 0 and line["lambda_s"] == 0.7


@pytest.mark.slow
def test_a_picture_grows(photo, tmp_path):
    flags = f"--image={photo}", "--label=ball", "--num_steps=4", "--num_samples=1"
    result = run(*flags, "--extend=right,up", "--by=25%", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    grown = read_image(tmp_path / "out/sample_000.png")
    assert grown.shape == (60, 51, 3)
    np.testing.assert_array_equal(grown[17:, :36], read_image(photo)[5:, :36])
    result = run(*flags, "--panorama=2.5", "--seed=4294967295", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    grown = read_image(tmp_path / "out/sample_000.png")
    assert grown.shape == (48, 120, 3)
    np.testing.assert_array_equal(grown[:, 39 + 4 : 80 - 4], read_image(photo)[:, 4:-4])


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(photo, tmp_path):
    image = [f"--image={photo}", "--label=ball"]
    good = [*image, "--box=10,8,20,20"]
    for name, grey in (("empty", 0), ("full", 255)):
        Image.new("L", (41, 48), grey).save(tmp_path / f"{name}.png")
    Image.fromarray(np.uint8(255 * (np.indices((96, 82)).sum(0) % 2))).save(tmp_path / "dots.png")
    Image.open(photo).save(tmp_path / "grid.png")
    cases = {
        "nothing": ([], "no --image"),
        "no label": ([f"--image={photo}", "--box=10,8,20,20"], "without --label"),
        "label": ([f"--image={photo}", "--label=bal", "--box=10,8,20,20"], "'ball'"),
        "missing": (["--image=no.png", "--label=ball", "--box=1,1,2,2"], "no.png"),
        "no task": (image, "found none"),
        "two tasks": ([*good, "--extend=left"], "--box and --extend"),
        "empty": ([*image, f"--mask={tmp_path}/empty.png"], "no white"),
        "full": ([*image, f"--mask={tmp_path}/full.png"], "white all over"),
        "dots": ([*image, f"--mask={tmp_path}/dots.png"], "covers all"),
        "outside": ([*image, "--box=40,8,20,20"], "leaves the picture"),
        "inverted": ([*image, "--box=20,20,-5,10"], "1 or more"),
        "words": ([*image, "--box=20,20,5"], "top,left,height,width"),
        "by 0": ([*image, "--extend=right", "--by=0%"], "--by=0%"),
        "by 900": ([*image, "--extend=right", "--by=900%"], "--by=900%"),
        "by nothing": ([*image, "--extend=right", "--by=50"], "--by=50"),
        "by alone": ([*good, "--by=50%"], "without --extend"),
        "side": ([*image, "--extend=right,east"], "--extend=right,east"),
        "narrow": ([*image, "--panorama=0.5"], "--panorama=0.5"),
        "wide": ([*image, "--panorama=nan"], "--panorama=nan"),
        "sketch": ([*image, "--extend=right", f"--sketch={photo}"], "--mask or --box"),
        "structure": ([*good, "--lambda_s=1"], "--lambda_s without --sketch"),
        "noise": ([*good, "--temperature=1", f"--sketch={photo}"], "--structure_temperature"),
        "temperature": ([*good, "--temperature=-1"], "--temperature=-1"),
        "token": ([*good, "--token_temperature=-1"], "--token_temperature=-1"),
        "rise": ([*good, "--guidance_schedule=rising"], "--guidance_schedule without --sketch"),
        "steps": ([*good, "--num_steps=0"], "--num_steps=0"),
        "seed": ([*good, "--seed=-1"], "--seed=-1"),
        "samples": ([*good, "--num_samples=0"], "--num_samples=0"),
        "onto itself": (
            [f"--image={tmp_path}/grid.png", *good[1:], f"--output_dir={tmp_path}"],
            "overwritten",
        ),
    }
    assert_refused("edit", cases, cwd=tmp_path)
    assert not (tmp_path / "out").exists()
