"""The evaluation command, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from PIL import Image

from experiments.demo_world import world
from maskgit_jax import config
from maskgit_jax.checkpoints import checkpoint
from maskgit_jax.model import builtin_folder
from maskgit_jax.networks.tokenizer import Tokenizer
from maskgit_jax.networks.transformer import Transformer
from tests.commands import ROOT, assert_refused


def evaluate(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def write_random_model(
    folder: Path, transformer: Any = None, tokenizer: Any = None, **changes
) -> Path:
    """A model of the demo's format with random weights: two small layers, 96 pixels, 36 ids.

    Changes of the transformer's and the tokenizer's settings, and of the others.
    """
    settings = json.loads((builtin_folder("demo") / "config.json").read_text())
    settings["transformer"] |= {
        "codebook_size": 16,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 16,
        "sequence_length": 37,
        **(transformer or {}),
    }
    settings["tokenizer"] |= {
        "image_size": 96,
        "latent_size": 6,
        "filters": 4,
        "channel_multipliers": [1, 1, 1, 1, 1],
        "embedding_dim": 4,
        "codebook_size": 16,
        **(tokenizer or {}),
    }
    settings |= changes
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    cfg = config.read_config(folder / "config.json")
    side, length = cfg.tokenizer.image_size, cfg.transformer.sequence_length
    for name, module, example in (
        ("tokenizer", Tokenizer(cfg.tokenizer), jnp.zeros((1, side, side, 3))),
        ("maskgit", Transformer(cfg.transformer), jnp.zeros((1, length), jnp.int32)),
    ):
        params = jax.jit(module.init)(jax.random.key(0), example)["params"]
        checkpoint.write_checkpoint(folder / f"{name}_checkpoint", params)
    return folder


def test_bad_flags_end_in_one_line(tmp_path):
    cases = {
        "few": (["--num_sketches=4"], "--num_sketches=4: expected a whole number, 5 or more"),
        "many": (["--num_sketches=many"], "num_sketches"),
        "reference": (
            ["--num_reference=0"],
            "--num_reference=0: expected a whole number, 5 or more",
        ),
        "steps": (["--unguided_steps=0"], "--unguided_steps=0: expected a whole number, 1 or more"),
        "curve": (
            ["--lambda_s_curve=0,1.5"],
            "--lambda_s_curve=0,1.5: expected a number from 0 to 1",
        ),
        "letter": (["--lambda_s_curve=a"], "--lambda_s_curve=a: expected a number from 0 to 1"),
        "condition": (["--condition=photo"], "condition"),
        "both": (["--drawings=x", "--condition=edges"], "--drawings takes no --lambda_s_curve"),
        "model": (["--model=no/such/folder"], "no/such/folder"),
        "ImageNet": (["--model=imagenet256"], "--model=imagenet256: an ImageNet model"),
    }
    assert_refused("evaluate", cases, cwd=tmp_path)


@pytest.mark.slow
def test_what_is_refused_once_the_model_is_loaded(tmp_path):
    names = ["apple", *world.CLASS_NAMES[1:]]
    others = write_random_model(tmp_path / "others", class_names=names)
    own = write_random_model(tmp_path / "own")
    cases = {
        "classes": ([f"--model={others}"], "its classes are not the demo world's"),
        "lambda": ([f"--model={own}", "--lambda_s=1.5"], "--lambda_s=1.5: expected a number"),
        "layer": ([f"--model={own}", "--layers=7"], "layer 7 is out of range"),
        "drawings": ([f"--model={own}", "--drawings=no/such"], "--drawings=no/such: found 0"),
        "folder": ([f"--model={own}", "--output_dir=/proc/here"], "/proc/here: cannot write there"),
    }
    assert_refused("evaluate", cases, cwd=tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("evaluate") / "model")


ROWS = [
    "real photos",
    "tokenizer round trip",
    "sketches as answers",
    "unguided",
    "guided, other sketches",
    "lambda_s = 0",
    "guided",
    "guided, lambda_s = 0.5",
]


@pytest.mark.slow
def test_evaluation_of_a_random_model(model, tmp_path):
    out = tmp_path / "out"
    flags = [f"--model={model}", "--num_sketches=14", "--num_reference=60", "--num_steps=3"]
    flags += ["--lambda_s_curve=0,0.5,0.7", "--condition=scribble", "--seed=5"]
    result = evaluate(*flags, f"--output_dir={out}")
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((out / "evaluation.json").read_text())
    settings = evaluation["settings"]
    assert settings["num_steps"] == 3 and settings["seed"] == 5 and settings["num_sketches"] == 14
    rows = evaluation["rows"]
    assert list(rows) == ROWS
    photos, sketches = rows["real photos"], rows["sketches as answers"]
    assert photos["silhouette_iou"]["value"] > 0.8 and photos["part_miou"]["value"] > 0.5
    assert photos["class_accuracy"]["value"] > 0.9 and photos["structure_distance"] is None
    assert photos["precision"]["value"] > 0.7 and photos["recall"]["value"] > 0.7
    assert sketches["white_background"] == {"value": 1.0, "standard_error": 0.0}
    assert sketches["sketch_tokens"] == {"value": 1.0, "standard_error": 0.0}
    assert sketches["edge_f_score"]["value"] > 0.95
    assert sketches["ink_to_edge"]["value"] < 0.03
    assert sketches["structure_distance"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["guided"]["structure_distance"]["value"] > 0
    # A tokenizer without training paints nothing: farther from photos than drawings are.
    for name in ("unguided", "guided"):
        distances = [rows[key]["frechet_distance"]["value"] for key in ("real photos", name)]
        assert distances[1] > 2 * distances[0]
        assert rows[name]["silhouette_iou"]["value"] < 0.5
    assert rows["tokenizer round trip"]["psnr"]["value"] < 20

    # The table says the same.
    lines = result.stdout.splitlines()
    assert lines[0].startswith("| pictures ") and len({len(line) for line in lines[:10]}) == 1
    for line, (name, row) in zip(lines[2:10], rows.items(), strict=True):
        iou = row["silhouette_iou"]
        assert line.startswith(f"| {name} ")
        assert f"| {iou['value']:.3f} ± {iou['standard_error']:.3f} |" in line
    assert lines[10].startswith("n = 14 scenes, 60 reference photos")

    with Image.open(out / "grid.png") as grid:
        assert grid.size == (12 * (96 + 10) + 8, 16 + 4 * (96 + 10) + 8)
    with Image.open(out / "tradeoff.png") as plot:
        assert min(plot.size) >= 500

    # Random numbers are the seed's and the scene's: batches do not matter. (Where scores of this
    # random model agree to seven digits, rounding may swap two ids of a guided picture.)
    again = evaluate(*flags, "--batch_size=14", f"--output_dir={tmp_path / 'again'}")
    assert again.returncode == 0 and again.stdout.splitlines()[:6] == lines[:6]
    repeated = json.loads((tmp_path / "again" / "evaluation.json").read_text())["rows"]
    for name, row in rows.items():
        for column in ("silhouette_iou", "white_background"):
            if row[column] is not None:
                other = repeated[name][column]["value"]
                assert other == pytest.approx(row[column]["value"], abs=0.02)


@pytest.mark.slow
def test_evaluation_of_drawings(model, tmp_path):
    folder, out = tmp_path / "drawings", tmp_path / "out"
    (folder / "fish").mkdir(parents=True)
    for index in range(6):
        label = world.CLASS_NAMES.index("fish" if index % 2 else "house")
        sketch = Image.fromarray(world.draw_scene(3, index, label=label).sketch)
        sketch.save(folder / ("fish" if index % 2 else "") / f"house_{index}.png")
    result = evaluate(
        f"--model={model}", f"--drawings={folder}", "--num_steps=2", f"--output_dir={out}"
    )
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((out / "drawings.json").read_text())
    assert evaluation["settings"]["num_drawings"] == 6
    rows = evaluation["rows"]
    assert list(rows) == ["unguided", "guided"]
    for row in rows.values():
        for name in ("nearer_than_same_class", "nearer_than_other_class", "class_accuracy"):
            # Six drawings, one or two samples of each.
            assert row[name]["value"] * 12 == pytest.approx(round(row[name]["value"] * 12))
    assert rows["guided"]["structure_distance"]["value"] > 0
    assert "n = 6 drawings, 2 guided samples of each" in result.stdout
    with Image.open(out / "grid.png") as grid:
        assert grid.size == (6 * (96 + 10) + 8, 16 + 4 * (96 + 10) + 8)

    Image.new("RGB", (20, 20)).save(folder / "dragon_1.png")
    result = evaluate(f"--model={model}", f"--drawings={folder}")
    assert result.returncode == 2 and "dragon_1.png: neither its name" in result.stderr
