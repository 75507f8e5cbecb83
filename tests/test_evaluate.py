"""The evaluation: its figures on hand-made inputs, and the command itself."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.judge import mean_and_error, shared_token_share, white_background
from maskgit_jax import checkpoint, config, world
from maskgit_jax.model import builtin_folder
from maskgit_jax.tokenizer import Tokenizer
from maskgit_jax.transformer import Transformer

ROOT = Path(__file__).parents[1]


def test_white_background_looks_at_the_border_alone():
    white = np.ones((10, 10, 3), np.float32)
    framed_dark = white.copy()
    framed_dark[1:-1, 1:-1] = 0.0
    framed_white = np.zeros_like(white)
    framed_white[1:-1, 1:-1] = 1.0
    yellowish = white * np.float32([1, 1, 0.93])
    images = np.stack([white, framed_dark, framed_white, yellowish])
    np.testing.assert_array_equal(white_background(images), [True, True, False, False])


def test_white_background_needs_three_fifths_of_the_border():
    border = [(y, x) for y in range(11) for x in range(11) if y in (0, 10) or x in (0, 10)]
    assert len(border) == 40  # each pixel once, corners too
    images = np.ones((2, 11, 11, 3), np.float32)
    for image, dark in zip(images, (16, 17), strict=True):
        for y, x in border[:dark]:
            image[y, x, 1] = 0.9
    np.testing.assert_array_equal(white_background(images), [True, False])


def test_white_background_agrees_with_the_world():
    scenes = [world.draw_scene(4, index) for index in range(100)]
    images = np.stack([scene.image for scene in scenes]).astype(np.float32) / 255
    expected = [scene.background == "white" for scene in scenes]
    np.testing.assert_array_equal(white_background(images), expected)


def test_shared_token_share_counts_the_cells_that_the_mask_touches():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 1, 1] = True  # one pixel: cell 0 of 4 x 4
    masks[1, 1:3, 1:3] = True  # cells 0, 1, 4, 5
    sketch_ids = np.tile(np.arange(16), (3, 1))
    ids = np.full((3, 16), 99)
    ids[0, [0, 7]] = [0, 7]  # cell 7 is outside the mask
    ids[1, [0, 1, 4, 15]] = [0, 1, 4, 15]
    ids[2] = sketch_ids[2]
    np.testing.assert_allclose(shared_token_share(ids, sketch_ids, masks), [1.0, 0.75, 0.0])


def test_mean_and_error_of_known_samples():
    mean, error = mean_and_error(np.array([1.0, 2.0, 3.0, 6.0]))
    # Deviations -2, -1, 0, 3: variance 14 / 3.
    assert mean == 3.0 and error == pytest.approx(math.sqrt(14 / 3 / 4))
    shares = np.array([True] * 30 + [False] * 10)
    mean, error = mean_and_error(shares)
    assert mean == 0.75 and error == pytest.approx(math.sqrt(0.75 * 0.25 / 39))
    mean, error = mean_and_error(np.array([0.5]))
    assert mean == 0.5 and math.isnan(error)


def evaluate(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def write_random_model(folder: Path, **changes) -> Path:
    """A model of the demo's format with random weights: two small layers, 48 pixels, 36 ids."""
    settings = json.loads((builtin_folder("demo") / "config.json").read_text())
    settings["transformer"] |= {
        "codebook_size": 16,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 16,
        "sequence_length": 37,
    }
    settings["tokenizer"] |= {
        "image_size": 48,
        "latent_size": 6,
        "filters": 4,
        "channel_multipliers": [1, 1, 1, 1],
        "embedding_dim": 4,
        "codebook_size": 16,
    }
    settings |= changes
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    cfg = config.read_config(folder / "config.json")
    for name, module, example in (
        ("tokenizer", Tokenizer(cfg.tokenizer), jnp.zeros((1, 48, 48, 3))),
        ("maskgit", Transformer(cfg.transformer), jnp.zeros((1, 37), jnp.int32)),
    ):
        params = jax.jit(module.init)(jax.random.key(0), example)["params"]
        checkpoint.write_checkpoint(folder / f"{name}_checkpoint", params)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_sketches=0"], "--num_sketches=0: expected 1 or more"),
        (["--num_sketches=many"], "num_sketches"),
        (["--unguided_steps=0"], "--unguided_steps=0: expected 1 or more"),
        (["--model=no/such/folder"], "no/such/folder"),
        (["--model=imagenet256"], "--model=imagenet256: an ImageNet model"),
        (["--output_dir=/proc/here"], "--output_dir=/proc/here: cannot write there"),
    ],
)
def test_bad_flags_end_in_one_line(arguments, message):
    result = evaluate(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("evaluate: ") and result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.slow
def test_a_model_of_other_classes_or_a_setting_out_of_range_is_refused(tmp_path):
    names = ["apple", *world.CLASS_NAMES[1:]]
    others = write_random_model(tmp_path / "others", class_names=names)
    own = write_random_model(tmp_path / "own")
    for arguments, message in (
        ([f"--model={others}"], "its classes are not the demo world's"),
        ([f"--model={own}", "--lambda_s=1.5"], "lambda_s is 1.5: expected a number from 0 to 1"),
        ([f"--model={own}", "--layers=7"], "layer 7 is out of range"),
    ):
        result = evaluate(*arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert result.stderr.count("\n") == 1 and message in result.stderr


@pytest.mark.slow
def test_evaluation_of_a_random_model(tmp_path):
    model, out = write_random_model(tmp_path / "model"), tmp_path / "out"
    flags = [f"--model={model}", "--num_sketches=14", "--num_steps=3", "--seed=5"]
    result = evaluate(*flags, f"--output_dir={out}")
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["settings"]["num_steps"] == 3 and evaluation["settings"]["seed"] == 5
    rows = {row["pictures"]: row for row in evaluation["rows"]}
    assert list(rows) == [
        "real photos",
        "tokenizer round trip",
        "sketches as answers",
        "unguided",
        "lambda_s = 0",
        "guided",
        "guided, other sketches",
    ]
    assert {row["n"] for row in rows.values()} == {14}
    assert rows["real photos"]["silhouette_iou"]["mean"] > 0.8
    assert rows["real photos"]["class_accuracy"]["mean"] > 0.8
    assert rows["real photos"]["structure_distance"] is None
    sketches = rows["sketches as answers"]
    assert sketches["white_background"] == {"mean": 1.0, "standard_error": 0.0}
    assert sketches["sketch_tokens"] == {"mean": 1.0, "standard_error": 0.0}
    assert sketches["structure_distance"]["mean"] == pytest.approx(0, abs=1e-6)
    assert rows["guided"]["structure_distance"]["mean"] > 0

    # The table says the same.
    lines = result.stdout.splitlines()
    assert lines[0].startswith("pictures ") and lines[0].endswith(" n")
    for line, row in zip(lines[1:8], rows.values(), strict=True):
        iou = row["silhouette_iou"]
        assert line.startswith(row["pictures"])
        assert f"{iou['mean']:.3f} ± {iou['standard_error']:.3f}" in line

    with Image.open(out / "grid.png") as grid:
        assert grid.size == (12 * (96 + 10) + 8, 4 * (96 + 10) + 8)

    # Random numbers are the seed's and the scene's: batches do not matter.
    again = evaluate(*flags, "--batch_size=14")
    assert again.returncode == 0 and again.stdout.splitlines()[:8] == lines[:8]
