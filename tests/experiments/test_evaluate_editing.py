"""The measures of edits, and the command that prints them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.metrics.seams import mean_colour_fill, ratio_and_error, seam, seam_steps
from maskgit_jax.images import read_image
from tests.commands import ROOT, assert_refused


def brute_force_steps(image: np.ndarray, mask: np.ndarray, distance: int) -> float:
    inside = {
        (row + up, column + left)
        for row, column in np.argwhere(mask)
        for up in range(-distance, distance + 1)
        for left in range(-distance, distance + 1)
    }
    height, width = mask.shape
    steps = [
        np.abs(image[row, column] - image[other]).mean()
        for row, column in np.ndindex(height, width)
        for other in ((row + 1, column), (row, column + 1))
        if other[0] < height and other[1] < width
        if ((row, column) in inside) != (other in inside)
    ]
    return float(np.mean(steps))


def test_steps_are_those_across_the_widened_outlines():
    images = np.random.default_rng(0).random((3, 12, 14, 3))
    mask = np.zeros((12, 14), bool)
    mask[4:7, 5:9] = mask[3, 6] = True
    expected = [[brute_force_steps(image, mask, d) for d in range(3)] for image in images]
    np.testing.assert_allclose(seam_steps(images, mask, 2), expected)


def test_a_seam_is_1_where_nothing_changed_and_shows_where_something_did():
    images = np.random.default_rng(1).random((20, 12, 12, 3)) * 0.1
    mask = np.zeros((12, 12), bool)
    mask[4:8, 4:8] = True
    reference = seam_steps(images, mask, 2)
    assert seam(reference, reference) == (1.0, 0.0)
    edited = images + 0.5 * mask[..., None]
    steps = seam_steps(edited, mask, 2)
    value, error = seam(steps, reference)
    assert value == steps[:, 0].mean() / reference[:, 0].mean() > 5
    assert 0 < error < 1
    np.testing.assert_allclose(steps[:, 1:], reference[:, 1:])


def test_a_ratio_s_error_is_that_of_many_draws():
    rng = np.random.default_rng(2)
    values, reference = rng.normal(2, 0.5, (2, 400, 100))
    ratios, errors = np.transpose(
        [ratio_and_error(v, r) for v, r in zip(values, reference, strict=True)]
    )
    np.testing.assert_allclose(errors.mean(), ratios.std(), rtol=0.15)


def test_a_hole_has_the_mean_colour_of_the_rest():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :2], image[0, 3, 3] = (10, 20, 30), 255
    mask = np.zeros((4, 4), bool)
    mask[3, 3] = mask[0, 0] = True
    filled = mean_colour_fill(image, mask)
    assert (filled[0, mask] == np.rint(np.array([10, 20, 30]) * 7 / 14)).all()
    np.testing.assert_array_equal(filled[0, ~mask], image[0, ~mask])


@pytest.mark.slow
def test_the_tables_are_printed_and_written(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.evaluate_editing", "--num_images=3"),
            *("--num_steps=2", "--batch_size=2", "--output_dir=out"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    for table in ("inpainting", "outpainting"):
        rows = json.loads((tmp_path / "out" / f"{table}.json").read_text())["rows"]
        assert rows["photos"]["seam"] == {"value": 1.0, "standard_error": 0.0}
        assert rows["photos"]["class"]["value"] == 1
        for name in ("photos", "mean colour", "sampled again"):
            assert rows[name]["kept"]["value"] == 1
        assert rows["mean colour"]["edge"]["value"] > rows["sampled again"]["edge"]["value"]
    assert "| as the next class | " in result.stdout
    assert read_image(tmp_path / "out/grid.png").shape[1] > 3 * 96


@pytest.mark.slow
def test_bad_input_is_one_line_and_status_2(tmp_path):
    cases = {
        "one": (["--num_images=1"], "--num_images=1"),
        "steps": (["--num_steps=0"], "--num_steps=0"),
        "seed": (["--seed=-1"], "--seed=-1"),
        "temperature": (["--temperature=inf"], "--temperature=inf"),
        "model": (["--model=imagenet256"], "--model=imagenet256"),
    }
    assert_refused("evaluate_editing", cases, cwd=tmp_path)
